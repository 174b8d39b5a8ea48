"""FairIF's controls, its eps dealt otherwise, and its rows with fewer labels.

Each control takes FairIF's own influence of the same setting and seed. What is left of the effect
under `fairif_shuffled` is that of unequal weights as such; under the other two, that of the mass
which each group (y, a) gets, for which no influence of a single sample is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.fairif.method import FairIF
from models.fairif.reweight import group_means, shuffled, shuffled_within
from utils.metrics import group_index
from utils.run import Run


def groups_of(run: Run) -> Tensor:
    """The training samples' groups 2 y + a, int64 [n]."""
    return torch.from_numpy(group_index(run.data.real.y, run.data.real.a))


class FairIFShuffled(FairIF):
    """FairIF's eps on other samples, dealt by the seed: does their choice do the work?"""

    paper_row = None

    @staticmethod
    def deal(eps: Tensor, run: Run) -> Tensor:
        return shuffled(eps, run.seed)


class FairIFShuffledWithinGroups(FairIF):
    """FairIF's eps on other samples of the same group, whose mass stays as it is.

    It reads the training samples' groups, which FairIF does not: a control, not a method.
    """

    uses_attributes = "train"
    paper_row = None

    @staticmethod
    def deal(eps: Tensor, run: Run) -> Tensor:
        return shuffled_within(eps, groups_of(run), run.seed)


class GroupWeights(FairIF):
    """One weight a group: the mean of FairIF's eps there. Reads the training samples' groups."""

    uses_attributes = "train"
    paper_row = None

    @staticmethod
    def deal(eps: Tensor, run: Run) -> Tensor:
        return group_means(eps, groups_of(run))


# Table 11: shares of each validation group whose labels are used, in percent.
SHARES: dict[str, type[FairIF]] = {
    f"fairif_{percent}": type("FairIFShare", (FairIF,), {
        "defaults": {**FairIF.defaults, "validation_share": percent / 100},
        "paper_row": f"{percent}%", "__doc__": FairIF.__doc__,
    })
    for percent in (50, 25, 10)
}

CONTROLS: dict[str, type[FairIF]] = {
    "fairif_shuffled": FairIFShuffled,
    "fairif_shuffled_within_groups": FairIFShuffledWithinGroups,
    "group_weights": GroupWeights,
}
