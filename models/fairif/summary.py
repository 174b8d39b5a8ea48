"""Summaries of FairIF's Tables 1 to 4: figures over splits or seeds, paired differences, text.

summary.csv has one row a method and one a paired difference; acc and ad in percent (points), aod
and eod as fractions, as the paper prints them: <metric>, its sample standard deviation <metric>_std
over splits or seeds, for a difference its 95% t interval <metric>_low and _high, and
<metric>_paper.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from models.fairif.baselines import BASELINES
from utils.metrics import from_json
from utils.reporting import section
from utils.reporting.comparisons import paired_difference
from utils.reporting.paper import printed
from utils.reporting.section import HIGHER_IS_BETTER, Section, interval, plus_minus

BASELINE_TITLES = {name: entry.title for name, entry in BASELINES.items()}
TITLES = {"erm": "ERM", **BASELINE_TITLES, "fairif": "FairIF", "shuffled": "shuffled eps"}
PAPER_ROWS = {"erm": "Original", **BASELINE_TITLES, "fairif": "FairIF"}
SEES = {"erm": "none", "fairif": "validation", "shuffled": "validation",
        **{name: entry.uses_attributes for name, entry in BASELINES.items()}}
PAPER_SETTINGS = {"adult": "Adult", "german": "German", "compas": "COMPAS", "size": "group size",
                  "shift": "group distribution", "class": "class size"}
PAIRS = (*((name, "erm") for name in TITLES if name != "erm"), ("fairif", "shuffled"))
# column: (factor from fraction, title, decimals, the paper's column)
FIGURES = {
    "acc": (100, "Acc (%)", 2, "acc_percent"),
    "ad": (100, "AD (%)", 2, "ad_percent"),
    "aod": (1, "AOD", 3, "aod"),
    "eod": (1, "EOD", 3, "eod"),
}


class Heading(NamedTuple):
    """table: the paper's number. title: its model. unit: what a figure is averaged over."""

    table: str
    title: str
    unit: str


def figures(splits: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """{row: frame with one line a split or seed and the columns acc, ad (percent), aod, eod}."""
    result = {}
    for row in (name for name in TITLES if name in splits[0]["rows"]):
        metrics = [from_json(split["rows"][row]) for split in splits]
        result[row] = pd.DataFrame(
            {name: [factor * m[name] for m in metrics] for name, (factor, *_) in FIGURES.items()}
        )
    return result


def summarise(dataset: str, splits: list[dict[str, Any]], heading: Heading) -> pd.DataFrame:
    """The lines of summary.csv of one dataset or bias (this module's docstring)."""
    frames = figures(splits)
    paper = paper_figures(dataset, heading.table)
    lines = []
    for row, frame in frames.items():
        line: dict[str, Any] = {"dataset": dataset, "row": TITLES[row], "sees": SEES[row],
                                heading.unit: len(splits)}
        for name in FIGURES:
            line[name], line[f"{name}_std"] = frame[name].mean(), frame[name].std()
            line[f"{name}_paper"] = paper.get(row, {}).get(name, math.nan)
        lines.append(line)
    for one, other in (pair for pair in PAIRS if frames.keys() >= set(pair)):
        title = f"{TITLES[one]} minus {TITLES[other]}"
        line = {"dataset": dataset, "row": title, heading.unit: len(splits)}
        for name in FIGURES:
            a, b = (frames[key][name].to_dict() for key in (one, other))
            line[name], line[f"{name}_low"], line[f"{name}_high"], _ = paired_difference(a, b)
            line[f"{name}_std"] = (frames[one][name] - frames[other][name]).std()
            if one in paper and other in paper:
                line[f"{name}_paper"] = paper[one][name] - paper[other][name]
        lines.append(line)
    order = [f"{name}{end}" for name in FIGURES for end in ("", "_std", "_low", "_high", "_paper")]
    return pd.DataFrame(lines, columns=["dataset", "row", "sees", heading.unit, *order])


def paper_figures(dataset: str, number: str) -> dict[str, dict[str, float]]:
    """{row: {acc, ad (percent), aod, eod}} of the paper's table of that number."""
    table = printed("fairif")
    table = table[table["table"].str.startswith(f"{number} ")]
    table = table[table["setting"] == PAPER_SETTINGS[dataset]].set_index("row")
    return {
        row: {name: float(table.loc[title, column]) for name, (*_, column) in FIGURES.items()}
        for row, title in PAPER_ROWS.items()
    }


def markdown(
    frame: pd.DataFrame, checks: dict[str, list[dict]], settings: dict[str, Any], heading: Heading
) -> str:
    """summary.md from the lines of summary.csv and the checks of each dataset's splits or seeds."""
    note = (
        f"Mean ± sample standard deviation over {heading.unit}, [the paper's figure]. Differences "
        f"are paired by {heading.unit[:-1]}: mean [95% t interval]. \"Shuffled eps\" is the "
        "control: FairIF's weights dealt to other samples. \"Sees a\": whose protected labels a "
        "method uses.\n\n"
        "Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None) + "."
    )
    title = f"FairIF, Table {heading.table}: {heading.title}"
    return section.markdown(title, note, sections(frame, heading, checks))


def latex(frame: pd.DataFrame, heading: Heading) -> str:
    """summary.tex from the lines of summary.csv: for each dataset or bias its methods, with the
    paper's figure in brackets, and the paired differences."""
    note = (f"FairIF, Table {heading.table}: {heading.title}. Mean and sample standard deviation "
            f"over {heading.unit} [the paper's figure]; differences: mean [95% t interval].")
    return section.latex(note, sections(frame, heading))


def sections(
    frame: pd.DataFrame, heading: Heading, checks: dict[str, list[dict]] | None = None
) -> list[Section]:
    """Two tables a dataset: its methods, and their paired differences over the checks' text."""
    found = []
    ranked = {title: name in HIGHER_IS_BETTER for name, (_, title, *_) in FIGURES.items()}
    for dataset, lines in frame.groupby("dataset", sort=False):
        records = lines.to_dict("records")
        methods = [
            {"method": line["row"], "sees a": line["sees"],
             **{title: _mean_cell(line, name) for name, (_, title, *_) in FIGURES.items()}}
            for line in records if " minus " not in line["row"]
        ]
        pairs = [
            {"difference": line["row"],
             **{title: interval(*(line[f"{name}{end}"] for end in ("", "_low", "_high")), digits)
                for name, (_, title, digits, _) in FIGURES.items()}}
            for line in records if " minus " in line["row"]
        ]
        title = f"{PAPER_SETTINGS[dataset]}, {records[0][heading.unit]} {heading.unit}"
        found.append(Section(title, "", pd.DataFrame(methods), ranked))
        text = [_check_text(checks[dataset])] if checks else []
        found.append(Section(frame=pd.DataFrame(pairs), lines=text))
    return found


def _mean_cell(line: dict, name: str) -> str:
    digits = FIGURES[name][2]
    paper = line[f"{name}_paper"]
    text = plus_minus(line[name], line[f"{name}_std"], digits)
    return text if math.isnan(paper) else f"{text} [{paper:.{digits}f}]"


def _check_text(checks: list[dict]) -> str:
    frame = pd.DataFrame(checks)
    gaps = {
        key: sum(abs(value) for row in frame[key] for value in row) / (2 * len(frame))
        for key in ("gaps", "gaps_predicted", "gaps_after")
    }
    fits, kept = "a fit", ""
    if "epochs" in frame:
        fits, means = "ERM's best epoch", pd.DataFrame(list(frame["epochs"])).mean()
        kept = " Mean best epoch: " + ", ".join(
            f"{TITLES[row]} {mean:.0f}" for row, mean in means.items()) + "."
    share = 100 * (frame["clipped"] / frame["training_rows"]).mean()
    return (
        f"Relaxed validation gaps, mean |gap|: ERM {gaps['gaps']:.4f}, predicted for FairIF "
        f"{gaps['gaps_predicted']:.4f}, after retraining {gaps['gaps_after']:.4f}. Weights clipped "
        f"at 0: {share:.2f}%; root mean square of n eps: {frame['eps_rms_times_n'].mean():.3f}. "
        f"Largest gradient norm of {fits}: {frame['gradient_norm'].max():.1e}.{kept}"
    )
