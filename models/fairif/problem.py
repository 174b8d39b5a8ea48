"""One split of a data set that fits in memory, as a method may see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fairif.fairif import BLOCK, Settings, as_batches
from models.fairif.hessian import Batch
from models.fairif.training import (
    Fit,
    Kept,
    Logits,
    Recipe,
    fit_by_adam,
    fit_by_recipe,
    fit_to_convergence,
    logits_at,
)

PIECE = 256  # images at once: forward mode keeps the activations of all of them


@dataclass(frozen=True, eq=False)
class Samples:
    """x: float [N, ...], or the uint8 [N, ...] that the network turns into floats; y, a: int64 [N],
    target and protected label, a = -1 where withheld."""

    x: Tensor
    y: Tensor
    a: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def withheld(self) -> Samples:
        """The same samples without protected labels."""
        return replace(self, a=torch.full_like(self.a, -1))


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method gets to train one model.

    build: () -> a new network at the split's initial weights, an nn.Sequential whose last module
    is a Linear and gives the logit; what comes before it are the features (for a logistic
    regression the inputs). convex: whether the model is a logistic regression, fitted by L-BFGS;
    otherwise Adam trains it. l2, tolerance: penalty of `fit` and its largest gradient norm. seed:
    of everything a method draws. blocks: the columns of x of each categorical attribute. recipe:
    instead of a fit to convergence, every method trains by it (`minimise`), without a penalty.
    settings: of FairIF, whose inverse Hessian Influence shares where there is a recipe. held: the
    rows, int64 [h], whose mean loss then defines the curvature. erm: the model that ERM has
    already trained. fits: a list that every training appends to.
    """

    train: Samples
    val: Samples
    build: Callable[[], nn.Sequential]
    convex: bool
    l2: float
    tolerance: float
    seed: int
    blocks: tuple[tuple[int, ...], ...] = ()
    recipe: Recipe | None = None
    settings: Settings | None = None
    held: Tensor | None = None
    erm: nn.Module | None = None
    fits: list[Fit | Kept] = field(default_factory=list)

    def seen_by(self, uses_attributes: str) -> Problem:
        """The problem with the protected labels that "none", "validation" or "train" grants.

        "train" grants both: who has them for training has them for validation.
        """
        train = self.train if uses_attributes == "train" else self.train.withheld()
        val = self.val.withheld() if uses_attributes == "none" else self.val
        return replace(self, train=train, val=val)

    def uniform(self) -> Tensor:
        """1/n for each of the n training samples, float64 [n]."""
        return torch.full((len(self.train),), 1 / len(self.train), dtype=torch.float64)

    def fit(
        self, model: nn.Module, x: Tensor, y: Tensor, weights: Tensor,
        logits: Logits | None = None,
    ) -> nn.Module:
        """Train `model` on weighted samples (training.py) and return it; raises UserError as that.

        x, y: of the n samples as in Samples; weights: float [n], 1/n each for the mean loss.
        logits: those the loss is of, by default the model's own.
        """
        if self.recipe:
            outputs = logits or logits_at(model, x)
            relative = (len(y) * weights).float().to(y.device)  # 1 each for the mean loss

            def loss(rows: Tensor) -> Tensor:
                out = outputs(rows)
                return F.binary_cross_entropy_with_logits(
                    out, y[rows].to(out), weight=relative[rows]
                )

            return self.minimise(model, loss, len(y))
        options = {"l2": self.l2, "tolerance": self.tolerance, "logits": logits}
        if self.convex:
            self.fits.append(fit_to_convergence(model, x, y, weights, **options))
        else:
            self.fits.append(fit_by_adam(model, x, y, weights, seed=self.seed, **options))
        return model

    def minimise(
        self, model: nn.Module, loss: Callable[[Tensor], Tensor], samples: int,
        others: Iterable[nn.Parameter] = (),
    ) -> nn.Module:
        """Train `model` by the recipe (`training.fit_by_recipe`) and return it."""
        val = self.val.x, self.val.y
        self.fits.append(
            fit_by_recipe(model, loss, samples, val, self.recipe, seed=self.seed, others=others)
        )
        return model

    def curvature(self) -> tuple[Sequence[Batch], dict[str, Any]]:
        """Batches and settings for `hessian.inverse_hvp`: all samples, unless `held` names some."""
        if self.held is not None:
            some = (part[self.held] for part in (self.train.x, self.train.y, self.train.a))
            return as_batches(*some, size=PIECE), self.settings.inverse()
        method = "exact" if self.convex else "cg"
        return self.blocks_of(self.train), {"method": method, "damping": self.l2, "steps": 100}

    def blocks_of(self, samples: Samples) -> list[Batch]:
        """The samples as batches of a size that products with the curvature are fast at."""
        size = PIECE if self.recipe else BLOCK
        return as_batches(samples.x, samples.y, samples.a, size)

    def batches(self, size: int, epochs: int):
        """Row indices, int64 [at most size], of `epochs` passes in orders drawn by the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epochs):
            yield from torch.randperm(len(self.train), generator=generator).split(size)
