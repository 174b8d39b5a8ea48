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
from models.fairif.training import pick
from utils.errors import UserError


def check_domains(a: Tensor) -> None:
    """Raise UserError unless both domains occur in a, int64 [n]."""
    if not bool((a == 0).any() and (a == 1).any()):
        raise UserError("DOMIND: the training set has samples of one protected group only")


def two_heads(head: nn.Linear) -> nn.Linear:
    """A layer with one logit a domain, both of which start where the single head is."""
    heads = nn.Linear(head.in_features, 2).to(head.weight)
    with torch.no_grad():
        heads.weight.copy_(head.weight.expand(2, -1))
        heads.bias.copy_(head.bias.expand(2))
    return heads


def own_logits(logits: Tensor, a: Tensor) -> Tensor:
    """The logit [B] of each sample's own head; logits: float [B, 2]; a: int64 [B]."""
    return logits.gather(1, a[:, None]).squeeze(1)


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
    check_domains(a)
    model = problem.build()
    features, heads = model[:-1], two_heads(model[-1])

    def own_head(rows: Tensor | None) -> Tensor:
        return own_logits(heads(features(pick(x, rows))), pick(a, rows))

    model = SumOfProbabilities(features, heads)
    return problem.fit(model, x, y, problem.uniform(), own_head)
