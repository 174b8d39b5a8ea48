"""Rows that are the best of several on validation data: a `Choice`, and --search, which makes a row
the best of as many values of its hyper-parameters and rates as every other row."""

from __future__ import annotations

import argparse
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.method import Method
from models.strategies import RATES, TOP_K, variant
from utils.blocks import RESNET_BLOCKS
from utils.config import Config, TrainConfig
from utils.errors import UserError
from utils.options import parse_options

FOLDER = "search"  # below a setting's: candidates are <setting>/search/<row>/<values>/seed<k>


@dataclass(frozen=True)
class Choice:
    """The row of several with the best validation figure (utils/reporting/best.py). by: as many
    others, whose figures decide in their place."""

    rows: tuple[str, ...]
    paper_row: str | None = None
    by: tuple[str, ...] = ()


CHOICES: dict[str, Choice] = {
    "best_random": Choice(tuple(f"random_{share}" for share in (40, 55, 70, 85)),
                          "Best random selection"),
    "best_update": Choice(tuple(f"update_{block}" for block in RESNET_BLOCKS),
                          "Best sub-tuning (update one block)"),
    "best_freeze": Choice(tuple(f"freeze_{block}" for block in RESNET_BLOCKS),
                          "Best sub-tuning (freeze one block)"),
    "best_rate": Choice(tuple(f"aim_fair_lr{rate}" for rate in RATES[:3])),
    "best_top_k": Choice(tuple(f"aim_fair_k{k}" for k in TOP_K)),
    "best_batch_norm": Choice(("aim_fair", "aim_fair_frozen_batch_norm")),
    "best_paper_rate": Choice(tuple(f"aim_fair_lr{rate}" for rate in RATES[3:])),
}


def row_of(name: str) -> str:
    """The row, a name of METHODS, that a run belongs to: a candidate's is in its folder's name."""
    return name.split("/")[1] if name.startswith(f"{FOLDER}/") else name


@functools.cache
def read_search(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """({row: its candidates' values}, {row: the row whose choice it takes}) from a TOML file: a
    table a row, in it a list a hyper-parameter or flag of training, whose first entries are the
    first candidate; or `as`, another row with such lists, whose values are then this one's too.

    Raises UserError where it cannot be read, and where the rows have different numbers of
    candidates, for then they do not have the same chance.
    """
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--search {path} cannot be read ({error}); give a file such as "
                        "models/search/demo.toml") from None
    spaces, leaders = {}, {}
    for row, lists in rows.items():
        if isinstance(lists, dict) and "as" in lists:
            leader = lists["as"]
            if len(lists) > 1 or "as" in rows.get(str(leader), {"as": None}):
                raise UserError(f"--search {path}: {row} has as = {leader!r}; give it alone, the "
                                "name of a row of the file that has lists of its own")
            leaders[row] = leader
            continue
        if not isinstance(lists, dict) or not all(isinstance(x, list) for x in lists.values()):
            raise UserError(f"--search {path}: {row} must be a table of lists, such as "
                            "alpha = [0.2, 0.5]")
        if len({len(values) for values in lists.values()}) != 1:
            raise UserError(f"--search {path}: the lists of {row} must be equally long")
        spaces[row] = [dict(zip(lists, values)) for values in zip(*lists.values())]
    lengths = {row: len(values) for row, values in spaces.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        said = ", ".join(f"{row} {length}" for row, length in lengths.items()) or "there is none"
        raise UserError(f"--search {path}: give every row as many values as the others ({said})")
    return spaces | {row: spaces[leader] for row, leader in leaders.items()}, leaders


def candidates(
    config: Config, methods: Mapping[str, type[Method]]
) -> dict[str, dict[str, type[Method]]]:
    """{row: {folder below the setting's: the row with one candidate's values}} of the rows asked
    for that --search names. methods: every one. Raises UserError for values that cannot be meant.
    """
    if config.search is None:
        return {}
    (spaces, _), found = read_search(config.search), {}
    for row in spaces:
        if row not in methods:
            raise UserError(f"--search {config.search}: {row} is no row; choose from --list")
    for row in dict.fromkeys(config.methods):
        for values in spaces.get(row, ()):
            try:
                options, flags = _typed(row, methods[row], values)
            except UserError as error:
                raise UserError(f"{config.search}: {error}") from None
            name = ",".join(f"{key}={value}" for key, value in (options | flags).items())
            made = variant(methods[row], flags, methods[row].paper_row, options)
            found.setdefault(row, {})[f"{FOLDER}/{row}/{name}"] = made
    return found


def _typed(row: str, method: type[Method], values: Mapping[str, Any]) -> tuple[dict, dict]:
    """(hyper-parameters, flags), each in its type; UserError as --set and argparse raise it."""
    flags = {f.name: f.metadata["argparse"] for f in fields(TrainConfig)}
    own = {key: value for key, value in values.items() if key in method.defaults}
    options = parse_options([f"{key}={value}" for key, value in own.items()], row,
                            method.defaults, method.ranges)
    others = {}
    for key, value in values.items():
        if key in own:
            continue
        if key not in flags:
            known = ", ".join(method.defaults) or "none"
            raise UserError(f"{row} has no hyper-parameter {key} (it has: {known}), and no flag "
                            "of training is called so")
        try:
            others[key] = flags[key].get("type", str)(str(value))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{key} of {row}: {error}") from None
        if others[key] not in flags[key].get("choices", (others[key],)):
            raise UserError(f"{key} of {row} must be one of {', '.join(flags[key]['choices'])}")
    return options, others
