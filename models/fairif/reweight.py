"""Sample weights from influence scores in closed form (FairIF, Equation 14 and 15).

min over eps of |d + A eps|^2 + penalty(eps) has two numbers in it, whatever n is: every solution is
eps = -A^T (A A^T + mu I)^-1 d. With the squared norm, lambda |eps|^2, mu = lambda. With the norm as
printed, lambda |eps|, mu = lambda / (2 |eps|), found by bisection, as mu |eps| increases with mu;
eps = 0 exactly where |2 A^T d| <= lambda.

eps is absolute, as printed: a sample's weight is 1/n + eps_i, so an eps_i of -1/n removes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import UserError

NORMS = ("norm", "squared")


class Weights(NamedTuple):
    """weights: float64 [n], 1/n + eps, clipped at 0. clipped: how many were negative."""

    weights: Tensor
    clipped: int


def closed_form(scores: Tensor, gaps: Tensor, strength: float, norm: str = "norm") -> Tensor:
    """The eps, float64 [n], that minimises Equation 14.

    scores: A, float64 [2, n]. gaps: d, float64 [2]. strength: lambda >= 0. norm: "norm" (lambda
    times the Euclidean norm, as printed) or "squared". With lambda = 0 (or too small to matter)
    the smallest eps that closes the predicted gaps. Raises ValueError for another norm, a negative
    lambda, or numbers that are not finite.
    """
    if norm not in NORMS:
        raise ValueError(f"penalty {norm} is unknown; choose from {', '.join(NORMS)}")
    if not 0 <= strength < math.inf:
        raise ValueError(f"lambda {strength} must be a number of 0 or more")
    if not (bool(scores.isfinite().all()) and bool(gaps.isfinite().all())):
        raise ValueError("influence scores and gaps must be finite")
    values, basis = torch.linalg.eigh(scores @ scores.T)  # of A A^T
    values = values.clamp(min=0)
    target = basis.T @ gaps
    solvable = values > 1e-14 * values[-1]  # a direction no sample moves cannot be closed

    def dual(mu: float) -> Tensor:
        """(A A^T + mu I)^-1 d in the eigenbasis."""
        return torch.where(solvable, target / torch.where(solvable, values + mu, 1.0), 0.0)

    def length(mu: float) -> float:
        return (values.sqrt() * dual(mu)).norm().item()  # |eps|

    if norm == "squared" or strength == 0:
        mu = strength
    elif 2 * (values.sqrt() * target).norm().item() <= strength:
        return torch.zeros(scores.shape[1], dtype=scores.dtype)
    else:
        mu = _bisect(lambda mu: 2 * mu * length(mu) - strength, values[-1].item())
    return -scores.T @ (basis @ dual(mu))


def _bisect(increasing, start: float) -> float:
    """The positive root of an increasing function, by bisection of its logarithm."""
    low = high = start
    while increasing(high) < 0:
        high *= 4
    while increasing(low) > 0:
        low /= 4
        if low == 0.0:
            return 0.0
    for _ in range(200):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        if increasing(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def sample_weights(eps: Tensor) -> Weights:
    """1/n + eps clipped at 0, float64 [n]: a negative weight would reward a wrong prediction.

    With eps = 0 exactly 1/n. Raises UserError where no sample keeps a positive weight.
    """
    weights = 1 / len(eps) + eps.double()
    clipped = int((weights < 0).sum())
    weights = weights.clamp(min=0)
    if not bool((weights > 0).any()):
        raise UserError("no training sample keeps a positive weight; raise lambda")
    return Weights(weights, clipped)


def shuffled(eps: Tensor, seed: int) -> Tensor:
    """The same eps, [n], on other samples."""
    order = torch.randperm(len(eps), generator=torch.Generator().manual_seed(seed))
    return eps[order]


def shuffled_within(eps: Tensor, groups: Tensor, seed: int) -> Tensor:
    """The same eps, [n], on other samples of the same group; groups: int64 [n]."""
    dealt = eps.clone()
    for group in groups.unique():
        rows = torch.nonzero(groups == group).squeeze(1)
        dealt[rows] = shuffled(eps[rows], seed)
    return dealt


def group_means(eps: Tensor, groups: Tensor) -> Tensor:
    """Each sample's eps replaced by the mean of its group's, [n]; groups: int64 [n]."""
    totals = torch.zeros(int(groups.max()) + 1, dtype=eps.dtype).index_add_(0, groups, eps)
    return (totals / torch.bincount(groups))[groups]
