"""A table with its heading and notes: aligned markdown, which the terminal shows, and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

TITLES = {"acc": "ACC", "wst": "WST", "eo_worst": "EO worst", "eo_mean": "EO mean", "std": "STD",
          "ad": "AD", "aod": "AOD", "eod": "EOD", "eo": "EO"}
TABLE_FIGURES = ("acc", "wst", "eo_worst", "eo_mean", "std")
FAIRIF_FIGURES = ("acc", "ad", "aod", "eod")
FIGURES = (*TABLE_FIGURES, "ad", "aod", "eod")  # every metric, in the order of the columns
HIGHER_IS_BETTER = ("acc", "wst")
RANKED = {TITLES[name]: name in HIGHER_IS_BETTER for name in FIGURES}


@dataclass(frozen=True, eq=False)
class Section:
    """One table of text cells, one row a method.

    title: heading, "" for none. note: a sentence above the table. frame: the cells by column, may
    be empty. ranked: {column: whether more is better}, of which LaTeX sets the best number bold and
    the second underlined. lines: sentences below.
    """

    title: str = ""
    note: str = ""
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    ranked: Mapping[str, bool] = field(default_factory=dict)
    lines: Sequence[str] = ()

    def markdown(self) -> str:
        table = "" if self.frame.empty else aligned(self.frame.columns, self.frame.to_numpy())
        parts = [self.title and f"## {self.title}\n", self.note and f"{self.note}\n", table,
                 *(line.replace("*", r"\*") + "\n" for line in self.lines)]
        return "\n".join(filter(None, parts))

    def latex(self) -> str:
        r"""A booktabs tabular, the heading as a comment. Numbers that print alike share a rank;
        n/a has none. Needs \usepackage{booktabs}."""
        arrows = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}
        titles = [_tex(title) + arrows[self.ranked.get(title)] for title in self.frame.columns]
        style = self.frame.set_axis(titles, axis=1).style.hide(axis="index").format(_tex)
        for title, column in zip(titles, self.frame.columns, strict=True):
            if column in self.ranked:
                formatter = _emphasis(self.frame[column], self.ranked[column])
                style.format(formatter, subset=[title])
        layout = "l" + "r" * (len(titles) - 1)
        comment = f"% {'. '.join(filter(None, (self.title, self.note)))}\n" if self.title else ""
        table = style.to_latex(hrules=True, column_format=layout)
        return comment + table + "".join(f"\\par {_tex(line)}\n" for line in self.lines)


def markdown(title: str, note: str, sections: Sequence[Section]) -> str:
    """The whole document under one heading."""
    parts = (section.markdown() for section in sections)
    return "\n".join([f"# {title}\n", f"{note}\n", *filter(None, parts)])


def latex(note: str, sections: Sequence[Section]) -> str:
    """The tables one below the other; sections without a table are left out."""
    tables = [section.latex() for section in sections if not section.frame.empty]
    return f"% \\usepackage{{booktabs}}\n% {note}\n" + "\n\\par\\medskip\n".join(tables)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns line up in a terminal: first column left, others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if i == 0 else c.rjust(w)
                 for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)]) + "\n"


def number(value: float, sign: bool = False) -> str:
    """Two decimals; NaN is n/a; no minus zero."""
    return "n/a" if math.isnan(value) else f"{round(value, 2) + 0.0:{'+' if sign else ''}.2f}"


def thousands(passes: float) -> str:
    """Image passes as the tables' unit; NaN is n/a."""
    return "n/a" if math.isnan(passes) else f"{passes / 1000:.1f}"


def plus_minus(mean: float, spread: float) -> str:
    return "n/a" if math.isnan(mean) else f"{number(mean)} ± {number(spread)}"


def interval(mean: float, low: float, high: float) -> str:
    """A difference with its sign and its [interval]."""
    return f"{number(mean, sign=True)} [{number(low, sign=True)}, {number(high, sign=True)}]"


def _emphasis(cells: Sequence[str], higher_is_better: bool) -> Callable[[str], str]:
    """Formatter of a column's cells: the leading number bold where it is best, or underlined."""
    leading = {cell: cell.split()[0] for cell in cells}
    distinct = sorted({float(text) for text in leading.values() if text != "n/a"},
                      reverse=higher_is_better)
    style = dict(zip(distinct, (r"\textbf", r"\underline"), strict=False))

    def formatted(cell: str) -> str:
        text = leading[cell]
        command = None if text == "n/a" else style.get(float(text))
        if command is None:
            return _tex(cell)
        return f"{command}{{{text}}}{_tex(cell.removeprefix(text))}"

    return formatted


def _tex(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, signed numbers in mathematics."""
    text = re.sub(r"([_%&#$])", r"\\\1", text)
    text = re.sub(r"(?<![\w.-])[+-]\d[\d.]*|[<>±]", r"$\g<0>$", text)
    return text.replace("$±$", r"$\pm$")
