"""FairIF through train.py: its record, and that lambda large enough makes it ERM bit for bit."""

import json

import numpy as np
import pytest
import tiny
import torch

import train
from models import METHODS
from utils.engine import PREEMPTION


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"))


def test_fairif_reweights_and_a_large_lambda_is_erm_bit_for_bit(data, monkeypatch):
    monkeypatch.setattr(PREEMPTION, "install", lambda: None)
    results = data / "results"

    def run(*flags):
        train.main(tiny.flags(data, results, "--pretrain-epochs", 1, *flags))

    run("--methods", "erm")
    options = ["last_tensors=5", "curvature_images=16", "damping=0.1"]
    run("--methods", "fairif", "--set", *options, "strength=0")
    run("--methods", "fairif", "--name", "no_change", "--set", *options, "strength=1e6")
    setting = results / "tiny"
    record = json.loads((setting / "fairif/seed100/reference/influence.json").read_text())
    weights = np.load(setting / "fairif/seed100/reference/weights.npy")
    assert weights.shape == (24,) and weights.min() >= 0 and weights.std() > 0
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


def test_fairif_needs_validation_images(data, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(tiny.flags(data, data / "other", "--pretrain-epochs", 1, "--methods", "fairif",
                              "--val", "none"))
    assert end.value.code == 2 and "--val official" in capsys.readouterr().err


def test_every_hyper_parameter_has_a_range():
    method = METHODS["fairif"]
    assert method.uses_attributes == "validation"
    assert method.ranges.keys() == method.defaults.keys()
    for key, value in method.defaults.items():
        assert method.ranges[key][0] <= value <= method.ranges[key][1]
    flags = {action.dest for action in train.parser()._actions}
    assert not flags & method.defaults.keys()
