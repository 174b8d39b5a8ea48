"""The methods FairIF is compared with in its Tables 1 to 5: one file and one line each.

Each `train(problem)` returns a trained module x -> logit [N, 1]; the protected labels it was not
granted are -1 in the problem it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from models.fairif.baselines import arl, cfair, domind, fairsmote, influence
from models.fairif.problem import Problem


class Baseline(NamedTuple):
    """title: its name in the paper's tables. uses_attributes: "none", "validation" or "train"."""

    title: str
    uses_attributes: str
    train: Callable[[Problem], nn.Module]


BASELINES: dict[str, Baseline] = {
    "cfair": Baseline("CFair", "train", cfair.train),
    "domind": Baseline("DOMIND", "train", domind.train),
    "arl": Baseline("ARL", "none", arl.train),
    "fairsmote": Baseline("FairSMOTE", "train", fairsmote.train),
    "influence": Baseline("Influence", "validation", influence.train),
}
