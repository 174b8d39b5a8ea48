"""The measured tables of README.md and docs/results.md, written anew from saved runs.

A table stands between two lines, the words around it are a person's:

    <!-- table: demo/table3 -->
    <!-- end -->

The name is that of the setting, a folder of results/. Under the table stand the commit, the
processor and the seeds of its runs. What has no finished run here is left as it is.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.files import write_atomic
from utils.reporting.paper import OUR_EO
from utils.reporting.results import Results
from utils.reporting.section import TITLES, Section, number, plus_minus
from utils.reporting.tables import collect

DOCUMENTS = ("README.md", "docs/results.md")
START, END = "<!-- table: {} -->\n", "<!-- end -->"
BLOCK = re.compile(START.format(r"(\S+)") + f"((?:(?!<!-- ).)*?){END}", re.DOTALL)


def refresh(text: str, results: Path) -> tuple[str, list[str], list[str]]:
    """(the text with new tables, settings written, settings that have no finished run).

    results: the folder that holds the settings. Raises UserError for a marker without its end.
    """
    written, left = [], []

    def replaced(match: re.Match) -> str:
        setting = match[1]
        runs = Results(results / setting) if any((results / setting).glob("*/seed*")) else None
        if runs is None or not runs.metrics:
            left.append(setting)
            return match[0]
        written.append(setting)
        return START.format(setting) + table(runs).markdown() + "\n" + END

    started = re.findall(START.format(r"(\S+)"), text)
    closed = [match[1] for match in BLOCK.finditer(text)]
    if started != closed:
        setting = next((name for name in started if name not in closed), started[0])
        raise UserError(
            f"the line <!-- table: {setting} --> has no line {END} before the next; add it")
    return BLOCK.sub(replaced, text), written, left


def table(results: Results) -> Section:
    """Means over seeds as the papers compute them, [the paper's figure], EO worst with its spread.

    Below: commit, processor and seeds of the runs.
    """
    rows = []
    for row in collect(results).to_dict("records"):
        eo = OUR_EO.get(row["paper_eo_definition"])
        cells = {name: number(row[f"{name}_table"]) for name in ("acc", "wst", "eo_mean", "std")}
        cells["eo_worst"] = plus_minus(row["eo_worst_mean"], row["eo_worst_std"])
        for name in cells:
            printed = row.get(f"paper_{'eo' if name == eo else name}", math.nan)
            cells[name] += "" if math.isnan(printed) else f" [{number(printed)}]"
        rows.append({"in %": row["method"], **{
            f"{TITLES[name]} ±" if name == "eo_worst" else TITLES[name]: cells[name]
            for name in ("acc", "wst", "eo_worst", "eo_mean", "std")}})
    return Section(frame=pd.DataFrame(rows), lines=[provenance(results)])


def provenance(results: Results) -> str:
    """Commit, processor and seeds of the finished runs; every one where they differ."""
    every: list[dict[str, Any]] = [
        config.get("environment") or {} for method, seeds in results.configs.items()
        for seed, config in seeds.items() if seed in results.metrics.get(method, {})]

    def of(key: str) -> str:
        return " and ".join(dict.fromkeys(str(each.get(key) or "unknown") for each in every))

    by_seeds: dict[str, list[str]] = {}
    for method, seeds in results.metrics.items():
        by_seeds.setdefault(", ".join(map(str, seeds)), []).append(method)
    seeds = "; ".join(f"{numbers} ({', '.join(methods)})" if len(by_seeds) > 1 else numbers
                      for numbers, methods in by_seeds.items())
    return f"Commit {of('commit')}; {of('processor')}; seeds {seeds}."


def write_docs(root: Path, results: Path) -> list[str]:
    """Write the tables of DOCUMENTS below `root`; returns a line on every table and its fate."""
    said = []
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8")
        try:
            new, written, left = refresh(text, results)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if new != text:
            write_atomic(root / name, new)
        said += [f"{name}: {setting} written" for setting in written]
        said += [f"{name}: {setting} left as it is, no finished run in {results / setting}"
                 for setting in left]
    return said
