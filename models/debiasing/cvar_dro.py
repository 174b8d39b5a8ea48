"""CVaR DRO (Levy et al., NeurIPS 2020, Large-Scale Methods for DRO)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.debiasing.base import FromERM, losses_of
from models.method import Batch


def cvar(losses: Tensor, alpha: float) -> Tensor:
    """Mean of the largest alpha share of losses float [m]; alpha in (0, 1], 1 is their mean.

    sup over q of sum(q * losses) with q >= 0, sum(q) = 1, q <= 1 / (alpha m): the largest losses
    get 1 / (alpha m) each and the one at the cut-off the remainder, so alpha * m need not be whole.
    """
    ordered = losses.sort(descending=True).values
    share = alpha * len(losses)
    rank = torch.arange(len(losses), device=losses.device, dtype=losses.dtype)
    return (ordered * (share - rank).clamp(0, 1)).sum() / share


class CVaRDRO(FromERM):
    """The batch's CVaR instead of its mean loss (Levy 2020, mini-batch estimator).

    CVaR is taken within a batch, so the batch size is a hyper-parameter too. Departures: SGD with
    the setting's recipe, and on request a warm start (base.FromERM).
    """

    paper_row = "CVaR DRO"
    # The usual value; comparisons search 10^U(-2, 0).
    defaults = FromERM.defaults | {"alpha": 0.1}
    ranges = FromERM.ranges | {"alpha": (1e-4, 1.0)}

    def loss(self, batch: Batch) -> Tensor:
        _, x, y, _ = batch
        with self.precision(x):
            return cvar(losses_of(self.network, x, y), self.options["alpha"])
