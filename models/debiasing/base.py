"""What the debiasing baselines share: a start, the losses of samples, a reference's logits.

All of them are trained from the backbone's initial weights on the real set with the pre-training
recipe (SGD, the rate and its milestone, epochs), as ERM is, so that rows differ in the algorithm
alone; the papers' optimisers differ from each other. The best epoch is the best one on the
validation set, which needs no group labels.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from models.method import Method, fit_in, new_model, pretrained
from utils.engine import logits_of
from utils.errors import UserError
from utils.files import read_array, write_array
from utils.recipe import Recipe
from utils.run import Run


class FromERM(Method):
    """A method that may start from the ERM model which the setting's rows share.

    defaults: `warm_start`, epochs of its own training from there, with the recipe's milestone as
    much earlier or later; 0, the papers', is the whole recipe from the backbone's initial weights.
    `rate`: of its training; 0 is the setting's. A warm start is a departure: where a training set
    is small, what learns from part of a batch may otherwise not learn the task at all.
    """

    defaults = {"warm_start": 0, "rate": 0.0}
    ranges = {"warm_start": (0, 10**6), "rate": (0.0, 100.0)}

    @classmethod
    def start(cls, run: Run) -> tuple[nn.Module, Recipe]:
        model, recipe = super().start(run)
        recipe = replace(recipe, lr=run.options["rate"] or recipe.lr)
        epochs = run.options["warm_start"]
        if epochs:
            model = pretrained(run)
            milestone = math.ceil(recipe.milestone * epochs / recipe.epochs)
            recipe = replace(recipe, epochs=epochs, milestone=milestone)
        return model, recipe


def losses_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every sample, float32 [B]; x [B, ...], y int64 [B]."""
    logits = model(x).squeeze(1).float()
    return F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")


def train_reference(run: Run, epochs: int) -> np.ndarray:
    """The stage `reference`: ERM for `epochs` epochs, asked about its own training set.

    Without augmentation, and of its last epoch: how far the reference is trained decides what it
    gets wrong. Returns logits float32 [N] in the order of data.real; the stage keeps them as
    logits.npy.
    """
    data, config = run.data, run.config
    with run.stage("reference", "logits.npy", "log.jsonl") as stage:
        path = stage.folder / "logits.npy"
        if not stage.finished:
            method = Method(new_model(run), replace(config.pretrain, epochs=epochs),
                            autocast=config.autocast, compiled=config.compile)
            fit_in(stage.folder, run, method, data.loader(data.real, train=True), None, "reference")
            write_array(path, logits_of(method, data.loader(data.real, train=False)))
    (stage.folder / "model.pt").unlink(missing_ok=True)
    return read_array(path, (len(data.real),), np.float32)


def refuse_empty(rows: int, run: Run, method: str, option: str, epochs: int) -> None:
    """Raise UserError where the reference makes no mistake, so that nothing is left to balance.

    Its stage goes, so that the run can be started again with another length.
    """
    if rows == 0:
        shutil.rmtree(run.folder / "reference")
        raise UserError(
            f"{method}: the reference model of {epochs} epoch(s) leaves one side of its split "
            f"empty; give it another length (--set {option}=...) or a lower --pretrain-lr"
        )
