"""Figures of a setting from its saved runs: `python -m utils.reporting.plots results/<setting>`.

Draws into results/<setting>/figures/, each as PNG and PDF, whatever the runs hold:
    training_curves            loss and validation accuracy per epoch    from log.jsonl
    selected_tensors_<method>  the paper's Figure 8                      from mask.json
    accuracy_against_eo        after the paper's Figure 1                from metrics.json
    freezing_one_block         the paper's Figure 2                      from metrics.json
    updating_one_block         the same for Table 4's other block rows   from metrics.json
    top_k                      the paper's Figure 5                      from both
    fairif_weights_<method>    FairIF's Figure 2, after training only    from weights.npy
Nothing is trained or evaluated here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.blocks import block_of
from utils.errors import UserError, exit_cleanly
from utils.metrics import summary
from utils.options import ArgumentParser
from utils.records import read_log
from utils.reporting.figure_style import COLOURS, LINES, MARKERS, STYLE, save
from utils.reporting.figures_fairif import methods_with_weights, weighted_images
from utils.reporting.figures_sweeps import block_bars, top_k_curve
from utils.reporting.masks import read_masks
from utils.reporting.tables import configs_of, read_metrics, run_folders, selections

Curve = dict[int, tuple[float, float]]  # epoch -> (loss, validation accuracy in [0, 1] or NaN)


def read_curves(path: Path) -> dict[str, Curve]:
    """{stage: {epoch: (loss, val_acc)}} of a log.jsonl, stages in the order they were run.

    Raises UserError where it is damaged.
    """
    stages: dict[str, Curve] = {}
    for row in read_log(path):
        loss, val_acc = (math.nan if row.get(key) is None else float(row[key])
                         for key in ("loss", "val_acc"))
        stages.setdefault(row["stage"], {})[row["epoch"]] = (loss, val_acc)
    return stages


def training_curves(setting_dir: str | Path) -> Figure | None:
    """Loss and validation accuracy against epoch, one column a stage: each seed thin, mean thick.

    None where no run has a log. The mean is over the seeds that reached the epoch.
    """
    logs = {
        method: [read_curves(run / "log.jsonl") for run in seeds.values()
                 if (run / "log.jsonl").exists()]
        for method, seeds in run_folders(setting_dir).items()
    }
    stages = list(dict.fromkeys(stage for runs in logs.values() for run in runs for stage in run))
    if not stages:
        return None
    figure, axes = plt.subplots(2, len(stages), figsize=(1 + 3.6 * len(stages), 5), sharex="col",
                                sharey="row", squeeze=False, layout="constrained")
    for column, stage in enumerate(stages):
        axes[0, column].set_title(stage)
        axes[1, column].set_xlabel("epoch")
        axes[1, column].xaxis.get_major_locator().set_params(integer=True)
        for index, (method, runs) in enumerate(logs.items()):
            curves = [run[stage] for run in runs if stage in run]
            for row, scale in enumerate((1, 100)):
                _draw_curves(axes[row, column], curves, row, scale, index, method)
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("validation accuracy (%)")
    handles = {label: handle for axis in axes.flat
               for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center",
                  ncols=min(4, len(handles)))
    return figure


def _draw_curves(
    axis: Axes, curves: list[Curve], field: int, scale: float, index: int, method: str
) -> None:
    if not curves:
        return
    colour, line = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
    epochs = sorted(set().union(*curves))
    values = np.array([[scale * curve[e][field] if e in curve else math.nan for e in epochs]
                       for curve in curves])  # [seeds, epochs]
    if len(curves) > 1:
        axis.plot(epochs, values.T, color=colour, linewidth=0.7, alpha=0.35, linestyle=line)
    known = ~np.isnan(values).all(axis=0)
    mean = np.nanmean(values[:, known], axis=0)
    marker = "o" if known.sum() == 1 else None  # a single epoch has no line to see
    axis.plot(np.array(epochs)[known], mean, color=colour, linestyle=line, linewidth=1.8,
              marker=marker, label=method)


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


def accuracy_against_eo(*setting_dirs: str | Path) -> Figure | None:
    """Overall accuracy against EO (worst case) and WST of every method, after the paper's Figure 1.

    Large points: means over seeds, with the sample standard deviation; small ones: the seeds. A
    method that several settings hold is drawn from the first. Of the rows that best.py has
    chosen from, only the choice is drawn. None where no method has the figures (EO is NaN with an
    empty test cell).
    """
    runs: dict = {}
    chosen: dict[str, dict] = {}
    for setting_dir in setting_dirs:
        if any(Path(setting_dir).glob("*/seed*/metrics.json")):  # else the curves can be drawn
            runs = read_metrics(setting_dir) | runs
            chosen |= selections(configs_of(Path(setting_dir)))
    left_out = {row for choice in chosen.values() for row in choice["from"]}
    runs = {f"{name}: {chosen[name]['row']}" if name in chosen else name: seeds
            for name, seeds in runs.items() if name not in left_out
            and not math.isnan(summary(seeds.values())["eo_worst"][0])}
    if not runs:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("eo_worst", "wst"), strict=True):
        for index, (method, seeds) in enumerate(runs.items()):
            _draw_point(axis, name, method, list(seeds.values()), index)
    axes[0].set_xlabel("equalized odds difference, worst case (%): fairer to the left")
    axes[1].set_xlabel("worst-group accuracy (%): fairer to the right")
    axes[0].set_ylabel("overall accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=4 if len(runs) > 6 else 3, title="method (seeds)")
    return figure


def _draw_point(axis: Axes, name: str, method: str, seeds: list, index: int) -> None:
    """Accuracy against one fairness figure of one method: its seeds and their mean."""
    (x, x_std), (y, y_std) = (summary(seeds)[figure] for figure in (name, "acc"))
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # pairs repeat after 49
    axis.scatter([100 * m[name] for m in seeds], [100 * m["acc"] for m in seeds],
                 color=colour, marker=marker, s=14, alpha=0.35, linewidths=0)
    axis.errorbar(100 * x, 100 * y, xerr=None if math.isnan(x_std) else 100 * x_std,
                  yerr=None if math.isnan(y_std) else 100 * y_std, color=colour, marker=marker,
                  markersize=8, capsize=2, linewidth=1, linestyle="none",
                  label=f"{method} ({len(seeds)})")


def draw_all(
    setting_dir: str | Path, others: Sequence[str | Path] = (), images=None
) -> list[Path]:
    """Draw every figure the saved runs allow; return the PNG and PDF files written.

    The methods of the settings in `others` stand in accuracy_against_eo too. images: the table of
    training images, without which fairif_weights_<method> is left as it is.
    """
    setting_dir = Path(setting_dir)
    with plt.rc_context(STYLE):
        figures = {
            "training_curves": training_curves(setting_dir),
            "accuracy_against_eo": accuracy_against_eo(setting_dir, *others),
            "top_k": top_k_curve(setting_dir),
            "freezing_one_block": block_bars(setting_dir, "freeze_"),
            "updating_one_block": block_bars(setting_dir, "update_"),
        }
        for method in run_folders(setting_dir):
            if method.startswith("aim_fair") and (masks := read_masks(setting_dir, method)):
                figures[f"selected_tensors_{method}"] = selected_tensors(masks, method)
        for method in methods_with_weights(setting_dir) if images is not None else ():
            figures[f"fairif_weights_{method}"] = weighted_images(setting_dir, method, images)
        drawn = [save(figure, setting_dir / "figures", name)
                 for name, figure in figures.items() if figure is not None]
    return [path for paths in drawn for path in paths]


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Figures of a setting from its saved runs.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    parser.add_argument("--with", type=Path, nargs="+", default=[], dest="others",
                        metavar="SETTING", help="settings whose methods Figure 1 shows too")
    options = parser.parse_args(arguments)
    written = draw_all(options.setting, options.others)
    if not written:
        raise UserError("these runs hold no log.jsonl, mask.json or metrics.json yet; train first")
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
