"""One training stage's numbers, and the only place where an optimiser and a schedule are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adam", "lbfgs")
# On validation images, without group labels: of all images, as the release, or averaged over the
# two classes of y, which a majority class cannot buy.
BEST_BY = ("accuracy", "class-accuracy")


@dataclass(frozen=True)
class Recipe:
    """An optimiser with one step in its rate; the numbers are AIM-Fair's released code's unless a
    comment says otherwise."""

    epochs: int
    lr: float
    milestone: int = 10  # epoch after which the rate is multiplied by gamma
    gamma: float = 0.1  # the paper says "by a factor of 0.01", the release runs 0.1
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4
    best_by: str = "accuracy"  # BEST_BY: by what the best epoch is the best
    ties: str = "later"  # which of equally accurate epochs is the best: the "later" or "earlier"
    optimizer: str = "sgd"  # of OPTIMIZERS

    def make_optimizer(self, parameters: Iterable):
        """The optimiser of most methods, fused: 13% of a step, on a CPU too."""
        import torch

        if self.optimizer == "adam":
            return torch.optim.Adam(
                parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True
            )
        if self.optimizer == "lbfgs":  # its line search finds the rate
            return torch.optim.LBFGS(
                parameters, lr=1.0, max_iter=2000, max_eval=2000, history_size=30,
                # the largest entry, and a change that float64 does not resolve
                tolerance_grad=1e-8, tolerance_change=1e-17, line_search_fn="strong_wolfe",
            )
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
            fused=True,
        )

    def penalty(self, parameters: Iterable):
        """What L-BFGS adds to the loss for the weight decay."""
        return self.weight_decay / 2 * sum((p * p).sum() for p in parameters)

    def schedule(self, optimizer):
        """The rate's steps, for any optimiser."""
        import torch

        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [self.milestone], gamma=self.gamma
        )
