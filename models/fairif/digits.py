"""One bias and seed of CI-MNIST: every row of Tables 1 to 3 trained and tested on it.

The paper's parts of MNIST are fixed; the seed draws which digits are kept and which are red, the
initial weights, the order of the batches, and whatever a method draws. Every row is trained by the
same recipe from the same weights, and of its epochs the one with the best accuracy on validation is
kept ("the epochs with the best task accuracy", section 6.1, which does not say on which part).
Every row is a file of its own, and so are the two things that later rows start from: ERM's weights
and FairIF's eps.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.base import ArrayTable, Splits
from models.fairif.baselines import BASELINES
from models.fairif.baselines.influence import loss_gradient
from models.fairif.fairif import Settings, reweight
from models.fairif.influence import predict
from models.fairif.networks import digit_cnn, digit_lenet, digit_mlp
from models.fairif.problem import Problem, Samples
from models.fairif.relaxation import relaxed_gaps
from models.fairif.reweight import sample_weights, shuffled
from models.fairif.training import Recipe
from utils.errors import UserError
from utils.files import write_atomic, write_json
from utils.metrics import fairness_metrics, to_json
from utils.records import fingerprint, read_record

NETWORKS = {"mlp": digit_mlp, "cnn": digit_cnn, "lenet": digit_lenet}
REWEIGHTED = ("influence", "fairif", "shuffled", "eps.pt")
CURVATURE = 10_000  # training digits, drawn by the seed, whose mean loss defines the Hessian


def make_problem(
    parts: Splits, seed: int, network: str, recipe: Recipe, settings: Settings,
    device: str = "cpu",
) -> tuple[Problem, Samples]:
    """(problem, test samples) on the device; settings get the seed, as do networks and draws."""
    train, val, test = (_samples(part, device) for part in (parts.train, parts.val, parts.test))

    def build() -> nn.Sequential:
        torch.manual_seed(seed)
        return NETWORKS[network]().to(device)

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    problem = Problem(
        train, val, build, False, 0.0, math.inf, seed, recipe=recipe,
        settings=settings.with_seed(seed), held=order[:CURVATURE].sort().values.to(device),
    )
    return problem, test


def _samples(part: ArrayTable, device: str) -> Samples:
    arrays = part.x.reshape(len(part), -1), part.y, part.a
    return Samples(*(torch.from_numpy(array).to(device) for array in arrays))


class Rows:
    """The rows of one bias and seed: files in `folder`, reused where their settings are the same.

    training: what every row depends on. reweighting: what FairIF, its control and Influence add.
    """

    def __init__(
        self, problem: Problem, test: Samples, folder: Path, training: dict[str, Any],
        reweighting: dict[str, Any],
    ) -> None:
        self.problem, self.test, self.folder = problem, test, folder
        self.training, self.both = training, training | reweighting

    def config(self, name: str) -> dict[str, Any]:
        """The settings that a row, "erm.pt" or "eps.pt" depends on."""
        return self.both if name in REWEIGHTED else self.training

    def run(self, baselines: Sequence[str]) -> dict[str, Any]:
        """{"rows": test metrics by row in JSON form, "check": figures of the reweighting}.

        Raises UserError as the parts do, and for a file of other settings or code.
        """
        names = ["erm", *baselines, "fairif", "shuffled"]
        records = {name: self.row(name) for name in names}
        rows = {name: record["metrics"] for name, record in records.items()}
        check = records["fairif"]["check"] | {
            "epochs": {name: record["epoch"] for name, record in records.items()}
        }
        return {"rows": rows, "check": check}

    def row(self, name: str) -> dict[str, Any]:
        """The record of one row, from its file or computed now: metrics, best epoch, check."""
        path = self.folder / f"{name}.json"
        if path.exists():
            record = read_record(path)
            verify(path, record, self.config(name))
            return record
        self.problem.fits.clear()
        model, extra = self.train(name)
        test = self.problem.blocks_of(self.test)
        prediction = predict(model, test) > 0
        kept = self.problem.fits[-1] if name != "erm" else None
        record = {
            **identity(self.config(name)),
            "metrics": to_json(fairness_metrics(
                *(part.cpu() for part in (prediction, self.test.y, self.test.a))
            )),
            "epoch": kept.epoch if kept else extra.pop("epoch"),
            "val_accuracy": kept.accuracy if kept else extra.pop("val_accuracy"), **extra,
        }
        write_json(path, record)
        return record

    def train(self, name: str) -> tuple[nn.Module, dict[str, Any]]:
        """(the trained model of a row, what its record holds beside the metrics)."""
        if name == "erm":
            return self.erm()
        if name in BASELINES:
            entry = BASELINES[name]
            problem = self.problem.seen_by(entry.uses_attributes)
            if name == "influence":  # starts from ERM's model
                problem = replace(problem, erm=self.erm()[0])
            return entry.train(problem), {}
        found = self.reweighting()
        eps = found["eps"] if name == "fairif" else shuffled(found["eps"], self.problem.seed)
        weights, clipped = sample_weights(eps)
        seen = self.problem.seen_by("validation")
        model = seen.fit(seen.build(), seen.train.x, seen.train.y, weights)
        if name == "shuffled":
            return model, {}
        logits = predict(model, seen.blocks_of(seen.val))
        after = relaxed_gaps(logits, seen.val.y, seen.val.a, seen.settings.relaxation)
        return model, {"check": {
            "gradient_norm": found["gradient_norm"].item(), "clipped": clipped,
            "training_rows": len(eps),
            "eps_rms_times_n": (eps.norm() * math.sqrt(len(eps))).item(),
            "gaps": found["gaps"].tolist(), "gaps_predicted": found["predicted"].tolist(),
            "gaps_after": after.tolist(), "residual": found["residual"].tolist(),
        }}  # fmt: skip

    def erm(self) -> tuple[nn.Module, dict[str, Any]]:
        """(ERM's model, its best epoch and validation accuracy)."""
        problem = self.problem.seen_by("none")

        def compute() -> dict[str, Tensor]:
            x, y = problem.train.x, problem.train.y
            model = problem.fit(problem.build(), x, y, problem.uniform())
            kept = problem.fits[-1]
            record = {"epoch": torch.tensor(kept.epoch),
                      "accuracy": torch.tensor(kept.accuracy, dtype=torch.float64)}
            return record | {f"model.{k}": v for k, v in model.state_dict().items()}

        held = self.stored("erm.pt", compute)
        state = {k.removeprefix("model."): v for k, v in held.items() if k.startswith("model.")}
        model = problem.build()
        model.load_state_dict(state)
        return model, {"epoch": int(held["epoch"]), "val_accuracy": float(held["accuracy"])}

    def reweighting(self) -> dict[str, Tensor]:
        """eps, float64 [n], gaps, predicted gaps, residual, and ERM's gradient norm."""
        problem = self.problem.seen_by("validation")

        def compute() -> dict[str, Tensor]:
            model = self.erm()[0]
            train, val = problem.blocks_of(problem.train), problem.blocks_of(problem.val)
            found = reweight(model, train, val, problem.settings, problem.curvature()[0])
            return {
                "eps": found.eps, "gaps": found.influence.gaps, "predicted": found.predicted,
                "residual": found.influence.residual,
                "gradient_norm": loss_gradient(model, train).norm(),
            }

        return self.stored("eps.pt", compute)

    def stored(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, from a file of this configuration or computed and written now."""
        path = self.folder / name
        if not path.exists():
            buffer = io.BytesIO()
            tensors = {key: value.cpu() for key, value in compute().items()}
            torch.save(identity(self.config(name)) | {"tensors": tensors}, buffer)
            write_atomic(path, buffer.getbuffer())
        try:
            held = torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001 - torch raises many types for a damaged file
            raise UserError(
                f"{path} is damaged: delete it and start the same command again"
            ) from None
        verify(path, held, self.config(name))
        return held["tensors"]


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a file holds of the settings it was computed with."""
    return {"fingerprint": fingerprint(config), "config": config}


def verify(path: Path, record: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError unless the record at `path` was computed with `config` and this code."""
    if record.get("fingerprint") != fingerprint(config):
        held = record.get("config", {})
        changed = [f"{key} was {held.get(key)} and is now {value}"
                   for key, value in config.items() if held and held.get(key) != value]
        raise UserError(
            f"{path} was computed otherwise ({'; '.join(changed) or 'the code changed'}): choose "
            "another --name or delete that file"
        )
