"""DOMIND, domain-independent training (Wang et al., CVPR 2020). Sees a in training.

Shared features and one head per domain a; a sample's loss is that of its own head only. Of the
paper's four rules of inference this is the sum of the heads' probabilities (not of their logits),
which needs no a at test time. On a logistic regression the features are the inputs, so the heads
are one logistic regression per domain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.fairif.problem import Problem
from utils.errors import UserError


class OwnHead(nn.Module):
    """x [N, ...] -> the logit [N, 1] of each sample's own head, for one fixed set of samples."""

    def __init__(self, features: nn.Module, heads: nn.Linear, a: Tensor):
        super().__init__()
        self.features, self.heads = features, heads
        self.a = a

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.features(x)).gather(1, self.a[:, None])


class SumOfProbabilities(nn.Module):
    """x [N, ...] -> the logit [N, 1] of the mean of the heads' probabilities of class 1."""

    def __init__(self, features: nn.Module, heads: nn.Linear):
        super().__init__()
        self.features, self.heads = features, heads

    def forward(self, x: Tensor) -> Tensor:
        logits = self.heads(self.features(x))
        positive = torch.logsumexp(nn.functional.logsigmoid(logits), dim=1, keepdim=True)
        negative = torch.logsumexp(nn.functional.logsigmoid(-logits), dim=1, keepdim=True)
        return positive - negative


def train(problem: Problem) -> nn.Module:
    """Both heads and their features, by `problem.fit`. Raises UserError where a domain is empty."""
    x, y, a = problem.train.x, problem.train.y, problem.train.a
    if not bool((a == 0).any() and (a == 1).any()):
        raise UserError("DOMIND: the training set has samples of one protected group only")
    model = problem.build()
    features, head = model[:-1], model[-1]
    heads = nn.Linear(head.in_features, 2).to(x)
    with torch.no_grad():  # both start where the single head would
        heads.weight.copy_(head.weight.expand(2, -1))
        heads.bias.copy_(head.bias.expand(2))
    problem.fit(OwnHead(features, heads, a), x, y, problem.uniform())
    return SumOfProbabilities(features, heads)
