"""Figures of a setting from its saved runs.

Drawn into results/<setting>/figures/, each as PNG and PDF, whatever the runs hold:
    training_curves            loss and validation accuracy per epoch    from log.jsonl
    selected_tensors_<method>  the paper's Figure 8                      from mask.json
    accuracy_against_eo        after the paper's Figure 1                from metrics.json
    freezing_one_block         the paper's Figure 2                      from metrics.json
    updating_one_block         the same for Table 4's other block rows   from metrics.json
    top_k                      the paper's Figure 5                      from both
    tensor_effects             what one tensor's update does            from effects.json
    fairif_weights_<method>    FairIF's Figure 2, after training only    from weights.npy
Nothing is trained or evaluated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.blocks import block_of
from utils.reporting.figure_style import COLOURS, LINES, MARKERS, STYLE, columns, save
from utils.reporting.figures_effects import tensor_effects
from utils.reporting.figures_fairif import methods_with_weights, weighted_images
from utils.reporting.figures_sweeps import block_bars, top_k_curve
from utils.reporting.results import Results


def places(*settings: Results) -> dict[str, int]:
    """{row: its index}, by which all figures of the first setting choose colours and markers."""
    rows = dict.fromkeys(row for results in settings for row in results.runs)
    return {row: index for index, row in enumerate(rows)}


def training_curves(results: Results) -> Figure | None:
    """Loss and validation accuracy against epoch, one column a stage: each seed thin, mean thick.

    A row has the colour that accuracy_against_eo gives it, whichever of both it is in. None where
    no run has a log. The mean is over the seeds that reached the epoch.
    """
    log = results.log.assign(val_acc=100 * results.log["val_acc"])
    stages, place = log["stage"].unique(), places(results)
    if log.empty:
        return None
    figure, axes = plt.subplots(2, len(stages), figsize=(1 + 3.6 * len(stages), 5), sharex="col",
                                sharey="row", squeeze=False, layout="constrained")
    for column, stage in enumerate(stages):
        axes[0, column].set_title(stage)
        axes[1, column].set_xlabel("epoch")
        axes[1, column].xaxis.get_major_locator().set_params(integer=True)
        for method, rows in log[log["stage"] == stage].groupby("method", sort=False):
            for axis, name in zip(axes[:, column], ("loss", "val_acc"), strict=True):
                curves = rows.pivot(index="epoch", columns="seed", values=name)
                _draw_curves(axis, curves, place[method], method)
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("validation accuracy (%)")
    handles = {label: handle for axis in axes.flat
               for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center",
                  ncols=columns(figure, handles, min(4, len(handles))))
    return figure


def _draw_curves(axis: Axes, curves: pd.DataFrame, index: int, method: str) -> None:
    """curves: a column a seed, a row an epoch; NaN where a seed did not reach it."""
    look = {"color": COLOURS[index % len(COLOURS)],
            "linestyle": LINES[index // len(COLOURS) % len(LINES)]}
    if curves.shape[1] > 1:
        axis.plot(curves.index, curves, linewidth=0.7, alpha=0.35, **look)
    mean = curves.mean(axis=1).dropna()
    marker = "o" if len(mean) == 1 else None  # a single epoch has no line to see
    axis.plot(mean.index, mean, linewidth=1.8, marker=marker, label=method, **look)


def selected_tensors(masks: list[Mapping[str, bool]], title: str) -> Figure:
    """The paper's Figure 8: which tensors were selected, by block and one by one, over seeds.

    masks: at least one {tensor name: updated}, the same names in parameter order.
    """
    names = list(masks[0])
    share = np.array([[bool(mask[name]) for name in names] for mask in masks]).mean(axis=0)
    blocks = [block_of(name) for name in names]
    order = list(dict.fromkeys(blocks))
    colour = {block: COLOURS[i % len(COLOURS)] for i, block in enumerate(order)}
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(max(6.5, 0.14 * len(names)), 6.2), layout="constrained",
        height_ratios=(1, 1),
    )
    members = {block: share[[b == block for b in blocks]] for block in order}
    bars = top.bar(order, [100 * m.mean() for m in members.values()],
                   color=[colour[block] for block in order])
    labels = [f"{m.sum():.3g} of {len(m)}" for m in members.values()]
    top.bar_label(bars, labels, fontsize=8, padding=2)
    top.set_ylim(0, 112)
    top.set_yticks(range(0, 101, 25))
    top.set_ylabel("tensors selected (%)")
    top.grid(axis="x", visible=False)
    if len(order) > 8:
        top.tick_params(axis="x", rotation=60)
    seeds = f"{len(masks)} seed" + ("s" if len(masks) > 1 else "")
    top.set_title(f"{title}: {share.sum():.3g} of {len(names)} tensors selected ({seeds})")

    places = np.arange(len(names))
    bottom.bar(places, 100 * share, color=[colour[block] for block in blocks], width=0.8)
    # a tensor never selected would be an invisible bar: mark it
    never = places[share == 0]
    bottom.plot(never, np.full(len(never), 2), "x", color="black", markersize=4, clip_on=False)
    bottom.set_xticks(places, names, rotation=90, fontsize=5)
    bottom.set_xlim(-0.8, len(names) - 0.2)
    bottom.set_ylim(0, 105)
    bottom.set_ylabel("seeds that select it (%)")
    bottom.set_xlabel("parameter tensor, input to output (x: selected by none)")
    bottom.grid(axis="x", visible=False)
    return figure


def accuracy_against_eo(*settings: Results) -> Figure | None:
    """Overall accuracy against EO (worst case) and WST of every method, after the paper's Figure 1.

    Large points: means over seeds, with the sample standard deviation; small ones: the seeds. A
    method that several settings hold is drawn from the first. Of the rows that best.py has
    chosen from, only the choice is drawn. None where no method has the figures (EO is NaN with an
    empty test group).
    """
    frames: dict[str, pd.DataFrame] = {}
    chosen: dict[str, dict] = {}
    for results in filter(lambda each: each.metrics, settings):  # else the curves can be drawn
        frames |= {method: results.frame.loc[method] for method in results.metrics
                   if method not in frames}
        chosen |= {method: config["selected"] for method, config in results.first_configs.items()
                   if config.get("selected")}
    left_out = {row for choice in chosen.values() for row in choice["from"]}
    frames = {name: frame for name, frame in frames.items()
              if name not in left_out and frame["eo_worst"].notna().all()}
    if not frames:
        return None
    place = places(*settings)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("eo_worst", "wst"), strict=True):
        for method, frame in frames.items():
            one = method in chosen and len(chosen[method].get("seeds", ())) < 2
            choice = f": {chosen[method]['row'].rsplit('/')[-1]}" if one else ""
            _draw_point(axis, name, f"{method}{choice}", frame, place[method])
    axes[0].set_xlabel("equalized odds difference, worst case (%): fairer to the left")
    axes[1].set_xlabel("worst-group accuracy (%): fairer to the right")
    axes[0].set_ylabel("overall accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", title="method (seeds)",
                  ncols=columns(figure, labels, 4 if len(frames) > 6 else 3))
    return figure


def _draw_point(axis: Axes, name: str, method: str, frame: pd.DataFrame, index: int) -> None:
    """Accuracy against one fairness figure of one method: its seeds and their mean."""
    mean, spread = frame.mean(), frame.std()
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # pairs repeat after 49
    axis.scatter(frame[name], frame["acc"], color=colour, marker=marker, s=14, alpha=0.35,
                 linewidths=0)
    bars = {"xerr": spread[name], "yerr": spread["acc"]} if len(frame) > 1 else {}
    axis.errorbar(mean[name], mean["acc"], **bars, color=colour, marker=marker, markersize=8,
                  capsize=2, linewidth=1, linestyle="none", label=f"{method} ({len(frame)})")


def draw_all(
    setting_dir: str | Path, others: Sequence[str | Path] = (), images=None
) -> list[Path]:
    """Draw every figure the saved runs allow; return the PNG and PDF files written.

    The methods of the settings in `others` stand in accuracy_against_eo too. images: the table of
    training images, without which fairif_weights_<method> is left as it is.
    """
    results = Results(setting_dir)
    with plt.rc_context(STYLE):
        figures = {
            "training_curves": training_curves(results),
            "accuracy_against_eo": accuracy_against_eo(results, *map(Results, others)),
            "top_k": top_k_curve(results),
            "freezing_one_block": block_bars(results, "freeze_"),
            "updating_one_block": block_bars(results, "update_"),
            "tensor_effects": tensor_effects(results),
        }
        for method in results.masks:
            if method.startswith("aim_fair"):
                figures[f"selected_tensors_{method}"] = selected_tensors(
                    results.tensors(method), method)
        for method in methods_with_weights(results) if images is not None else ():
            figures[f"fairif_weights_{method}"] = weighted_images(results, method, images)
        drawn = [save(figure, results.folder / "figures", name)
                 for name, figure in figures.items() if figure is not None]
    return [path for paths in drawn for path in paths]
