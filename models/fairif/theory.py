"""Section 5 of FairIF's paper, measured: `python -m models.fairif.theory results/.../adult`.

From the runs of a setting on samples in memory (ERM, FairIF with more and fewer validation samples,
its controls), without training:

Equation 17     the TPR gap on the test part is at most that on the m validation samples plus twice
                the Rademacher complexity plus 3 sqrt(log(2 / delta) / (2 m)); the paper argues with
                the last term alone.
Equation 19     the change of the test loss that influence functions predict from the weights,
                beside the real one.
Proposition 1   equal TPR and TNR make AD zero. With P(y = 1 | a = 0) = alpha and P(y = 1 | a = 1) =
                beta, AD <= alpha |dTPR| + (1 - alpha) |dTNR| + |alpha - beta| |TPR_1 - TNR_1|, and
                the last term stays where both gaps are zero, unless alpha = beta.

Writes theory.csv, theory.md and figures/fairif_theory.png and .pdf in the setting's folder.
"""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import linregress

from datasets.array_loader import ArrayLoader
from datasets.base import ArrayTable, Splits
from models import backbones
from models.experiment import Experiment
from models.fairif.baselines.influence import loss_gradient
from models.fairif.hessian import inverse_hvp
from models.fairif.influence import loss_derivatives, predict
from models.fairif.method import Passes, validation_part
from models.fairif.relaxation import hard_gaps
from models.method import cross_entropy
from models.weights import load_weights
from utils.config import Config, config_of
from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic
from utils.metrics import fairness_metrics
from utils.options import ArgumentParser
from utils.progress import progress
from utils.reporting.figure_style import COLOURS, MARKERS, STYLE, save
from utils.reporting.results import Results
from utils.reporting.section import Section, markdown

DELTA = 0.05


def configuration(record: dict[str, Any], root: Path) -> Config:
    """A run's flags from its config.json; `root`: --data-root, which is not kept there."""
    known = {field.name for field in fields(Config)}
    given = {key: value for key, value in record.items() if key in known}
    return config_of(given | {"device": "cpu", "data_root": root})


class Split:
    """One seed of a setting: its samples, and what the ERM model predicts for other weights."""

    def __init__(self, config: Config, seed: int):
        self.config, self.seed = config, seed
        self.parts: Splits = Experiment(config, {}, {}).splits(seed)
        if not isinstance(self.parts.train, ArrayTable):
            raise UserError(f"{config.dataset} has photographs; give a setting of tabular data or "
                            "digits")

    def batches(self, table: ArrayTable) -> Passes:
        """In table order, without group labels."""
        return Passes(ArrayLoader(table, self.config.eval_batch_size, train=False, device="cpu"))

    def model(self, run: Path) -> torch.nn.Module:
        """A run's classifier."""
        saved = load_weights(run / "classifier.pt", "the classifier")
        model = backbones.build(saved["backbone"], "none", self.parts.train.x.shape[1:])
        model.load_state_dict(saved["model"])
        return model

    def logits(self, model, table: ArrayTable) -> torch.Tensor:
        return predict(model, self.batches(table))

    def loss(self, model, table: ArrayTable) -> float:
        return cross_entropy(self.logits(model, table), torch.from_numpy(table.y)).item()

    def influence_on_test_loss(self, erm) -> np.ndarray:
        """float64 [n]: d test loss / d (n times a training sample's weight) at the ERM model."""
        train = list(self.batches(self.parts.train))
        gradient = loss_gradient(erm, self.batches(self.parts.test))[None]
        solved = inverse_hvp(erm, train, gradient, steps=200, damping=self.config.weight_decay)
        return -loss_derivatives(erm, train, solved.value)[0].double().numpy() / len(
            self.parts.train)


def measure(results: Results, root: Path) -> pd.DataFrame:
    """One line a row and seed: the figures of this module's docstring."""
    if "erm" not in results.metrics:
        raise UserError(f"{results.folder} has no finished run of erm; train it in that setting")
    lines = []
    for seed in progress(results.metrics["erm"], desc="splits", unit="split"):
        split = Split(configuration(results.configs["erm"][seed], root), seed)
        erm = split.model(results.runs["erm"][seed])
        influence, before = split.influence_on_test_loss(erm), split.loss(erm, split.parts.test)
        for method, seeds in results.metrics.items():
            if seed in seeds:
                lines.append(_line(results, split, method, influence, before))
    return pd.DataFrame(lines)


def _line(results: Results, split: Split, method: str, influence, before: float) -> dict[str, Any]:
    run, parts = results.runs[method][split.seed], split.parts
    model = split.model(run)
    share = results.configs[method][split.seed].get("validation_share", 1.0)
    granted = validation_part(parts.val, share, split.seed)
    logits = [split.logits(model, table) for table in (granted, parts.test)]
    gaps = [hard_gaps(of_table, *map(torch.from_numpy, (table.y, table.a)))
            for of_table, table in zip(logits, (granted, parts.test), strict=True)]
    metrics = fairness_metrics((logits[1] > 0).numpy(), parts.test.y, parts.test.a)
    alpha, beta = (parts.test.y[parts.test.a == a].mean() for a in (0, 1))
    tpr, tnr = (metrics["group_acc"][y, 1] for y in (1, 0))
    d_tpr, d_tnr = (abs(gap) for gap in gaps[1].tolist())
    weights = run / "weights.npy"
    predicted = math.nan
    if weights.exists():
        predicted = float(influence @ (np.load(weights, allow_pickle=False) - 1))
    return {
        "method": method, "seed": split.seed, "share": share,
        "validation_samples": len(granted),
        "tpr_gap_validation": abs(gaps[0][0].item()), "tpr_gap_test": d_tpr,
        "bound_term": 3 * math.sqrt(math.log(2 / DELTA) / (2 * len(granted))),
        "loss_change_predicted": predicted,
        "loss_change": cross_entropy(logits[1], torch.from_numpy(parts.test.y)).item() - before,
        "ad": metrics["ad"], "ad_of_gaps": alpha * d_tpr + (1 - alpha) * d_tnr,
        "ad_of_rates": abs(alpha - beta) * abs(tpr - tnr),
    }


def draw(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """The three panels, one a statement of the paper."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.2), layout="constrained")
        mean = _by_share(frame)
        axes[0].plot(mean.validation_samples, mean.bound_term, color=COLOURS[1], marker="s",
                     label="the bound's last term")
        axes[0].plot(mean.validation_samples, mean.apart, color=COLOURS[0], marker="o",
                     label="measured, mean")
        axes[0].set(xscale="log", xlabel="validation samples m", ylim=(0, None),
                    ylabel="|TPR gap on test - on validation|", title="Equation 17")
        axes[0].set_xticks(mean.validation_samples, [f"{m:.0f}" for m in mean.validation_samples])
        axes[0].minorticks_off()
        axes[0].legend()
        looks = zip(cycle(COLOURS), cycle(MARKERS[:-1]), frame.groupby("method", sort=False),
                    strict=False)
        for colour, marker, (name, rows) in looks:
            style = {"s": 14, "color": colour, "marker": marker, "label": name}
            axes[1].scatter(rows.loss_change_predicted, rows.loss_change, **style)
            axes[2].scatter(rows.ad_of_gaps, rows.ad, **style)
        for axis, ends in ((axes[1], frame.loss_change_predicted), (axes[2], frame.ad_of_gaps)):
            axis.axline((0, 0), slope=1, color="black", lw=0.8)
            axis.set_xlim(ends.min() - 0.05 * np.ptp(ends.dropna()), None)
        axes[1].set(xlabel="predicted change of the test loss", ylabel="real change",
                    title="Equation 19: on the line",
                    ylim=(frame.loss_change.min() - 0.01, frame.loss_change.max() + 0.01))
        axes[2].set(xlabel="alpha |dTPR| + (1 - alpha) |dTNR|", ylabel="AD",
                    title="Proposition 1: on or under the line", ylim=(0, 1.1 * frame.ad.max()))
        axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return save(figure, folder, "fairif_theory")


def _by_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of FairIF's rows by the share of the validation samples."""
    fair = frame[frame["method"].str.match(r"fairif(_\d+)?$")]
    fair = fair.assign(apart=(fair.tpr_gap_test - fair.tpr_gap_validation).abs(),
                       holds=fair.tpr_gap_test <= fair.tpr_gap_validation + fair.bound_term)
    columns = ["validation_samples", "tpr_gap_validation", "tpr_gap_test", "apart", "bound_term",
               "holds"]
    return fair.groupby("share")[columns].mean()


def text(frame: pd.DataFrame, setting: str) -> str:
    """theory.md: what each statement says and what was found."""
    by_row = frame.groupby("method", sort=False)[["ad", "ad_of_gaps", "ad_of_rates"]].mean()
    moved, lines = frame.dropna(subset=["loss_change_predicted"]), ()
    if moved.loss_change_predicted.nunique() > 1:
        line = linregress(moved.loss_change_predicted, moved.loss_change)
        lines = (f"Real change = {line.slope:.2f} times the predicted one {line.intercept:+.4f}, "
                 f"correlation {line.rvalue:.3f}, over {len(moved)} runs.",)
    over = int((frame.ad > frame.ad_of_gaps + 1e-9).sum())
    return markdown(f"Section 5 of FairIF's paper on {setting}", "Means over splits.", [
        Section("Equation 17: the TPR gap on validation and on test",
                "FairIF by its number of validation samples. apart: |test - validation|; "
                "bound_term: the bound's last term; holds: the share of splits in which the test's "
                "gap is at most validation's plus that term.", _cells(_by_share(frame))),
        Section("Equation 19: the test loss", lines=lines),
        Section("Proposition 1: AD where the gaps close",
                "ad_of_gaps: what the two gaps allow under the paper's assumption; ad_of_rates: "
                "the term that it drops.", _cells(by_row),
                lines=[f"In {over} of {len(frame)} runs AD is above ad_of_gaps."]),
    ])


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as text, its index the first column."""
    return frame.map("{:.3f}".format).reset_index().astype(str)


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="FairIF's section 5 from saved runs.")
    parser.add_argument("setting", type=Path, help="folder of runs on samples in memory")
    parser.add_argument("--data-root", type=Path, default=Path("data/mnist"),
                        help="of digits; tabular data need none")
    options = parser.parse_args(arguments)
    frame = measure(Results(options.setting), options.data_root)
    said = text(frame, options.setting.name)
    write_atomic(options.setting / "theory.csv",
                 frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_atomic(options.setting / "theory.md", said)
    draw(frame, options.setting / "figures")
    print(said)


if __name__ == "__main__":
    main()
