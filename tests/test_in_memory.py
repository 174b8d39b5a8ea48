"""Tabular data and digits through train.py, from flags to tables beside FairIF's paper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from refusals import refused

import train
from datasets import DATASETS
from models import METHODS
from models.fairif.baselines import BASELINES
from models.fairif.controls import CONTROLS

SAMPLE = Path(__file__).parent / "mnist"  # 240 and 40 digits
ROWS = ["erm", *BASELINES, "fairif", *CONTROLS]
LBFGS = ["--backbone", "logistic", "--optimizer", "lbfgs", "--batch-size", "all",
         "--pretrain-epochs", "2", "--weight-decay", "0.001"]
ADAM = ["--optimizer", "adam", "--batch-size", "50", "--pretrain-lr", "0.001",
        "--pretrain-epochs", "2"]
OPTIONS = [f"{row}.{pair}" for row in ("influence", "fairif", *CONTROLS)
           for pair in ("damping=0.1", "curvature_samples=100")]


@pytest.fixture(autouse=True)
def tables_alone(monkeypatch):
    tiny.without_pictures(monkeypatch)


def command(dataset: str, results: Path, *more) -> list[str]:
    root = SAMPLE if DATASETS[dataset].attributes == ("even", "red") else results / "nowhere"
    return ["--dataset", dataset, "--data-root", str(root), "--results", str(results),
            "--setting", "s", "--data-seed", "run", "--device", "cpu", *map(str, more)]


def test_a_table_runs_resumes_and_refuses_other_settings(tmp_path, capsys):
    line = command("german", tmp_path, *LBFGS, "--methods", *ROWS, "--seeds", 0, 1,
                   "--baseline", "erm", "fairif_shuffled", "--paper-table", "fairif-4",
                   "--set", *OPTIONS)
    train.main(line)
    printed = capsys.readouterr().out
    folder = tmp_path / "s"
    assert (folder / "summary.md").read_text() in printed and "Beside FairIF's paper" in printed
    assert "/ 75.50 /" in printed and "/ 2.40 /" in printed  # its Original and FairIF's EOD
    frame = pd.read_csv(folder / "summary.csv").set_index("method")
    assert set(frame.index) == set(ROWS)
    assert "## Paired differences to fairif_shuffled" in printed
    assert printed.count("Nadeau and Bengio's correction") == 2
    config = json.loads((folder / "erm/seed0/config.json").read_text())
    assert config["test_to_train"] == 200 / 700
    runs = [json.loads((folder / f"fairif/seed{seed}/metrics.json").read_text())["test"]
            for seed in (0, 1)]
    assert frame.acc_mean["fairif"] == pytest.approx(50 * sum(run["acc"] for run in runs))
    rows = [(folder / f"erm/seed{seed}/train.csv").read_text() for seed in (0, 1)]
    assert rows[0] != rows[1]  # the seed draws the split
    assert rows[0] == (folder / "cfair/seed0/train.csv").read_text()
    saved = torch.load(folder / "fairif/seed0/classifier.pt", weights_only=True)
    assert (saved["backbone"], saved["target"]) == ("logistic", "credit")

    bytes_ = (folder / "fairif/seed1/classifier.pt").read_bytes()
    shutil.rmtree(folder / "fairif/seed1")
    train.main(line)
    printed = capsys.readouterr().out
    assert printed.count("finished, reused") == 2 * len(ROWS) - 1
    assert (folder / "fairif/seed1/classifier.pt").read_bytes() == bytes_
    said = refused(capsys, train.main, [*line, "--weight-decay", "0.01"], names="erm/seed0")
    assert "weight_decay was 0.001 and is now 0.01" in said


@pytest.mark.parametrize(("bias", "backbone"), [
    ("size", "mlp"), ("shift", "digit_cnn"), ("class", "digit_lenet")])
def test_digits_of_every_bias_on_every_network(bias, backbone, tmp_path):
    rows = ROWS if backbone == "mlp" else ["erm", "fairsmote"]
    options = ["--set", *OPTIONS] if backbone == "mlp" else []
    train.main(command(f"ci_mnist_{bias}", tmp_path, *ADAM, "--backbone", backbone,
                       "--methods", *rows, "--seeds", 0, "--paper-table",
                       {"size": "fairif-1", "shift": "fairif-2", "class": "fairif-3"}[bias],
                       *options))
    frame = pd.read_csv(tmp_path / "s/summary.csv").set_index("method")
    assert set(frame.index) == set(rows) and frame.acc_mean.notna().all()
    assert frame.paper_acc["erm"] == {"size": 97.55, "shift": 98.81, "class": 98.81}[bias]


def test_the_rest_of_the_methods_run_on_rows_too(tmp_path):
    """Whatever learns from neither synthetic nor edited images: CVaR DRO, LfF, JTT and the like."""
    rows = [name for name, method in METHODS.items() if name not in ROWS and not (
        method.needs_synthetic() or method.needs_edits or method.overrides)]
    assert {"cvar_dro", "eiil", "lff", "jtt", "maple", "fairif_50"} <= set(rows)
    train.main(command("german", tmp_path, *ADAM, "--backbone", "mlp", "--methods", *rows,
                       "--no-tables", "--seeds", 0, "--set", "eiil.inference_steps=5",
                       "maple.inference_steps=5"))
    for row in rows:
        metrics = json.loads((tmp_path / "s" / row / "seed0/metrics.json").read_text())
        assert 0.2 < metrics["test"]["acc"] <= 1, row


def test_the_protected_attribute_can_be_left_out_of_the_features(tmp_path):
    for flags, width in (([], 59), (["--blind"], 57)):
        train.main(command("german", tmp_path, *LBFGS, "--methods", "erm", "--setting",
                           f"s{width}", "--seeds", 0, "--no-tables", *flags))
        saved = torch.load(tmp_path / f"s{width}/erm/seed0/classifier.pt", weights_only=True)
        (weight,) = [value for value in saved["model"].values() if value.ndim == 2]
        assert weight.shape == (1, width)
    lists = [(tmp_path / f"s{width}/erm/seed0/train.csv").read_text() for width in (59, 57)]
    assert lists[0] == lists[1]


def test_adam_keeps_the_best_epoch_and_the_later_of_equal_ones(tmp_path):
    train.main(command("compas", tmp_path, *ADAM[:4], "--backbone", "mlp", "--methods", "erm",
                       "--pretrain-lr", "0.3", "--pretrain-epochs", 12, "--seeds", 3,
                       "--no-tables"))
    log = [json.loads(line) for line in
           (tmp_path / "s/erm/seed3/log.jsonl").read_text().splitlines()]
    accuracies = [row["val_acc"] for row in log]
    best = max(range(12), key=lambda epoch: (accuracies[epoch], epoch))
    assert log[-1]["kept"] == best + 1 and np.isfinite(accuracies).all()


@pytest.mark.parametrize(("dataset", "flags", "named"), [
    ("german", ["--methods", "aim_fair"], "aim_fair learns from synthetic images"),
    ("german", ["--methods", "diga"], "diga learns from synthetic images"),
    ("german", ["--size", "100"], "--size draws photographs"),
    ("german", ["--minority", "0.2"], "--minority draws photographs"),
    ("german", ["--target", "sex"], "target is credit and its protected attribute sex"),
    ("german", ["--target", "sex", "--protected", "credit"], "leave out --target"),
    ("german", ["--optimizer", "lbfgs"], "--batch-size all"),
    ("german", ["--optimizer", "newton"], "invalid choice"),
    ("ci_mnist_size", ["--blind"], "--blind is for tabular data"),
    ("german", ["--backbone", "resnet18", "--pretrained", "none"], "not rows of 59 features"),
    ("german", ["--backbone", "digit_cnn"], "not rows of 59 features"),
    ("german", ["--pretrained", "imagenet"], "mlp starts from random weights"),
    ("german", ["--data-seed", "each"], "--data-seed"),
    ("german", ["--batch-size", "1000"], "fewer than a batch"),
    ("german", ["--methods", "fairif", "--set", "inverse=newton"], "must be one of auto, exact"),
    ("german", ["--methods", "fairif", "--set", "inverse=exact"], "is too large"),
    ("ci_mnist_size", ["--data-root", "/nowhere"], "has no train-images-idx3-ubyte"),
    ("ci_mnist_tilt", [], "--dataset ci_mnist_tilt is unknown"),
])
def test_mistakes_are_one_sentence(dataset, flags, named, tmp_path, capsys):
    root = dataset if dataset in DATASETS else "german"
    line = [dataset if part == root else part for part in command(root, tmp_path)]
    refused(capsys, train.main, [*line, "--backbone", "mlp", "--methods", "erm", *flags],
            names=named)


def test_whole_batches_are_for_samples_in_memory(tmp_path, capsys):
    refused(capsys, train.main, ["--dataset", "demo", "--data-root", str(tmp_path), "--batch-size",
                                 "all", "--methods", "erm", "--results", str(tmp_path)],
            names="--batch-size all is for samples in memory")
