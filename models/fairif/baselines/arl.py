"""ARL, adversarially reweighted learning (Lahoti et al., NeurIPS 2020). Sees no a."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import features_and_logits, head_of
from models.method import Batch, Method

# Adagrad's rate in the paper: 2 on Adult, 0.001 on COMPAS. Batches of the learner alone: not stated
ADVERSARY_LR, WARM_UP = 0.001, 250


def adversarial_weights(scores: Tensor) -> Tensor:
    """lambda, float [m], of the adversary's scores g, float [m]; they sum to 2 m."""
    share = torch.sigmoid(scores)
    return 1 + len(scores) * share / share.sum()


class ARL(Method):
    """A learner that minimises half of, and a linear adversary that maximises, the mean of
    lambda_i * CE_i.

    lambda_i = 1 + m * sigmoid(g_i) / sum over the batch of sigmoid(g), g linear in (features, y).
    The features are those under the learner's output layer at that step, frozen, so that no
    gradient of the adversary reaches the learner; of a logistic regression they are the inputs, as
    in the paper. lambda has mean 2; half of it, and equal weights are ERM's loss and rate.
    `adversary_steps`: of the adversary, for one of the learner.
    Departures: that half, the setting's recipe for the learner, batches of the setting's size, and
    a warm-up counted in batches. The adversary keeps the paper's Adagrad, with COMPAS's rate, as
    the hundreds of features of a network add up in g.
    """

    paper_row = "ARL"
    defaults = {"adversary_lr": ADVERSARY_LR, "adversary_steps": 1, "warm_up": WARM_UP}
    ranges = {"adversary_lr": (0.0, 1e3), "adversary_steps": (1, 10**6), "warm_up": (0, 10**9)}

    def setup(self) -> None:
        super().setup()
        head = head_of(self.model)
        self.adversary = nn.Linear(head.in_features + 1, 1).to(head.weight)
        nn.init.zeros_(self.adversary.weight)  # equal weights until it has learned
        nn.init.zeros_(self.adversary.bias)
        self.adversary_step = torch.optim.Adagrad(
            self.adversary.parameters(), lr=self.options["adversary_lr"]
        )
        self.batches_seen = 0

    def weights(self, features: Tensor, target: Tensor) -> Tensor:
        """lambda [m] of frozen features [m, D] and y as numbers [m]; its graph is the adversary's.
        """
        seen = torch.cat([features.detach(), target[:, None]], dim=1)
        return adversarial_weights(self.adversary(seen).squeeze(1))

    def loss(self, batch: Batch) -> Tensor:
        _, x, y, _ = batch
        with self.precision(x):
            features, logits = features_and_logits(self.model, x)
        target = y.to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        self.seen = features, target, losses.detach()
        if self.batches_seen < self.options["warm_up"]:
            return losses.mean()
        return (losses * self.weights(features, target).detach()).mean() / 2

    def update(self, batch: Batch) -> Tensor:
        loss = super().update(batch)
        features, target, losses = self.seen  # as the learner's step found them
        for _ in range(self.options["adversary_steps"]
                       if self.batches_seen >= self.options["warm_up"] else 0):
            self.adversary_step.zero_grad(set_to_none=True)
            (-(self.weights(features, target) * losses).mean()).backward()
            self.adversary_step.step()
        self.batches_seen += 1
        return loss

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "adversary": self.adversary.state_dict(),
            "adversary_step": self.adversary_step.state_dict(), "batches_seen": self.batches_seen,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.adversary.load_state_dict(state["adversary"])
        self.adversary_step.load_state_dict(state["adversary_step"])
        self.batches_seen = state["batches_seen"]
