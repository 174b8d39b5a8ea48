"""The text of the tables: aligned markdown, which is also what the terminal shows, and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from utils.metrics import CELLS
from utils.paper import FAIRIF, IMPOSSIBLE

TITLES = {"acc": "ACC", "wst": "WST", "eo_worst": "EO worst", "eo_mean": "EO mean", "std": "STD",
          "ad": "AD", "aod": "AOD", "eod": "EOD"}
TABLE_FIGURES = ("acc", "wst", "eo_worst", "eo_mean", "std")
FAIRIF_FIGURES = ("acc", "ad", "aod", "eod")
SEED_FIGURES = (*TABLE_FIGURES, "ad", "aod", "eod")
HIGHER_IS_BETTER = ("acc", "wst")


def number(value: float, sign: bool = False) -> str:
    """Two decimals; NaN is n/a; no minus zero."""
    if math.isnan(value):
        return "n/a"
    return f"{round(value, 2) + 0.0:{'+' if sign else ''}.2f}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns line up in a terminal: first column left, others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def line(row):
        cells = [c.ljust(w) if i == 0 else c.rjust(w)
                 for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)]) + "\n"


def markdown(
    setting: str,
    frame: pd.DataFrame,
    *,
    unfinished: Sequence[str] = (),
    baseline: str | None = None,
    paired: pd.DataFrame | None = None,
) -> str:
    """The sections of summary.md from `tables.collect` and `tables.differences`, in percent."""
    records = frame.to_dict("records")
    parts = [
        f"# {setting}\n",
        "In %. EO worst: the larger of the TPR and FPR differences; EO mean: their mean.\n",
        "## As the paper's tables are computed\n",
        "WST and STD from group accuracies averaged over seeds; ACC and EO averaged over seeds.\n",
        _table_style_section(records),
        _count_note(records),
        "## Each seed on its own\n",
        "Mean ± sample standard deviation over seeds of each seed's own figures. FairIF's AOD "
        "is EO mean.\n",
        _per_seed_section(records),
    ]
    rows = [row for row in records if isinstance(row["paper_row"], str)]
    theirs = [row for row in rows if row["paper_table"].startswith(FAIRIF)]
    if len(rows) > len(theirs):
        parts += ["## Beside the paper\n", "Ours (first table) / the paper's / ours minus it.\n",
                  _paper_section([row for row in rows if row not in theirs])]
    if theirs:
        parts += ["## Beside FairIF's paper\n",
                  "Ours (mean over seeds) / the paper's / ours minus it.\n",
                  _fairif_section(theirs)]
    if paired is not None:
        parts += [f"## Paired differences to {baseline}\n",
                  "Method minus baseline over shared seeds, in points: mean [95% t interval].\n",
                  _paired_section(paired)]
    if unfinished:
        parts.append(f"Runs without metrics, not counted: {', '.join(unfinished)}.\n")
    return "\n".join(parts)


def _table_style_section(records: list[dict]) -> str:
    header = ["method", "seeds", *(TITLES[name] for name in TABLE_FIGURES),
              *(f"y={y} a={a}" for y, a in CELLS)]
    rows = []
    for row in records:
        cells = [number(row[f"g{y}{a}"]) for y, a in CELLS]
        rows.append([row["method"], str(row["seeds"]),
                     *(number(row[f"{name}_table"]) for name in TABLE_FIGURES), *cells])
    return aligned(header, rows)


def _count_note(records: list[dict]) -> str:
    """Test images per cell: once where all methods share them, and why a figure is n/a."""
    by_counts: dict[tuple[int, ...], list[str]] = {}
    for row in records:
        counts = tuple(row[f"n{y}{a}"] for y, a in CELLS)
        by_counts.setdefault(counts, []).append(row["method"])
    lines = []
    for counts, methods in by_counts.items():
        owner = f" ({', '.join(methods)})" if len(by_counts) > 1 else ""
        cells = ", ".join(f"y={y} a={a}: {n}" for (y, a), n in zip(CELLS, counts, strict=True))
        empty = "; what needs an empty cell is n/a" if 0 in counts else ""
        lines.append(f"Test images per cell{owner}: {cells}{empty}.\n")
    return "".join(lines)


def _per_seed_section(records: list[dict]) -> str:
    rows = [
        [row["method"], str(row["seeds"]),
         *(_plus_minus(row[f"{name}_mean"], row[f"{name}_std"]) for name in SEED_FIGURES)]
        for row in records
    ]
    return aligned(["method", "seeds", *(TITLES[name] for name in SEED_FIGURES)], rows)


def _plus_minus(mean: float, spread: float) -> str:
    return "n/a" if math.isnan(mean) else f"{number(mean)} ± {number(spread)}"


def _paper_section(records: list[dict]) -> str:
    rows = []
    for row in records:
        definition = row["paper_eo_definition"]
        eo = {"worst": "eo_worst", "mean": "eo_mean"}.get(definition)
        cells = []
        for name in ("acc", "wst", "eo", "std"):
            column = eo if name == "eo" else name
            ours = number(row[f"{column}_table"]) if column else "n/a"
            cells.append(f"{ours} / {number(row[f'paper_{name}'])} / "
                         f"{number(row[f'difference_{name}'], sign=True)}")
        source = f"Table {row['paper_table']}, {row['paper_row']}"
        rows.append([row["method"], source, *cells[:3], definition, cells[3]])
    return aligned(["method", "the paper's row", "ACC", "WST", "EO", "which EO", "STD"], rows)


def _fairif_section(records: list[dict]) -> str:
    rows = []
    for row in records:
        marked = isinstance(row["paper_note"], str)
        cells = [f"{number(row[f'{name}_table'])} / {number(row[f'paper_{name}'])}"
                 f"{'*' if marked and name in ('aod', 'eod') else ''} / "
                 f"{number(row[f'difference_{name}'], sign=True)}" for name in FAIRIF_FIGURES]
        table = row["paper_table"].removeprefix(FAIRIF)
        rows.append([row["method"], f"Table {table}, {row['paper_row']}", *cells])
    text = aligned(
        ["method", "the paper's row", *(TITLES[name] for name in FAIRIF_FIGURES)], rows
    )
    if "*" in text:
        text += f"\n\\* impossible as printed ({IMPOSSIBLE}): not compared with, and no target.\n"
    return text


def _paired_section(paired: pd.DataFrame) -> str:
    rows = [
        [row["method"], str(row["pairs"]),
         *(f"{number(row[f'{name}_difference'], sign=True)} "
           f"[{number(row[f'{name}_low'], sign=True)}, {number(row[f'{name}_high'], sign=True)}]"
           for name in SEED_FIGURES)]
        for row in paired.to_dict("records")
    ]
    return aligned(["method", "pairs", *(TITLES[name] for name in SEED_FIGURES)], rows)


def latex(frame: pd.DataFrame) -> str:
    r"""A booktabs tabular of the table-style figures, best bold and second underlined per column.

    Figures that print alike share a rank; n/a has none. Needs \usepackage{booktabs}.
    """
    columns = []
    for name in TABLE_FIGURES:
        columns.append(_ranked(list(frame[f"{name}_table"]), name in HIGHER_IS_BETTER))
    for y, a in CELLS:
        columns.append([number(value) for value in frame[f"g{y}{a}"]])
    titles = [
        TITLES[name] + (r" $\uparrow$" if name in HIGHER_IS_BETTER else r" $\downarrow$")
        for name in TABLE_FIGURES
    ]
    header = ["Method", *titles, *(f"$y={y}, a={a}$" for y, a in CELLS)]
    names = [method.replace("_", r"\_") for method in frame["method"]]
    lines = [
        r"% \usepackage{booktabs}; WST and STD from group accuracies averaged over seeds, in \%",
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in zip(names, *columns, strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _ranked(values: list[float], higher_is_better: bool) -> list[str]:
    texts = [number(value) for value in values]
    distinct = sorted({float(text) for text in texts if text != "n/a"}, reverse=higher_is_better)
    style = dict(zip([f"{value:.2f}" for value in distinct], (r"\textbf", r"\underline"),
                     strict=False))
    return [f"{style[text]}{{{text}}}" if text in style else text for text in texts]
