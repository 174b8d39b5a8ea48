"""One training stage's numbers, and the only place where an optimiser and a schedule are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# On validation images, without group labels: of all images, as the release, or averaged over the
# two classes of y, which a majority class cannot buy.
BEST_BY = ("accuracy", "class-accuracy")


@dataclass(frozen=True)
class Recipe:
    """SGD with one step in the rate; the numbers are the released code's unless a comment says
    otherwise."""

    epochs: int
    lr: float
    milestone: int = 10  # epoch after which the rate is multiplied by gamma
    gamma: float = 0.1  # the paper says "by a factor of 0.01", the release runs 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    best_by: str = "accuracy"  # BEST_BY: by what the best epoch is the best
    ties: str = "later"  # which of equally accurate epochs is the best: the "later" or "earlier"

    def sgd(self, parameters: Iterable):
        """The optimiser of most methods."""
        import torch

        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
            fused=True,  # on a CPU, too: 13% of a step
        )

    def schedule(self, optimizer):
        """The rate's steps, for any optimiser."""
        import torch

        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [self.milestone], gamma=self.gamma
        )
