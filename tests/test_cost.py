"""What a row cost: counted by hand for small networks, recorded by runs, shown in the tables."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from test_tables import write_run
from torch import nn

import train
from models import backbones
from models.cost import PASS, forward_flops
from utils.reporting.costs import section
from utils.reporting.results import Results


def test_operations_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                            nn.Flatten(), nn.Linear(4 * 8 * 8, 1))
    # each of 8 x 8 x 4 outputs is a sum of 27 products; the last one of 256
    assert forward_flops(network, torch.zeros(2, 3, 8, 8)) == 2 * 2 * (8 * 8 * 4 * 27 + 256)
    assert network.training and next(network.parameters()).device.type == "cpu"  # left as it was


def test_published_costs():
    # He et al. 2016, Table 1: 1.8e9 multiply-adds for ResNet-18 at 224 px
    found = forward_flops(backbones.build("resnet18"), torch.zeros(1, 3, 224, 224))
    assert found == pytest.approx(2 * 1.8e9, rel=0.02)


def test_runs_record_it_and_tables_show_it(data, monkeypatch, tmp_path):
    tiny.with_network(monkeypatch)
    methods = ("erm", "linear_probing", "full_finetuning", "lora", "jtt", "fairif")
    train.main(tiny.flags(data, tmp_path, "--backbone", "tiny", "--no-tables",
                          "--pretrain-epochs", 1, "--finetune-epochs", 1, "--methods", *methods))
    results = Results(tmp_path / "tiny")
    network = tiny.Network()
    sizes = [p.numel() for p in network.parameters()]
    forward = forward_flops(network, torch.zeros(1, 3, 32, 32))
    for method in methods:
        record = json.loads((results.runs[method][100] / "metrics.json").read_text())
        assert record["parameters"] == sum(sizes) and record["gpu_bytes"] is None
        assert record["flops"] == PASS * forward * record["passes"] > 0
        expected = {"linear_probing": sum(sizes[-2:])}.get(method, sum(sizes))
        assert method == "lora" or record["trainable"] == expected
    assert 0 < json.loads((results.runs["lora"][100] / "metrics.json").read_text())[
        "trainable"] < sum(sizes)
    rows = section(results).frame.set_index("method")
    assert rows.loc["linear_probing", "parameters updated"] == f"{sum(sizes[-2:]):,}"
    assert rows.loc["erm", "of the network"] == "100%"


def test_runs_of_before_have_none(tmp_path):
    write_run(tmp_path / "erm" / "seed1", (9, 18, 18, 8))
    assert section(Results(tmp_path)) is None
