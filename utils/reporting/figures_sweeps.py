"""Figures over the values of a setting's rows: Figure 5's top-k curve, Figure 2's blocks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from utils.blocks import RESNET_BLOCKS
from utils.reporting.figure_style import COLOURS
from utils.reporting.results import Results
from utils.reporting.section import TITLES

PANELS = ("acc", "wst", "eo_worst")


def top_k_curve(results: Results) -> Figure | None:
    """The paper's Figure 5: ACC, WST and EO (worst case) against k, mean and spread over seeds.

    Every finished run whose mask.json holds a k and the absolute difference counts for that k,
    whatever its row's name. None with fewer than two k, and where rows share one: then they differ
    in something else.
    """
    by_k: dict[int, list[tuple[str, int]]] = {}
    tensors = 0
    for method, seeds in results.masks.items():
        for seed, mask in seeds.items():
            if "k" in mask and mask.get("criterion") == "absolute" \
                    and seed in results.metrics.get(method, {}):
                by_k.setdefault(mask["k"], []).append((method, seed))
                tensors = len(mask["tensors"])
    if any(len({seed for _, seed in runs}) < len(runs) for runs in by_k.values()):
        return None
    if len(by_k) < 2:
        return None
    places = sorted(by_k)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
    for axis, name, colour in zip(axes, PANELS, COLOURS, strict=False):
        values = [results.frame.loc[by_k[k], name] for k in places]
        mean, spread = ([getattr(of_k, what)(skipna=False) for of_k in values]
                        for what in ("mean", "std"))
        axis.errorbar(places, mean, yerr=spread, color=colour, marker="o", capsize=3)
        axis.set_title(f"{TITLES[name]} (%)")
        axis.set_xticks(places, [f"{k}\n{k / tensors:.0%}" for k in places])
        axis.set_xlabel(f"k, and its share of the {tensors} tensors")
    return figure


def block_bars(results: Results, prefix: str) -> Figure | None:
    """The paper's Figure 2: ACC, WST and EO of the rows <prefix><block>, bars with the spread.

    prefix: "freeze_" or "update_". Full fine-tuning and AIM-Fair, where they are in the setting,
    are horizontal lines. None with fewer than two such rows.
    """
    blocks = [block for block in RESNET_BLOCKS if prefix + block in results.metrics]
    if len(blocks) < 2:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for axis, name in zip(axes, PANELS, strict=True):
        mean, spread = np.array([results.spread(prefix + block, name) for block in blocks]).T
        axis.bar(blocks, mean, yerr=spread, color=COLOURS[0], capsize=3, width=0.7)
        reach = np.nan_to_num(spread).max()
        lines = [mean.min() - reach, mean.max() + reach]
        for index, reference in enumerate(("full_finetuning", "aim_fair"), start=1):
            if reference in results.metrics:
                value, _ = results.spread(reference, name)
                axis.axhline(value, color=COLOURS[index], linestyle="--", label=reference)
                lines.append(value)
        margin = max(1.0, 0.15 * (max(lines) - min(lines)))
        axis.set_ylim(max(0, min(lines) - margin), min(100, max(lines) + margin))  # not from 0
        axis.set_title(f"{TITLES[name]} (%)")
        axis.tick_params(axis="x", rotation=45)
        axis.grid(axis="x", visible=False)
    verb = {"freeze_": "frozen", "update_": "updated, all others frozen"}[prefix]
    figure.supxlabel(f"block {verb}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure
