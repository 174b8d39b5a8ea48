"""Influence (Li and Liu, ICML 2022) on images. Sees a on the validation images."""

from __future__ import annotations

import torch
from torch import Tensor

from models.fairif.baselines.influence import (
    BETA,
    GAMMA,
    Influences,
    batch_influences,
    removal,
)
from models.fairif.method import FairIF, Passes, gradient_norm, moving_parts
from models.fairif.relaxation import Relaxation
from utils.files import read_array, write_array, write_json
from utils.records import read_record
from utils.run import Run


class Influence(FairIF):
    """ERM again on weights 1 - x, x in [0, 1] from the linear programme of baselines/influence.py.

    Everything else is FairIF's: stage one, the Gauss-Newton products over `curvature_images` and
    their `damping` and `cg_steps`, `last_tensors`, and stage two. `gap_share`, `loss_share`: the
    programme's beta, of the gap in TPR, and gamma, of the largest possible gain in validation loss;
    both are halved while it has no solution.
    Departures: the paper's is an L2 logistic regression with an exact Hessian; FairIF's Table 5
    leaves this method out as too expensive.
    """

    paper_row = None
    defaults = {
        "gap_share": BETA, "loss_share": GAMMA,
        "temperature": 1.0,  # the paper's relaxation is the probability itself
        "damping": 0.01, "cg_steps": 30, "curvature_images": 500, "last_tensors": 0,
    }
    ranges = {
        **{name: FairIF.ranges[name] for name in defaults if name in FairIF.ranges},
        "gap_share": (0.0, 10.0), "loss_share": (0.0, 1.0),
    }

    @classmethod
    def weigh(cls, erm: torch.nn.Module, run: Run) -> tuple[Tensor, dict]:
        options = run.options
        with run.stage("programme", "weights.npy", "influence.json") as stage:
            if not stage.finished:
                found, norm = image_influences(erm, run)
                removed = removal(
                    found.fair, found.utility, found.gap, options["gap_share"],
                    options["loss_share"],
                )
                write_array(stage.folder / "weights.npy", 1 - removed.x)
                write_json(stage.folder / "influence.json", {
                    "gap": found.gap, "solved_gap_share": removed.beta,
                    "solved_loss_share": removed.gamma, "removed": removed.x.sum(),
                    "predicted": found.gap + found.fair @ removed.x,
                    "residual": found.residual.tolist(), "gradient_norm": norm,
                })
        weights = read_array(stage.folder / "weights.npy", (len(run.data.real),))
        return torch.from_numpy(weights), read_record(stage.folder / "influence.json", "gap")


def image_influences(erm, run: Run) -> tuple[Influences, float]:
    """Influences of the n training images, and the gradient norm of stage one over the curvature's
    images. Raises UserError as `batch_influences` does."""
    data, options = run.data, run.options
    names, curvature = moving_parts(erm, run)
    found = batch_influences(
        erm,
        Passes(data.loader(data.real, train=False)),
        Passes(data.loader(data.val, train=False, attributes=True)),
        Relaxation("sigmoid", options["temperature"]),
        curvature, names, damping=options["damping"], steps=options["cg_steps"],
    )
    return found, gradient_norm(erm, curvature, run.config.pretrain.weight_decay)
