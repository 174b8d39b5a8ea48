"""The text of the tables: aligned markdown, which is also what the terminal shows, and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from utils.metrics import CELLS
from utils.reporting.paper import FAIRIF, IMPOSSIBLE

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


def thousands(value: float) -> str:
    """A count in thousands with one decimal; NaN is n/a."""
    return "n/a" if math.isnan(value) else f"{value / 1000:.1f}"


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
        "WST and STD from group accuracies averaged over seeds; ACC and EO averaged over seeds. "
        "Passes: thousands of training images forward and backward, a seed, pre-training included."
        "\n",
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
                  paper_section([row for row in rows if row not in theirs])]
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
              *(f"y={y} a={a}" for y, a in CELLS), "passes"]
    rows = []
    for row in records:
        cells = [number(row[f"g{y}{a}"]) for y, a in CELLS]
        rows.append([row["method"], str(row["seeds"]),
                     *(number(row[f"{name}_table"]) for name in TABLE_FIGURES), *cells,
                     thousands(row["passes"])])
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


def paper_section(records: list[dict]) -> str:
    """Our figures beside AIM-Fair's, one row a method, and which of the paper's are not as printed.
    """
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
    text = aligned(["method", "the paper's row", "ACC", "WST", "EO", "which EO", "STD"], rows)
    marked = [f"{row['method']}: {row['paper_marks']}" for row in records
              if isinstance(row["paper_marks"], str)]
    note = "\nGroup accuracies of the paper that are not as printed: " + "; ".join(marked) + ".\n"
    return text + (note if marked else "")


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
    r"""The tables of `markdown` as booktabs tabulars, best bold and second underlined per column.

    The first holds the table-style figures, the second each seed's own (mean and sample standard
    deviation); where a method has a row in a paper, another holds ours, the paper's figure and the
    difference. Figures that print alike share a rank; n/a has none. Needs \usepackage{booktabs}.
    """
    records = frame.to_dict("records")
    names = [escaped(method) for method in frame["method"]]
    cells = [f"$y={y}, a={a}$" for y, a in CELLS]
    columns = [ranked([number(value) for value in frame[f"{name}_table"]], name)
               for name in TABLE_FIGURES]
    columns += [[number(value) for value in frame[f"g{y}{a}"]] for y, a in CELLS]
    parts = [
        "WST and STD from group accuracies averaged over seeds, in \\%",
        tabular(["Method", *map(_arrowed, TABLE_FIGURES), *cells],
                [list(zip(names, *columns, strict=True))]),
        "Each seed on its own: mean and sample standard deviation over seeds, in \\%",
        tabular(["Method", "Seeds", *map(_arrowed, SEED_FIGURES)],
                [list(zip(names, map(str, frame["seeds"]), *_seed_columns(frame), strict=True))]),
    ]
    rows = [row for row in records if isinstance(row["paper_row"], str)]
    theirs = [row for row in rows if row["paper_table"].startswith(FAIRIF)]
    for title, group, figures in (
        ("Beside the paper", [row for row in rows if row not in theirs],
         ("acc", "wst", "eo", "std")),
        ("Beside FairIF's paper", theirs, FAIRIF_FIGURES),
    ):
        if group:
            parts += [f"{title}: ours / the paper's / ours minus it, in \\%",
                      _latex_paper(group, figures)]
    texts = [f"% {comment}\n{text}" for comment, text in zip(parts[::2], parts[1::2], strict=True)]
    return "% \\usepackage{booktabs}\n" + "\n\\par\\medskip\n".join(texts)


def _seed_columns(frame: pd.DataFrame) -> list[list[str]]:
    columns = []
    for name in SEED_FIGURES:
        means = ranked([number(value) for value in frame[f"{name}_mean"]], name)
        columns.append([
            mean if mean == "n/a" else f"{mean} $\\pm$ {number(spread)}"
            for mean, spread in zip(means, frame[f"{name}_std"], strict=True)
        ])
    return columns


def _latex_paper(records: list[dict], figures: Sequence[str]) -> str:
    """Three columns a figure; an impossible figure of FairIF's is marked as in the markdown."""
    rows, marked = [], False
    for row in records:
        table = row["paper_table"].removeprefix(FAIRIF)
        cells = [escaped(row["method"]), escaped(f"Table {table}, {row['paper_row']}")]
        for name in figures:
            column = name
            if name == "eo":
                column = {"worst": "eo_worst", "mean": "eo_mean"}.get(row["paper_eo_definition"])
            wrong = isinstance(row["paper_note"], str) and name in ("aod", "eod")
            marked |= wrong
            cells += [number(row[f"{column}_table"]) if column else "n/a",
                      number(row[f"paper_{name}"]) + ("$^*$" if wrong else ""),
                      _signed(row[f"difference_{name}"])]
        if "eo" in figures:
            cells.append(row["paper_eo_definition"])
        rows.append(cells)
    titles = {**TITLES, "eo": "EO"}
    header = ["Method", "The paper's row",
              *(rf"\multicolumn{{3}}{{c}}{{{titles[name]}}}" for name in figures),
              *(["Which EO"] if "eo" in figures else [])]
    layout = "ll" + "r" * 3 * len(figures) + ("l" if "eo" in figures else "")
    note = IMPOSSIBLE.replace("<", "$<$")
    return tabular(header, [rows], layout) + (
        f"\\par\n$^*$ impossible as printed ({note}): not compared with, and no target.\n"
        if marked else ""
    )


def tabular(
    header: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], layout: str | None = None
) -> str:
    """A booktabs tabular of cells that are LaTeX already, a rule between two groups of rows.

    layout: the columns' alignment; by default the first left, the others right.
    """
    lines = [r"\begin{tabular}{" + (layout or "l" + "r" * (len(header) - 1)) + "}", r"\toprule",
             " & ".join(header) + r" \\"]
    for rows in groups:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def ranked(texts: Sequence[str], figure: str) -> list[str]:
    """Printed numbers of one figure with the best in bold and the second underlined."""
    higher_is_better = figure in HIGHER_IS_BETTER
    distinct = sorted({float(text) for text in texts if text != "n/a"}, reverse=higher_is_better)
    style = dict(zip(distinct, (r"\textbf", r"\underline"), strict=False))
    return [
        f"{style[float(text)]}{{{text}}}" if text != "n/a" and float(text) in style else text
        for text in texts
    ]


def escaped(text: str) -> str:
    """Plain text with the characters that LaTeX reads otherwise escaped."""
    return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)


def _arrowed(name: str) -> str:
    return TITLES[name] + (r" $\uparrow$" if name in HIGHER_IS_BETTER else r" $\downarrow$")


def _signed(value: float) -> str:
    """A difference with its sign as LaTeX's minus."""
    text = number(value, sign=True)
    return text if text == "n/a" else f"${text}$"
