"""TPR and TNR of the two protected groups, and their differentiable forms (FairIF, section 4.2).

A gap is rate(a = 0) - rate(a = 1); gaps come in the order TPR, TNR. The relaxed and the hard rates
share one mean: TPR runs over a group's samples with y = 1, TNR over those with y = 0. (Equation 10
divides by the whole group, which would not be a rate.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError
from utils.metrics import GROUPS, group_index

KINDS = ("sigmoid", "gumbel")


@dataclass(frozen=True)
class Relaxation:
    """How a 0/1 prediction becomes differentiable, for a logit f of class 1.

    "sigmoid": P(h = 1) is sigmoid(f / temperature), which tends to the hard prediction as the
    temperature tends to 0. "gumbel": the Gumbel-softmax the paper names, over the logits (0, f):
    sigmoid((f + g1 - g0) / temperature) with g1, g0 Gumbel noise, averaged over `draws`; it tends
    to a random prediction that is 1 with probability sigmoid(f). The noise is fixed by `seed`, so
    a gap and its gradient belong to one function.
    """

    kind: str = "sigmoid"
    temperature: float = 1.0
    draws: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"relaxation {self.kind} is unknown; choose from {', '.join(KINDS)}")
        if not self.temperature > 0 or self.draws < 1:
            raise ValueError("a relaxation needs a temperature above 0 and at least one draw")

    def probability(self, logits: Tensor) -> Tensor:
        """Relaxed prediction of class 1, in [0, 1], for all validation logits, float [N]."""
        if self.kind == "sigmoid":
            return torch.sigmoid(logits / self.temperature)
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(
            (self.draws, len(logits)), generator=generator, dtype=torch.float64
        ).clamp(1e-12, 1 - 1e-12)
        noise = torch.logit(uniform).to(logits)  # the difference of two Gumbels is logistic
        return torch.sigmoid((logits + noise) / self.temperature).mean(dim=0)


def check_groups(y: Tensor, a: Tensor) -> None:
    """Raise UserError unless all four groups (y, a) are there and every label is 0 or 1."""
    try:
        present = torch.bincount(group_index(y, a), minlength=4) > 0
    except ValueError as error:
        raise UserError(f"the validation set's labels cannot be used: {error}") from None
    missing = [group for group, here in zip(GROUPS, present.tolist(), strict=True) if not here]
    if missing:
        groups = ", ".join(f"y = {y} and a = {a}" for y, a in missing)
        raise UserError(
            f"the validation set has no sample with {groups}, so TPR or TNR of that group is not "
            "defined; use a larger validation set or another split"
        )


def relaxed_gaps(logits: Tensor, y: Tensor, a: Tensor, relaxation: Relaxation) -> Tensor:
    """F_TPR(D0) - F_TPR(D1) and F_TNR(D0) - F_TNR(D1), float [2], differentiable in the logits.

    logits: float [N]; y, a: int64 [N], all four groups present (check_groups).
    """
    positive = relaxation.probability(logits)
    return _gaps(positive, y, a)


def hard_gaps(logits: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """The same two gaps of the predictions logit > 0, float [2]."""
    return _gaps((logits > 0).to(logits.dtype), y, a)


def _gaps(positive: Tensor, y: Tensor, a: Tensor) -> Tensor:
    correct = torch.where(y == 1, positive, 1 - positive)
    gaps = [
        correct[(y == label) & (a == 0)].mean() - correct[(y == label) & (a == 1)].mean()
        for label in (1, 0)
    ]
    return torch.stack(gaps)
