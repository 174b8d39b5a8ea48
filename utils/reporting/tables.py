"""The tables of a setting: summary.csv, summary.md and summary.tex from its saved runs.

Columns of `collect` and summary.csv, all figures but passes in percent:
    <metric>_table            over seeds the way the paper computes its tables (metrics.table_style)
    <metric>_mean, _std       mean and sample standard deviation of each seed's own figure
    g00 g01 g10 g11, n00 ...  accuracy of the group (y, a) averaged over seeds, and its test images
    passes                    training images that went forward and backward in all of a seed's
                              stages, the shared one included, searches apart; mean over seeds
    paper_*, difference_*     the paper's row, and <metric>_table minus it; paper_note says where
                              its figures are impossible (then nothing is compared with them)
<metric> is acc, wst, eo_worst, eo_mean, std, ad, aod or eod. Two ways to average and two
definitions of equalized odds are in use, so no column is called plain `wst` or `eo`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.files import write_atomic
from utils.metrics import GROUPS, table_style
from utils.reporting import comparisons, costs, effects, masks, paper, row_settings
from utils.reporting.results import Results
from utils.reporting.section import (
    FIGURES,
    RANKED,
    TABLE_FIGURES,
    TITLES,
    Section,
    latex,
    markdown,
    number,
    plus_minus,
    thousands,
)


def collect(results: Results) -> pd.DataFrame:
    """One row a method, the columns of this module's docstring, all figures in percent.

    NaN marks a figure that needs an empty group, the spread of a single seed, and, in the paper_*
    and difference_* columns, what the paper does not give. Raises UserError where no run is
    finished.
    """
    rows = []
    for method in results.frame.index.unique("method"):
        by_seed = results.metrics[method]
        table = table_style(by_seed.values())
        row: dict[str, Any] = {"method": method, "seeds": len(by_seed)}
        row |= {f"{name}_table": 100 * table[name] for name in FIGURES}
        for name in FIGURES:
            row[f"{name}_mean"], row[f"{name}_std"] = results.spread(method, name)
        row |= {f"g{y}{a}": 100 * table["group_acc"][y, a] for y, a in GROUPS}
        row |= {f"n{y}{a}": table["group_count"][y, a] for y, a in GROUPS}
        configs = results.configs.get(method, {})
        said = [results.records[method][seed].get("passes", math.nan) for seed in by_seed]
        row["passes"] = sum(said) / len(said)
        row |= _paper_columns(method, [configs[seed] for seed in by_seed if seed in configs], row)
        rows.append(row)
    return pd.DataFrame(rows)


def _paper_columns(
    method: str, configs: list[Mapping[str, Any]], ours: Mapping[str, Any]
) -> dict[str, Any]:
    """paper_* and difference_* of one method; None and NaN where it is no paper setting."""
    keys = ("paper_table", "paper_row", "dataset", "target", "protected")
    wanted = {tuple(config.get(key) for key in keys) for config in configs}
    if len(wanted) > 1:
        raise UserError(f"the seeds of {method} differ in {', '.join(keys)}; separate them")
    figures = dict.fromkeys((*paper.FIGURES, *paper.GROUP_FIGURES), math.nan)
    labels: dict[str, Any] = dict.fromkeys(
        ("paper_table", "paper_row", "paper_eo_definition", "paper_note", "paper_marks")
    )
    table, row, *where = wanted.pop() if wanted else (None,) * len(keys)
    printed = None if table is None or row is None else paper.paper_row(str(table), row, *where)
    if printed is not None:  # where the paper has no such row or pair, ours stands alone
        figures |= printed
        definition = paper.eo_definition(str(table), row)
        note = f"impossible: {paper.IMPOSSIBLE}" if paper.impossible(figures) else None
        labels = {"paper_table": str(table), "paper_row": row, "paper_eo_definition": definition,
                  "paper_note": note, "paper_marks": paper.marks_of(str(table), row, *where)}
    column = {name: name for name in paper.FIGURES}
    column["eo"] = paper.OUR_EO.get(labels["paper_eo_definition"])
    difference = {f"difference_{name}": ours.get(f"{column[name]}_table", math.nan) - figures[name]
                  for name in paper.FIGURES}
    if labels["paper_note"]:
        difference |= dict.fromkeys(("difference_aod", "difference_eod"), math.nan)
    return labels | {f"paper_{name}": value for name, value in figures.items()} | difference


def _as_the_papers(frame: pd.DataFrame) -> Section:
    rows = [
        {"method": row["method"], "seeds": str(row["seeds"]),
         **{TITLES[name]: number(row[f"{name}_table"]) for name in TABLE_FIGURES},
         **{f"y={y} a={a}": number(row[f"g{y}{a}"]) for y, a in GROUPS},
         "passes": thousands(row["passes"])}
        for row in frame.to_dict("records")
    ]
    counts = frame.groupby([f"n{y}{a}" for y, a in GROUPS], sort=False)["method"]
    lines = []
    for numbers, methods in counts:
        owner = f" ({', '.join(methods)})" if len(counts) > 1 else ""
        groups = ", ".join(f"y={y} a={a}: {n}" for (y, a), n in zip(GROUPS, numbers, strict=True))
        empty = "; what needs an empty group is n/a" if 0 in numbers else ""
        lines.append(f"Test images per group{owner}: {groups}{empty}.")
    return Section(
        "As the paper's tables are computed",
        "WST and STD from group accuracies averaged over seeds; ACC and EO averaged over seeds. "
        "Passes: thousands of training samples, forward and backward, of a seed, all stages.",
        pd.DataFrame(rows), RANKED, lines,
    )


def _per_seed(frame: pd.DataFrame) -> Section:
    rows = [
        {"method": row["method"], "seeds": str(row["seeds"]),
         **{TITLES[name]: plus_minus(row[f"{name}_mean"], row[f"{name}_std"]) for name in FIGURES}}
        for row in frame.to_dict("records")
    ]
    return Section(
        "Each seed on its own",
        "Mean ± sample standard deviation over seeds of each seed's own figures. FairIF's AOD is "
        "EO mean.", pd.DataFrame(rows), RANKED,
    )


def write_summary(setting_dir: str | Path, baselines: Sequence[str] = ()) -> str:
    """Write summary.csv, .md and .tex, and relative_change.csv where FairIF stands beside ERM;
    return the markdown.

    baselines: methods to which paired differences are taken. Raises UserError where no run is
    finished and for an unknown baseline.
    """
    results = Results(setting_dir)
    frame = collect(results)
    changes = comparisons.relative_changes(results, frame)
    sections = [_as_the_papers(frame), _per_seed(frame), *comparisons.beside_papers(frame)]
    sections += [comparisons.paired_section(results, baseline) for baseline in baselines]
    if not changes.empty:
        sections.append(comparisons.relative_section(changes))
    if cost := costs.section(results):
        sections.append(cost)
    if results.masks:
        sections.append(masks.section(results))
    if updated := effects.effects(results):
        sections.append(effects.section(updated))
    missing = results.unfinished
    lines = [f"Runs without metrics, not counted: {', '.join(missing)}."] if missing else []
    sections.append(Section(lines=lines + row_settings.lines(results.first_configs)))
    note = "In %. EO worst: the larger of the TPR and FPR differences; EO mean: their mean."
    text = markdown(results.folder.resolve().name, note, sections)
    for name, table in (("summary", frame), ("relative_change", changes)):
        if not table.empty:
            write_atomic(results.folder / f"{name}.csv", table.to_csv(
                index=False, float_format="%.4f", na_rep="n/a", lineterminator="\n"))
    write_atomic(results.folder / "summary.md", text)
    write_atomic(results.folder / "summary.tex", latex(note, sections))
    return text
