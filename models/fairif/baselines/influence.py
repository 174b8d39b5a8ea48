"""Influence (Li and Liu, ICML 2022): reweigh by a linear programme. Sees a in validation.

With x_i in [0, 1] the share of sample i that is removed, to first order the validation gap in TPR
(their equal opportunity, relaxed by the sigmoid) shrinks by f^T x and the validation loss grows by
u^T x:

    min sum x   subject to   f^T x <= -beta * |gap|,   u^T x <= gamma * (sum of the negative u_i)

and the model is trained again with weights (1 - x_i) / n. The reference needs a commercial solver,
here it is scipy's HiGHS. On networks the inverse Hessian is a conjugate-gradient solution with
Gauss-Newton products, as FairIF's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from models.fairif.fairif import BLOCK, as_batches
from models.fairif.hessian import chosen_parameters, flatten, inverse_hvp
from models.fairif.influence import gap_gradients, loss_derivatives
from models.fairif.problem import Problem, Samples
from models.fairif.relaxation import Relaxation
from utils.errors import UserError

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


def influences(model: nn.Module, problem: Problem) -> tuple[np.ndarray, ...]:
    """(f, u, |gap|): the change in |gap| and in validation loss where a sample is removed, [n]."""
    train, val = (as_batches(s.x, s.y, s.a, BLOCK) for s in (problem.train, problem.val))
    gaps, gradients = gap_gradients(model, val, Relaxation("sigmoid", 1.0))
    vectors = torch.stack([gradients[0], loss_gradient(model, problem.val)])
    method = "exact" if problem.convex else "cg"
    solved = inverse_hvp(model, train, vectors, method=method, damping=problem.l2, steps=100)
    # a larger weight moves a figure by -v^T H^-1 grad l, a removal of mass 1/n the other way
    change = loss_derivatives(model, train, solved.value).double().numpy() / len(problem.train)
    sign = 1.0 if gaps[0] >= 0 else -1.0
    return sign * change[0], change[1], abs(gaps[0].item())


def loss_gradient(model: nn.Module, samples: Samples) -> Tensor:
    """Gradient of the mean binary cross entropy on the samples, float [P]."""
    parameters = chosen_parameters(model)

    def loss(p):
        logits = torch.func.functional_call(model, p, (samples.x,)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, samples.y.to(logits))

    return flatten(torch.func.grad(loss)(parameters))


def train(problem: Problem, beta: float = BETA, gamma: float = GAMMA) -> nn.Module:
    """The retrained model. Raises UserError as `removal`, and for a missing validation cell."""
    x, y = problem.train.x, problem.train.y
    erm = problem.fit(problem.build(), x, y, problem.uniform())
    removed = removal(*influences(erm, problem), beta, gamma).x
    weights = (1 - torch.from_numpy(removed)) / len(y)
    return problem.fit(problem.build(), x, y, weights)
