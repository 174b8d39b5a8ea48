"""CFair (Zhao et al., ICLR 2020): conditional learning of fair representations. Sees a in training.

    balanced NLL(y) + mu * mean over classes j of the balanced NLL(a | features, y = j),

one adversary per class behind a gradient reversal, every NLL weighted by the inverse frequency of
its label (of a within y = j for the adversaries). On a logistic regression the features are the
inputs: no gradient reaches anything the two terms share, and CFair is the class-balanced logistic
regression, which is fitted exactly. Where a problem has a recipe, classifier and adversaries are
trained by it and not by the settings below, mu excepted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fairif.problem import Problem
from models.fairif.training import pick
from utils.errors import UserError

MU = 10.0  # weight of the adversaries; Adadelta, its rate, epochs and batch: the paper's Adult
LR = 1.0
EPOCHS = 100
BATCH = 512


class Reverse(torch.autograd.Function):
    """The identity whose gradient is turned round."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


def balanced_weights(labels: Tensor) -> Tensor:
    """n / (2 n_label) per sample, float64 [n] with mean 1; labels int64 [n] in {0, 1}.

    Raises UserError where one of the two labels does not occur.
    """
    counts = torch.bincount(labels, minlength=2)
    if len(labels) == 0 or int(counts.min()) == 0:
        raise UserError("CFair: a class or a group within a class is missing from the training set")
    return (len(labels) / (2 * counts.double()))[labels]


def label_weights(y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """`balanced_weights` of y, and of a within each class, float64 [n] each; y, a: int64 [n]."""
    by_class = balanced_weights(y)
    by_group = torch.empty_like(by_class)
    for j in (0, 1):
        by_group[y == j] = balanced_weights(a[y == j])
    return by_class, by_group


def adversary_loss(logits: Tensor, y: Tensor, a: Tensor, weights: Tensor) -> Tensor:
    """Mean over the classes in the batch of the weighted NLL of a; a missing class has no term.

    logits: float [m, 2], column j from class j's adversary. weights: of every sample within its
    class, float [m].
    """
    losses = F.binary_cross_entropy_with_logits(
        logits, a.to(logits)[:, None].expand_as(logits), reduction="none"
    )
    # sums over all samples, not over rows chosen by y, for which the host would wait
    own = F.one_hot(y, 2) * weights[:, None]  # [m, 2]
    total = own.sum(0)
    terms = (own * losses).sum(0) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return terms.sum() / (total > 0).sum()


def objective(
    logits: Tensor, hostile: Tensor, y: Tensor, a: Tensor, by_class: Tensor, by_group: Tensor,
    mu: float,
) -> Tensor:
    """What a step minimises on m samples: the weighted NLL of y + mu * `adversary_loss`.

    logits: float [m]; hostile: float [m, 2], the adversaries' logits on reversed features; y, a:
    int64 [m]; by_class, by_group: the samples' `label_weights`, float [m].
    """
    losses = F.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")
    own = (by_class * losses).sum() / by_class.sum()
    return own + mu * adversary_loss(hostile, y, a, by_group)


def train(problem: Problem, mu: float = MU, epochs: int = EPOCHS, batch: int = BATCH) -> nn.Module:
    """The classifier; on a logistic regression the class-balanced fit. Errors: balanced_weights."""
    x, y, a = problem.train.x, problem.train.y, problem.train.a
    model = problem.build()
    by_class, by_group = (part.to(model[-1].weight) for part in label_weights(y, a))
    if problem.convex:
        return problem.fit(model, x, y, by_class / len(y))
    adversaries = nn.Linear(model[-1].in_features, 2).to(by_class)

    def loss(rows: Tensor) -> Tensor:
        hidden = model[:-1](pick(x, rows))
        return objective(
            model[-1](hidden).squeeze(1), adversaries(Reverse.apply(hidden)),
            y[rows], a[rows], by_class[rows], by_group[rows], mu,
        )

    if problem.recipe:
        return problem.minimise(model, loss, len(y), adversaries.parameters())
    parameters = [*model.parameters(), *adversaries.parameters()]
    optimizer = torch.optim.Adadelta(parameters, lr=LR)
    for rows in problem.batches(batch, epochs):
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise UserError("CFair: the training diverged; lower mu")
    return model
