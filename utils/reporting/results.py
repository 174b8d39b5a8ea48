"""The saved runs of a setting, results/<setting>/<method>/seed<k>/, read in this one place."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.metrics import GROUPS, METRICS, from_json
from utils.records import read_log, read_record

Value = TypeVar("Value")
BySeed = dict[str, dict[int, Value]]  # {method: {seed: value}}
Mask = dict[str, bool]  # {tensor name: updated}, in parameter order
LOG = ("stage", "epoch", "loss", "val_acc", "seconds")


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """A CSV table with a header. Raises UserError where it is missing, damaged or lacks a column.

    The columns `file` and `table` are text; of others pandas finds the type.
    """
    try:
        frame = pd.read_csv(path, dtype={"file": str, "table": str},
                            encoding_errors="surrogateescape")
        return frame.astype(dict.fromkeys(frame.columns.intersection(["y", "a"]), int))[
            [*columns] or frame.columns]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is missing or damaged ({' '.join(str(error).split())}); delete the folder "
            f"{path.parent} and run it again"
        ) from None


class Results:
    """What the runs of one setting left, finished or not; each kind of file is read when asked for.

    runs: {method: {seed: folder}}, baseline first, AIM-Fair last, the rest by name, as the paper
    orders its rows; seeds ascending. Every reader leaves out what a run does not have (yet), and
    raises UserError for a damaged file. Raises UserError where there is no run folder at all.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        found: BySeed[Path] = {}
        for path in self.folder.glob("*/seed*"):
            if path.is_dir() and (match := re.fullmatch(r"seed(\d+)", path.name)):
                found.setdefault(path.parent.name, {})[int(match[1])] = path
        if not found:
            raise UserError(
                f"{folder} has no runs (<method>/seed<k>/); give the folder of a setting, such as "
                "results/demo"
            )
        order = sorted(found, key=lambda name: (name != "erm", name.startswith("aim_fair"), name))
        self.runs = {method: dict(sorted(found[method].items())) for method in order}

    def each(self, file: str, read: Callable[[Path], Value]) -> BySeed[Value]:
        """{method: {seed: what `read` makes of that file}} of the runs that have it."""
        found = {method: {seed: read(run / file) for seed, run in seeds.items()
                          if (run / file).exists()} for method, seeds in self.runs.items()}
        return {method: seeds for method, seeds in found.items() if seeds}

    @cached_property
    def configs(self) -> BySeed[dict[str, Any]]:
        return self.each("config.json", read_record)

    @property
    def first_configs(self) -> dict[str, dict[str, Any]]:
        """{method: the configuration of its first seed}."""
        return {method: next(iter(seeds.values())) for method, seeds in self.configs.items()}

    @cached_property
    def records(self) -> BySeed[dict[str, Any]]:
        """metrics.json as it is, of the finished runs."""
        return self.each("metrics.json", read_record)

    @cached_property
    def metrics(self) -> BySeed[dict[str, Any]]:
        """Test metrics as fairness_metrics returns them, of the finished runs."""
        result: BySeed[dict[str, Any]] = {}
        for method, seeds in self.records.items():
            for seed, record in seeds.items():
                try:
                    result.setdefault(method, {})[seed] = from_json(record["test"])
                except (KeyError, TypeError) as error:
                    raise UserError(
                        f"{self.runs[method][seed]}/metrics.json lacks the test metric {error}; "
                        "delete that folder and run that seed again"
                    ) from None
        return result

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a finished run, by (method, seed), in percent: METRICS and g00 ... g11.

        Raises UserError where no run is finished.
        """
        if not self.metrics:
            raise UserError(
                f"{self.folder} has no finished run (metrics.json); start training again")
        rows = {(method, seed): {name: 100 * metrics[name] for name in METRICS}
                | {f"g{y}{a}": 100 * metrics["group_acc"][y, a] for y, a in GROUPS}
                for method, seeds in self.metrics.items() for seed, metrics in seeds.items()}
        index = pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
        return pd.DataFrame(list(rows.values()), index=index)

    def spread(self, method: str, figure: str) -> tuple[float, float]:
        """Mean and sample standard deviation over a method's seeds, in percent; NaN for one."""
        values = self.frame[figure].loc[method]
        return float(values.mean(skipna=False)), float(values.std(skipna=False))

    @property
    def unfinished(self) -> list[str]:
        """`<method>/seed<k>` of the runs that have no metrics yet."""
        return [f"{method}/seed{seed}" for method, seeds in self.runs.items() for seed in seeds
                if seed not in self.records.get(method, {})]

    @cached_property
    def log(self) -> pd.DataFrame:
        """One row an epoch: method, seed, stage, epoch, loss, val_acc, seconds; NaN for none."""
        rows = [{"method": method, "seed": seed, **row}
                for method, seeds in self.each("log.jsonl", read_log).items()
                for seed, log in seeds.items() for row in log]
        frame = pd.DataFrame(rows, columns=["method", "seed", *LOG])
        return frame.astype(dict.fromkeys(("loss", "val_acc", "seconds"), float))

    @cached_property
    def masks(self) -> BySeed[dict[str, Any]]:
        """mask.json: `tensors` {name: updated}, the same names in every seed, `k`, `criterion`."""
        found = self.each("mask.json", lambda path: read_record(path, "tensors"))
        for method, seeds in found.items():
            names = [list(mask["tensors"]) for mask in seeds.values()]
            for seed, other in zip(seeds, names, strict=True):
                if not other or other != names[0]:
                    raise UserError(
                        f"{self.runs[method][seed]}/mask.json has no tensors or others than the "
                        "first seed's; run it again"
                    )
        return found

    def tensors(self, method: str) -> list[Mask]:
        """The masks of a method's seeds; [] without any."""
        return [mask["tensors"] for mask in self.masks.get(method, {}).values()]

    def array(self, method: str, seed: int, name: str) -> tuple[np.ndarray, pd.DataFrame]:
        """(an array with one value a training image, train.csv's columns file, y, a) of a run.

        Raises UserError where one is missing or damaged, or they differ in length.
        """
        run = self.runs[method][seed]
        table = read_table(run / "train.csv", "file", "y", "a")
        try:
            values = np.load(run / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{run / name} is missing or damaged ({error}); delete {run} and run "
                            "it again") from None
        if values.shape != (len(table),) or not len(table):
            raise UserError(f"{run}: {name} does not belong to train.csv, or lists no image; "
                            "delete that folder and run it again")
        return values, table
