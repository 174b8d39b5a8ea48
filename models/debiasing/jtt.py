"""JTT (Liu et al., ICML 2021, Just Train Twice)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import ImageTable
from datasets.mixing import Data
from models.debiasing.base import Debiasing, reference_logits, refuse_empty


def error_set(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows (int64 [E]) whose prediction logit > 0 differs from y; logits float [N], y int [N]."""
    return np.flatnonzero((logits > 0) != (y == 1))


def repeated(table: ImageTable, rows: np.ndarray, times: int) -> ImageTable:
    """The table followed by the given rows `times` times: they weigh 1 + times, the others 1."""
    return table.take(np.concatenate([np.arange(len(table)), np.tile(rows, times)]))


class JTT(Debiasing):
    """ERM for T epochs, its error set E; then ERM from scratch with E repeated lambda times.

    Objective (Liu 2021): lambda * sum over E + sum over the rest. The reference
    concatenates E lambda times to the whole set, so a sample of E weighs 1 + lambda; that is done
    here. An epoch is as much longer: N + lambda * |E| images.
    Departures: SGD with the setting's recipe instead of the paper's rate and weight decay; T and
    lambda are not tuned (the paper tunes them on the worst group of the validation set, which
    needs its group labels), and the epoch is kept by validation accuracy without group labels.
    """

    paper_row = "JTT"
    # T and lambda; the paper's CelebA setting is T = 1 and lambda in {20, 50, 100}
    defaults = {"first_epochs": 1, "upweight": 50}
    ranges = {"first_epochs": (1, 10**6), "upweight": (0, 10**4)}

    @classmethod
    def prepare(cls, data: Data, settings, seed: int, folder: Path, options: dict) -> tuple:
        epochs = options["first_epochs"]
        first = folder / "reference"
        logits, log = reference_logits(data, settings, seed, first, epochs)
        errors = error_set(logits, data.real.y)
        refuse_empty(len(errors), first, "JTT", "first_epochs", epochs)
        log[-1] |= {"error_set": len(errors)}
        return {}, repeated(data.real, errors, options["upweight"]), log
