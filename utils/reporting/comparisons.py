"""What stands beside a figure: a paper's, a baseline's by seed, ERM's of the same network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import t as student_t

from utils.errors import UserError
from utils.reporting import paper
from utils.reporting.results import Results
from utils.reporting.section import FAIRIF_FIGURES, FIGURES, TITLES, Section, interval, number

# FairIF's Table 6: rows <prefix><network> beside erm_<network>; the longer prefix first
CHANGED = {"fairif_shuffled_": "shuffled weights", "fairif_": "FairIF"}
PAIRED = "Paired differences to"
STARRED = "* stands with Holm's correction over the rows."


class Paired(NamedTuple):
    """Mean difference over seeds, its confidence interval, the number of seeds, and the t test's
    two-sided p, which is below 0.05 where the 95% interval excludes zero."""

    mean: float
    low: float
    high: float
    pairs: int
    p: float = math.nan


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95, *,
    test_to_train: float = 0.0,
) -> Paired:
    """Mean of a - b over the seeds both have, with its t confidence interval.

    a, b: {seed: figure}, in any unit. The interval is mean +- t * s * sqrt(1 / n + test_to_train),
    s the sample standard deviation of the differences, t the quantile with n - 1 degrees of
    freedom. test_to_train: where the seeds draw overlapping splits of the same samples, the size of
    a test part over that of a training part, the correction of Nadeau and Bengio (2003); 0 for
    training seeds. Interval and p are NaN with fewer than two pairs, and so is the mean with none.
    """
    seeds = sorted(a.keys() & b.keys())
    differences = pd.Series([a[seed] - b[seed] for seed in seeds], dtype=float)
    pairs, mean = len(differences), float(differences.mean(skipna=False))
    if pairs < 2:
        return Paired(mean if pairs else math.nan, math.nan, math.nan, pairs)
    quantile = student_t.ppf((1 + confidence) / 2, pairs - 1)
    spread = float(differences.std(skipna=False))
    error = spread * math.sqrt(1 / pairs + test_to_train)
    half = float(quantile) * error
    t = abs(mean) / error if error else math.inf if mean else 0.0
    return Paired(mean, mean - half, mean + half, pairs, float(2 * student_t.sf(t, pairs - 1)))


def holm(p: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several tests stand at `level` together, by Holm's correction (1979).

    The smallest p is held against level / n, the next against level / (n - 1), until one fails. A p
    that is NaN was not tested: it does not stand and does not count.
    """
    stand = [False] * len(p)
    tested = sorted((i for i, each in enumerate(p) if not math.isnan(each)), key=p.__getitem__)
    for rank, i in enumerate(tested):
        if p[i] > level / (len(tested) - rank):
            break
        stand[i] = True
    return stand


def differences(results: Results, baseline: str) -> dict[str, dict[str, Paired]]:
    """{method: {figure: its paired difference to `baseline` over seeds, in percentage points}}.

    Raises UserError for an unknown baseline.
    """
    if baseline not in results.metrics:
        raise UserError(
            f"--baseline {baseline} has no finished run; choose from {', '.join(results.metrics)}")
    figures = {method: results.frame.loc[method] for method in results.metrics}  # a row a seed
    ratio = resplit_ratio(results)
    return {
        method: {name: paired_difference(frame[name].to_dict(), figures[baseline][name].to_dict(),
                                         test_to_train=ratio)
                 for name in FIGURES}
        for method, frame in figures.items() if method != baseline
    }


def intervals(found: Mapping[str, Mapping[str, Paired]], figures: Sequence[str],
              ) -> dict[str, dict[str, str]]:
    """{method: {a figure's title: its difference [interval]}} of `differences`, as it is printed.

    A star marks what stands with Holm's correction over the rows.
    """
    printed: dict[str, dict[str, str]] = {method: {} for method in found}
    for name in figures:
        stand = holm([of[name].p for of in found.values()])
        for (method, of), stands in zip(found.items(), stand, strict=True):
            printed[method][TITLES[name]] = interval(*of[name][:3]) + "*" * stands
    return printed


def resplit_ratio(results: Results) -> float:
    """Test over training samples where a setting's seeds draw splits of the same samples, else 0"""
    return max((config.get("test_to_train", 0.0) for seeds in results.configs.values()
                for config in seeds.values()), default=0.0)


def paired_section(results: Results, baseline: str) -> Section:
    found = differences(results, baseline)
    rows = [{"method": method, "pairs": str(found[method]["acc"].pairs), **cells}
            for method, cells in intervals(found, FIGURES).items()]
    note = f"Method minus baseline over shared seeds, in points: mean [95% t interval]. {STARRED}"
    if resplit_ratio(results):
        note += " The seeds' splits overlap: Nadeau and Bengio's correction."
    return Section(f"{PAIRED} {baseline}", note, pd.DataFrame(rows))


def baselines_of(summary: str) -> list[str]:
    """The baselines of a summary.md that has paired differences."""
    return re.findall(rf"^## {PAIRED} (.+)$", summary, re.MULTILINE)


def beside_papers(frame: pd.DataFrame) -> list[Section]:
    """Our figures of `tables.collect` beside those of the papers, a section each."""
    rows = [row for row in frame.to_dict("records") if isinstance(row["paper_row"], str)]
    theirs = [row for row in rows if row["paper_table"].startswith(paper.FAIRIF)]
    ours = [row for row in rows if row not in theirs]
    sections = []
    if ours:
        note = "Ours (first table) / the paper's / ours minus it."
        marked = "; ".join(f"{row['method']}: {row['paper_marks']}" for row in ours
                           if isinstance(row["paper_marks"], str))
        lines = [f"Group accuracies of the paper that are not as printed: {marked}."]
        table = _beside(ours, ("acc", "wst", "eo", "std"))
        sections.append(Section("Beside the paper", note, table, lines=lines if marked else ()))
    if theirs:
        note = "Ours (mean over seeds) / the paper's / ours minus it."
        marked = any(isinstance(row["paper_note"], str) for row in theirs)
        lines = [f"* impossible as printed ({paper.IMPOSSIBLE}): not compared with, and no target."]
        sections.append(Section("Beside FairIF's paper", note, _beside(theirs, FAIRIF_FIGURES),
                                lines=lines if marked else ()))
    return sections


def _beside(rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> pd.DataFrame:
    lines = []
    for row in rows:
        table = row["paper_table"].removeprefix(paper.FAIRIF)
        line = {"method": row["method"], "the paper's row": f"Table {table}, {row['paper_row']}"}
        for name in figures:
            column = paper.OUR_EO.get(row["paper_eo_definition"]) if name == "eo" else name
            ours = row[f"{column}_table"] if column else math.nan
            mark = "*" if isinstance(row["paper_note"], str) and name in ("aod", "eod") else ""
            line[TITLES[name]] = (f"{number(ours)} / {number(row[f'paper_{name}'])}{mark} / "
                                  f"{number(row[f'difference_{name}'], sign=True)}")
            if name == "eo":
                line["which EO"] = row["paper_eo_definition"]
        lines.append(line)
    return pd.DataFrame(lines)


def relative_changes(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """One line a row beside ERM's: `network`, `row` ("FairIF" or "shuffled weights"), <figure> and
    paper_<figure>, changes in percent of ERM's.

    frame: `tables.collect` of the setting; the figures are means over seeds. NaN where ERM's is 0
    and where the paper has none. No rows without a pair.
    """
    by_name = {record["method"]: record for record in frame.to_dict("records")}
    lines = []
    for method, ours in by_name.items():
        prefix = next((start for start in CHANGED if method.startswith(start)), "")
        base = by_name.get(f"erm_{method.removeprefix(prefix)}")
        if not prefix or base is None:
            continue
        line: dict[str, Any] = {"network": method.removeprefix(prefix), "row": CHANGED[prefix]}
        config = results.first_configs.get(method, {}) if prefix == "fairif_" else {}
        theirs = {}
        keys = ("dataset", "target", "protected", "backbone")
        if config.get("pretrained") == "imagenet" and config.keys() >= set(keys):
            theirs = paper.relative_change(*(config[key] for key in keys))
        for name in FAIRIF_FIGURES:
            before, after = (record[f"{name}_table"] for record in (base, ours))
            line[name] = 100 * (after - before) / before if before else math.nan
            line[f"paper_{name}"] = theirs.get(name, math.nan)
        lines.append(line)
    order = [f"{start}{name}" for name in FAIRIF_FIGURES for start in ("", "paper_")]
    frame = pd.DataFrame(lines, columns=["network", "row", *order])
    return frame.sort_values(["network", "row"], ignore_index=True)


def relative_section(changes: pd.DataFrame) -> Section:
    rows = [
        {"network": line["network"], "row": line["row"],
         **{TITLES[name]: " / ".join(number(line[f"{start}{name}"], sign=True)
                                     for start in ("", "paper_")) for name in FAIRIF_FIGURES}}
        for line in changes.to_dict("records")
    ]
    control = " Shuffled weights: FairIF's, dealt to other images, as a control."
    note = ("In % of ERM's mean over seeds: ours / the paper's."
            f"{control if (changes['row'] != 'FairIF').any() else ''}")
    return Section("FairIF's change of ERM's figures", note, pd.DataFrame(rows))
