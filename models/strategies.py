"""Training strategies as rows: what they train on, from where, and which tensors.

A row is (training set, start, tensors, paper row). "initial" starts from the backbone's weights
with the pre-training recipe; "pretrained" starts from the ERM model of the same setting and seed,
which all rows share, with the fine-tuning recipe. A variant is a row with other values of flags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from models.finetune import freeze_all_but
from models.lora import add_lora, merge_lora
from models.masks import GIVEN
from models.method import Method, fit_stage, pretrained
from models.selection import (
    ADAPTERS,
    ALL,
    OUTPUT_LAYER,
    RANDOM_OF_SAME_SIZE,
    SENSITIVE_TO_BIAS,
    Rule,
    one_block,
    random_share,
)
from utils.blocks import RESNET_BLOCKS
from utils.config import Config
from utils.files import write_json
from utils.recipe import Recipe
from utils.records import read_record
from utils.run import Run


class ERM(Method):
    """The pre-trained model itself: every row of the setting and seed starts from it."""

    stages = ("pretrain",)
    paper_row = "Baseline (ERM)"

    @classmethod
    def pretrain(cls, run: Run) -> Method:
        return cls(pretrained(run), run.config.pretrain, autocast=run.config.autocast)


class FineTuning(Method):
    """Some tensors of the ERM model trained on: `tensors` is the rule that selects them."""

    stages = ("finetune",)
    training_set = "synthetic_balanced"
    tensors: ClassVar[Rule] = ALL

    @classmethod
    def starting_model(cls, run: Run) -> nn.Module:
        """The pre-trained model, and what is added to it."""
        return pretrained(run)

    @classmethod
    def select(cls, model: nn.Module, run: Run) -> set[str]:
        """The tensors that are updated; mask.json holds them, and why."""
        path = run.folder / "mask.json"
        if not path.exists():
            write_json(path, cls.tensors.mask(model, run))
        mask = read_record(path, "tensors", "passes")
        run.passes += mask["passes"]
        return {name for name, chosen in mask["tensors"].items() if chosen}

    @classmethod
    def recipe_of(cls, config: Config) -> Recipe:
        return config.finetune

    @classmethod
    def finetune(cls, run: Run) -> Method:
        return cls.train_on(cls.starting_model(run), run)

    @classmethod
    def train_on(cls, model: nn.Module, run: Run) -> Method:
        """The stage `finetune` on a given model, which is changed."""
        freeze_all_but(model, cls.select(model, run))
        return fit_stage(run, "finetune", lambda: cls(
            model, cls.recipe_of(run.config), options=run.options, autocast=run.config.autocast,
            compiled=run.config.compile, frozen_batch_norm=run.config.batch_norm == "freeze",
            **cls.arguments(run),
        ), lambda: cls.batches(run), cls.validation(run))


class ERMLonger(FineTuning):
    """The control: the ERM model trained on as the fine-tuned rows are, on its own biased images.

    It has no fewer image passes than AIM-Fair, which of those rows has the most: the balanced
    synthetic set once an epoch and three mean gradients. The rate's milestone is as much later.
    """

    training_set = "real"

    @classmethod
    def recipe_of(cls, config: Config) -> Recipe:
        recipe, balanced = config.finetune, config.synthetic_ratio  # in training sets
        passes = recipe.epochs * balanced + 1 + config.synthetic_biased_ratio + balanced
        epochs = math.ceil(round(passes, 6))
        milestone = math.ceil(recipe.milestone * epochs / recipe.epochs)
        return replace(recipe, epochs=epochs, milestone=milestone)


class LoRA(FineTuning):
    """Low-rank updates of the frozen weights (models/lora.py), merged into them at the end."""

    tensors = ADAPTERS
    paper_row = "LoRA"
    # the paper gives neither; 8 and 8 are peft's defaults
    defaults = {"rank": 8, "alpha": 8.0}
    ranges = {"rank": (1, 2048), "alpha": (1e-6, 1e6)}

    @classmethod
    def starting_model(cls, run: Run):
        model = pretrained(run)
        add_lora(model, run.seed, **run.options)
        return model

    @classmethod
    def finetune(cls, run: Run) -> Method:
        trained = super().finetune(run)
        merge_lora(trained.model)
        return trained


def row(
    training_set: str, start: str | type[FineTuning], tensors: Rule = ALL,
    paper_row: str | None = None, **more: Any,
) -> type[Method]:
    """One row of the comparison, a subclass of Method.

    training_set: a table of datasets.mixing.Data. start: "initial", "pretrained" or a subclass of
    FineTuning, which starts there too. more: further class attributes. The synthetic images' labels
    are those of their prompts and nobody's annotation.
    """
    base = {"initial": Method, "pretrained": FineTuning}.get(start, start)
    sets = tuple(name for name in tensors.sets if name not in ("real", training_set))
    return type("Row", (base,), {
        "training_set": training_set, "tensors": tensors, "sets": sets, "blocks": tensors.blocks,
        "paper_row": paper_row, "__doc__": base.__doc__, **more,
    })


def variant(
    of: type[Method], overrides: Mapping[str, Any], paper_row: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> type[Method]:
    """A row with other values of flags (utils.config), and of hyper-parameters (`given`)."""
    return type("Variant", (of,), {
        "overrides": {**of.overrides, **overrides}, "given": {**of.given, **(given or {})},
        "paper_row": paper_row, "__doc__": of.__doc__,
    })


SYNTHETIC = "synthetic_balanced"
FULL = row(SYNTHETIC, "pretrained", ALL, "Full fine-tuning")
AIM_FAIR = row(SYNTHETIC, "pretrained", SENSITIVE_TO_BIAS, "AIM-Fair")
SYNTHETIC_ONLY = row(SYNTHETIC, "initial", paper_row="Trained on synthetic data")
PROMPT_SETS = {  # Table 5
    "plain": "Plain prompt (1)", "contextual_25": "Contextual prompts (25)",
    "contextual_50": "Contextual prompts (50)",
    "contextual_head_poses_50": "Contextual + head poses (50)",
}
RATIOS = (0.2, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2)  # synthetic images per real one; Tables 7, 10
RATES = (0.005, 0.01, 0.02, 0.04, 0.05, 0.06)  # the paper prints ten times the last three
TOP_K = (40, 45, 50, 55, 60)  # Figure 5; the paper's best is 55

STRATEGIES: dict[str, type[Method]] = {
    # Tables 3 and 8
    "erm": ERM,
    "erm_longer": ERMLonger,
    "synthetic_only": SYNTHETIC_ONLY,
    "data_supplementation": row("supplemented", "initial", paper_row="Data supplementation"),
    "data_repairing": row(
        "repaired", "initial", paper_row="Data repairing", uses_attributes="train"
    ),
    "linear_probing": row(SYNTHETIC, "pretrained", OUTPUT_LAYER, "Linear probing"),
    "full_finetuning": FULL,
    "lora": LoRA,
    "aim_fair": AIM_FAIR,
    "given_mask": row(SYNTHETIC, "pretrained", GIVEN),
    # Table 4 and Figure 2
    **{f"random_{share}": row(SYNTHETIC, "pretrained", random_share(share / 100))
       for share in (40, 55, 70, 85)},
    "random_mask": row(SYNTHETIC, "pretrained", RANDOM_OF_SAME_SIZE),
    **{f"update_{block}": row(SYNTHETIC, "pretrained", one_block(block))
       for block in RESNET_BLOCKS},
    **{f"freeze_{block}": row(SYNTHETIC, "pretrained", one_block(block, frozen=True))
       for block in RESNET_BLOCKS},
    "aim_fair_cosine": variant(
        AIM_FAIR, {"criterion": "cosine"}, "Selective fine-tuning (cosine similarity)"
    ),
    # batch norm as ERM has it, with the statistics of photographs: rules of ours
    "aim_fair_frozen_batch_norm": variant(AIM_FAIR, {"batch_norm": "freeze"}),
    "full_frozen_batch_norm": variant(FULL, {"batch_norm": "freeze"}),
    # Tables 5, 6, 7 and 10, Figure 5, learning rates
    **{f"synthetic_only_{name}": variant(SYNTHETIC_ONLY, {"prompt_set": name}, title)
       for name, title in PROMPT_SETS.items()},
    **{f"{name}_plain": variant(method, {"prompt_set": "plain"})
       for name, method in (("full_finetuning", FULL), ("aim_fair", AIM_FAIR))},
    **{f"aim_fair_{m}_{10 - m}": variant(
        AIM_FAIR, {"synthetic_minority": m / 10}, f"AIM-Fair {m}:{10 - m}") for m in (4, 3, 2, 1)},
    **{f"aim_fair_{ratio}x": variant(
        AIM_FAIR, {"synthetic_ratio": float(ratio)}, f"AIM-Fair {ratio}x synthetic")
       for ratio in RATIOS},
    **{f"aim_fair_k{k}": variant(AIM_FAIR, {"top_k": float(k)}) for k in TOP_K},
    **{f"aim_fair_lr{rate}": variant(AIM_FAIR, {"finetune_lr": rate}) for rate in RATES},
}
