"""FairIF's two stages (Algorithm 1), for any way to train a one-logit model on weighted samples.

`reweight` is stage one after the ERM training: from a trained model to new weights. `fairif` runs
everything: ERM, weights, retraining, and the control with the same eps on shuffled samples.
Protected labels of the training samples are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.fairif.hessian import Batch
from models.fairif.influence import Influence, influence
from models.fairif.relaxation import Relaxation
from models.fairif.reweight import closed_form, sample_weights, shuffled

BLOCK = 2048  # rows of a table whose products with the curvature stay in a core's cache


@dataclass(frozen=True)
class Settings:
    """strength is the paper's lambda and norm its penalty (`reweight.closed_form`); the rest is
    for `influence` and `hessian.inverse_hvp`. damping must contain the training's L2 penalty."""

    relaxation: Relaxation = field(default_factory=Relaxation)
    strength: float = 0.1
    norm: str = "norm"
    method: str = "cg"
    damping: float = 1e-3
    product: str = "gauss_newton"
    names: tuple[str, ...] | None = None
    steps: int = 30
    scale: float | None = None
    repeats: int = 1
    seed: int = 0

    def inverse(self) -> dict:
        """The keyword arguments of `inverse_hvp`."""
        keys = ("method", "damping", "product", "steps", "scale", "repeats", "seed")
        return {key: getattr(self, key) for key in keys}

    def with_seed(self, seed: int) -> Settings:
        """The same settings, with Gumbel noise, LiSSA's batches and the control drawn by `seed`."""
        return replace(self, seed=seed, relaxation=replace(self.relaxation, seed=seed))


class Reweighting(NamedTuple):
    """eps: float64 [n]. weights: float64 [n], 1/n + eps clipped at 0. clipped: how many were
    negative. predicted: float64 [2], the relaxed gaps to expect after retraining with `weights`.
    influence: scores and gaps they come from."""

    eps: Tensor
    weights: Tensor
    clipped: int
    predicted: Tensor
    influence: Influence


class Result(NamedTuple):
    """The three models, each trained on its weights, and the reweighting."""

    erm: nn.Module
    fair: nn.Module
    control: nn.Module
    reweighting: Reweighting


def as_batches(x: Tensor, y: Tensor, a: Tensor, size: int | None = None) -> list[Batch]:
    """Tensors [N, ...], [N], [N] as batches (index, x, y, a) of `size`, in order; None is one."""
    index = torch.arange(len(y), device=y.device)
    size = size or len(y)
    return list(zip(index.split(size), x.split(size), y.split(size), a.split(size), strict=True))


def reweight(
    model: nn.Module,
    train: Iterable[Batch],
    val: Iterable[Batch],
    settings: Settings,
    curvature: Sequence[Batch] | None = None,
) -> Reweighting:
    """Weights of the n training samples that close the relaxed gaps on the validation samples.

    model: trained to convergence. train, val: batches (index, x, y, a) on its device; the a of
    `train` is not read and may be -1. curvature: as for `influence`. Raises UserError as
    `influence` and `closed_form` do.
    """
    found = influence(
        model, train, val, settings.relaxation, names=settings.names, curvature=curvature,
        **settings.inverse(),
    )
    eps = closed_form(found.scores, found.gaps, settings.strength, settings.norm)
    weights, clipped = sample_weights(eps)
    predicted = found.gaps + found.scores @ (weights - 1 / len(weights))
    return Reweighting(eps, weights, clipped, predicted, found)


def fairif(
    train_model: Callable[[Tensor], nn.Module],
    train: Iterable[Batch],
    val: Iterable[Batch],
    settings: Settings,
) -> Result:
    """ERM, FairIF and the control.

    train_model: sample weights, float64 [n] on the CPU (1/n each for ERM) -> a new model trained
    from the same start with them; deterministic, so that equal weights give equal models. The
    control gets the same eps dealt to other samples by settings.seed.
    """
    samples = sum(len(batch[2]) for batch in train)
    erm = train_model(torch.full((samples,), 1 / samples, dtype=torch.float64))
    found = reweight(erm, train, val, settings)
    control = sample_weights(shuffled(found.eps, settings.seed)).weights
    return Result(erm, train_model(found.weights), train_model(control), found)
