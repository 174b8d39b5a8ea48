"""One split of a data set that fits in memory, as a method may see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from models.fairif.training import Fit, fit_by_adam, fit_to_convergence


@dataclass(frozen=True, eq=False)
class Samples:
    """x: float [N, ...]; y, a: int64 [N], target and protected label, a = -1 where withheld."""

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
    of everything a method draws. blocks: the columns of x of each categorical attribute. fits: a
    list that `fit` appends to.
    """

    train: Samples
    val: Samples
    build: Callable[[], nn.Sequential]
    convex: bool
    l2: float
    tolerance: float
    seed: int
    blocks: tuple[tuple[int, ...], ...] = ()
    fits: list[Fit] = field(default_factory=list)

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

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, weights: Tensor) -> nn.Module:
        """Train `model` on weighted samples (training.py) and return it; raises UserError as that.

        x, y: of the n samples as in Samples; weights: float [n], 1/n each for the mean loss.
        """
        options = {"l2": self.l2, "tolerance": self.tolerance}
        if self.convex:
            self.fits.append(fit_to_convergence(model, x, y, weights, **options))
        else:
            self.fits.append(fit_by_adam(model, x, y, weights, seed=self.seed, **options))
        return model

    def batches(self, size: int, epochs: int):
        """Row indices, int64 [at most size], of `epochs` passes in orders drawn by the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epochs):
            yield from torch.randperm(len(self.train), generator=generator).split(size)
