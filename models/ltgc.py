"""LTGC's mix-up of real and generated images (Zhao et al., CVPR 2024), as in AIM-Fair's Table 9."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.loader import send
from models.method import Batch, Method
from utils.run import Run


def mix_pairs(x: Tensor, y: Tensor, generated: Tensor, share: Tensor, order: Tensor) -> tuple:
    """Mix every generated image of a batch with one of the batch's real images.

    x float [B, 3, H, W], y int64 [B], generated bool [B]; share float [B] in [0, 1], the generated
    part of the mixture; order float [B] uniform in [0, 1), from which the real partners follow.
    Returns (mixed x, y of the partner, share), where a real image keeps itself (share 1), and so
    does a generated one in a batch without real images. Nothing waits for the device.
    """
    real = (~generated).sum()
    first_real = torch.argsort(order + generated.float())  # the real images, shuffled, come first
    partner = first_real[torch.arange(len(y), device=y.device) % real.clamp_min(1)]
    share = torch.where(generated & (real > 0), share, torch.ones_like(share))
    weight = share.view(-1, 1, 1, 1).to(x.dtype)
    return weight * x + (1 - weight) * x[partner], y[partner], share


class LTGC(Method):
    """ERM on the real images and on mixtures of generated with real ones in the minority groups.

    The training set is the real one filled up with generated images of the minority groups (y, a)
    until all are as large: the groups are the tail, so the real images' protected labels are used.
    That is our reading: AIM-Fair's supplement does not say what its tail is, and by class labels
    alone, as in LTGC's own experiments, the biased sets have none, for their classes are balanced.
    In a batch every generated image g is mixed with a random real one r (BalanceMix):
    x = s x_g + (1 - s) x_r, s ~ Beta(alpha, alpha), and costs
    generated_weight * s * loss(x, y_g) + (1 - s) * loss(x, y_r); real images also enter unmixed.
    Departures, as AIM-Fair's supplement names the mix-up and no settings: the images are those of
    AIM-Fair's own prompts instead of LTGC's dialogue with a language model, pairs are drawn within
    the batch, and the network is trained with the setting's recipe instead of fine-tuning CLIP.
    """

    uses_attributes = "train"
    training_set = "repaired"
    paper_row = "LTGC"
    defaults = {"alpha": 1.0, "generated_weight": 1.0}  # plain mix-up; neither is stated
    ranges = {"alpha": (1e-3, 1e3), "generated_weight": (0.0, 1e3)}

    def __init__(self, model, recipe, *, real: int, **rest):
        self.real = real  # rows below this one are real images
        super().__init__(model, recipe, **rest)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        return {"real": len(run.data.real)}

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        alpha, weight = self.options["alpha"], self.options["generated_weight"]
        # Drawn on the CPU, whose generator the engine's checkpoints hold.
        beta = torch.distributions.Beta(alpha, alpha)
        drawn = (beta.sample((len(y),)), torch.rand(len(y)))
        share, order = (send(part, x.device) for part in drawn)
        generated = index >= self.real
        with self.precision(x):
            x, partner_y, share = mix_pairs(x, y, generated, share, order)
            logits = self.network(x).squeeze(1).float()
            own, other = (
                F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
                for label in (y, partner_y)
            )
            own_weight = torch.where(generated, weight * share, share)
            return (own_weight * own + (1 - share) * other).mean()
