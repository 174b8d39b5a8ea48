"""Training strategies as rows: what they train on, from where, and which tensors.

A row is (training set, start, tensors). "initial" starts from the backbone's weights with the
pre-training recipe; "pretrained" starts from the ERM model of the same setting and seed, which all
rows share, with the fine-tuning recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from datasets.mixing import Data
from models import backbones
from models.finetune import freeze_all_but
from models.lora import add_lora, merge_lora
from models.method import Method
from models.selectors import (
    OneBlock,
    Selector,
    adapters,
    every_tensor,
    output_layer,
    random_of_same_size,
    random_share,
    sensitive_to_bias,
)
from utils.blocks import RESNET_BLOCKS
from utils.engine import PREEMPTION, Recipe, fit
from utils.files import write_json
from utils.runs import claim, exclusive, fingerprint, finish, read_log, read_record


@dataclass(frozen=True)
class Strategy:
    """One row of the comparison; `run` carries it out in a run folder and returns the method.

    uses_attributes: which protected labels of the REAL images the row needs ("none" or "train").
    The generated images' labels are those of their prompts and are nobody's annotation.
    """

    training_set: str  # "real", "synthetic_balanced", "supplemented" or "repaired" (mixing.Data)
    start: str  # "initial" or "pretrained"
    tensors: Selector = every_tensor
    paper_row: str | None = None  # its name in paper_tables/aim_fair.csv
    uses_attributes: str = "none"
    adapter: Callable[..., None] | None = None  # adds tensors to the pre-trained model
    defaults: dict = field(default_factory=dict)  # hyper-parameters beside the flags
    ranges: dict = field(default_factory=dict)

    @property
    def needs_synthetic(self) -> bool:
        return self.training_set != "real"

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that the backbone must have (utils.blocks)."""
        return (self.tensors.block,) if isinstance(self.tensors, OneBlock) else ()

    def tables(self, data: Data) -> dict:
        """The image tables the row learns from, by the name of their saved list."""
        tables = {"train": data.real}
        if self.needs_synthetic:
            tables |= {self.training_set: getattr(data, self.training_set)}
        if self.tensors in (sensitive_to_bias, random_of_same_size):
            tables |= {"synthetic_biased": data.synthetic_biased}
        return tables

    def run(self, data: Data, settings, seed: int, folder: Path, shared: Path) -> tuple:
        """(method holding the kept model, log, mask or None)."""
        train = getattr(data, self.training_set)
        if self.start == "initial" and self.training_set == "real":
            model, log = pretrain(data, settings, seed, shared)
            return _method(model, settings.pretrain, settings), log, None
        if self.start == "initial":
            model = new_model(settings, seed)
            log = _fit(model, data, train, settings.pretrain, settings, folder, "pretrain")
            return _method(model, settings.pretrain, settings), log, None
        model, log = pretrain(data, settings, seed, shared)
        if self.adapter is not None:
            self.adapter(model, seed, **(self.defaults | settings.options))
        mask = _mask(self.tensors, model, data, settings, folder)
        freeze_all_but(model, {name for name, chosen in mask["tensors"].items() if chosen})
        log = log + _fit(model, data, train, settings.finetune, settings, folder, "finetune")
        if self.adapter is not None:
            merge_lora(model)
        return _method(model, settings.finetune, settings), log, mask


# The rows of Tables 3, 4, 8 and 9. A row with another value of a flag is no row of its own:
# `--methods aim_fair --criterion cosine --name aim_fair_cosine` (see runner.sh).
STRATEGIES: dict[str, Strategy] = {
    "erm": Strategy("real", "initial", paper_row="Baseline (ERM)"),
    "synthetic_only": Strategy(
        "synthetic_balanced", "initial", paper_row="Trained on synthetic data"
    ),
    "data_supplementation": Strategy("supplemented", "initial", paper_row="Data supplementation"),
    "data_repairing": Strategy(
        "repaired", "initial", paper_row="Data repairing", uses_attributes="train"
    ),
    "linear_probing": Strategy(
        "synthetic_balanced", "pretrained", output_layer, paper_row="Linear probing"
    ),
    "full_finetuning": Strategy("synthetic_balanced", "pretrained", paper_row="Full fine-tuning"),
    "random_40": Strategy("synthetic_balanced", "pretrained", random_share(0.40)),
    "random_55": Strategy("synthetic_balanced", "pretrained", random_share(0.55)),
    "random_70": Strategy("synthetic_balanced", "pretrained", random_share(0.70)),
    "random_85": Strategy("synthetic_balanced", "pretrained", random_share(0.85)),
    "random_mask": Strategy("synthetic_balanced", "pretrained", random_of_same_size),
    **{
        f"update_{block}": Strategy("synthetic_balanced", "pretrained", OneBlock(block))
        for block in RESNET_BLOCKS
    },
    **{
        f"freeze_{block}": Strategy(
            "synthetic_balanced", "pretrained", OneBlock(block, frozen=True)
        )
        for block in RESNET_BLOCKS
    },
    "lora": Strategy(
        "synthetic_balanced", "pretrained", adapters, paper_row="LoRA", adapter=add_lora,
        # the paper gives neither; 8 and 8 are peft's defaults
        defaults={"rank": 8, "alpha": 8.0}, ranges={"rank": (1, 2048), "alpha": (1e-6, 1e6)},
    ),
    "aim_fair": Strategy(
        "synthetic_balanced", "pretrained", sensitive_to_bias, paper_row="AIM-Fair"
    ),
}


def pretrain(data: Data, settings, seed: int, shared: Path) -> tuple:
    """The ERM model of this setting and seed, trained once and shared; (model, log)."""
    config = settings.pretrain_config | {"seed": seed, "real": settings.digests["real"]}
    folder = shared / f"pretrain_seed{seed}_{fingerprint(config)}"
    with exclusive(folder, PREEMPTION.check):
        model = new_model(settings, seed)
        whole = all((folder / name).exists() for name in ("model.pt", "log.jsonl"))
        if not (claim(folder, config) and whole):
            _fit(model, data, data.real, settings.pretrain, settings, folder, "pretrain")
        finish(folder)
        model.load_state_dict(backbones.load_weights(folder / "model.pt", "the pre-trained model"))
        log = read_log(folder / "log.jsonl")
    return model, log


def new_model(settings, seed: int) -> torch.nn.Module:
    """The setting's backbone at its initial weights, on its device; sets torch's seed."""
    torch.manual_seed(seed)
    model = backbones.build(settings.backbone, settings.pretrained)
    return model.to(settings.device, memory_format=torch.channels_last)


def _method(model, recipe: Recipe, settings, *, compiled: bool = False) -> Method:
    return Method(
        model, recipe, autocast=settings.autocast, compiled=compiled,
        frozen_batch_norm=settings.batch_norm == "freeze" and recipe is settings.finetune,
    )


def _fit(model, data: Data, train, recipe: Recipe, settings, folder: Path, name: str) -> list:
    """Train and load the kept epoch's weights into `model`."""
    method = _method(model, recipe, settings, compiled=settings.compile)
    val = data.loader(data.val, train=False) if data.val is not None else None
    log = fit(method, data.loader(train, train=True), val, folder, name)
    model.load_state_dict(backbones.load_weights(folder / "model.pt", "the kept epoch"))
    return log


def _mask(selector: Selector, model, data: Data, settings, folder: Path) -> dict:
    """The mask, from the run folder where it was already computed."""
    path = folder / "mask.json"
    if not path.exists():
        write_json(path, selector(model, data, settings))
    return read_record(path, "tensors")
