"""The figure of what updating one tensor does (utils/reporting/effects.py)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from utils.blocks import block_of
from utils.reporting.effects import EFFECTS, PREDICTORS, correlations, effects, floors, gains
from utils.reporting.figure_style import COLOURS
from utils.reporting.results import Results
from utils.reporting.section import interval


def tensor_effects(results: Results) -> Figure | None:
    """Every effect against Delta1 and Delta2, a point a tensor, and of the blocks as bars.

    Points and bars are means over seeds. None where no run has effects.json.
    """
    records = effects(results)
    if not records:
        return None
    found = correlations(records)
    frames = [gains(record, "tensors") for record in records.values()]
    mean = sum(frame.astype(float) for frame in frames) / len(frames)
    blocks = pd.concat([gains(record, "blocks") for record in records.values()])
    order = list(dict.fromkeys(blocks.index))
    colour = {block: COLOURS[i % len(COLOURS)] for i, block in enumerate(order)}
    figure, axes = plt.subplots(len(EFFECTS), 3, figsize=(11, 3 * len(EFFECTS)), sharey="row",
                                layout="constrained", width_ratios=(1, 1, 0.8))
    floor = floors(records)
    for row, (effect, said) in zip(axes, EFFECTS.items(), strict=True):
        for axis, predictor in zip(row, ("delta1", "delta2"), strict=False):
            for block in order:
                part = mean[[block_of(name) == block for name in mean.index]]
                axis.scatter(part[predictor], part[effect], color=colour[block], s=22, label=block)
            axis.set_xscale("log")
            axis.axhline(0, color="black", linewidth=0.7)
            axis.set_title(f"rho {interval(*found[predictor, effect][:3])}", fontsize=9)
            axis.set_xlabel(PREDICTORS[predictor])
        by_block = blocks.groupby(level=0)[effect]
        row[2].bar(order, by_block.mean()[order], yerr=by_block.std()[order], capsize=3,
                   color=[colour[block] for block in order])
        row[2].axhline(0, color="black", linewidth=0.7)
        row[2].set_title("the whole block", fontsize=9)
        row[2].tick_params(axis="x", rotation=45)
        row[0].set_ylabel(f"{said} (points)")
        for axis in row:
            axis.axhline(floor[effect].mean, color="grey", linewidth=0.9, linestyle=":")
    seeds = f"{len(records)} seed" + ("s" if len(records) > 1 else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(order), title=f"one tensor of the block updated alone; {seeds}, "
                  "validation images, above 0 is better than ERM; dotted: nothing updated, "
                  "batch norm's statistics alone")
    return figure
