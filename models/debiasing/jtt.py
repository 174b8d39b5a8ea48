"""JTT (Liu et al., ICML 2021, Just Train Twice)."""

from __future__ import annotations

import numpy as np

from datasets.base import ImageTable
from models.debiasing.base import refuse_empty, train_reference
from models.method import Method
from utils.files import read_array
from utils.run import Run


def error_set(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows (int64 [E]) whose prediction logit > 0 differs from y; logits float [N], y int [N]."""
    return np.flatnonzero((logits > 0) != (y == 1))


def repeated(table: ImageTable, rows: np.ndarray, times: int) -> ImageTable:
    """The table followed by the given rows `times` times: they weigh 1 + times, the others 1."""
    return table.take(np.concatenate([np.arange(len(table)), np.tile(rows, times)]))


class JTT(Method):
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

    stages = ("reference", "train")

    @classmethod
    def reference(cls, run: Run) -> None:
        epochs = run.options["first_epochs"]
        errors = error_set(train_reference(run, epochs), run.data.real.y)
        refuse_empty(len(errors), run, "JTT", "first_epochs", epochs)
        run.add_log(run.folder / "reference", error_set=len(errors))

    @classmethod
    def batches(cls, run: Run):
        logits = read_array(run.folder / "reference" / "logits.npy", (None,), np.float32)
        errors = error_set(logits, run.data.real.y)
        table = repeated(run.data.real, errors, run.options["upweight"])
        return run.data.loader(table, train=True)
