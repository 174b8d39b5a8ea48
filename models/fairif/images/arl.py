"""ARL, adversarially reweighted learning (Lahoti et al., NeurIPS 2020), on images. Sees no a."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fairif.baselines.arl import (
    ADVERSARY_LR_SMALL,
    WARM_UP,
    adversarial_weights,
    adversary_scores,
    new_adversary,
)
from models.fairif.images.features import features_and_logits, head_of
from models.method import Batch, Method


class ARL(Method):
    """A learner that minimises and a linear adversary that maximises the mean of lambda_i * CE_i.

    lambda_i = 1 + m * sigmoid(g_i) / sum over the batch of sigmoid(g), g linear in (features, y).
    On images the adversary's input is not defined: here it is the learner's penultimate features at
    that step, frozen, so that no gradient of the adversary reaches the learner. lambda has mean 2,
    which doubles the loss after the warm-up.
    Departures: SGD with the setting's recipe for the learner, batches of the setting's size, and a
    warm-up counted in batches. The adversary keeps the paper's Adagrad, with COMPAS's rate, as the
    hundreds of features add up in g.
    """

    paper_row = "ARL"
    defaults = {
        "adversary_lr": ADVERSARY_LR_SMALL,  # Adagrad; the paper: Adult 2, COMPAS 0.001
        "warm_up": WARM_UP,  # batches of the learner alone, not stated
    }
    ranges = {"adversary_lr": (0.0, 1e3), "warm_up": (0, 10**9)}

    def setup(self) -> None:
        super().setup()
        head = head_of(self.model)
        self.adversary = new_adversary(head.in_features).to(head.weight)
        self.adversary_step = torch.optim.Adagrad(
            self.adversary.parameters(), lr=self.options["adversary_lr"]
        )
        self.batches_seen = 0

    def loss(self, batch: Batch) -> Tensor:
        _, x, y, _ = batch
        with self.precision(x):
            features, logits = features_and_logits(self.model, x)
        losses = F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")
        loss = losses.mean()
        if self.batches_seen >= self.options["warm_up"]:
            weights = adversarial_weights(adversary_scores(self.adversary, features, y.float()))
            loss = (losses * weights.detach()).mean()
            self.adversary_step.zero_grad(set_to_none=True)
            (-(weights * losses.detach()).mean()).backward()
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
