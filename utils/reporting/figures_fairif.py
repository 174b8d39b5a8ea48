"""FairIF's Figure 2: the training images that its weights raise and lower most, and by group."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from utils.metrics import GROUPS
from utils.reporting.figure_style import COLOURS
from utils.reporting.results import Results

SHOWN = 10  # images a row
WEIGHTS = "weights.npy"


def weighted_images(results: Results, method: str, images) -> Figure | None:
    """Two rows of ten images, those weighted most and least, and the mean weight of every group.

    images: the setting's training images (`paths`), which the run folders hold by name only. The
    images are those of the first seed, the bars the mean over seeds, the dots the seeds. A weight
    is in units of 1/n, so that ERM's is 1. The protected labels are for the reader only: FairIF was
    not given them. None where no seed has weights of these images or every weight is 1.
    Raises UserError for a damaged weights.npy or train.csv.
    """
    names = [Path(path).name for path in images.paths]
    runs = [results.array(method, seed, WEIGHTS)
            for seed, run in results.runs.get(method, {}).items() if (run / WEIGHTS).exists()]
    runs = [(weights, table) for weights, table in runs
            if [Path(file).name for file in table["file"]] == names]
    if not runs or all(np.ptp(weights) == 0 for weights, _ in runs):
        return None
    figure = plt.figure(figsize=(12.5, 3.1), layout="constrained")
    faces, panel = figure.subfigures(1, 2, width_ratios=(3.2, 1))
    weights, table = runs[0]
    digits = _digits(np.ptp(weights))
    order = np.argsort(-weights, kind="stable")
    columns = min(SHOWN, len(order))
    rows = (("most", order[:columns]), ("least", order[::-1][:columns]))
    for axes, (word, chosen) in zip(faces.subplots(2, columns, squeeze=False), rows, strict=True):
        for axis, row in zip(axes, chosen, strict=True):
            _show(axis, images.paths[row])
            y, a = table.loc[row, ["y", "a"]]
            axis.set_title(f"{y}, {a}\n{weights[row]:.{digits}f}", fontsize=8)
        axes[0].set_ylabel(f"weighted {word}")
    faces.suptitle("training images: y, a and weight", fontsize=9)
    _group_means(panel.subplots(), runs)
    return figure


def _show(axis: Axes, path: str) -> None:
    """The image without ticks; white where the file cannot be read any more."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    try:
        with Image.open(path) as image:
            axis.imshow(np.asarray(image.convert("RGB")))
    except OSError:
        axis.imshow(np.full((1, 1, 3), 255, np.uint8))


def _group_means(axis: Axes, runs: list[tuple]) -> None:
    """Mean weight of each group (y, a), over the seeds, with each seed's own as a dot."""
    members = [[(table[["y", "a"]] == group).all(axis=1).to_numpy() for group in GROUPS]
               for _, table in runs]  # an image whose label is unknown is in none
    means = np.array([[_mean(weights[group]) for group in groups]
                      for (weights, _), groups in zip(runs, members, strict=True)])  # [seeds, 4]
    places = np.arange(len(GROUPS))
    height = means.mean(axis=0)
    bars = axis.bar(places, height - 1, bottom=1, color=COLOURS[0], width=0.7)  # 1 is ERM's
    digits = _digits(np.nanmax(height) - np.nanmin(height))
    axis.bar_label(bars, [f"{value:.{digits}f}" for value in height], fontsize=8, padding=2)
    if len(runs) > 1:
        axis.plot(np.tile(places, len(runs)), means.ravel(), "o", color="black", markersize=3)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.ticklabel_format(axis="y", useOffset=False)
    counts = [group.sum() for group in members[0]]
    axis.set_xticks(places, [f"{y}, {a}\nn={n}" for (y, a), n in zip(GROUPS, counts, strict=True)])
    axis.grid(axis="x", visible=False)
    axis.set_title("mean weight of a group (y, a)", fontsize=9)
    axis.margins(y=0.15)


def _digits(spread: float) -> int:
    """Decimals, 2 to 5, that tell weights apart which differ by `spread`."""
    return 2 if not spread > 0 else min(5, max(2, 2 - math.floor(math.log10(spread))))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def methods_with_weights(results: Results) -> list[str]:
    """The methods of a setting that weigh images, without the shuffled control."""
    return [method for method, seeds in results.runs.items()
            if any((run / WEIGHTS).exists() for run in seeds.values())
            and results.first_configs.get(method, {}).get("method") != "fairif_shuffled"]
