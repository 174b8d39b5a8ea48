"""The menu: every method by its name, a line a family; `models` gives it where it is asked for."""

from __future__ import annotations

from models.choices import CHOICES
from models.debiasing import DEBIASING
from models.fairif.baselines import BASELINES
from models.fairif.controls import CONTROLS, SHARES
from models.fairif.method import FairIF
from models.ltgc import LTGC
from models.method import Method
from models.own_strategies import OWN
from models.strategies import STRATEGIES
from models.tensor_effect import TensorEffect

METHODS: dict[str, type[Method]] = {
    **STRATEGIES, **OWN, "ltgc": LTGC, **DEBIASING, "fairif": FairIF, **CONTROLS,
    "tensor_effect": TensorEffect, **SHARES, **BASELINES,
}
__all__ = ["CHOICES", "METHODS"]
