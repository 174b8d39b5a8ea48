"""Training to convergence on weighted samples, for models and data that fit in memory.

Influence functions are defined at a minimum, so the gradient norm is part of the result and a fit
that has not converged is an error. (The paper runs 250 epochs at a learning rate of 1e-3 and does
not name the optimiser; for a logistic regression all tend to the same minimum.) A network of
rectified linear units has no smooth minimum for L-BFGS to find: Adam with a rate that falls to 0
comes to rest near one. `fit_by_recipe` is how the paper trains on images: so many epochs, of which
the best is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

Logits = Callable[[Tensor | None], Tensor]  # rows int64 [B], None for all -> logits [B]


class Fit(NamedTuple):
    """gradient_norm: of the objective at the end. evaluations: of objective and gradient."""

    gradient_norm: float
    evaluations: int


@dataclass(frozen=True)
class Recipe:
    """Adam at a constant rate for `epochs` passes in batches of `batch`; one epoch is kept."""

    epochs: int
    batch: int = 128
    rate: float = 2e-4


class Kept(NamedTuple):
    """The best epoch, counted from 1, and its accuracy on the validation samples."""

    epoch: int
    accuracy: float


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """x[rows], all of x for None; ten times faster than indexing where a row is many bytes."""
    return x if rows is None else x.index_select(0, rows)


def logits_at(model: nn.Module, x: Tensor) -> Logits:
    """The model's logits on rows of x."""
    return lambda rows: model(pick(x, rows)).squeeze(1)


def fit_to_convergence(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    *,
    l2: float,
    tolerance: float = 1e-7,
    evaluations: int = 2000,
    logits: Logits | None = None,
) -> Fit:
    """Minimise sum_i weights_i l_i + l2 / 2 |theta|^2 from the model's weights, by L-BFGS.

    x: float [n, ...]; y: int64 [n] in {0, 1}; weights: float [n], 1/n each for the mean loss;
    l_i: binary cross entropy of logits(rows), by default the model's. All parameters are penalised,
    the bias too, so that damping = l2 makes `inverse_hvp` the exact inverse Hessian. Batch norm is
    in evaluation mode: a weighted batch has no batch statistics of its own.
    Raises UserError, naming the gradient norm, unless it falls to `tolerance`; rounding of the
    objective stops the line search near 1e-9 in float64 and 1e-5 in float32.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits = logits or logits_at(model, x)
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
        losses = F.binary_cross_entropy_with_logits(logits(None), target, reduction="none")
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


def objective_gradient(
    model: nn.Module, y: Tensor, weights: Tensor, l2: float, logits: Logits
) -> float:
    """Norm of the gradient of sum_i weights_i l_i + l2 / 2 |theta|^2; shapes as below."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = logits(None)
    losses = F.binary_cross_entropy_with_logits(out, y.to(out), reduction="none")
    value = (weights.to(out) * losses).sum() + l2 / 2 * sum((p * p).sum() for p in parameters)
    pieces = torch.autograd.grad(value, parameters)
    return torch.cat([piece.reshape(-1) for piece in pieces]).norm().item()


def fit_by_adam(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    *,
    l2: float,
    tolerance: float,
    seed: int,
    steps: int = 3000,
    batch: int = 512,
    rate: float = 1e-3,
    logits: Logits | None = None,
) -> Fit:
    """Minimise the objective of `fit_to_convergence` by Adam on batches drawn by `seed`.

    The rate falls from `rate` (the paper's) to 0 along a half cosine. Raises UserError, naming the
    gradient norm over all samples, unless that is at most `tolerance` in the end.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits = logits or logits_at(model, x)
    target, relative = y.to(x), (len(y) * weights).to(x)  # 1 each for the mean loss
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=l2, fused=True)
    model.eval()
    rows: list[Tensor] = []
    for step in range(steps):
        if not rows:
            rows = list(torch.randperm(len(y), generator=generator).split(batch))
        some = rows.pop()
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        loss = F.binary_cross_entropy_with_logits(
            logits(some), target[some], weight=relative[some]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = objective_gradient(model, y, weights, l2, logits)
    if not (math.isfinite(final) and final <= tolerance):
        raise UserError(
            f"training has not converged: the gradient norm is {final:.3g} after {steps} steps of "
            f"Adam, above {tolerance:g}; raise the L2 penalty (now {l2:g}), the tolerance or the "
            "number of steps"
        )
    model.zero_grad(set_to_none=True)
    return Fit(final, steps)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 512) -> float:
    """Share of the samples, x [N, ...] and y int64 [N], on whose side of 0 the logit is."""
    with torch.no_grad():
        right = sum(
            ((model(some).squeeze(1) > 0) == (label == 1)).sum()
            for some, label in zip(x.split(batch), y.split(batch), strict=True)
        )
    return int(right) / len(y)


def fit_by_recipe(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    samples: int,
    val: tuple[Tensor, Tensor],
    recipe: Recipe,
    *,
    seed: int,
    others: Iterable[nn.Parameter] = (),
) -> Kept:
    """Minimise loss(rows), the mean over a batch of the `samples` rows, as `recipe` says.

    The model is left at the epoch with the best accuracy on val, (x, y), which needs no protected
    labels; of equal ones the later is kept. The order of the rows is drawn by `seed`. others:
    parameters that are trained beside the model's. Raises UserError where an epoch ends with a
    model that is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*parameters, *others], lr=recipe.rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    model.eval()  # no network here has dropout or batch norm
    kept, state = Kept(0, -1.0), {}
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(samples, generator=generator).to(val[1].device)
        for rows in order.split(recipe.batch):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        if not all(bool(p.isfinite().all()) for p in parameters):
            raise UserError(f"the training diverged in epoch {epoch}; lower the learning rate")
        reached = accuracy(model, *val)
        if reached >= kept.accuracy:
            kept, state = Kept(epoch, reached), copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    return kept
