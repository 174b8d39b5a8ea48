"""Colours and lines that all figures share, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes  # noqa: F401 - for the drawing modules outside utils
from matplotlib.figure import Figure

from utils.files import atomic_path

# Okabe and Ito's palette without yellow: told apart by colour-blind readers and in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e6e6e6", "axes.axisbelow": True, "font.size": 9, "legend.frameon": False,
         "pdf.fonttype": 42}


def columns(figure: Figure, labels: Iterable[str], most: int = 4) -> int:
    """How many columns of a legend with these labels fit into the figure's width, at most `most`.
    """
    longest = max(map(len, labels), default=0)
    needed = 0.6 + 0.085 * longest  # inches: the mark, and a letter of 9 points
    return max(1, min(most, int(figure.get_figwidth() / needed)))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write <folder>/<name>.png and .pdf and close the figure; returns the two paths."""
    written = []
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{kind}"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)
        figure.set_layout_engine("none")  # the PDF keeps the PNG's, which takes a third of the time
        written.append(path)
    plt.close(figure)
    return written
