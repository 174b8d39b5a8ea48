"""One 70/10/20 split of a tabular data set: every row of Table 4 trained and tested on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datasets import tabular
from datasets.base import ArrayTable
from models.fairif.baselines import BASELINES
from models.fairif.fairif import BLOCK, Settings, as_batches, fairif
from models.fairif.influence import predict
from models.fairif.networks import logistic_regression, mlp
from models.fairif.problem import Problem, Samples
from models.fairif.relaxation import relaxed_gaps
from utils.metrics import fairness_metrics, to_json


@dataclass(frozen=True)
class Network:
    """A model of the table. dtype of the data; tolerance: the largest gradient norm of a fit."""

    build: Any  # features -> nn.Sequential
    convex: bool
    dtype: torch.dtype
    tolerance: float
    inverse: str  # method of hessian.inverse_hvp


NETWORKS = {
    "logistic": Network(logistic_regression, True, torch.float64, 1e-7, "exact"),
    "mlp": Network(mlp, False, torch.float32, 0.05, "cg"),
}


def make_problem(table: ArrayTable, seed: int, model: str, l2: float) -> tuple[Problem, Samples]:
    """(problem, test samples) of the split that `seed` draws; seed also is the networks'."""
    network, parts = NETWORKS[model], tabular.split(table, seed)
    train, val, test = (
        Samples(torch.from_numpy(p.x).to(network.dtype), torch.from_numpy(p.y),
                torch.from_numpy(p.a))
        for p in (parts.train, parts.val, parts.test)
    )  # fmt: skip

    def build() -> torch.nn.Sequential:
        torch.manual_seed(seed)
        return network.build(train.x.shape[1]).to(network.dtype)

    problem = Problem(
        train, val, build, network.convex, l2, network.tolerance, seed, table.blocks()
    )
    return problem, test


def run_split(
    table: ArrayTable,
    seed: int,
    l2: float,
    settings: Settings,
    model: str = "logistic",
    baselines: Sequence[str] = (),
) -> dict[str, Any]:
    """Test metrics of ERM, the baselines, FairIF and the control on one split, in JSON form.

    `check` holds the worst gradient norm of the fits, the weights clipped at 0, and the relaxed
    validation gaps (TPR, TNR) of ERM, as predicted for FairIF, and of FairIF after retraining.
    Raises UserError as the parts do.
    """
    problem, test = make_problem(table, seed, model, l2)
    seen = problem.seen_by("validation")
    val = as_batches(seen.val.x, seen.val.y, seen.val.a)
    result = fairif(
        lambda weights: seen.fit(seen.build(), seen.train.x, seen.train.y, weights),
        as_batches(seen.train.x, seen.train.y, seen.train.a, BLOCK), val, settings,
    )
    models = {"erm": result.erm}
    for name in baselines:
        entry = BASELINES[name]
        models[name] = entry.train(problem.seen_by(entry.uses_attributes))
    models |= {"fairif": result.fair, "shuffled": result.control}
    rows = {}
    for name, trained in models.items():
        prediction = predict(trained, as_batches(test.x, test.y, test.a)) > 0
        rows[name] = to_json(fairness_metrics(prediction, test.y, test.a))
    found = result.reweighting
    after = relaxed_gaps(predict(result.fair, val), seen.val.y, seen.val.a, settings.relaxation)
    check = {
        "gradient_norm": max(fit.gradient_norm for fit in problem.fits),
        "clipped": found.clipped,
        "training_rows": len(found.eps),
        "eps_rms_times_n": (found.eps.norm() * math.sqrt(len(found.eps))).item(),
        "gaps": found.influence.gaps.tolist(),
        "gaps_predicted": found.predicted.tolist(),
        "gaps_after": after.tolist(),
    }
    return {"rows": rows, "check": check}
