"""Training strategies as rows: what they train on, from where, and which tensors.

A row is (training set, start, tensors). "initial" starts from the backbone's weights with the
pre-training recipe; "pretrained" starts from the ERM model of the same setting and seed, which all
rows share, with the fine-tuning recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.mixing import TRAINING_SETS, Data
from models import backbones
from models.finetune import freeze_all_but
from models.method import Method, bce
from models.selection import differences, resolve_k, select_tensors
from utils.engine import PREEMPTION, Recipe, fit
from utils.errors import UserError
from utils.files import write_json
from utils.gradients import mean_gradients
from utils.runs import claim, exclusive, fingerprint, finish, read_record


def every_tensor(model, data: Data, settings, folder: Path) -> dict:
    """All tensors: full fine-tuning."""
    return {"tensors": dict.fromkeys(backbones.parameter_names(model), True), "criterion": "all"}


def sensitive_to_bias(model, data: Data, settings, folder: Path) -> dict:
    """AIM-Fair's mask: three mean gradients at the pre-trained weights, two rankings."""
    names = backbones.parameter_names(model)
    k = resolve_k(settings.top_k, len(names))
    gradients = []
    for title, table in (
        ("gradient, real", data.real),
        ("gradient, synthetic biased", data.synthetic_biased),
        ("gradient, synthetic balanced", data.synthetic_balanced),
    ):
        loader = data.loader(table, train=True)
        gradients.append(
            mean_gradients(
                model, loader.epoch(0), bce, count=len(loader), name=title, check=PREEMPTION.check
            )
        )
    real, biased, balanced = gradients
    try:
        chosen = select_tensors(real, biased, balanced, k, settings.criterion)
    except ValueError as error:
        raise UserError(f"no mask: {error}; lower --pretrain-lr or look at the images") from None
    if not chosen:
        raise UserError(
            f"the mask is empty: the two sets of {k} tensors share none; raise --top-k"
        )
    return {
        "tensors": {name: name in chosen for name in names},
        "k": k,
        "criterion": settings.criterion,
        "delta1": differences(real, biased, settings.criterion),
        "delta2": differences(biased, balanced, settings.criterion),
    }


@dataclass(frozen=True)
class Strategy:
    """One row of the comparison; `run` carries it out in a run folder and returns the method."""

    training_set: str
    start: str  # "initial" or "pretrained"
    tensors: Callable[..., dict] = every_tensor
    paper_row: str | None = None  # its name in paper_tables/aim_fair.csv
    uses_attributes = "none"

    @property
    def needs_synthetic(self) -> bool:
        return self.training_set != "real" or self.tensors is sensitive_to_bias

    def run(self, data: Data, settings, seed: int, folder: Path, shared: Path) -> tuple:
        """(method holding the kept model, log, mask or None)."""
        train = TRAINING_SETS[self.training_set](data)
        if self.start == "initial" and self.training_set == "real":
            model, log = pretrain(data, settings, seed, shared)
            return _method(model, settings.pretrain, settings), log, None
        if self.start == "initial":
            model = new_model(settings, seed)
            log = _fit(model, data, train, settings.pretrain, settings, folder, "pretrain")
            return _method(model, settings.pretrain, settings), log, None
        model, log = pretrain(data, settings, seed, shared)
        mask = _mask(self.tensors, model, data, settings, folder)
        freeze_all_but(model, {name for name, chosen in mask["tensors"].items() if chosen})
        log = log + _fit(model, data, train, settings.finetune, settings, folder, "finetune")
        return _method(model, settings.finetune, settings), log, mask


STRATEGIES: dict[str, Strategy] = {
    "erm": Strategy("real", "initial", paper_row="Baseline (ERM)"),
    "full_finetuning": Strategy("synthetic", "pretrained", paper_row="Full fine-tuning"),
    "aim_fair": Strategy("synthetic", "pretrained", sensitive_to_bias, paper_row="AIM-Fair"),
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
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return model, log


def new_model(settings, seed: int) -> torch.nn.Module:
    """The setting's backbone at its initial weights, on its device; sets torch's seed."""
    torch.manual_seed(seed)
    model = backbones.build(settings.backbone, settings.pretrained)
    return model.to(settings.device, memory_format=torch.channels_last)


def _method(model, recipe: Recipe, settings) -> Method:
    return Method(
        model, recipe, autocast=settings.autocast,
        frozen_batch_norm=settings.batch_norm == "freeze" and recipe is settings.finetune,
    )


def _fit(model, data: Data, train, recipe: Recipe, settings, folder: Path, name: str) -> list:
    """Train and load the kept epoch's weights into `model`."""
    method = _method(model, recipe, settings)
    val = data.loader(data.val, train=False) if data.val is not None else None
    log = fit(method, data.loader(train, train=True), val, folder, name)
    model.load_state_dict(backbones.load_weights(folder / "model.pt", "the kept epoch"))
    return log


def _mask(selector, model, data: Data, settings, folder: Path) -> dict:
    """The mask, from the run folder where it was already computed."""
    path = folder / "mask.json"
    if not path.exists():
        write_json(path, selector(model, data, settings, folder))
    return read_record(path)
