"""What the debiasing baselines share: one way to be run, and a reference model's logits.

All of them are trained from the backbone's initial weights on the real set with the pre-training
recipe (SGD, the rate and its milestone, epochs), as ERM is, so that rows differ in the algorithm
alone; the papers' optimisers differ from each other. The kept epoch is the most accurate one on
the validation set, which needs no group labels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.base import ImageTable
from datasets.mixing import Data
from models import backbones
from models.method import Method
from models.strategies import new_model
from utils.engine import fit, logits_of
from utils.errors import UserError
from utils.files import read_array, remove_leftovers, write_array
from utils.runs import read_log


def losses_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every sample, float32 [B]; x [B, ...], y int64 [B]."""
    logits = model(x).squeeze(1).float()
    return F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")


class Debiasing(Method):
    """A method trained in one loop; `options` are its hyper-parameters, complete.

    defaults: hyper-parameter -> the paper's value; ranges: hyper-parameter -> (lowest, highest).
    """

    uses_attributes = "none"
    needs_synthetic = False
    needs_edits = False  # of the training images, `settings.edited`
    defaults: dict[str, int | float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    paper_row: str | None  # its name in paper_tables/aim_fair.csv

    def __init__(self, model: nn.Module, recipe, *, options: dict, autocast=None, compiled=False):
        self.options = options
        super().__init__(model, recipe, autocast=autocast, compiled=compiled)

    @classmethod
    def prepare(
        cls, data: Data, settings, seed: int, folder: Path, options: dict
    ) -> tuple[dict[str, Any], ImageTable, list[dict]]:
        """What precedes the training: (further arguments of __init__, training set, log)."""
        return {}, data.real, []

    @classmethod
    def batches(cls, data: Data, train: ImageTable):
        """The loader of the training; protected labels for a method that declares "train"."""
        return data.loader(train, train=True, attributes=cls.uses_attributes == "train")

    @classmethod
    def run(cls, data: Data, settings, seed: int, folder: Path, shared: Path) -> tuple:
        """(method holding the kept model, log, None): the interface of Strategy.run.

        settings.options: hyper-parameters that replace the defaults.
        """
        options = cls.defaults | settings.options
        arguments, train, log = cls.prepare(data, settings, seed, folder, options)
        model = new_model(settings, seed)
        method = cls(
            model, settings.pretrain, options=options, autocast=settings.autocast,
            compiled=settings.compile, **arguments,
        )
        val = data.loader(data.val, train=False) if data.val is not None else None
        log = log + fit(method, cls.batches(data, train), val, folder, "train")
        model.load_state_dict(backbones.load_weights(folder / "model.pt", "the kept epoch"))
        return method, log, None


def reference_logits(data: Data, settings, seed: int, folder: Path, epochs: int) -> tuple:
    """An ERM model of `epochs` epochs asked about its own training set, without augmentation.

    The last epoch is used: how far the reference is trained decides what it gets wrong. Returns
    (logits float32 [N] in the order of data.real, log). folder keeps logits.npy and log.jsonl.
    """
    done = folder / "logits.npy"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
        recipe = replace(settings.pretrain, epochs=epochs)
        method = Method(
            new_model(settings, seed), recipe, autocast=settings.autocast, compiled=settings.compile
        )
        fit(method, data.loader(data.real, train=True), None, folder, "reference")
        write_array(done, logits_of(method, data.loader(data.real, train=False)))
    for name in ("state.pt", "model.pt"):  # only an unfinished stage needs them
        (folder / name).unlink(missing_ok=True)
    log = read_log(folder / "log.jsonl")
    return read_array(done, (len(data.real),), np.float32), log


def refuse_empty(rows: int, folder: Path, method: str, option: str, epochs: int) -> None:
    """Raise UserError where the reference makes no mistake, so that nothing is left to balance.

    Its `folder` goes, so that the run can be started again with another length.
    """
    if rows == 0:
        shutil.rmtree(folder)
        raise UserError(
            f"{method}: the reference model of {epochs} epoch(s) leaves one side of its split "
            f"empty; give it another length (--set {option}=...) or a lower --pretrain-lr"
        )
