"""Tables of a setting from its saved runs: `python -m utils.reporting.tables results/<setting>`.

Reads results/<setting>/<method>/seed<k>/metrics.json (and config.json, for the paper's row), prints
the tables and writes summary.csv and summary.md, with --latex also summary.tex.

Columns of `collect` and summary.csv, all figures but passes in percent:
    <metric>_table            over seeds the way the paper computes its tables (metrics.table_style)
    <metric>_mean, _std       mean and sample standard deviation of each seed's own figure
    g00 g01 g10 g11, n00 ...  accuracy of the cell (y, a) averaged over seeds, and its test images
    passes                    training images that went forward and backward in all of a seed's
                              stages, the shared one included, searches apart; mean over seeds
    paper_*, difference_*     the paper's row, and <metric>_table minus it; paper_note says where
                              its figures are impossible (then nothing is compared with them)
<metric> is acc, wst, eo_worst, eo_mean, std, ad, aod or eod. Two ways to average and two
definitions of equalized odds are in use, so no column is called plain `wst` or `eo`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import t as student_t

from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic
from utils.metrics import CELLS, from_json, summary, table_style
from utils.options import ArgumentParser
from utils.reporting import relative, row_settings, table_text
from utils.reporting.paper import (
    CELL_FIGURES,
    IMPOSSIBLE,
    eo_definition,
    impossible,
    marks_of,
    paper_row,
)
from utils.reporting.paper import FIGURES as PAPER_FIGURES

FIGURES = tuple(table_text.TITLES)  # every metric, in the order of the columns


class Paired(NamedTuple):
    """Mean difference over seeds with its confidence interval, and the number of seeds."""

    mean: float
    low: float
    high: float
    pairs: int


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95
) -> Paired:
    """Mean of a - b over the seeds both have, with its t confidence interval.

    a, b: {seed: figure}, in any unit. The interval is mean +- t * s / sqrt(n), s the sample
    standard deviation of the differences, t the quantile with n - 1 degrees of freedom. It is NaN
    with fewer than two pairs, and so is the mean with none.
    """
    seeds = sorted(a.keys() & b.keys())
    differences = pd.Series([a[seed] - b[seed] for seed in seeds], dtype=float)
    pairs, mean = len(differences), float(differences.mean(skipna=False))
    if pairs < 2:
        return Paired(mean if pairs else math.nan, math.nan, math.nan, pairs)
    quantile = student_t.ppf((1 + confidence) / 2, pairs - 1)
    half = float(quantile * differences.std(skipna=False) / math.sqrt(pairs))
    return Paired(mean, mean - half, mean + half, pairs)


def run_folders(setting_dir: str | Path) -> dict[str, dict[int, Path]]:
    """{method: {seed: run folder}} of a setting, finished or not.

    Baseline first, AIM-Fair last, the rest by name, as the paper orders its rows; seeds ascending.
    Raises UserError where there is no run folder at all.
    """
    setting_dir = Path(setting_dir)
    found: dict[str, dict[int, Path]] = {}
    for folder in setting_dir.glob("*/seed*"):
        if folder.is_dir() and (match := re.fullmatch(r"seed(\d+)", folder.name)):
            found.setdefault(folder.parent.name, {})[int(match[1])] = folder
    if not found:
        raise UserError(
            f"{setting_dir} has no runs (<method>/seed<k>/); give the folder of a setting, "
            "such as results/demo"
        )
    order = sorted(found, key=lambda name: (name != "erm", name.startswith("aim_fair"), name))
    return {method: dict(sorted(found[method].items())) for method in order}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder; UserError names a file that is not one."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; delete it and run that seed again")
    return value


def read_metrics(setting_dir: str | Path) -> dict[str, dict[int, dict[str, Any]]]:
    """{method: {seed: test metrics}} as fairness_metrics returns them, for every finished run.

    A method without a finished run is left out. Raises UserError where no run is finished or a
    metrics.json lacks a figure.
    """
    result: dict[str, dict[int, dict[str, Any]]] = {}
    for method, seeds in run_folders(setting_dir).items():
        for seed, folder in seeds.items():
            path = folder / "metrics.json"
            if not path.exists():
                continue
            try:
                metrics = from_json(read_json(path)["test"])
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{path} lacks the test metric {error}; delete it and run that seed again"
                ) from None
            result.setdefault(method, {})[seed] = metrics
    if not result:
        raise UserError(f"{setting_dir} has no finished run (metrics.json); start training again")
    return result


def unfinished(setting_dir: str | Path) -> list[str]:
    """`<method>/seed<k>` of the runs that have no metrics yet."""
    runs = run_folders(setting_dir).values()
    folders = [folder for seeds in runs for folder in seeds.values()]
    return [f"{f.parent.name}/{f.name}" for f in folders if not (f / "metrics.json").exists()]


def collect(setting_dir: str | Path) -> pd.DataFrame:
    """One row a method, the columns of this module's docstring, all figures in percent.

    NaN marks a figure that needs an empty cell, the spread of a single seed, and, in the paper_*
    and difference_* columns, what the paper does not give. Raises UserError as read_metrics does.
    """
    folders = run_folders(setting_dir)
    rows = []
    for method, by_seed in read_metrics(setting_dir).items():
        table, spread = table_style(by_seed.values()), summary(by_seed.values())
        row: dict[str, Any] = {"method": method, "seeds": len(by_seed)}
        row |= {f"{name}_table": 100 * table[name] for name in FIGURES}
        for name in FIGURES:
            row[f"{name}_mean"], row[f"{name}_std"] = (100 * value for value in spread[name])
        row |= {f"g{y}{a}": 100 * table["group_acc"][y, a] for y, a in CELLS}
        row |= {f"n{y}{a}": table["group_count"][y, a] for y, a in CELLS}
        row["passes"] = _passes([folders[method][seed] for seed in by_seed])
        row |= _paper_columns([folders[method][seed] for seed in by_seed], row)
        rows.append(row)
    return pd.DataFrame(rows)


def _passes(runs: list[Path]) -> float:
    """Image passes of a seed, mean over the runs; NaN where one does not say."""
    said = [read_json(run / "metrics.json").get("passes", math.nan) for run in runs]
    return sum(said) / len(said)


def _paper_columns(runs: list[Path], ours: Mapping[str, Any]) -> dict[str, Any]:
    """paper_* and difference_* of one method; None and NaN where it is no paper setting."""
    keys = ("paper_table", "paper_row", "dataset", "target", "protected")
    configs = [read_json(run / "config.json") for run in runs if (run / "config.json").exists()]
    wanted = {tuple(config.get(key) for key in keys) for config in configs}
    if len(wanted) > 1:
        raise UserError(f"the seeds in {runs[0].parent} differ in {', '.join(keys)}; separate them")
    figures = dict.fromkeys((*PAPER_FIGURES, *CELL_FIGURES), math.nan)
    labels: dict[str, Any] = dict.fromkeys(
        ("paper_table", "paper_row", "paper_eo_definition", "paper_note", "paper_marks")
    )
    table, row, *where = wanted.pop() if wanted else (None,) * len(keys)
    printed = None if table is None or row is None else paper_row(str(table), row, *where)
    if printed is not None:  # where the paper has no such row or pair, ours stands alone
        figures |= printed
        definition = eo_definition(str(table), row)
        note = f"impossible: {IMPOSSIBLE}" if impossible(figures) else None
        labels = {"paper_table": str(table), "paper_row": row, "paper_eo_definition": definition,
                  "paper_note": note, "paper_marks": marks_of(str(table), row, *where)}
    eo = {"worst": "eo_worst", "mean": "eo_mean"}.get(labels["paper_eo_definition"])
    ours_by_name = {name: ours[f"{eo if name == 'eo' else name}_table"]
                    for name in PAPER_FIGURES if name != "eo" or eo}
    difference = {f"difference_{name}": ours_by_name.get(name, math.nan) - figures[name]
                  for name in PAPER_FIGURES}
    if labels["paper_note"]:
        difference |= dict.fromkeys(("difference_aod", "difference_eod"), math.nan)
    return labels | {f"paper_{name}": value for name, value in figures.items()} | difference


def differences(setting_dir: str | Path, baseline: str) -> pd.DataFrame:
    """Paired differences of every other method to `baseline` over seeds, in percentage points.

    One row a method: `method`, `pairs`, and <metric>_difference, _low, _high (95% t interval) of
    each seed's own figure. Raises UserError for an unknown baseline.
    """
    runs = read_metrics(setting_dir)
    if baseline not in runs:
        raise UserError(f"--baseline {baseline} has no finished run; choose from {', '.join(runs)}")
    rows = []
    for method in runs:
        if method == baseline:
            continue
        row: dict[str, Any] = {"method": method}
        for name in FIGURES:
            ours, base = ({seed: 100 * m[name] for seed, m in runs[which].items()}
                          for which in (method, baseline))
            mean, low, high, row["pairs"] = paired_difference(ours, base)
            row |= {f"{name}_difference": mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def configs_of(setting_dir: Path) -> dict[str, dict[str, Any]]:
    """{method: config.json of its first seed}, where there is one."""
    paths = {method: next(iter(seeds.values())) / "config.json"
             for method, seeds in run_folders(setting_dir).items()}
    return {method: read_json(path) for method, path in paths.items() if path.exists()}


def selections(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{row that best.py has chosen: the `row` it is, those it is `from`, by what `rule`}."""
    return {method: c["selected"] for method, c in configs.items() if c.get("selected")}


def _selection_lines(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a row that best.py has chosen: which, of how many and which, by what rule."""
    return "".join(
        f"\n{method} is {s['row']}, chosen of {len(s['from'])} rows ({', '.join(s['from'])}): "
        f"{s['rule']}.\n" for method, s in selections(configs).items()
    )


def write_summary(
    setting_dir: str | Path, *, baseline: str | None = None, latex: bool = False
) -> str:
    """Write summary.csv, summary.md and, with latex, summary.tex; return the markdown text."""
    setting_dir = Path(setting_dir)
    frame = collect(setting_dir)
    paired = differences(setting_dir, baseline) if baseline else None
    text = table_text.markdown(
        setting_dir.resolve().name, frame, unfinished=unfinished(setting_dir),
        baseline=baseline, paired=paired,
    )
    configs = configs_of(setting_dir)
    text += row_settings.protected_labels(configs) + row_settings.sentences(configs)
    text += _selection_lines(configs)
    changes = relative.relative_changes(setting_dir, frame)
    text += relative.section(changes)
    csv = frame.to_csv(index=False, float_format="%.4f", na_rep="n/a", lineterminator="\n")
    write_atomic(setting_dir / "summary.csv", csv)
    if not changes.empty:
        csv = changes.to_csv(index=False, float_format="%.4f", na_rep="n/a", lineterminator="\n")
        write_atomic(setting_dir / "relative_change.csv", csv)
    write_atomic(setting_dir / "summary.md", text)
    if latex:
        write_atomic(setting_dir / "summary.tex", table_text.latex(frame))
    return text


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Tables of a setting from its saved runs.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    parser.add_argument("--latex", action="store_true", help="also write summary.tex (booktabs)")
    parser.add_argument("--baseline", help="method to take paired differences to, such as erm")
    options = parser.parse_args(arguments)
    print(write_summary(options.setting, baseline=options.baseline, latex=options.latex), end="")


if __name__ == "__main__":
    main()
