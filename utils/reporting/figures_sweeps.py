"""Figures over the values of a setting's rows: Figure 5's top-k curve, Figure 2's blocks."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from utils.metrics import summary
from utils.reporting.figure_style import COLOURS
from utils.reporting.table_text import TITLES
from utils.reporting.tables import read_json, read_metrics, run_folders

PANELS = ("acc", "wst", "eo_worst")


def _mean_and_spread(seeds: list[dict], name: str) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds in percent; NaN, no bar, for one seed."""
    mean, spread = summary(seeds)[name]
    return 100 * mean, 100 * spread


def top_k_curve(setting_dir: str | Path) -> Figure | None:
    """The paper's Figure 5: ACC, WST and EO (worst case) against k, mean and spread over seeds.

    Every finished run whose mask.json holds a k and the absolute difference counts for that k,
    whatever its row's name. None with fewer than two k, and where rows share one: then they differ
    in something else.
    """
    metrics, tensors = _finished(setting_dir), 0
    by_k: dict[int, dict[int, dict]] = {}
    for method, seeds in metrics.items():
        for seed, figures in seeds.items():
            folder = Path(setting_dir) / method / f"seed{seed}"
            mask = read_json(folder / "mask.json") if (folder / "mask.json").exists() else {}
            if "k" in mask and mask.get("criterion") == "absolute":
                if seed in by_k.setdefault(mask["k"], {}):
                    return None
                by_k[mask["k"]][seed] = figures
                tensors = len(mask["tensors"])
    if len(by_k) < 2:
        return None
    places = sorted(by_k)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
    for axis, name, colour in zip(axes, PANELS, COLOURS, strict=False):
        values = [_mean_and_spread(list(by_k[k].values()), name) for k in places]
        mean, spread = np.array(values).T
        axis.errorbar(places, mean, yerr=spread, color=colour, marker="o", capsize=3)
        axis.set_title(f"{TITLES[name]} (%)")
        axis.set_xticks(places, [f"{k}\n{k / tensors:.0%}" for k in places])
        axis.set_xlabel(f"k, and its share of the {tensors} tensors")
    return figure


def block_bars(setting_dir: str | Path, prefix: str) -> Figure | None:
    """The paper's Figure 2: ACC, WST and EO of the rows <prefix><block>, bars with the spread.

    prefix: "freeze_" or "update_". Full fine-tuning and AIM-Fair, where they are in the setting,
    are horizontal lines. None with fewer than two such rows.
    """
    metrics = _finished(setting_dir)
    order = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
    blocks = [block for block in order if prefix + block in metrics]
    if len(blocks) < 2:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for axis, name in zip(axes, PANELS, strict=True):
        rows = [list(metrics[prefix + block].values()) for block in blocks]
        mean, spread = np.array([_mean_and_spread(seeds, name) for seeds in rows]).T
        axis.bar(blocks, mean, yerr=spread, color=COLOURS[0], capsize=3, width=0.7)
        reach = np.nan_to_num(spread).max()
        lines = [mean.min() - reach, mean.max() + reach]
        for index, reference in enumerate(("full_finetuning", "aim_fair"), start=1):
            if reference in metrics:
                value, _ = _mean_and_spread(list(metrics[reference].values()), name)
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


def _finished(setting_dir: str | Path) -> dict:
    """read_metrics, or {} where no run is finished yet."""
    folders = [run for seeds in run_folders(setting_dir).values() for run in seeds.values()]
    done = any((folder / "metrics.json").exists() for folder in folders)
    return read_metrics(setting_dir) if done else {}
