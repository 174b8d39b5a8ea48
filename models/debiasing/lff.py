"""LfF (Nam et al., NeurIPS 2020, Learning from Failure)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.method import Batch, Method, new_model
from utils.run import Run

SECOND_NETWORK = 1_000_003  # added to the seed, so that the two networks start differently


def generalised_cross_entropy(logits: Tensor, y: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q, float [B] (Nam 2020); logits float [B], y in {0, 1} [B].

    Its gradient is p_y^q times that of the cross entropy; the reference multiplies by q once more.
    """
    log_p = F.logsigmoid(torch.where(y == 1, logits, -logits))
    return -torch.expm1(q * log_p) / q  # p**q has no gradient where p underflows to 0


def running_mean(table: Tensor, index: Tensor, losses: Tensor, decay: float) -> Tensor:
    """`table` float [N] after index int64 [B] saw losses [B]: decay * old + (1 - decay) * new.

    A sample's first loss is taken whole; -1 in the table marks one that was never seen.
    """
    old = table[index]
    mean = torch.where(old < 0, losses, decay * old + (1 - decay) * losses)
    return table.index_copy(0, index, mean)


def over_class_maximum(table: Tensor, y_table: Tensor, index: Tensor) -> Tensor:
    """table[index] divided by the largest value of the same class in the whole table; [B]."""
    largest = torch.stack([torch.where(y_table == c, table, 0.0).max() for c in (0, 1)])
    return table[index] / largest.clamp_min(1e-8)[y_table[index]]  # all-zero losses stay 0


def relative_difficulty(biased: Tensor, debiased: Tensor) -> Tensor:
    """W = L_b / (L_b + L_d + 1e-8) (Nam 2020), of normalised losses float [B]."""
    return biased / (biased + debiased + 1e-8)


class LfF(Method):
    """A network that fits what is easy, and a second one trained on what the first one fails at.

    Biased network: generalised cross entropy. Debiased network (the result): cross entropy
    weighted by W, where the losses in W are per-sample moving averages over the training set
    divided by their class's maximum; both networks learn in every step.
    Adam as in the paper, not the setting's SGD: W is small on average, which shrinks SGD's steps
    but not Adam's. Departures: batch size, weight decay, epochs and milestone are the setting's.
    A step costs twice ERM's. Where the biased network fits nearly every sample its losses, and W,
    vanish for all but its errors, and the second network can learn the opposite correlation.
    """

    paper_row = "LfF"
    defaults = {
        "q": 0.7,  # exponent of the biased network's loss, the paper's value
        "decay": 0.7,  # of the per-sample moving average, reference implementation
        "lr": 1e-4,  # Adam, the paper's CelebA setting
    }
    ranges = {"lr": (1e-9, 100.0), "q": (1e-6, 1.0), "decay": (0.0, 0.999999)}

    def __init__(self, model: nn.Module, recipe, *, biased: nn.Module, y: np.ndarray, **rest):
        self.biased_model = biased
        self.y = torch.from_numpy(y).to(next(model.parameters()).device)  # int64 [N]
        super().__init__(model, recipe, **rest)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        return {"biased": new_model(run, run.seed + SECOND_NETWORK), "y": run.data.real.y}

    def setup(self) -> None:
        super().setup()
        self.biased = Method(
            self.biased_model, self.recipe, autocast=self.autocast,
            compiled=self.network is not self.model,
        )
        for part in (self, self.biased):
            part.optimizer = torch.optim.Adam(
                part.model.parameters(), lr=self.options["lr"],
                weight_decay=self.recipe.weight_decay,
            )
            part.schedule = self.recipe.schedule(part.optimizer)
        self.averages = torch.full((2, len(self.y)), -1.0, device=self.y.device)

    def train_mode(self) -> None:
        super().train_mode()
        self.biased.train_mode()

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        with self.precision(x):
            logits_b = self.biased.network(x).squeeze(1).float()
            logits_d = self.network(x).squeeze(1).float()
        losses_d = F.binary_cross_entropy_with_logits(logits_d, y.float(), reduction="none")
        with torch.no_grad():
            losses_b = F.binary_cross_entropy_with_logits(logits_b, y.float(), reduction="none")
            averages = [
                running_mean(table, index, losses, self.options["decay"])
                for table, losses in zip(self.averages, (losses_b, losses_d), strict=True)
            ]
            self.averages = torch.stack(averages)
            weight = relative_difficulty(
                *(over_class_maximum(table, self.y, index) for table in self.averages)
            )
        loss_b = generalised_cross_entropy(logits_b, y, self.options["q"]).mean()
        return loss_b + (weight * losses_d).mean()

    def update(self, batch: Batch) -> Tensor:
        self.biased.optimizer.zero_grad(set_to_none=True)
        loss = super().update(batch)
        self.biased.optimizer.step()
        return loss

    def passes(self, batch: Batch) -> int:
        return 2 * len(batch[1])  # two networks

    def end_epoch(self) -> None:
        super().end_epoch()
        self.biased.end_epoch()

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "biased": self.biased.state_dict(), "averages": self.averages,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.biased.load_state_dict(state["biased"])
        self.averages = state["averages"]
