"""Influence of every training sample on the two fairness gaps (FairIF, Equations 9-13).

With weights 1/n + eps_i the gaps become d + A eps to first order, where d are the two gaps and

    A[F, i] = (mean over D1 of grad F - mean over D0 of grad F)^T H^-1 grad l_i

for F = TPR, TNR. H^-1 acts on the two validation vectors; the products with all grad l_i come from
forward mode, one pass a batch: the derivative of the vector of per-sample losses along H^-1 v.
Batches are read more than once: a list, or what starts anew with every `for`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from models.fairif.hessian import (
    Batch,
    chosen_parameters,
    evaluation,
    flatten,
    inverse_hvp,
    logits_of,
    unflatten,
)
from models.fairif.relaxation import Relaxation, check_groups, relaxed_gaps
from utils.devices import ieee
from utils.errors import UserError


class Influence(NamedTuple):
    """scores: float64 [2, n], A above. gaps: float64 [2], d. residual: of the two inverse products,
    float [2]. images: see `hessian.InverseProduct`."""

    scores: Tensor
    gaps: Tensor
    residual: Tensor
    images: int


@ieee()
def predict(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Logits of all samples in the batches' order, float [N], in evaluation mode."""
    with evaluation(model), torch.no_grad():
        return torch.cat([model(x).squeeze(1) for _, x, _, _ in batches])


@ieee()
def gap_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    relaxation: Relaxation,
    names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """The relaxed TPR and TNR gaps, float [2], and their gradients, float [2, P].

    batches: the validation samples with protected labels. Raises UserError where a group (y, a) is
    missing, for a model whose outputs are not finite, and where a gap has no gradient.
    """
    y, a = (torch.cat([batch[i] for batch in batches]) for i in (2, 3))
    check_groups(y, a)
    logits = predict(model, batches).requires_grad_()
    gaps = relaxed_gaps(logits, y, a, relaxation)
    by_logit = torch.stack(
        [torch.autograd.grad(gap, logits, retain_graph=True)[0] for gap in gaps]
    )  # [2, N]
    parameters = chosen_parameters(model, names)
    gradients, start = 0.0, 0
    with evaluation(model), torch.no_grad():
        for _, x, labels, _ in batches:
            pull = vjp(logits_of(model, x), parameters)[1]
            piece = by_logit[:, start : start + len(labels)]
            gradients = gradients + vmap(lambda row, pull=pull: flatten(pull(row)[0]))(piece)
            start += len(labels)
    if not (bool(gaps.isfinite().all()) and bool(gradients.isfinite().all())):
        raise UserError("the model's outputs on the validation set are not finite; train it again")
    if not bool((gradients != 0).any(dim=1).all()):
        raise UserError(
            "the relaxed TPR or TNR gap does not depend on the weights (every validation sample "
            f"is saturated): raise the temperature, now {relaxation.temperature:g}"
        )
    return gaps.detach(), gradients


@ieee()
def loss_derivatives(
    model: nn.Module,
    batches: Iterable[Batch],
    vectors: Tensor,
    names: Sequence[str] | None = None,
) -> Tensor:
    """vector^T grad l_i for each row of vectors [K, P] and each sample, float [K, n].

    l_i is sample i's binary cross entropy. Column i belongs to index i of the batches, which must
    hold 0 ... n - 1 once each in any order (ValueError otherwise).
    """
    parameters = chosen_parameters(model, names)
    index = torch.cat([batch[0] for batch in batches])
    if not torch.equal(index.sort().values, torch.arange(len(index), device=index.device)):
        raise ValueError("the batches must hold every training index from 0 to n - 1 exactly once")
    result = vectors.new_empty(len(vectors), len(index))
    with evaluation(model), torch.no_grad():
        for rows, x, y, _ in batches:
            logits = logits_of(model, x)

            def losses(p, logits=logits, y=y):
                out = logits(p)
                return F.binary_cross_entropy_with_logits(out, y.to(out), reduction="none")

            def along(vector, losses=losses):
                return jvp(losses, (parameters,), (unflatten(vector, parameters),))[1]

            result[:, rows] = vmap(along)(vectors)
    return result


def influence(
    model: nn.Module,
    train: Iterable[Batch],
    val: Iterable[Batch],
    relaxation: Relaxation,
    *,
    names: Sequence[str] | None = None,
    curvature: Sequence[Batch] | None = None,
    **inverse,
) -> Influence:
    """Scores of all n training samples on both gaps; the model is left as it was.

    curvature: the batches whose mean loss defines H, by default `train`. names: only these
    parameters or modules move. inverse: settings of `hessian.inverse_hvp`. Raises UserError as it
    and `gap_gradients` do.
    """
    gaps, gradients = gap_gradients(model, val, relaxation, names)
    solved = inverse_hvp(model, curvature or train, gradients, names=names, **inverse)
    scores = -loss_derivatives(model, train, solved.value, names)
    if not bool(scores.isfinite().all()):
        raise UserError("an influence score is not finite; train the model again")
    return Influence(scores.double().cpu(), gaps.double().cpu(), solved.residual.cpu(),
                     solved.images)
