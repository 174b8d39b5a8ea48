"""Figures of a setting from its saved runs: `python -m utils.plots results/<setting>`.

Draws into results/<setting>/figures/, each as PNG and PDF, whatever the runs hold:
    training_curves            loss and validation accuracy per epoch    from log.jsonl
    selected_tensors_<method>  the paper's Figure 8                      from mask.json
    accuracy_against_eo        after the paper's Figure 1                from metrics.json
Nothing is trained or evaluated here.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.errors import UserError, exit_cleanly
from utils.files import atomic_path
from utils.metrics import summary
from utils.tables import read_json, read_metrics, run_folders

# Okabe and Ito's palette without yellow: told apart by colour-blind readers and in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e6e6e6", "axes.axisbelow": True, "font.size": 9, "legend.frameon": False,
         "pdf.fonttype": 42}

Curve = dict[int, tuple[float, float]]  # epoch -> (loss, validation accuracy in [0, 1] or NaN)


def read_log(path: Path) -> dict[str, Curve]:
    """{stage: {epoch: (loss, val_acc)}} of a log.jsonl, stages in the order they were run.

    An epoch run again after a restart counts once, as last written. A last line cut off by a kill
    and lines that are no epoch are passed over; any other broken line is a UserError.
    """
    lines = path.read_text().splitlines()
    stages: dict[str, Curve] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is not JSON; delete that line") from None
        if not isinstance(entry, dict) or not {"stage", "epoch", "loss"} <= entry.keys():
            continue
        loss, val_acc = (math.nan if entry.get(key) is None else float(entry[key])
                         for key in ("loss", "val_acc"))
        stages.setdefault(entry["stage"], {})[int(entry["epoch"])] = (loss, val_acc)
    return stages


def training_curves(setting_dir: str | Path) -> Figure | None:
    """Loss and validation accuracy against epoch, one column a stage: each seed thin, mean thick.

    None where no run has a log. The mean is over the seeds that reached the epoch.
    """
    logs = {
        method: [read_log(run / "log.jsonl") for run in seeds.values()
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


def block_of(tensor: str) -> str:
    """The block a parameter tensor belongs to, from its name in torchvision's or timm's models.

    "layer2.0.conv1.weight" -> "layer2", "blocks.3.attn.qkv.bias" -> "blocks.3", the output layer
    -> "fc" or "head", a ViT's last norm -> "norm", all that comes before the blocks -> "stem".
    """
    first, *rest = tensor.split(".")
    if first == "blocks":
        return f"blocks.{rest[0]}"
    return first if first.startswith("layer") or first in ("fc", "head", "norm") else "stem"


def read_masks(setting_dir: str | Path, method: str) -> list[dict[str, bool]]:
    """The masks {tensor name: updated} of a method's seeds, in parameter order; [] without any.

    Raises UserError where the seeds' masks are of different models.
    """
    masks: list[dict[str, bool]] = []
    for run in run_folders(setting_dir)[method].values():
        path = run / "mask.json"
        if not path.exists():
            continue
        tensors = read_json(path).get("tensors")
        if not isinstance(tensors, dict) or (masks and list(tensors) != list(masks[0])):
            raise UserError(f"{path} has no tensors or others than the first seed's; run it again")
        masks.append(tensors)
    return masks


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


def accuracy_against_eo(setting_dir: str | Path) -> Figure | None:
    """Overall accuracy against EO (worst case) of every method, after the paper's Figure 1.

    Large points: means over seeds, with the sample standard deviation; small ones: the seeds.
    None where no method has both figures (EO is NaN with an empty test cell).
    """
    if not any(Path(setting_dir).glob("*/seed*/metrics.json")):
        return None  # nothing finished yet: the curves can still be drawn
    runs = read_metrics(setting_dir)
    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    for index, (method, seeds) in enumerate(runs.items()):
        figures = summary(seeds.values())
        (eo, eo_std), (acc, acc_std) = figures["eo_worst"], figures["acc"]
        if math.isnan(eo):
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axis.scatter([100 * m["eo_worst"] for m in seeds.values()],
                     [100 * m["acc"] for m in seeds.values()],
                     color=colour, marker=marker, s=14, alpha=0.35, linewidths=0)
        axis.errorbar(100 * eo, 100 * acc, xerr=None if math.isnan(eo_std) else 100 * eo_std,
                      yerr=None if math.isnan(acc_std) else 100 * acc_std, color=colour,
                      marker=marker, markersize=8, capsize=2, linewidth=1, linestyle="none",
                      label=f"{method} ({len(seeds)})")
    if not axis.get_legend_handles_labels()[1]:
        plt.close(figure)
        return None
    axis.set_xlabel("equalized odds difference, worst case (%): fairer to the left")
    axis.set_ylabel("overall accuracy (%)")
    figure.legend(loc="outside lower center", ncols=3, title="method (seeds)")
    return figure


def draw_all(setting_dir: str | Path) -> list[Path]:
    """Draw every figure the saved runs allow; return the PNG and PDF files written."""
    setting_dir = Path(setting_dir)
    written: list[Path] = []

    def save(name: str, figure: Figure | None) -> None:
        if figure is None:
            return
        for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            path = setting_dir / "figures" / f"{name}.{kind}"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)
            written.append(path)
        plt.close(figure)

    with plt.rc_context(STYLE):
        save("training_curves", training_curves(setting_dir))
        save("accuracy_against_eo", accuracy_against_eo(setting_dir))
        for method in run_folders(setting_dir):
            if masks := read_masks(setting_dir, method):
                save(f"selected_tensors_{method}", selected_tensors(masks, method))
    return written


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Figures of a setting from its saved runs.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    written = draw_all(parser.parse_args(arguments).setting)
    if not written:
        raise UserError("these runs hold no log.jsonl, mask.json or metrics.json yet; train first")
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
