"""Influence (Li and Liu, ICML 2022): reweigh by a linear programme. Sees a in validation.

With x_i in [0, 1] the share of sample i that is removed, to first order the validation gap in TPR
(their equal opportunity, relaxed by the sigmoid) shrinks by f^T x and the validation loss grows by
u^T x:

    min sum x   subject to   f^T x <= -beta * |gap|,   u^T x <= gamma * (sum of the negative u_i)

and the model is trained again with weights (1 - x_i) / n. The reference needs a commercial solver,
here it is scipy's HiGHS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fairif.hessian import (
    Batch,
    chosen_parameters,
    evaluation,
    flatten,
    inverse_hvp,
    logits_of,
)
from models.fairif.influence import gap_gradients, loss_derivatives
from models.fairif.method import (
    FairIF,
    Passes,
    curvature_batches,
    derivative_passes,
    gradient_norm,
    inverse_settings,
    relaxation_of,
)
from models.fairif.relaxation import Relaxation
from utils.devices import ieee
from utils.errors import UserError
from utils.files import read_array, write_array, write_json
from utils.records import read_record
from utils.run import Run

BETA = 0.9  # share of the gap to close
GAMMA = 0.2  # share of the largest possible gain in validation loss to reach
HALVINGS = 10  # of both, while the programme has no solution


class Removal(NamedTuple):
    """x: float64 [n] in [0, 1]. beta, gamma: those the programme was solvable with."""

    x: np.ndarray
    beta: float
    gamma: float


def removal(
    fair: np.ndarray, utility: np.ndarray, gap: float, beta: float, gamma: float
) -> Removal:
    """Solve the programme above; fair, utility: float64 [n]; gap: |gap| >= 0.

    Where the constraints contradict each other both are halved, at most ten times. Raises UserError
    where that does not help either.
    """
    from scipy.optimize import linprog  # a quarter of a second, and only this method needs it

    best = utility[utility < 0].sum()
    rows, cost = np.stack([fair, utility]), np.ones(len(fair))
    for _ in range(HALVINGS + 1):
        limits = np.array([-beta * gap, gamma * best])
        # in units of 1/n, as the solver's tolerances are absolute
        scale = 1 / np.abs(rows).max(axis=1, keepdims=True).clip(min=1e-300)
        found = linprog(
            cost, A_ub=rows * scale, b_ub=limits * scale[:, 0], bounds=(0, 1), method="highs"
        )
        if found.status == 0:
            return Removal(np.clip(found.x, 0, 1), beta, gamma)
        beta, gamma = beta / 2, gamma / 2
    raise UserError(f"Influence: the linear programme has no solution ({found.message})")


class Influences(NamedTuple):
    """fair, utility: float64 [n], the change in |gap| and in validation loss where sample i is
    removed. gap: |gap|. residual: of the two inverse products, float [2]. images: see
    `hessian.InverseProduct`."""

    fair: np.ndarray
    utility: np.ndarray
    gap: float
    residual: Tensor
    images: int


def influences(
    model: nn.Module,
    train: Iterable[Batch],
    val: Iterable[Batch],
    relaxation: Relaxation,
    curvature: Sequence[Batch],
    names: Sequence[str] | None = None,
    **inverse,
) -> Influences:
    """Influences of the n training samples; arguments and errors as for
    `models.fairif.influence.influence`."""
    gaps, gradients = gap_gradients(model, val, relaxation, names)
    vectors = torch.stack([gradients[0], loss_gradient(model, val, names)])
    solved = inverse_hvp(model, curvature, vectors, names=names, **inverse)
    change = loss_derivatives(model, train, solved.value, names).double().cpu().numpy()
    # a larger weight moves a figure by -v^T H^-1 grad l, a removal of mass 1/n the other way
    change = change / change.shape[1]
    sign = 1.0 if gaps[0] >= 0 else -1.0
    return Influences(sign * change[0], change[1], abs(gaps[0].item()), solved.residual.cpu(),
                      solved.images)


@ieee()
def loss_gradient(
    model: nn.Module, batches: Iterable[Batch], names: Sequence[str] | None = None
) -> Tensor:
    """Gradient of the mean binary cross entropy over the batches' samples, float [P]."""
    parameters, samples, total = chosen_parameters(model, names), 0, 0.0

    def part(p, x: Tensor, y: Tensor) -> Tensor:
        logits = logits_of(model, x)(p)
        return F.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="sum")

    with evaluation(model):
        for _, x, y, _ in batches:
            total = total + flatten(torch.func.grad(part)(parameters, x, y))
            samples += len(y)
    return total / samples


class Influence(FairIF):
    """ERM again on weights 1 - x, x in [0, 1] from the linear programme.

    Everything else is FairIF's: stage one, the inverse of the curvature and its options, and stage
    two. `gap_share`, `loss_share`: the programme's beta, of the gap in TPR, and gamma, of the
    largest possible gain in validation loss; both are halved while it has no solution.
    Departures: the paper's is an L2 logistic regression with an exact Hessian. Its released code
    takes the gap in the log-loss of y = 1 as that of equal opportunity, where this is the gap in
    the relaxed TPR, and where the gap asked for is out of reach it limits how many samples go.
    FairIF's Table 5 leaves this method out as too expensive.
    """

    paper_row = "Influence"
    defaults = {
        "gap_share": BETA, "loss_share": GAMMA,
        **{name: value for name, value in FairIF.defaults.items()
           if name not in ("strength", "penalty", "validation_share")},
        "temperature": 1.0,  # the relaxed prediction is the probability itself
    }
    ranges = {
        **{name: FairIF.ranges[name] for name in defaults if name in FairIF.ranges},
        "gap_share": (0.0, 10.0), "loss_share": (0.0, 1.0),
    }

    @classmethod
    def weigh(cls, erm: nn.Module, run: Run) -> tuple[Tensor, dict]:
        options = run.options
        with run.stage("programme", "weights.npy", "influence.json") as stage:
            if not stage.finished:
                found, norm, derivatives = run_influences(erm, run)
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
                    "derivatives": derivatives,
                })
        weights = read_array(stage.folder / "weights.npy", (len(run.data.real),))
        return torch.from_numpy(weights), read_record(
            stage.folder / "influence.json", "gap", "derivatives")


def run_influences(erm: nn.Module, run: Run) -> tuple[Influences, float, int]:
    """(influences of the n training samples, gradient norm of stage one over the curvature's, image
    passes of all this). Raises UserError as `influences` does."""
    data, curvature = run.data, curvature_batches(run)
    found = influences(
        erm,
        Passes(data.loader(data.real, train=False)),
        Passes(data.loader(data.val, train=False, attributes=True)),
        relaxation_of(run), curvature, **inverse_settings(erm, run),
    )
    norm = gradient_norm(erm, curvature, run.config.pretrain.weight_decay)
    return found, norm, derivative_passes(run, data.val, found.images)
