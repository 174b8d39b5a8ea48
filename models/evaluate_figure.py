"""The figure of models.evaluate: calibration, and accuracy against the threshold, per group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import calibration_curve

from models.evaluate_files import SIGNATURE
from models.scores import Scores
from utils.files import atomic_path
from utils.metrics import GROUPS, group_index
from utils.reporting.figure_style import COLOURS, LINES, MARKERS, STYLE

THRESHOLDS = np.linspace(0, 1, 101)


def accuracy_by_threshold(scores: Scores) -> dict[tuple[int, int], np.ndarray]:
    """{group: its accuracy where 1 is predicted above each of THRESHOLDS}, of groups with images"""
    index, result = group_index(scores.y, scores.a), {}
    for g, group in enumerate(GROUPS):
        here = index == g
        if here.any():
            above = scores.score[here, None] > THRESHOLDS
            result[group] = (above == scores.y[here, None]).mean(0)
    return result


def draw(every: Sequence[Scores], file: Path, words: tuple[str, str]) -> None:
    """Write a PNG of one row a model. words: the names of the target and protected attribute."""
    target, protected = words
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(every), 2, figsize=(8, 3.4 * len(every)), squeeze=False,
                                    layout="constrained")
        for (left, right), scores in zip(axes, every, strict=True):
            _calibration(left, scores, protected)
            for i, (group, values) in enumerate(accuracy_by_threshold(scores).items()):
                right.plot(THRESHOLDS, 100 * values, LINES[i], color=COLOURS[i],
                           label=f"{target} {group[0]}, {protected} {group[1]}")
            right.axvline(0.5, color="grey", linewidth=0.8)
            right.set(xlabel="threshold of the score", ylabel="accuracy of the group, %")
            right.legend(fontsize=8)
            left.set_title(scores.name, fontsize=8, loc="left")
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format="png", dpi=160, metadata={"Title": SIGNATURE})
        plt.close(figure)


def _calibration(axes, scores: Scores, protected: str) -> None:
    axes.plot([0, 1], [0, 100], color="grey", linewidth=0.8)
    for value in (0, 1):
        here = scores.a == value
        if here.any():
            bins = min(10, max(1, int(here.sum()) // 10))  # ten images a point, or fewer points
            share, mean = calibration_curve(scores.y[here], scores.score[here], n_bins=bins,
                                            strategy="quantile")
            axes.plot(mean, 100 * share, marker=MARKERS[value], color=COLOURS[value],
                      label=f"{protected} {value}")
    axes.set(xlabel="score", ylabel="images with label 1, %", xlim=(0, 1), ylim=(0, 100))
    axes.legend(fontsize=8)
