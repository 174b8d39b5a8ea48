"""FairIF (Algorithm 1) as a method of train.py: group labels are read on validation samples only.

Stage one is the ERM model that every strategy of the setting and seed shares, and the influence of
its training samples, kept beside it for every row that asks for the same (another lambda, the
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

from datasets.base import Table
from datasets.subsets import draw_groups
from models import backbones
from models.fairif.hessian import METHODS as INVERSES
from models.fairif.hessian import PRODUCTS, Batch, chosen_parameters, evaluation
from models.fairif.influence import Influence, influence, predict
from models.fairif.relaxation import KINDS, Relaxation, check_groups, relaxed_gaps
from models.fairif.reweight import NORMS, closed_form, sample_weights
from models.method import Method, cross_entropy, logits_of, pretrained
from utils.devices import ieee
from utils.files import read_array, write_array, write_json
from utils.preemption import PREEMPTION
from utils.records import read_record
from utils.run import Run

# Samples at once, whose activations forward mode and its transpose keep: so many numbers of
# input, which the small networks are fast at, and within (fewest, most).
PIECE, FEWEST, MOST = 2**19, 64, 2048
FEW = 256  # moving parameters up to which the inverse of the curvature is exact


class Passes:
    """Batches of a loader in table order, as often as asked; a SIGTERM is noticed in between."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader.epoch(0):
            size = min(max(PIECE // batch[1][0].numel(), FEWEST), MOST)
            for piece in zip(*(part.split(size) for part in batch), strict=True):
                PREEMPTION.check()
                yield piece


class Held(list):
    """Batches in memory; a SIGTERM is noticed in between."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            PREEMPTION.check()
            yield batch


@ieee()
def gradient_norm(model: torch.nn.Module, batches, weight_decay: float) -> float:
    """Norm of the gradient of what stage one minimised, in evaluation mode: the mean loss over the
    batches + weight_decay / 2 * the squared norm of the parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, samples = [torch.zeros_like(p) for p in parameters], 0
    with evaluation(model):
        for _, x, y, _ in batches:
            logits = logits_of(model, x)
            loss = F.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="sum")
            for sum_, piece in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += piece
            samples += len(y)
    whole = [piece / samples + weight_decay * p.detach() for piece, p in zip(total, parameters)]
    return math.sqrt(sum(float(piece.square().sum()) for piece in whole))


class FairIF(Method):
    """Training on samples weighted by influence functions (Wang 2024, Algorithm 1).

    defaults: `strength` is the paper's lambda, `penalty` the norm that it multiplies, as printed,
    or its square. `relaxation`, `temperature`, `draws`: of 0/1 predictions (relaxation.py).
    `inverse`, `product`, `damping`, `steps`: of the curvature (hessian.inverse_hvp); auto is the
    exact inverse where at most 256 parameters move, else conjugate gradients. `curvature_samples`:
    training samples, drawn by the seed, whose mean loss it is of. `last_tensors`: only so many of
    the last parameter tensors move in the influence (ResNet-18: 2 is fc, 17 layer4 and fc); 0 is
    all. `validation_share`: of each group of the validation samples, drawn by the seed, whose group
    labels are used (Table 11), and on which alone the best epoch is chosen.
    """

    stages = ("influence", "reweighted")
    uses_attributes = "validation"
    paper_row = "FairIF"
    defaults = {
        "strength": 0.1, "penalty": "norm", "relaxation": "sigmoid", "temperature": 0.3,
        "draws": 10, "inverse": "auto", "product": "gauss_newton", "damping": 0.01, "steps": 30,
        "curvature_samples": 500, "last_tensors": 0, "validation_share": 1.0,
    }
    ranges = {
        "strength": (0, 10**6), "penalty": NORMS, "relaxation": KINDS, "temperature": (1e-3, 100),
        "draws": (1, 10**4), "inverse": ("auto", *INVERSES), "product": PRODUCTS,
        "damping": (0, 10**6), "steps": (1, 10**5), "curvature_samples": (1, 10**7),
        "last_tensors": (0, 10**4), "validation_share": (1e-3, 1.0),
    }

    def __init__(self, model, recipe, *, weights: np.ndarray, **rest):
        # [n], 1 for the mean loss
        self.weights = torch.from_numpy(weights).to(next(model.parameters()))
        super().__init__(model, recipe, **rest)

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        with self.precision(x):
            return cross_entropy(logits_of(self.network, x), y, self.weights[index])

    @staticmethod
    def deal(eps: Tensor, run: Run) -> Tensor:
        """Which sample gets which eps, float64 [n]: each its own."""
        return eps

    @classmethod
    def weigh(cls, erm: torch.nn.Module, run: Run) -> tuple[Tensor, dict]:
        """(n times the weights of the n training samples, float64 [n]; how they came about)."""
        (found, record), options = shared_influence(erm, run), run.options
        eps = closed_form(found.scores, found.gaps, options["strength"], options["penalty"])
        eps = cls.deal(eps, run)
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
        """weights.npy (n times the weights of the n training samples, float64 [n], in the order of
        train.csv) and influence.json. Raises UserError as `influence` and `closed_form` do."""
        weights, record = cls.weigh(pretrained(run), run)
        write_array(run.folder / "weights.npy", weights.numpy())
        write_json(run.folder / "influence.json", record)
        run.passes += record["derivatives"]
        run.log[-1] |= record

    @classmethod
    def arguments(cls, run: Run) -> dict:
        return {"weights": read_array(run.folder / "weights.npy", (len(run.data.real),))}

    @classmethod
    def validation(cls, run: Run) -> Table:
        return validation_part(run.data.val, run.options.get("validation_share", 1.0), run.seed)

    @classmethod
    def reweighted(cls, run: Run) -> Method:
        """The same training from the same start, with the weights; influence.json gets the gaps
        of the trained model."""
        trained, path = super().train(run), run.folder / "influence.json"
        val = cls.validation(run)
        logits = predict(trained.model, Passes(run.data.loader(val, train=False)))
        y, a = (torch.from_numpy(labels).to(logits.device) for labels in (val.y, val.a))
        after = relaxed_gaps(logits, y, a, relaxation_of(run))
        write_json(path, read_record(path) | {"gaps_after": after.tolist()})
        return trained


def shared_influence(model, run: Run) -> tuple[Influence, dict]:
    """`run_influence`, computed once for a setting, seed and the options without the penalty's.

    A stage that rows share, as the pre-trained model is.
    """
    used = {key: value for key, value in run.options.items() if key not in ("strength", "penalty")}
    config = run.config.identity(finetune=False) | used | {
        key: run.data.digests.get(key) for key in ("real", "val")
    }
    with run.shared_stage("influence", config, "scores.npy", "influence.json") as stage:
        if not stage.finished:
            found, norm, derivatives = run_influence(model, run)
            write_array(stage.folder / "scores.npy", found.scores.numpy())
            write_json(stage.folder / "influence.json", {
                "gaps": found.gaps.tolist(), "residual": found.residual.tolist(),
                "gradient_norm": norm, "derivatives": derivatives,
            })
        record = read_record(
            stage.folder / "influence.json", "gaps", "residual", "gradient_norm", "derivatives")
        gaps, residual = (torch.tensor(record[key], dtype=torch.float64)
                          for key in ("gaps", "residual"))
        scores = torch.from_numpy(
            read_array(stage.folder / "scores.npy", (2, len(run.data.real))))
    return Influence(scores, gaps, residual, 0), record


def run_influence(model, run: Run) -> tuple[Influence, float, int]:
    """(influence of the n training samples on both gaps, gradient norm of stage one over the
    curvature's samples, image passes of all this). Raises UserError as `influence` does."""
    data, curvature = run.data, curvature_batches(run)
    val = FairIF.validation(run)
    found = influence(
        model,
        Passes(data.loader(data.real, train=False)),
        Passes(data.loader(val, train=False, attributes=True)),
        relaxation_of(run), curvature=curvature, **inverse_settings(model, run),
    )
    norm = gradient_norm(model, curvature, run.config.pretrain.weight_decay)
    return found, norm, derivative_passes(run, val, found.images)


def derivative_passes(run: Run, val: Table, images: int) -> int:
    """Image passes of influences: those of the curvature's products (`images`), of the gradients of
    the gaps, of every training sample's own derivative and of the gradient norm."""
    return images + len(val) + len(run.data.real) + curvature_size(run)


def relaxation_of(run: Run) -> Relaxation:
    """The relaxation of the run's options; its noise, where it has any, is drawn by the seed."""
    options = run.options
    return Relaxation(options["relaxation"], options["temperature"], options["draws"], run.seed)


def inverse_settings(model, run: Run) -> dict:
    """`hessian.inverse_hvp`'s keyword arguments from the run's options."""
    options, last = run.options, run.options["last_tensors"]
    names = tuple(backbones.parameter_names(model)[-last:]) if last else None
    moving = sum(p.numel() for p in chosen_parameters(model, names).values())
    method = options["inverse"]
    if method == "auto":
        method = "exact" if moving <= FEW else "cg"
    return {"names": names, "method": method, "seed": run.seed,
            **{key: options[key] for key in ("product", "damping", "steps")}}


def curvature_size(run: Run) -> int:
    return min(run.options["curvature_samples"], len(run.data.real))


def curvature_batches(run: Run) -> Held:
    """The training samples whose mean loss is the curvature's: `curvature_samples`, by the seed."""
    data = run.data
    rows = np.random.default_rng(run.seed).permutation(len(data.real))[: curvature_size(run)]
    return Held(Passes(data.loader(data.real.take(np.sort(rows)), train=False)))


def validation_part(val: Table, share: float, seed: int) -> Table:
    """That share of each group (y, a), rounded, drawn by the seed; a smaller one is part of a
    larger one. All of them, in their order, where share is 1. UserError where a group is empty."""
    counts = {group: round(share * count) for group, count in val.counts().items()}
    drawn = draw_groups(val, counts, seed)
    check_groups(torch.from_numpy(drawn.y), torch.from_numpy(drawn.a))
    return drawn
