"""DOMIND, domain-independent training (Wang et al., CVPR 2020). Sees a in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.heads import features_and_logits, head_of
from models.method import Batch, Method, cross_entropy
from utils.errors import UserError
from utils.run import Run


def two_heads(head: nn.Linear) -> nn.Linear:
    """A layer with one logit a domain, both of which start where the single head is."""
    heads = nn.Linear(head.in_features, 2).to(head.weight)
    with torch.no_grad():
        heads.weight.copy_(head.weight.expand(2, -1))
        heads.bias.copy_(head.bias.expand(2))
    return heads


class DOMIND(Method):
    """Shared features and one head per domain a; a sample's loss is that of its own head.

    Of the paper's four rules of inference this is the sum of the heads' logits, which needs no a at
    test time and is again one linear layer: the network's output layer holds the heads' mean, whose
    sign is the sum's, so that the result is an ordinary classifier. (The sum of probabilities
    decides alike with two heads of one logit: sigmoid(f) + sigmoid(g) > 1 exactly where f + g > 0.)
    On a logistic regression the features are the inputs, so the heads are one logistic regression
    per domain.
    Departures: one logit a head, as the task has two classes; the setting's recipe.
    """

    uses_attributes = "train"
    paper_row = "DOMIND"

    @classmethod
    def arguments(cls, run: Run) -> dict:
        if len(set(run.data.real.a.tolist())) < 2:
            raise UserError("DOMIND: the training set has samples of one protected group only")
        return {}

    def setup(self) -> None:
        head = head_of(self.model)
        self.heads = two_heads(head)
        head.requires_grad_(False)  # it follows the heads
        super().setup()

    def trained(self) -> list[nn.Parameter]:
        return [*super().trained(), *self.heads.parameters()]

    def loss(self, batch: Batch) -> Tensor:
        _, x, y, a = batch
        with self.precision(x):
            features, _ = features_and_logits(self.model, x)
        return cross_entropy(self.heads(features).gather(1, a[:, None]).squeeze(1), y)

    @torch.no_grad()
    def end_epoch(self) -> None:
        super().end_epoch()
        head = head_of(self.model)
        head.weight.copy_(self.heads.weight.mean(dim=0, keepdim=True))
        head.bias.copy_(self.heads.bias.mean(dim=0, keepdim=True))

    def state_dict(self) -> dict:
        return super().state_dict() | {"heads": self.heads.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.heads.load_state_dict(state["heads"])
