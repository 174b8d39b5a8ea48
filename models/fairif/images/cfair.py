"""CFair (Zhao et al., ICLR 2020) on images. Sees a in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.fairif.baselines.cfair import Reverse, label_weights, objective
from models.fairif.images.features import features_and_logits, head_of
from models.method import Batch, Method
from utils.run import Run


class CFair(Method):
    """The balanced error of y, and one adversary per class on the features behind a reversal.

    Objective (baselines/cfair.py): balanced NLL(y) + mu * mean over the classes j of the balanced
    NLL of a given y = j. The adversaries are linear on the penultimate features.
    Departures: SGD with the setting's recipe, for the adversaries too, instead of Adadelta.
    """

    uses_attributes = "train"
    paper_row = "CFair"
    # The paper's Adult is 10, with Adadelta: there SGD with momentum lets the adversaries run away.
    defaults = {"mu": 1.0}
    ranges = {"mu": (0.0, 1e6)}

    def __init__(self, model, recipe, *, by_class: Tensor, by_group: Tensor, **rest):
        device = next(model.parameters()).device
        # float32 [n], weights of the training samples' y, and of their a within the class
        self.by_class, self.by_group = (part.float().to(device) for part in (by_class, by_group))
        super().__init__(model, recipe, **rest)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        y, a = torch.from_numpy(run.data.real.y), torch.from_numpy(run.data.real.a)
        by_class, by_group = label_weights(y, a)
        return {"by_class": by_class, "by_group": by_group}

    def setup(self) -> None:
        super().setup()
        head = head_of(self.model)
        self.adversaries = nn.Linear(head.in_features, 2).to(head.weight)
        self.optimizer.add_param_group({"params": list(self.adversaries.parameters())})

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, a = batch
        with self.precision(x):
            features, logits = features_and_logits(self.model, x)
        hostile = self.adversaries(Reverse.apply(features))
        return objective(
            logits, hostile, y, a, self.by_class[index], self.by_group[index], self.options["mu"]
        )

    def state_dict(self) -> dict:
        return super().state_dict() | {"adversaries": self.adversaries.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.adversaries.load_state_dict(state["adversaries"])
