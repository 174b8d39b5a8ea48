"""ARL, adversarially reweighted learning (Lahoti et al., NeurIPS 2020). Sees no protected labels.

The learner minimises and a linear adversary g(x, y) maximises, over batches of m samples,

    mean of lambda_i * CE_i,  lambda_i = 1 + m * sigmoid(g_i) / sum over the batch of sigmoid(g)

The adversary's input is the features under the learner's last layer, frozen (for a logistic
regression the inputs themselves), and y. Where a problem has a recipe, the learner is trained by it
and the adversary by its optimiser, rate and batches, after the same warm-up.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fairif.problem import Problem
from models.fairif.training import pick
from utils.errors import UserError

BATCH = 512  # the paper's Adult and COMPAS settings, as are the two rates below
LEARNER_LR = 0.01
ADVERSARY_LR = 2.0  # Adult; COMPAS uses 0.001
LARGE = 10_000  # training samples from which on Adult's adversary rate is used; a choice of ours
ADVERSARY_LR_SMALL = 0.001
STEPS = 3000  # not stated in the paper
WARM_UP = 250  # steps of the learner alone


def adversarial_weights(scores: Tensor) -> Tensor:
    """lambda, float [m], of the adversary's scores g, float [m]; they sum to 2 m."""
    share = torch.sigmoid(scores)
    return 1 + len(scores) * share / share.sum()


def new_adversary(features: int) -> nn.Linear:
    """The linear adversary on so many features and y; equal weights until it has learned."""
    adversary = nn.Linear(features + 1, 1)
    nn.init.zeros_(adversary.weight)
    nn.init.zeros_(adversary.bias)
    return adversary


def adversary_scores(adversary: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    """g(x, y), float [m], of frozen features, float [m, ...], and y as float [m]."""
    return adversary(torch.cat([features.detach().flatten(1), target[:, None]], dim=1)).squeeze(1)


def train(
    problem: Problem,
    steps: int = STEPS,
    warm_up: int = WARM_UP,
    batch: int = BATCH,
    adversary_lr: float | None = None,
) -> nn.Module:
    """The learner after `steps` alternating Adagrad steps, the first `warm_up` with lambda = 1.

    adversary_lr: None takes the paper's rate for Adult on large sets and for COMPAS on small ones.
    Raises UserError where a loss is not finite.
    """
    x, y = problem.train.x, problem.train.y
    model = problem.build()
    adversary = new_adversary(model[-1].in_features).to(model[-1].weight)
    if adversary_lr is None:
        adversary_lr = ADVERSARY_LR if len(y) >= LARGE else ADVERSARY_LR_SMALL
    if problem.recipe:
        adversary_step = torch.optim.Adam(adversary.parameters(), lr=problem.recipe.rate)
    else:
        adversary_step = torch.optim.Adagrad(adversary.parameters(), lr=adversary_lr)
    numbers = itertools.count()

    def learner_loss(rows: Tensor) -> Tensor:
        """The learner's loss on a batch; the adversary takes its own step on the way."""
        hidden = model[:-1](pick(x, rows))
        target = y[rows].to(hidden)
        losses = F.binary_cross_entropy_with_logits(
            model[-1](hidden).squeeze(1), target, reduction="none"
        )
        if next(numbers) < warm_up:
            return losses.mean()
        weights = adversarial_weights(adversary_scores(adversary, hidden, target))
        adversary_step.zero_grad()
        (-(weights * losses.detach()).mean()).backward()
        adversary_step.step()
        return (losses * weights.detach()).mean()

    if problem.recipe:
        return problem.minimise(model, learner_loss, len(y))
    learner_step = torch.optim.Adagrad(model.parameters(), lr=LEARNER_LR)
    epochs = math.ceil(steps / math.ceil(len(y) / batch))
    loss = torch.zeros(())
    for rows in itertools.islice(problem.batches(batch, epochs), steps):
        learner_step.zero_grad()
        loss = learner_loss(rows)
        loss.backward()
        learner_step.step()
    if not math.isfinite(loss.item()):
        raise UserError("ARL: the loss is not finite; lower the adversary's learning rate")
    return model
