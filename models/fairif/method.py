"""FairIF as a method of train.py: group labels are read on the validation images only.

Stage one is the ERM model that every strategy of the setting and seed shares; from it come the
weights, kept in reference/ of the run folder. Stage two is the same training from the same start
with those weights, so that with eps = 0 it is ERM bit for bit.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.mixing import Data
from models import backbones
from models.fairif.fairif import Settings, reweight
from models.fairif.hessian import Batch, evaluation
from models.fairif.relaxation import Relaxation
from models.method import Method
from models.strategies import new_model, pretrain
from utils.engine import PREEMPTION, fit
from utils.errors import UserError
from utils.files import remove_leftovers, write_atomic, write_json

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


def gradient_norm(model: torch.nn.Module, batches) -> float:
    """Norm of the gradient of the mean loss over the batches, in evaluation mode."""
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
    return math.sqrt(sum(float((piece / samples).square().sum()) for piece in total))


class FairIF(Method):
    """Training on samples weighted by influence functions (Wang 2024, Algorithm 1).

    defaults: `strength` is the paper's lambda. `temperature`: of the sigmoid relaxation.
    `damping`, `cg_steps`, `curvature_images`: Gauss-Newton products over that many training images
    drawn by the seed. `last_tensors`: only so many of the last parameter tensors move in the
    influence (ResNet-18: 2 is fc, 17 layer4 and fc); 0 is all.
    """

    uses_attributes = "validation"
    needs_synthetic = False
    paper_row = None  # not a row of AIM-Fair's tables
    defaults = {
        "strength": 0.1, "temperature": 0.3, "damping": 0.01, "cg_steps": 30,
        "curvature_images": 500, "last_tensors": 0,
    }
    ranges = {
        "strength": (0, 10**6), "temperature": (1e-3, 100), "damping": (0, 10**6),
        "cg_steps": (1, 10**4), "curvature_images": (1, 10**7), "last_tensors": (0, 10**4),
    }

    def __init__(self, model, recipe, *, weights: Tensor, autocast=None):
        self.weights = weights  # float32 [n], 1 for the mean loss, on the device
        super().__init__(model, recipe, autocast=autocast)

    def update(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        with self.precision(x):
            logits = self.model(x).squeeze(1).float()
            loss = F.binary_cross_entropy_with_logits(
                logits, y.float(), weight=self.weights[index]
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @classmethod
    def run(cls, data: Data, settings, seed: int, folder: Path, shared: Path) -> tuple:
        """(method holding the kept model, log, None): the interface of Strategy.run.

        Raises UserError without validation images, and as `fairif.reweight` does.
        """
        if data.val is None:
            raise UserError("FairIF needs validation images with group labels: --val official")
        options = cls.defaults | settings.options
        erm, log = pretrain(data, settings, seed, shared)
        stage = folder / "reference"
        if not (stage / "weights.npy").exists():
            stage.mkdir(exist_ok=True)
            remove_leftovers(stage)
            weights, record = image_weights(erm, data, settings, seed, options)
            write_json(stage / "influence.json", record)
            buffer = io.BytesIO()
            np.save(buffer, weights)
            write_atomic(stage / "weights.npy", buffer.getbuffer())
        weights = torch.from_numpy(np.load(stage / "weights.npy")).float().to(settings.device)
        log[-1] |= json.loads((stage / "influence.json").read_text())
        model = new_model(settings, seed)
        method = cls(model, settings.pretrain, weights=weights, autocast=settings.autocast)
        val = data.loader(data.val, train=False)
        log = log + fit(method, data.loader(data.real, train=True), val, folder, "reweighted")
        model.load_state_dict(backbones.load_weights(folder / "model.pt", "the kept epoch"))
        return method, log, None


def image_weights(model, data: Data, settings, seed: int, options: dict) -> tuple:
    """(n times the weights of the n training images, float64 [n]; a record of how they came about).

    Raises UserError as `fairif.reweight` does.
    """
    names = tuple(backbones.parameter_names(model)[-options["last_tensors"] :])
    held = min(options["curvature_images"], len(data.real))
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.real))[:held])
    curvature = Held(Passes(data.loader(data.real.take(rows), train=False)))
    norm = gradient_norm(model, curvature)
    found = reweight(
        model,
        Passes(data.loader(data.real, train=False)),
        Passes(data.loader(data.val, train=False, attributes=True)),
        Settings(
            Relaxation("sigmoid", options["temperature"]), options["strength"],
            damping=options["damping"], steps=options["cg_steps"],
            names=names if options["last_tensors"] else None,
        ),
        curvature,
    )
    count = len(data.real)
    record = {
        "gaps": found.influence.gaps.tolist(), "predicted": found.predicted.tolist(),
        "residual": found.influence.residual.tolist(), "clipped": found.clipped,
        "eps_rms_times_n": (found.eps.norm() * math.sqrt(count)).item(), "gradient_norm": norm,
    }
    # 1 + n eps and not n (1/n + eps), whose rounding would keep eps = 0 from being ERM
    return (1 + count * found.eps).clamp(min=0).numpy(), record
