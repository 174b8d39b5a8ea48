"""The debiasing baselines: each against something independent, and all on a planted correlation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.base import ImageTable
from models import backbones
from models.debiasing import DEBIASING
from models.debiasing.cvar_dro import cvar
from models.debiasing.eiil import group_means, scale_gradients, soft_environments
from models.debiasing.jtt import error_set, repeated
from models.debiasing.lff import (
    generalised_cross_entropy,
    over_class_maximum,
    relative_difficulty,
    running_mean,
)
from models.debiasing.maple import environment_risk, hypergradient, project, sample_mask
from models.method import Method
from models.strategies import new_model
from utils.engine import Recipe, fit
from utils.metrics import fairness_metrics

# --- CVaR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.25, 0.3, 0.55, 1.0])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_cvar_is_the_mean_of_the_top_alpha_share(alpha, count):
    losses = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    # Brute force: every loss 1000 times, so that alpha * m * 1000 is whole, and a plain mean.
    copies = np.sort(np.repeat(losses.numpy(), 1000))[::-1]
    expected = copies[: round(alpha * count * 1000)].mean()
    assert float(cvar(losses, alpha)) == pytest.approx(expected, rel=1e-9)


def test_cvar_weights_by_gradient():
    losses = torch.tensor([3.0, 5.0, 1.0, 4.0, 2.0], requires_grad=True)
    cvar(losses, 0.5).backward()  # 2.5 of 5 samples: two whole ones and half of the third
    torch.testing.assert_close(losses.grad, torch.tensor([0.2, 0.4, 0.0, 0.4, 0.0]))


# --- EIIL ----------------------------------------------------------------------------------------


def test_scale_gradients_are_those_of_autograd():
    logits, y = torch.randn(9, dtype=torch.float64), torch.tensor([0, 1, 1] * 3)
    scale = torch.ones(9, dtype=torch.float64, requires_grad=True)
    F.binary_cross_entropy_with_logits(scale * logits, y.double(), reduction="sum").backward()
    torch.testing.assert_close(scale_gradients(logits, y.double()), scale.grad)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_soft_environments_find_the_planted_split(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 400)
    planted = rng.random(400) < 0.15  # here the spurious attribute contradicts the label
    spurious = np.where(planted, 1 - y, y)
    logits = (2 * spurious - 1) * rng.uniform(0.5, 3, 400)  # a reference that reads only that
    q = soft_environments(
        torch.from_numpy(logits), torch.from_numpy(y), steps=3000, lr=1e-2,
        generator=torch.Generator().manual_seed(seed),
    )
    found = (q > 0.5).numpy()
    assert max((found == planted).mean(), (found != planted).mean()) > 0.97


def test_group_means_by_hand():
    losses, groups = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2])
    torch.testing.assert_close(group_means(losses, groups, 3), torch.tensor([1.0, 0.0, 4.0]))


# --- LfF -----------------------------------------------------------------------------------------


def test_generalised_cross_entropy_scales_the_gradient():
    y = torch.tensor([0, 1, 1, 0])
    logits = torch.tensor([0.3, -2.0, 1.5, -0.7], dtype=torch.float64, requires_grad=True)
    p = torch.where(y == 1, torch.sigmoid(logits), 1 - torch.sigmoid(logits)).detach()
    gce = generalised_cross_entropy(logits, y, 0.7)
    torch.testing.assert_close(gce.detach(), (1 - p**0.7) / 0.7)
    (by_gce,) = torch.autograd.grad(gce.sum(), logits)
    ce = F.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")
    (by_ce,) = torch.autograd.grad(ce, logits)
    torch.testing.assert_close(by_gce, p**0.7 * by_ce)
    certain = torch.tensor([-200.0], requires_grad=True)  # p underflows
    generalised_cross_entropy(certain, torch.tensor([1]), 0.7).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_lff_weights_of_a_batch_by_hand():
    y = torch.tensor([0, 0, 1, 1])
    tables = [torch.tensor([0.5, -1.0, 2.0, -1.0]), torch.tensor([1.0, -1.0, 0.5, -1.0])]
    index = torch.tensor([2, 1])
    losses = [torch.tensor([1.0, 0.25]), torch.tensor([2.0, 0.4])]
    tables = [running_mean(t, index, new, 0.7) for t, new in zip(tables, losses, strict=True)]
    # Row 2 was seen: 0.7*2+0.3*1 = 1.7 and 0.7*0.5+0.3*2 = 0.95. Row 1 was not: its loss whole.
    torch.testing.assert_close(tables[0], torch.tensor([0.5, 0.25, 1.7, -1.0]))
    torch.testing.assert_close(tables[1], torch.tensor([1.0, 0.4, 0.95, -1.0]))
    biased, debiased = (over_class_maximum(t, y, index) for t in tables)
    # Class 1 holds row 2 alone: 1 and 1. Class 0: 0.25 / 0.5 and 0.4 / 1.
    torch.testing.assert_close(biased, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(debiased, torch.tensor([1.0, 0.4]))
    weight = relative_difficulty(biased, debiased)
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5 / 0.9]))


# --- JTT -----------------------------------------------------------------------------------------


def test_jtt_error_set_and_total_weight():
    logits, y = np.array([2.0, -1.0, 0.5, -3.0, 0.0]), np.array([1, 1, 0, 0, 1])
    errors = error_set(logits, y)
    assert errors.tolist() == [1, 2, 4]
    table = ImageTable("toy", [str(i) for i in range(5)], y, np.zeros(5))
    many = repeated(table, errors, 50)
    assert len(many) == 5 + 50 * 3
    times = {path: many.paths.count(path) for path in table.paths}
    assert times == {"0": 1, "1": 51, "2": 51, "3": 1, "4": 51}
    assert all(many.y[i] == y[int(path)] for i, path in enumerate(many.paths))


# --- MAPLE ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0.5, 3.0, 15.0, 19.5])
def test_projection_sums_to_k_and_is_the_nearest_point(total):
    generator = torch.Generator().manual_seed(3)
    s = torch.randn(20, generator=generator, dtype=torch.float64) * 2
    projected = project(s, total)
    assert float(projected.sum()) == pytest.approx(total, abs=1e-9)
    assert projected.min() >= 0 and projected.max() <= 1
    for _ in range(200):  # no feasible point is nearer (projection theorem)
        other = project(torch.randn(20, generator=generator, dtype=torch.float64), total)
        assert (s - projected) @ (other - projected) <= 1e-6


def test_mask_is_bernoulli_and_lets_gradients_through():
    s = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat(5000).requires_grad_(True)
    noise = torch.rand(20000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    mask = sample_mask(s, noise, 1.0)
    assert set(mask.detach().round(decimals=5).tolist()) == {0.0, 1.0}
    rates = mask.detach().reshape(-1, 4).mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.0, 0.2, 0.7, 1.0]), atol=0.02, rtol=0)
    mask.sum().backward()
    assert torch.isfinite(s.grad).all() and (s.grad > 0).all()


def test_hypergradient_against_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0, 1] * 6)
    environments, mask = torch.tensor([0] * 7 + [1] * 5), torch.rand(12, dtype=torch.float64)
    kept, lr = 4.0, 0.3

    def outer(losses):
        return environment_risk(losses, environments, 10.0)

    def risk_after_a_step(mask):  # an SGD step on a copy, nothing differentiated through it
        copy = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
        copy.double().load_state_dict(before)
        optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
        losses = F.binary_cross_entropy_with_logits(copy(x)[:, 0], y.double(), reduction="none")
        ((mask * losses).sum() / kept).backward()
        optimizer.step()
        losses = F.binary_cross_entropy_with_logits(copy(x)[:, 0], y.double(), reduction="none")
        return float(outer(losses).detach())

    gradient, inner, _ = hypergradient(model, (x, y), mask, kept, lr, outer)
    step = 1e-5 * torch.eye(12, dtype=torch.float64)
    expected = [(risk_after_a_step(mask + d) - risk_after_a_step(mask - d)) / 2e-5 for d in step]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-5,
                               atol=1e-8)
    assert [g.shape for g in inner] == [p.shape for p in model.parameters()]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    tracked = int(model[1].num_batches_tracked)
    assert tracked == 1  # the unrolled pass must not be counted


# --- all of them on a planted correlation --------------------------------------------------------

WIDTH = 12


def toy_table(name: str, count: int, minority: float, seed: int) -> tuple[ImageTable, torch.Tensor]:
    """Vectors: one strong coordinate says a, several weak and noisy ones together say y."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    a = np.where(rng.random(count) < minority, y, 1 - y)
    x = rng.normal(size=(count, WIDTH)) * 1.2
    x[:, 0] = (2 * a - 1) * 2 + rng.normal(size=count) * 0.3
    x[:, 1:] += (2 * y[:, None] - 1) * 0.6
    return ImageTable(name, [str(i) for i in range(count)], y, a), torch.tensor(x).float()


class ToyLoader:
    """The interface of datasets.loader.Loader on vectors; a row's path is its place in x."""

    device = torch.device("cpu")

    def __init__(self, table, x, batch_size, train, seed):
        self.table, self.x, self.train, self.seed = table, x, train, seed
        self.batch_size = batch_size if train else len(table)

    def __len__(self):
        return len(self.table) // self.batch_size

    def epoch(self, k):
        rng = np.random.default_rng((self.seed, k))
        n = len(self.table)
        rows = rng.permutation(n) if self.train else np.arange(n)
        place = np.array([int(path) for path in self.table.paths])
        for i in range(len(self)):
            part = torch.from_numpy(rows[i * self.batch_size : (i + 1) * self.batch_size])
            y = torch.from_numpy(self.table.y)[part]
            yield part, self.x[torch.from_numpy(place)[part]], y, torch.full_like(y, -1)


class ToyData:
    def __init__(self, seed, count=1200):
        self.real, self.x = toy_table("train", count, 0.06, seed)
        self.val, self.seed = None, seed

    def loader(self, table, *, train):
        return ToyLoader(table, self.x, 60, train, self.seed)


def toy_settings(epochs=12, **options):
    return SimpleNamespace(
        pretrain=Recipe(epochs, 0.05, milestone=10), backbone="mlp", pretrained="none",
        device="cpu", autocast=None, options=options,
    )


@pytest.fixture(autouse=True)
def mlp(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "mlp", lambda weights: nn.Sequential(
        nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1)))


def worst_group(method: Method, seed: int) -> float:
    table, x = toy_table("test", 4000, 0.5, seed + 1000)
    return fairness_metrics((method.predict(x) > 0).long().numpy(), table.y, table.a)["wst"]


def train_erm(data, settings, seed, folder):
    folder.mkdir()
    method = Method(new_model(settings, seed), settings.pretrain)
    fit(method, data.loader(data.real, train=True), None, folder, "erm")
    return method


# What differs from the papers' values fits 20 steps an epoch and 12 epochs of the toy.
TOY_OPTIONS = {
    "cvar_dro": {},
    "eiil": {"inference_steps": 3000, "inference_lr": 1e-2},
    "lff": {},
    "jtt": {},
    "maple": {"inference_steps": 3000, "inference_lr": 1e-2},
}


def test_every_baseline_has_toy_options():
    assert set(TOY_OPTIONS) == set(DEBIASING)
