"""FairIF as a method of train.py: group labels are read on the validation images only.

Stage one is the ERM model that every strategy of the setting and seed shares, and the influence of
its training images, kept beside it for every row that asks for the same (another lambda, the
shuffled control). From both come a run's weights, in its folder. Stage two is the same training
from the same start with those weights, so that with eps = 0 it is ERM bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.base import ImageTable
from datasets.subsets import draw_cells
from models import backbones
from models.fairif.hessian import Batch, evaluation
from models.fairif.influence import Influence, influence
from models.fairif.relaxation import Relaxation, check_groups
from models.fairif.reweight import closed_form, sample_weights, shuffled
from models.method import Method, pretrained
from utils.files import read_array, write_array, write_json
from utils.preemption import PREEMPTION
from utils.records import read_record
from utils.run import Run

PIECE = 64  # images at once: forward mode and its transpose keep the activations of all of them


class Passes:
    """Batches of a loader in file order, as often as asked; a SIGTERM is noticed in between."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader.epoch(0):
            for piece in zip(*(part.split(PIECE) for part in batch), strict=True):
                PREEMPTION.check()
                yield piece


class Held(list):
    """Batches in memory; a SIGTERM is noticed in between."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            PREEMPTION.check()
            yield batch


def gradient_norm(model: torch.nn.Module, batches, weight_decay: float) -> float:
    """Norm of the gradient of what stage one minimised, in evaluation mode: the mean loss over the
    batches + weight_decay / 2 * the squared norm of the parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, samples = [torch.zeros_like(p) for p in parameters], 0
    with evaluation(model):
        for _, x, y, _ in batches:
            loss = F.binary_cross_entropy_with_logits(
                model(x).squeeze(1), y.float(), reduction="sum"
            )
            for sum_, piece in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += piece
            samples += len(y)
    whole = [piece / samples + weight_decay * p.detach() for piece, p in zip(total, parameters)]
    return math.sqrt(sum(float(piece.square().sum()) for piece in whole))


class FairIF(Method):
    """Training on samples weighted by influence functions (Wang 2024, Algorithm 1).

    defaults: `strength` is the paper's lambda. `temperature`: of the sigmoid relaxation.
    `damping`, `cg_steps`, `curvature_images`: Gauss-Newton products over that many training images
    drawn by the seed. `last_tensors`: only so many of the last parameter tensors move in the
    influence (ResNet-18: 2 is fc, 17 layer4 and fc); 0 is all. `validation_share`: of each cell of
    the validation images, drawn by the seed, whose group labels are used (Table 11); the epoch is
    chosen on all of them, which needs no group labels.
    """

    stages = ("influence", "reweighted")
    uses_attributes = "validation"
    paper_row = "FairIF"
    defaults = {
        "strength": 0.1, "temperature": 0.3, "damping": 0.01, "cg_steps": 30,
        "curvature_images": 500, "last_tensors": 0, "validation_share": 1.0,
    }
    ranges = {
        "strength": (0, 10**6), "temperature": (1e-3, 100), "damping": (0, 10**6),
        "cg_steps": (1, 10**4), "curvature_images": (1, 10**7), "last_tensors": (0, 10**4),
        "validation_share": (1e-3, 1.0),
    }

    def __init__(self, model, recipe, *, weights: np.ndarray, **rest):
        device = next(model.parameters()).device
        # float32 [n], 1 for the mean loss
        self.weights = torch.from_numpy(weights).float().to(device)
        super().__init__(model, recipe, **rest)

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        with self.precision(x):
            logits = self.model(x).squeeze(1).float()
            return F.binary_cross_entropy_with_logits(
                logits, y.float(), weight=self.weights[index]
            )

    @staticmethod
    def deal(eps: Tensor, seed: int) -> Tensor:
        """Which sample gets which eps, float64 [n]: each its own."""
        return eps

    @classmethod
    def weigh(cls, erm: torch.nn.Module, run: Run) -> tuple[Tensor, dict]:
        """(n times the weights of the n training images, float64 [n]; how they came about)."""
        found, record = shared_influence(erm, run)
        eps = cls.deal(closed_form(found.scores, found.gaps, run.options["strength"]), run.seed)
        clipped = sample_weights(eps).clipped
        count = len(eps)
        # 1 + n eps and not n (1/n + eps), whose rounding would keep eps = 0 from being ERM
        weights = (1 + count * eps).clamp(min=0)
        return weights, record | {
            "predicted": (found.gaps + found.scores @ (weights - 1) / count).tolist(),
            "clipped": clipped, "eps_rms_times_n": (eps.norm() * math.sqrt(count)).item(),
        }

    @classmethod
    def influence(cls, run: Run) -> None:
        """weights.npy (n times the weights of the n training images, float64 [n], in the order of
        train.csv) and influence.json. Raises UserError as `influence` and `closed_form` do."""
        weights, record = cls.weigh(pretrained(run), run)
        write_array(run.folder / "weights.npy", weights.numpy())
        write_json(run.folder / "influence.json", record)
        run.log[-1] |= record

    @classmethod
    def arguments(cls, run: Run) -> dict:
        return {"weights": read_array(run.folder / "weights.npy", (len(run.data.real),))}

    @classmethod
    def reweighted(cls, run: Run) -> Method:
        """The same training from the same start, with the weights."""
        return super().train(run)


class FairIFShuffled(FairIF):
    """The control: FairIF's eps on other samples, which shows whether their choice does the work.

    The influence is FairIF's own of the same setting and seed, and the seed shuffles.
    """

    paper_row = None
    deal = staticmethod(shuffled)


# Table 11: shares of each validation group whose labels are used, in percent.
SHARES: dict[str, type[FairIF]] = {
    f"fairif_{percent}": type("FairIFShare", (FairIF,), {
        "defaults": {**FairIF.defaults, "validation_share": percent / 100},
        "paper_row": f"{percent}%", "__doc__": FairIF.__doc__,
    })
    for percent in (50, 25, 10)
}


def shared_influence(model, run: Run) -> tuple[Influence, dict]:
    """`image_influence`, computed once for a setting, seed and the options without the lambda.

    A stage that rows share, as the pre-trained model is.
    """
    used = {key: value for key, value in run.options.items() if key != "strength"}
    config = run.config.identity(finetune=False) | used | {
        key: run.data.digests.get(key) for key in ("real", "val")
    }
    with run.shared_stage("influence", config, "scores.npy", "influence.json") as stage:
        if not stage.finished:
            found, norm = image_influence(model, run)
            write_array(stage.folder / "scores.npy", found.scores.numpy())
            write_json(stage.folder / "influence.json", {
                "gaps": found.gaps.tolist(), "residual": found.residual.tolist(),
                "gradient_norm": norm,
            })
        record = read_record(stage.folder / "influence.json", "gaps", "residual", "gradient_norm")
        gaps, residual = (torch.tensor(record[key], dtype=torch.float64)
                          for key in ("gaps", "residual"))
        scores = torch.from_numpy(
            read_array(stage.folder / "scores.npy", (2, len(run.data.real))))
    return Influence(scores, gaps, residual), record


def image_influence(model, run: Run) -> tuple[Influence, float]:
    """Influence of the n training images on both gaps, and the gradient norm of stage one over
    the curvature's images. Raises UserError as `influence` does."""
    data, options = run.data, run.options
    names, curvature = moving_parts(model, run)
    val = validation_images(data.val, options["validation_share"], run.seed)
    found = influence(
        model,
        Passes(data.loader(data.real, train=False)),
        Passes(data.loader(val, train=False, attributes=True)),
        Relaxation("sigmoid", options["temperature"]),
        names=names, curvature=curvature,
        damping=options["damping"], steps=options["cg_steps"],
    )
    return found, gradient_norm(model, curvature, run.config.pretrain.weight_decay)


def moving_parts(model, run: Run) -> tuple[tuple[str, ...] | None, Held]:
    """(names of the tensors that move, None for all; batches whose mean loss is the curvature's),
    from the options `last_tensors` and `curvature_images`."""
    data, last = run.data, run.options["last_tensors"]
    count = min(run.options["curvature_images"], len(data.real))
    names = tuple(backbones.parameter_names(model)[-last:]) if last else None
    rows = np.sort(np.random.default_rng(run.seed).permutation(len(data.real))[:count])
    return names, Held(Passes(data.loader(data.real.take(rows), train=False)))


def validation_images(val: ImageTable, share: float, seed: int) -> ImageTable:
    """That share of each cell (y, a), rounded, drawn by the seed; a smaller one is part of a
    larger one. All of them, in their order, where share is 1. UserError where a cell is empty."""
    counts = {cell: round(share * count) for cell, count in val.counts().items()}
    drawn = draw_cells(val, counts, seed)
    check_groups(torch.from_numpy(drawn.y), torch.from_numpy(drawn.a))
    return drawn
