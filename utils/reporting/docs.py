"""The measured tables of README.md and docs/results.md, written anew from saved runs.

A table stands between two lines, the words around it are a person's:

    <!-- table: demo/table3 -->
    <!-- end -->

The name is that of the setting, a folder of results/. Under the table stand the commit, the
processor and the seeds of its runs, then the paired differences to the baselines of its summary.md.
A setting of tensor effects has their correlations instead. What has no finished run here is left as
it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.files import write_atomic
from utils.reporting import effects
from utils.reporting.comparisons import STARRED, baselines_of, differences, intervals
from utils.reporting.paper import FAIRIF, OUR_EO
from utils.reporting.results import Results
from utils.reporting.row_settings import standing
from utils.reporting.section import (
    FAIRIF_FIGURES,
    TABLE_FIGURES,
    TITLES,
    Section,
    number,
    plus_minus,
    thousands,
)
from utils.reporting.tables import collect

DOCUMENTS = ("README.md", "docs/results.md")
START, END = "<!-- table: {} -->\n", "<!-- end -->"
CLAIMED = {False: ("acc", "wst", "eo_worst"), True: ("acc", "ad", "aod", "eod")}  # is it FairIF's?
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
        sections = "\n".join(section.markdown() for section in sections_of(runs))
        return START.format(setting) + sections + "\n" + END

    started = re.findall(START.format(r"(\S+)"), text)
    closed = [match[1] for match in BLOCK.finditer(text)]
    if started != closed:
        setting = next((name for name in started if name not in closed), started[0])
        raise UserError(
            f"the line <!-- table: {setting} --> has no line {END} before the next; add it")
    return BLOCK.sub(replaced, text), written, left


def sections_of(results: Results) -> list[Section]:
    """What stands for a setting: its table and the paired differences, or the tensor effects."""
    if found := effects.effects(results):
        said = effects.section(found)
        return [replace(said, title="", lines=[*said.lines, provenance(results)])]
    summary = results.folder / "summary.md"
    baselines = baselines_of(summary.read_text(encoding="utf-8")) if summary.exists() else ()
    records = collect(results).to_dict("records")
    fairif = any(str(row["paper_table"]).startswith(FAIRIF) for row in records)
    return [table(results, records, fairif),
            *(paired(results, baseline, CLAIMED[fairif]) for baseline in baselines)]


def paired(results: Results, baseline: str, figures: Sequence[str]) -> Section:
    """Each row minus the baseline, in these figures."""
    found = intervals(differences(results, baseline), figures)
    rows = [{f"minus {baseline}": method} | cells for method, cells in found.items()]
    line = f"Points, paired by seed [95% t interval]. {STARRED}"
    return Section(frame=pd.DataFrame(rows), lines=[line])


def table(results: Results, records: Sequence[Mapping[str, Any]], fairif: bool) -> Section:
    """The figures of the paper that the setting belongs to, with [the paper's], thousands of image
    passes a seed, and below it commit, processor and seeds of the runs.

    AIM-Fair's are computed as in its tables, its EO worst with the spread over seeds; FairIF's are
    all means with their spread.
    """
    rows = []
    figures, spread = (FAIRIF_FIGURES,) * 2 if fairif else (TABLE_FIGURES, ("eo_worst",))
    for row in records:
        line = {"in %": row["method"]}
        for name in figures:
            held = "eo" if name == OUR_EO.get(row["paper_eo_definition"]) else name
            printed = row.get(f"paper_{held}", math.nan)
            cell = (plus_minus(row[f"{name}_mean"], row[f"{name}_std"]) if name in spread
                    else number(row[f"{name}_table"]))
            paper = "" if math.isnan(printed) else f" [{number(printed)}]"
            line[TITLES[name] + (" ±" if name in spread else "")] = cell + paper
        rows.append(line | {"passes": thousands(row["passes"])})
    return Section(frame=pd.DataFrame(rows), lines=[provenance(results), *choices(results)])


def choices(results: Results) -> list[str]:
    """What stands for each row that is the best of several; none where there is no such row."""
    said = []
    for row in results.metrics:
        if selected := next(iter(results.configs[row].values())).get("selected"):
            passes = thousands(selected.get("passes", 0))
            said.append(f"{row} {standing(selected)}, of {len(selected['from'])} with {passes} "
                        "thousand passes")
    return [f"Chosen on validation: {'; '.join(said)}."] if said else []


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
