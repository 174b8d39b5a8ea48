"""ARL, adversarially reweighted learning (Lahoti et al., NeurIPS 2020). Sees no protected labels.

The learner minimises and a linear adversary g(x, y) maximises, over batches of m samples,

    mean of lambda_i * CE_i,  lambda_i = 1 + m * sigmoid(g_i) / sum over the batch of sigmoid(g)

The adversary's input is the features under the learner's last layer, frozen (for a logistic
regression the inputs themselves), and y.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fairif.problem import Problem
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
    features = model[-1].in_features
    adversary = nn.Linear(features + 1, 1).to(x)
    nn.init.zeros_(adversary.weight)  # equal weights until it has learned something
    nn.init.zeros_(adversary.bias)
    if adversary_lr is None:
        adversary_lr = ADVERSARY_LR if len(y) >= LARGE else ADVERSARY_LR_SMALL
    learner_step = torch.optim.Adagrad(model.parameters(), lr=LEARNER_LR)
    adversary_step = torch.optim.Adagrad(adversary.parameters(), lr=adversary_lr)
    epochs = math.ceil(steps / math.ceil(len(y) / batch))
    loss = torch.zeros(())
    for step, rows in enumerate(problem.batches(batch, epochs)):
        if step == steps:
            break
        target = y[rows].to(x)
        hidden = model[:-1](x[rows])
        losses = F.binary_cross_entropy_with_logits(
            model[-1](hidden).squeeze(1), target, reduction="none"
        )
        seen = torch.cat([hidden.detach().flatten(1), target[:, None]], dim=1)
        weights = adversarial_weights(adversary(seen).squeeze(1))
        learner_step.zero_grad()
        loss = (losses * (weights.detach() if step >= warm_up else 1)).mean()
        loss.backward()
        learner_step.step()
        if step >= warm_up:
            adversary_step.zero_grad()
            (-(weights * losses.detach()).mean()).backward()
            adversary_step.step()
    if not math.isfinite(loss.item()):
        raise UserError("ARL: the loss is not finite; lower the adversary's learning rate")
    return model
