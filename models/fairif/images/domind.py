"""DOMIND, domain-independent training (Wang et al., CVPR 2020), on images. Sees a in training."""

from __future__ import annotations

import torch
from torch import Tensor

from models.fairif.baselines.domind import check_domains, own_logits, two_heads
from models.fairif.images.features import features_and_logits, head_of
from models.method import Batch, Method, bce
from utils.run import Run


class DOMIND(Method):
    """Shared features and one head per domain a; a sample's loss is that of its own head.

    Of the paper's four rules of inference this is the sum of the heads' logits, which needs no a at
    test time and is again one linear layer: the network's output layer holds the heads' mean, whose
    sign is the sum's, so that the result is an ordinary classifier. (The tables in memory sum
    probabilities, another of the four: baselines/domind.py. With two heads of one logit both decide
    alike: sigmoid(f) + sigmoid(g) > 1 exactly where f + g > 0.)
    Departures: one logit a head, as the task has two classes; SGD with the setting's recipe.
    """

    uses_attributes = "train"
    paper_row = "DOMIND"

    @classmethod
    def arguments(cls, run: Run) -> dict:
        check_domains(torch.from_numpy(run.data.real.a))
        return {}

    def setup(self) -> None:
        head = head_of(self.model)
        self.heads = two_heads(head)
        head.requires_grad_(False)  # it follows the heads
        super().setup()
        self.optimizer.add_param_group({"params": list(self.heads.parameters())})

    def loss(self, batch: Batch) -> Tensor:
        _, x, y, a = batch
        with self.precision(x):
            features, _ = features_and_logits(self.model, x)
        return bce(lambda x: own_logits(self.heads(x), a)[:, None], features, y)

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
