"""FairIF through train.py: its record, its control, and that a large lambda makes it ERM."""

import json

import numpy as np
import pytest
import tiny
import torch

import train
from datasets.base import ImageTable
from models import METHODS
from models.fairif import method as fairif_method
from models.fairif.method import gradient_norm, validation_part
from utils.errors import UserError
from utils.files import read_array
from utils.options import parse_options


def test_fairif_reweights_and_a_large_lambda_is_erm_bit_for_bit(data, monkeypatch):
    results = data / "results"

    def run(*more):
        train.main(tiny.flags(data, results, "--pretrain-epochs", 1, "--backbone", "tiny", *more))

    tiny.with_network(monkeypatch)
    computed, compute = [], fairif_method.run_influence
    monkeypatch.setattr(fairif_method, "run_influence",
                        lambda *args: computed.append(1) or compute(*args))
    run("--methods", "erm", "--no-tables")
    options = ["last_tensors=5", "curvature_samples=16", "damping=0.1"]
    run("--methods", "fairif", "--set", *options, "strength=0", "--no-tables")
    run("--methods", "fairif", "--name", "no_change", "--set", *options, "strength=1e6",
        "--no-tables")
    run("--methods", "fairif_shuffled", "--set", *options, "strength=0", "--no-tables")
    assert len(computed) == 1  # lambda and the shuffling come after the influence
    setting = results / "tiny"
    record = json.loads((setting / "fairif/seed100/influence.json").read_text())
    passes = json.loads((setting / "fairif/seed100/metrics.json").read_text())["passes"]
    assert passes == 24 + 24 + record["derivatives"]  # ERM, FairIF, and what lies between
    # of the gaps on 16, of each sample, of the curvature's 16 four steps, a residual and the norm
    assert record["derivatives"] == 16 + 24 + 16 * (4 + 1 + 1)
    weights = np.load(setting / "fairif/seed100/weights.npy")
    assert weights.shape == (24,) and weights.min() >= 0 and weights.std() > 0
    control = np.load(setting / "fairif_shuffled/seed100/weights.npy")
    assert not np.array_equal(control, weights)
    assert np.array_equal(np.sort(control), np.sort(weights))
    run("--methods", "fairif", "--name", "less", "--set", *options, "strength=0",
        "validation_share=0.5", "--no-tables")
    assert len(computed) == 2

    # runs copied into another setting keep their weights; figures are drawn from them
    figure2 = ["--setting", "tiny/figure2", "--methods", "fairif", "--set", *options]
    run(*figure2, "strength=1e6", "--name", "no_change", "--no-tables")
    run(*figure2, "strength=0", "validation_share=0.5", "--name", "less", "--no-tables")
    run(*figure2, "strength=0")
    assert len(computed) == 2
    assert np.array_equal(np.load(setting / "figure2/fairif/seed100/weights.npy"), weights)
    assert "Training images weighted most" in (setting / "figure2/report.html").read_text()
    names = {path.name for path in (setting / "figure2/figures").glob("fairif_weights_*")}
    assert names == {f"fairif_weights_{name}.{kind}" for name in ("fairif", "less")
                     for kind in ("png", "pdf")}  # no change: none
    assert np.abs(record["predicted"]).max() <= np.abs(record["gaps"]).max()
    assert record["gradient_norm"] > 0 and np.isfinite(record["residual"]).all()
    log = [json.loads(line) for line in
           (setting / "fairif/seed100/log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["pretrain", "reweighted"]
    assert log[0]["gaps"] == record["gaps"]

    models = {name: torch.load(setting / name / "seed100/classifier.pt", weights_only=True)["model"]
              for name in ("erm", "fairif", "no_change")}
    same = {name: all(torch.equal(models["erm"][key], value) for key, value in model.items())
            for name, model in models.items()}
    assert same == {"erm": True, "fairif": False, "no_change": True}


def test_a_validation_share_is_drawn_by_group_and_by_seed(data, tmp_path, capsys, monkeypatch):
    groups = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], [8, 20, 4, 3], axis=0)
    table = ImageTable("val", [f"/{i}" for i in range(len(groups))], groups[:, 0], groups[:, 1])
    assert validation_part(table, 1.0, 1).paths == table.paths
    half, quarter = (validation_part(table, share, 1) for share in (0.5, 0.25))
    assert list(half.counts().values()) == [4, 10, 2, 2]
    assert list(quarter.counts().values()) == [2, 5, 1, 1]
    assert set(quarter.paths) < set(half.paths)
    assert validation_part(table, 0.5, 2).paths != half.paths
    # of the 16 validation images a tenth is none
    tiny.with_network(monkeypatch)
    with pytest.raises(SystemExit) as end:
        train.main(tiny.flags(data, tmp_path, "--pretrain-epochs", 1, "--backbone", "tiny",
                              "--methods", "fairif", "--set", "validation_share=0.1"))
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and message.startswith("error: the validation set has no sample")


def test_the_gradient_norm_is_zero_at_the_minimum_of_what_was_trained():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 2
    batches = [(None, part, labels, None) for part, labels in zip(x.split(15), y.split(15))]
    # Newton's method: a line search on the loss stops at a gradient of about 1e-8
    wide, w = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1), torch.zeros(4).double()
    for _ in range(20):
        p = torch.sigmoid(wide @ w)
        gradient = wide.T @ (p - y) / 40 + 0.1 * w
        curvature = wide.T @ (wide * (p * (1 - p))[:, None]) / 40 + 0.1 * torch.eye(4).double()
        w = w - torch.linalg.solve(curvature, gradient)
    with torch.no_grad():
        model.weight.copy_(w[None, :3])
        model.bias.copy_(w[3:])
    assert gradient_norm(model, batches, 0.1) < 1e-9
    size = torch.cat([p.detach().flatten() for p in model.parameters()]).norm().item()
    assert gradient_norm(model, batches, 0.0) == pytest.approx(0.1 * size, rel=1e-6)


def test_damaged_scores_are_named(tmp_path):
    path = tmp_path / "scores.npy"
    np.save(path, np.zeros((2, 5)))
    assert read_array(path, (2, 5)).shape == (2, 5)
    for spoil in (lambda: np.save(path, np.zeros((2, 4))), lambda: path.write_bytes(b"no array")):
        spoil()
        with pytest.raises(UserError, match=r"scores.npy is damaged; delete the folder"):
            read_array(path, (2, 5))


def test_fairif_needs_validation_part(data, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(tiny.flags(data, data / "other", "--pretrain-epochs", 1, "--methods", "fairif",
                              "--val", "none"))
    assert end.value.code == 2 and "--val official" in capsys.readouterr().err


def test_every_hyper_parameter_has_a_range():
    method = METHODS["fairif"]
    assert method.uses_attributes == "validation"
    assert method.ranges.keys() == method.defaults.keys()
    assert parse_options([f"{key}={value}" for key, value in method.defaults.items()], "fairif",
                         method.defaults, method.ranges) == method.defaults
    with pytest.raises(UserError, match="inverse of fairif must be one of auto, exact, cg, lissa"):
        parse_options(["inverse=newton"], "fairif", method.defaults, method.ranges)
    flags = {action.dest for action in train.parser()._actions}
    assert not flags & method.defaults.keys()
