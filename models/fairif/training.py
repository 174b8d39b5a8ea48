"""Full-batch training to convergence on weighted samples, for models and data that fit in memory.

Influence functions are defined at a minimum, so the gradient norm is part of the result and a fit
that has not converged is an error. (The paper runs 250 epochs at a learning rate of 1e-3 and does
not name the optimiser; for a logistic regression both tend to the same minimum.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


class Fit(NamedTuple):
    """gradient_norm: of the objective at the end. evaluations: of objective and gradient."""

    gradient_norm: float
    evaluations: int


def fit_to_convergence(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    *,
    l2: float,
    tolerance: float = 1e-7,
    evaluations: int = 2000,
) -> Fit:
    """Minimise sum_i weights_i l_i + l2 / 2 |theta|^2 from the model's weights, by L-BFGS.

    x: float [n, ...]; y: int64 [n] in {0, 1}; weights: float [n], 1/n each for the mean loss;
    l_i: binary cross entropy. All parameters are penalised, the bias too, so that damping = l2
    makes `inverse_hvp` the exact inverse Hessian. Batch norm is in evaluation mode: a weighted
    batch has no batch statistics of its own.
    Raises UserError, naming the gradient norm, unless it falls to `tolerance`; rounding of the
    objective stops the line search near 1e-9 in float64 and 1e-5 in float32.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    target, weights = y.to(x), weights.to(x)
    model.eval()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=evaluations, max_eval=evaluations, history_size=30,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
    )
    used = 0

    class Converged(Exception):
        """Leaves the optimiser's loop, whose own test is on the largest entry, not the norm."""

    def norm() -> float:
        return torch.cat([p.grad.reshape(-1) for p in parameters]).norm().item()

    def objective() -> Tensor:
        nonlocal used
        optimizer.zero_grad()
        losses = F.binary_cross_entropy_with_logits(model(x).squeeze(1), target, reduction="none")
        penalty = sum((p * p).sum() for p in parameters)
        value = (weights * losses).sum() + l2 / 2 * penalty
        value.backward()
        used += 1
        if norm() <= tolerance:
            raise Converged
        return value

    try:
        optimizer.step(objective)
        objective()  # the line search may have ended at another point than it evaluated last
    except Converged:
        pass
    final = norm()
    if not final <= tolerance:  # NaN included
        raise UserError(
            f"training has not converged: the gradient norm is {final:.3g} after {used} "
            f"evaluations, above {tolerance:g}; raise the L2 penalty (now {l2:g}), the tolerance "
            "or the number of evaluations"
        )
    model.zero_grad(set_to_none=True)
    return Fit(final, used)
