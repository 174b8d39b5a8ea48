"""CFair (Zhao et al., ICLR 2020): conditional learning of fair representations. Sees a in training.

    balanced NLL(y) + mu * mean over classes j of the balanced NLL(a | features, y = j),

one adversary per class behind a gradient reversal, every NLL weighted by the inverse frequency of
its label (of a within y = j for the adversaries).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import features_and_logits, head_of
from models.method import Batch, Method
from utils.errors import UserError
from utils.run import Run

HIDDEN = 50  # units of an adversary


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


class Adversaries(nn.ModuleList):
    """One for each class: from features float [m, D] to the logits of a, float [m, 2]."""

    def __init__(self, features: int):
        super().__init__(
            nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
            for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([adversary(features) for adversary in self], dim=1)


class CFair(Method):
    """The balanced error of y, and one adversary per class on the penultimate features, with a
    hidden layer of 50 as in the reference.

    The features of a logistic regression are its inputs: no gradient reaches anything that the two
    terms share, and CFair is the class-balanced logistic regression.
    Departures: the setting's recipe, for the adversaries too, instead of Adadelta.
    """

    uses_attributes = "train"
    paper_row = "CFair"
    # The paper's Adult is 10, with Adadelta: there SGD with momentum lets the adversaries run away.
    defaults = {"mu": 1.0}
    ranges = {"mu": (0.0, 1e6)}

    def __init__(self, model, recipe, *, by_class: Tensor, by_group: Tensor, **rest):
        like = next(model.parameters())
        # [n], weights of the training samples' y, and of their a within the class
        self.by_class, self.by_group = by_class.to(like), by_group.to(like)
        head = head_of(model)
        self.adversaries = Adversaries(head.in_features).to(head.weight)
        super().__init__(model, recipe, **rest)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        y, a = torch.from_numpy(run.data.real.y), torch.from_numpy(run.data.real.a)
        by_class, by_group = label_weights(y, a)
        return {"by_class": by_class, "by_group": by_group}

    def trained(self) -> list[nn.Parameter]:
        return [*super().trained(), *self.adversaries.parameters()]

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, a = batch
        with self.precision(x):
            features, logits = features_and_logits(self.model, x)
        losses = F.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")
        by_class, hostile = self.by_class[index], self.adversaries(Reverse.apply(features))
        own = (by_class * losses).sum() / by_class.sum()
        return own + self.options["mu"] * adversary_loss(hostile, y, a, self.by_group[index])

    def state_dict(self) -> dict:
        return super().state_dict() | {"adversaries": self.adversaries.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.adversaries.load_state_dict(state["adversaries"])
