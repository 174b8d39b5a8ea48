"""Rules and rows of our own: what they select, what they leave alone, what they choose by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import train
from models.method import bce
from models.own_rules import (
    channel_differences,
    fisher_difference,
    ratio,
    select_channels,
    t_statistic,
)
from models.own_strategies import (
    OWN,
    agreed_upon,
    group_weights,
    mixture,
    reestimate_statistics,
)
from utils.gradients import Moments, gradient_moments, mean_gradients

# --- the gradients' noise ------------------------------------------------------------------------


def batches(number: int, seed: int = 1) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.arange(6), torch.randn(6, 5, generator=generator),
             torch.randint(2, (6,), generator=generator), torch.full((6,), -1))
            for _ in range(number)]


def test_moments_are_those_of_the_batches_gradients():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)), batches(7)
    moments = gradient_moments(model, iter(data), bce, count=7, name="test")
    alone = [mean_gradients(model, [batch], bce, count=1, name="test") for batch in data]
    for name in dict(model.named_parameters()):
        each = torch.stack([gradients[name].double() for gradients in alone])
        torch.testing.assert_close(moments.mean[name], each.mean(0))
        torch.testing.assert_close(moments.squares[name], (each**2).mean(0))
        torch.testing.assert_close(moments.variance[name], each.var(0) / 7, rtol=1e-6, atol=1e-15)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="needs two batches"):
        gradient_moments(model, iter(data[:1]), bce, count=1, name="test")
    with pytest.raises(ValueError, match="7 batches instead of 8"):
        gradient_moments(model, iter(data), bce, count=8, name="test")


def one(mean: list, squares: list, variance: list) -> Moments:
    return Moments(*({"w": torch.tensor(part, dtype=torch.float64)}
                     for part in (mean, squares, variance)))


def test_differences_in_units_of_noise_and_of_size_by_hand():
    a, b = one([3.0, 1.0], [10.0, 2.0], [3.0, 0.0]), one([1.0, 1.0], [6.0, 2.0], [1.0, 0.0])
    assert t_statistic(a, b, "w") == pytest.approx((2 / 2 + 0) / 2)
    assert fisher_difference(a, b, "w") == pytest.approx((4 / 8 + 0) / 2)
    assert t_statistic(a, a, "w") == fisher_difference(a, a, "w") == 0


@pytest.mark.parametrize("difference", [t_statistic, fisher_difference])
def test_a_tensors_scale_does_not_matter(difference):
    """What AIM-Fair's own difference depends on."""
    a, b = one([3.0, 1.0], [10.0, 2.0], [3.0, 0.5]), one([1.0, 5.0], [6.0, 30.0], [1.0, 2.0])
    larger = [Moments({"w": 100 * part.mean["w"]}, {"w": 1e4 * part.squares["w"]},
                      {"w": 1e4 * part.variance["w"]}) for part in (a, b)]
    assert difference(*larger, "w") == pytest.approx(difference(a, b, "w"))


def test_t_of_sets_without_difference_is_that_of_noise():
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(2, 40, 20000, generator=generator, dtype=torch.float64)
    a, b = (Moments({"w": part.mean(0)}, {"w": (part**2).mean(0)}, {"w": part.var(0) / 40})
            for part in sets)
    assert t_statistic(a, b, "w") == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)


# --- one ranking, and channels -------------------------------------------------------------------


def test_the_ratio_by_hand():
    delta1, delta2 = {"a": 2.0, "b": 0.0, "c": 0.0}, {"a": 1.0, "b": 3.0, "c": 0.0}
    assert ratio(delta1, delta2) == {"a": 0.5, "b": math.inf, "c": 0.0}


def test_channels_by_hand():
    a = {"conv": torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]]), "bias": torch.tensor([1.0, 5.0])}
    b = {"conv": torch.zeros(2, 1, 2), "bias": torch.tensor([1.0, 1.0])}
    delta1 = channel_differences(a, b)
    assert {name: part.tolist() for name, part in delta1.items()} == {
        "conv": [2, 0], "bias": [0, 4]}
    delta2 = {"conv": torch.tensor([9.0, 1.0]), "bias": torch.tensor([5.0, 3.0])}
    # smallest delta1: conv 1, bias 0, then conv 0; largest delta2: conv 0, bias 0, then bias 1
    assert select_channels(delta1, delta2, 0.5) == {"conv": [], "bias": [0]}
    assert select_channels(delta1, delta2, 0.75) == {"conv": [0], "bias": [0]}
    assert select_channels(delta1, delta2, 1) == {"conv": [0, 1], "bias": [0, 1]}


def test_images_on_which_both_are_wrong_are_left_out():
    y = np.array([0, 1, 0, 1, 1])
    one_, other = np.array([0, 0, 1, 1, 0]), np.array([1, 0, 1, 0, 1])
    assert agreed_upon(one_, other, y).tolist() == [0, 3, 4]


def test_minority_groups_weigh_more_and_all_weigh_one_on_the_mean():
    y, a = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert group_weights(y, a, 1 / 3).tolist() == [1.5, 0.5, 0.5, 1.5]
    assert group_weights(y, a, 0.0).tolist() == [2, 0, 0, 2]
    assert group_weights(y, a, 1.0).tolist() == [1, 1, 1, 1]


# --- weights and statistics ----------------------------------------------------------------------


def test_a_mixture_of_two_states_by_hand():
    start = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    end = {"w": torch.tensor([4.0, 2.0]), "n": torch.tensor(9)}
    assert mixture(start, end, 0.25)["w"].tolist() == [1, 2]
    assert mixture(start, end, 0.25)["n"] == 9
    assert torch.equal(mixture(start, end, 1.0)["w"], end["w"])


def test_statistics_are_the_means_over_the_batches():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1)).eval()
    with torch.no_grad():
        model[0].running_mean.fill_(7)
    parameters = [p.clone() for p in model.parameters()]
    data = batches(4)
    reestimate_statistics(model, data)
    torch.testing.assert_close(model[0].running_mean,
                               torch.stack([x.mean(0) for _, x, *_ in data]).mean(0))
    torch.testing.assert_close(model[0].running_var,
                               torch.stack([x.var(0) for _, x, *_ in data]).mean(0))
    assert not model.training and model[0].momentum == 0.1
    assert all(torch.equal(p, q) for p, q in zip(parameters, model.parameters(), strict=True))


# --- the rows, trained ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """results/tiny with every row of OWN, full fine-tuning and AIM-Fair."""
    root = tiny.make(tmp_path_factory.mktemp("own"))
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        train.main(tiny.flags(root, root / "results", "--backbone", "tiny", "--no-tables",
                              "--methods", "erm", "full_finetuning", "aim_fair", *OWN))
    return root / "results" / "tiny"


def state(setting: Path, row: str) -> dict[str, torch.Tensor]:
    path = setting / row / "seed100" / "classifier.pt"
    return torch.load(path, weights_only=True)["model"]


def read(setting: Path, row: str, file: str) -> dict:
    return json.loads((setting / row / "seed100" / file).read_text())


@pytest.mark.parametrize("name", ["aim_fair", *OWN])
def test_what_is_not_selected_stays_bit_identical(name, trained):
    before, after = state(trained, "erm"), state(trained, name)
    mask = read(trained, name, "mask.json")
    channels = mask.get("channels")
    assert any(mask["tensors"].values())
    for tensor, updated in mask["tensors"].items():
        same = (before[tensor] == after[tensor]).flatten(1 if before[tensor].ndim > 1 else 0)
        if channels is None:
            assert updated or torch.equal(before[tensor], after[tensor]), tensor
        else:
            rows = same.all(1) if before[tensor].ndim > 1 else same
            held = [row for row in range(len(rows)) if row not in channels[tensor]]
            assert rows[held].all() and updated == bool(channels[tensor]), tensor
    moved = [tensor for tensor in mask["tensors"] if not torch.equal(before[tensor], after[tensor])]
    assert moved


@pytest.mark.parametrize("name", ["full_interpolated", "aim_fair_interpolated"])
def test_alpha_is_the_best_on_validation_and_all_are_recorded(name, trained):
    record = read(trained, name, "interpolate/alphas.json")
    assert list(record["tried"]) == [f"{step / 10:.1f}" for step in range(1, 11)]
    values = {float(alpha): each["accuracy"] for alpha, each in record["tried"].items()}
    assert record["best_by"] == "accuracy"
    assert record["alpha"] == max(values, key=lambda alpha: (values[alpha], alpha))
    alpha = record["alpha"]
    assert read(trained, name, "metrics.json")["validation"]["acc"] == values[alpha]
    ends = [state(trained, row) for row in (
        "erm", {"full_interpolated": "full_finetuning"}.get(name, "aim_fair"))]
    for tensor, value in state(trained, name).items():
        if value.is_floating_point():
            between = (1 - alpha) * ends[0][tensor] + alpha * ends[1][tensor]
            torch.testing.assert_close(value, between)


def test_counterweights_keep_a_tenth_of_the_erm_model(trained):
    erm, ours = state(trained, "erm"), state(trained, "counterweighted")
    full = state(trained, "full_finetuning")
    moved = {name: (ours[name] - erm[name], full[name] - erm[name]) for name in ours
             if ours[name].is_floating_point()}
    a, b = (torch.cat([pair[i].flatten() for pair in moved.values()]) for i in (0, 1))
    assert 0.5 < float(a @ b / (a.norm() * b.norm())) < 1  # the same way, but other weights


@pytest.mark.parametrize(("ours", "theirs"), [
    ("full_real_statistics", "full_finetuning"), ("aim_fair_real_statistics", "aim_fair")])
def test_real_statistics_change_nothing_else(ours, theirs, trained):
    before, after = state(trained, theirs), state(trained, ours)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert {n for n in before if "running" in n} <= moved


def test_the_filter_keeps_what_one_model_gets_right(trained):
    kept = read(trained, "full_filtered", "filter/kept.json")["rows"]
    assert kept == sorted(set(kept)) and 8 <= len(kept) <= 24
    log = (trained / "full_filtered" / "seed100" / "log.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in log]
    assert list(dict.fromkeys(stages)) == ["pretrain", "first", "finetune"]
    # two epochs of each stage, of 24 images and of the full batches of what is kept
    passes = read(trained, "full_filtered", "metrics.json")["passes"]
    assert passes == 2 * (24 + 24 + len(kept) // 8 * 8)


def test_rules_of_moments_say_what_they_compared(trained):
    for name, criterion in (("aim_fair_t_statistic", "t statistic"), ("aim_fair_fisher", "Fisher"),
                            ("aim_fair_ratio", "ratio")):
        mask = read(trained, name, "mask.json")
        assert mask["criterion"] == criterion and mask["passes"] == 72
        assert mask["delta1"].keys() == mask["delta2"].keys() == mask["tensors"].keys()
    assert sum(read(trained, "aim_fair_ratio", "mask.json")["tensors"].values()) == 34  # k of 38
