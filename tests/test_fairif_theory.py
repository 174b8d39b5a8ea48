"""FairIF's section 5 from saved runs: its predictions against retraining, its table and figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fairif_problems import trained
from refusals import refused

import train
from models.fairif import theory
from models.fairif.theory import Split, measure
from utils.reporting.results import Results

ROWS = ("fairif", "fairif_25")
L2 = "0.01"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    results = tmp_path_factory.mktemp("theory")
    train.main([
        "--setting", "s", "--dataset", "german", "--data-seed", "run", "--methods", "erm", *ROWS,
        "--seeds", "0", "1", "--results", str(results), "--backbone", "logistic", "--optimizer",
        "lbfgs", "--batch-size", "all", "--pretrain-epochs", "2", "--weight-decay", L2,
        "--no-tables", "--set",
        *(f"{row}.{pair}" for row in ROWS for pair in (f"damping={L2}", "curvature_samples=1000")),
    ])
    return results / "s"


def test_the_predicted_loss_is_the_derivative_by_retraining(setting):
    results = Results(setting)
    split = Split(theory.configuration(results.configs["erm"][1], setting), 1)
    erm = split.model(results.runs["erm"][1])
    influence = split.influence_on_test_loss(erm)
    x, y = (torch.from_numpy(part) for part in (split.parts.train.x, split.parts.train.y))
    real = []
    for row in range(0, 700, 50):
        losses = []
        for step in (0.5, -0.5):
            weights = torch.full((700,), 1 / 700, dtype=torch.float64)
            weights[row] *= 1 + step
            losses.append(split.loss(trained(x, y, weights, l2=float(L2)), split.parts.test))
        real.append(losses[0] - losses[1])
    assert np.corrcoef(influence[::50], real)[0, 1] > 0.99
    assert np.polyfit(influence[::50], real, 1)[0] == pytest.approx(1, abs=0.05)


def test_the_figures_are_the_runs(setting):
    frame = measure(Results(setting), setting).set_index(["method", "seed"])
    assert len(frame) == 6 and frame.loc[("erm", 0), "loss_change"] == 0
    assert pd.isna(frame.loc[("erm", 0), "loss_change_predicted"])
    metrics = Results(setting).metrics["fairif"][1]
    assert frame.loc[("fairif", 1), "tpr_gap_test"] == pytest.approx(metrics["eod"])
    assert frame.loc[("fairif", 1), "ad"] == pytest.approx(metrics["ad"])
    assert frame.loc[("fairif", 1), "validation_samples"] == 100
    assert 20 < frame.loc[("fairif_25", 1), "validation_samples"] < 30
    # AD is at most the two gaps' part and the part that the paper drops: arithmetic
    assert (frame.ad <= frame.ad_of_gaps + frame.ad_of_rates + 1e-9).all()


def test_it_writes_table_and_figure(setting, capsys):
    theory.main([str(setting)])
    printed = capsys.readouterr().out
    assert printed.strip() == (setting / "theory.md").read_text().strip()
    assert "## Equation 17" in printed and "over 4 runs" in printed
    assert len(pd.read_csv(setting / "theory.csv")) == 6
    assert (setting / "figures" / "fairif_theory.png").stat().st_size > 10_000


def test_a_setting_without_erm_or_runs_is_named(setting, tmp_path, capsys):
    refused(capsys, theory.main, [str(tmp_path)], names="has no runs")
    moved = tmp_path / "s"
    moved.mkdir()
    (moved / "fairif").symlink_to(setting / "fairif")
    refused(capsys, theory.main, [str(moved)], names="no finished run of erm")
