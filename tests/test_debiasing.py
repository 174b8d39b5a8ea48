"""The debiasing baselines: each against something independent, and all on a planted correlation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

import train
from datasets.augment import evenly
from datasets.base import ImageTable
from datasets.edits import EditLoader, jitter_colours, load_edits
from models import METHODS, backbones
from models import method as method_module
from models.debiasing import DEBIASING
from models.debiasing import diga as diga_module
from models.debiasing.cvar_dro import cvar
from models.debiasing.diga import BYOL, byol_loss, encoder_of, output_layer
from models.debiasing.eiil import (
    group_means,
    penalty_gradient,
    scale_gradients,
    soft_environments,
)
from models.debiasing.jtt import error_set, repeated
from models.debiasing.lff import (
    generalised_cross_entropy,
    over_class_maximum,
    relative_difficulty,
    running_mean,
)
from models.debiasing.maple import (
    annealed,
    environment_risk,
    hypergradient,
    project,
    sample_mask,
)
from models.method import Method, new_model
from utils.engine import fit
from utils.errors import UserError
from utils.metrics import fairness_metrics
from utils.options import parse_options
from utils.preemption import PREEMPTED, PREEMPTION
from utils.recipe import Recipe
from utils.reporting.paper import TABLES, paper_row
from utils.run import Run

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


def test_penalty_gradient_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(5)
    logits, q = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    y, q = torch.tensor([0, 1, 1] * 3), torch.sigmoid(q).requires_grad_(True)
    penalty = 0
    for weight in (q, 1 - q):  # IRMv1 written out: the gradient by a scale of the logits, squared
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = F.binary_cross_entropy_with_logits(scale * logits, y.double(), reduction="none")
        (slope,) = torch.autograd.grad((weight * losses).mean(), scale, create_graph=True)
        penalty = penalty + slope**2 / 2
    value, gradient = penalty_gradient(q.detach(), scale_gradients(logits, y.double()))
    torch.testing.assert_close(value, penalty.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(penalty, q)[0])


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


@pytest.mark.parametrize("total", [0.5, 3.0, 7.0, 15.0])
def test_projection_sums_to_k_at_most_and_is_the_nearest_point(total):
    generator = torch.Generator().manual_seed(3)
    s = torch.randn(20, generator=generator, dtype=torch.float64) * 2
    projected = project(s, total)
    less = float(s.clamp(0, 1).sum())  # about 9
    assert float(projected.sum()) == pytest.approx(min(total, less), abs=1e-9)
    assert less < 15 and (total < less or torch.equal(projected, s.clamp(0, 1)))
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


def test_the_risk_is_the_variance_over_the_environments_in_the_batch():
    losses = torch.tensor([1.0, 3.0, 5.0])
    assert float(environment_risk(losses, torch.tensor([0, 0, 1]))) == 1.5**2  # of 2 and 5
    for absent in (0, 1):
        present = torch.full((4,), 1 - absent)
        assert float(environment_risk(torch.rand(4), present)) == 0.0


def test_the_temperature_falls_from_1_to_3_percent():
    temperatures = [annealed(part / 10) for part in range(11)]
    assert (temperatures[0], temperatures[-1]) == (1, pytest.approx(0.03))
    assert np.diff(temperatures) == pytest.approx(-0.097)


def test_hypergradient_against_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0, 1] * 6)
    environments, mask = torch.tensor([0] * 7 + [1] * 5), torch.rand(12, dtype=torch.float64)
    kept, lr = float(mask.sum()), 0.3  # the divisor, a constant

    def outer(losses):
        return environment_risk(losses, environments)

    def risk_after_a_step(mask):  # an SGD step on a copy, nothing differentiated through it
        copy = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
        copy.double().load_state_dict(before)
        optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
        losses = F.binary_cross_entropy_with_logits(copy(x)[:, 0], y.double(), reduction="none")
        ((mask * losses).sum() / kept).backward()
        optimizer.step()
        losses = F.binary_cross_entropy_with_logits(copy(x)[:, 0], y.double(), reduction="none")
        return float(outer(losses).detach())

    gradient, inner, _ = hypergradient(model, (x, y), mask, lr, outer)
    step = 1e-5 * torch.eye(12, dtype=torch.float64)
    expected = [(risk_after_a_step(mask + d) - risk_after_a_step(mask - d)) / 2e-5 for d in step]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-5,
                               atol=1e-8)
    assert [g.shape for g in inner] == [p.shape for p in model.parameters()]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    tracked = int(model[1].num_batches_tracked)
    assert tracked == 1  # the unrolled pass must not be counted


# --- DiGA ----------------------------------------------------------------------------------------


def test_byol_loss_by_hand():
    predicted = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    target = torch.tensor([[4.0, 3.0], [0.0, 7.0]])
    # cosines 24/25 and 0; the lengths play no part: |p/|p| - t/|t||^2 = 2 - 2 cos
    assert float(byol_loss(predicted, target)) == pytest.approx((2 - 48 / 25 + 2) / 2)
    unit = predicted / predicted.norm(dim=1, keepdim=True) - target / target.norm(
        dim=1, keepdim=True)
    assert float(byol_loss(predicted, target)) == pytest.approx(float((unit**2).sum(1).mean()))


def byol(encoder: nn.Module, features: int, **options) -> BYOL:
    options = DEBIASING["diga"].defaults | {"hidden": 5, "projection": 4} | options
    return BYOL(encoder, features, Recipe(1, 0.1), options=options)


def test_byol_gradient_against_finite_differences():
    torch.manual_seed(0)
    method = byol(nn.Sequential(nn.Linear(3, 6), nn.Tanh()), 6)
    for part in (method.online, method.predictor, method.target):
        part.double()
        for p in part.parameters():  # the target must not agree with the online network
            p.data += 0.3 * torch.randn_like(p)
    method.train_mode()
    pairs = torch.randn(16, 3, dtype=torch.float64)
    method.pair_loss(pairs).backward()
    assert all(p.grad is None for p in method.target.parameters())
    for weights in (method.model[0].weight, method.predictor[0].weight):
        expected = torch.zeros_like(weights)
        for place in np.ndindex(*weights.shape):
            losses = []
            for step in (1e-6, -2e-6):
                weights.data[place] += step
                losses.append(float(method.pair_loss(pairs).detach()))
            weights.data[place] += 1e-6
            expected[place] = (losses[0] - losses[1]) / 2e-6
        torch.testing.assert_close(weights.grad, expected, rtol=1e-5, atol=1e-8)
    swapped = torch.cat([pairs[8:], pairs[:8]])  # both ways round: the order of a pair is nothing
    torch.testing.assert_close(method.pair_loss(swapped), method.pair_loss(pairs))


def test_the_target_network_is_the_moving_average_of_the_online_one():
    torch.manual_seed(0)
    method = byol(nn.Linear(3, 6), 6, target_decay=0.8, byol_lr=0.1)
    expected = [p.detach().clone() for p in method.online.parameters()]
    for _ in range(4):
        method.train_mode()
        method.update((None, torch.randn(8, 3), None, None))
        expected = [0.8 * old + 0.2 * new.detach()
                    for old, new in zip(expected, method.online.parameters(), strict=True)]
    for ours, theirs in zip(method.target.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(method.model.weight, method.online[0].weight)  # what is kept


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch32", "mlp"])
def test_the_encoder_is_the_network_without_its_output_layer(name):
    with torch.device("meta"):  # the shapes without the numbers
        model = backbones.BACKBONES[name](None)
        encoder, features = encoder_of(model)
        x = torch.zeros(2, WIDTH) if name == "mlp" else torch.zeros(2, 3, 32, 32)
        assert encoder.eval()(x).shape == (2, features)
    lost = model.state_dict().keys() - encoder.state_dict().keys()
    assert lost == {f"{output_layer(model)}.{part}" for part in ("weight", "bias")}
    assert model.get_submodule(output_layer(model)).out_features == 1


def test_the_probe_leaves_the_encoder_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    encoder = {name: torch.randn(value.shape).abs() if value.ndim else value
               for name, value in encoder_of(model)[0].state_dict().items()}
    method = DEBIASING["diga"](model, Recipe(1, 0.1, weight_decay=0.1), encoder=encoder,
                               options=DEBIASING["diga"].defaults)
    head = model[3].weight.clone()
    method.train_mode()
    method.update((None, torch.randn(8, 3), torch.tensor([0, 1] * 4), None))
    for name, value in encoder.items():
        assert torch.equal(model.state_dict()[name], value), name
    # Adam's first step is the rate in every entry that has a gradient, whatever the gradient's size
    moved = (model[3].weight - head).abs()
    assert (moved > 0).any()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 1e-3))
    with pytest.raises(ValueError, match="not that of this network"):
        DEBIASING["diga"](model, Recipe(1, 0.1), encoder={"9.weight": head}, options={})


COPIES, PICTURES = 3, 7  # of each side; training images
HEAD = "path,source,protected\n"


@pytest.fixture
def edited(tmp_path) -> tuple[ImageTable, Path]:
    """(seven training images, folder of six edits of each, three a side); edit j of side s of
    image i is grey 30 i + 10 s + 3 j.

    The manifest lists the copies in turn, and one further edit of the first image.
    """
    names = [f"{i}.jpg" for i in range(PICTURES)]
    rows = [(f"e{i}_{s}_{j}.png", f"some/folder/{i}.jpg", s, 30 * i + 10 * s + 3 * j)
            for j in range(COPIES) for s in (1, 0) for i in range(PICTURES)]
    rows.append(("more.png", "0.jpg", 1, 222))
    for file, *_, grey in rows:
        Image.new("RGB", (20, 16), (grey,) * 3).save(tmp_path / file)
    text = "degree,source,path,protected\n" + "".join(
        f"0.5,{source},{file},{side}\n" for file, source, side, _ in rows)
    (tmp_path / "manifest.csv").write_text(text)
    y = [i % 2 for i in range(PICTURES)]
    table = ImageTable("real", [f"/photographs/{name}" for name in names], y, y)
    return table, tmp_path


def test_edits_follow_their_images(edited):
    table, folder = edited
    edits = load_edits(folder, table)
    assert [Path(path).name for path in edits.paths[:7]] == [
        "e0_0_0.png", "e0_0_1.png", "e0_0_2.png", "e0_1_0.png", "e0_1_1.png", "e0_1_2.png",
        "e1_0_0.png"]
    assert edits.y.tolist() == np.repeat(table.y, 2 * COPIES).tolist()
    assert edits.a.tolist() == [0, 0, 0, 1, 1, 1] * PICTURES  # the editor's side, not the image's
    assert len(load_edits(folder, table.take([2, 5]))) == 4 * COPIES


def loader_of(edited, tmp_path, sides, **more) -> EditLoader:
    table, folder = edited
    return EditLoader(load_edits(folder, table), np.array(sides), 2, image_size=16, device="cpu",
                      seed=4, store_dir=tmp_path / "store", **more)


def test_a_pair_is_two_opposite_edits_of_one_image_redrawn_every_epoch(edited, tmp_path):
    sides = [[0] * PICTURES, [1] * PICTURES]
    first, orders, chosen = loader_of(edited, tmp_path, sides, jitter=False), set(), {}
    assert len(first) == 3  # seven images in twos; the last one is dropped
    for k in range(12):
        batches = list(first.epoch(k))
        assert len(batches) == 3
        images = []
        for index, x, y, a in batches:
            assert x.shape == (4, 3, 16, 16)
            image, side, edit = index // 6, index // 3 % 2, index % 3
            grey = ((x + 1) * 127.5).round()
            assert torch.equal(grey.amax((1, 2, 3)), grey.amin((1, 2, 3)))
            assert grey.amax((1, 2, 3)).tolist() == (30 * image + 10 * side + 3 * edit).tolist()
            assert torch.equal(image[:2], image[2:])
            assert side.tolist() == [0, 0, 1, 1]
            assert torch.equal(y, image % 2)
            assert (a == -1).all()
            images += image[:2].tolist()
            for i, one, other in zip(image[:2].tolist(), edit[:2].tolist(), edit[2:].tolist()):
                chosen.setdefault(i, set()).add((one, other))
        assert len(set(images)) == 6
        orders.add(tuple(images))
        again = list(loader_of(edited, tmp_path, sides, jitter=False).epoch(k))  # after a restart
        assert all(torch.equal(p, q) for b, c in zip(batches, again, strict=True)
                   for p, q in zip(b, c, strict=True))
    assert len(orders) == 12
    assert all(len(pairs) > 3 for pairs in chosen.values())
    assert len(set().union(*chosen.values())) == 9  # every edit of one side with every other's


def test_the_probe_sees_the_side_that_it_asks_for(edited, tmp_path):
    sides = [[1, 0, 1, 0, 1, 0, 0]]
    loader = loader_of(edited, tmp_path, sides, jitter=False)
    for index, x, y, _ in (batch for k in range(4) for batch in loader.epoch(k)):
        assert len(x) == len(y) == 2
        assert (index // 3 % 2).tolist() == [sides[0][i] for i in (index // 6).tolist()]


def test_colours_are_jittered_for_pairs_by_seed_epoch_and_image_alone(edited, tmp_path):
    sides = [[0] * PICTURES, [1] * PICTURES]
    plain, loader = (loader_of(edited, tmp_path, sides, jitter=jitter) for jitter in (False, True))
    ours, again, other = list(loader.epoch(1)), list(loader.epoch(1)), list(loader.epoch(2))
    assert all(torch.equal(p[1], q[1]) for p, q in zip(ours, again, strict=True))
    assert not torch.equal(ours[0][1], other[0][1])
    # crops of a grey image do not show: what differs is the colour
    moved = [not torch.allclose(p, q, atol=1e-3) for b, c in zip(ours, plain.epoch(1), strict=True)
             for p, q in zip(b[1], c[1], strict=True)]
    assert any(moved) and not all(moved)  # 80% of 12


def test_jitter_of_a_batch_is_that_of_torchvision_by_hand():
    x = torch.rand(400, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    drawn = torch.rand(400, 6, generator=torch.Generator().manual_seed(1))
    drawn[:, 4] = 0.5  # hue is another plane's here
    jittered, changed, grey = jitter_colours(x, drawn), drawn[:, 0] < 0.8, drawn[:, 5] < 0.2
    for i in range(400):
        image = (x[i] + 1) / 2
        if changed[i]:
            far = (1 + 0.4 * (2 * drawn[i] - 1)).tolist()
            image = functional.adjust_brightness(image, far[1])
            image = functional.adjust_contrast(image, far[2])
            image = functional.adjust_saturation(image, far[3])
        if grey[i]:
            image = functional.rgb_to_grayscale(image, 3)
        torch.testing.assert_close((jittered[i] + 1) / 2, image, atol=2e-3, rtol=0)
    assert 290 < int(changed.sum()) < 350 and 55 < int(grey.sum()) < 105
    drawn[:, 0], drawn[:, 1:4], drawn[:, 4], drawn[:, 5] = 0, 0.5, 0.9, 1  # only the hue
    turned = jitter_colours(x, drawn)
    assert not torch.allclose(turned, x, atol=1e-2)
    weights = torch.tensor([0.299, 0.587, 0.114])
    brightness = [torch.einsum("bchw,c->bhw", image, weights) for image in (x, turned)]
    torch.testing.assert_close(*brightness, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text, words", [
    (None, "cannot be read"),
    ("path,y\n", "lacks the column source, protected"),
    ("path,source\ne0_0_0.png,0.jpg\n", "lacks the column protected"),
    (HEAD + "e0_0_0.png,0.jpg,0\ne0_0_0.png,0.jpg,1\n", "lists e0_0_0.png again"),
    (HEAD + "../e0_0_0.png,0.jpg,0\n", "no path inside"),
    (HEAD + "/e0_0_0.png,0.jpg,0\n", "no path inside"),
    (HEAD + "e0_0_0.png,0.jpg,2\n", "row 1: protected is '2'; it must be 0 or 1"),
    (HEAD + "e0_0_0.png,0.jpg,0\n", "7 of the 7 training images have no edits of both sides"),
    (HEAD + "e0_0_0.png,0.jpg,0\ne0_0_1.png,0.jpg,0\n", "7 of the 7 training images"),
])
def test_a_wrong_manifest_of_edits_is_refused(text, words, edited):
    table, folder = edited
    (folder / "manifest.csv").unlink()
    if text is not None:
        (folder / "manifest.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        load_edits(folder, table)


def test_a_missing_or_ambiguous_edit_is_refused(edited):
    table, folder = edited
    same = ImageTable("real", ["/a/1.jpg", "/b/1.jpg"], [0, 1], [0, 1])
    with pytest.raises(UserError, match="cannot be told apart"):
        load_edits(folder, same)
    (folder / "e3_1_2.png").unlink()
    with pytest.raises(UserError, match="1 missing"):
        load_edits(folder, table)


# --- all of them on a planted correlation --------------------------------------------------------

WIDTH = 6


def toy_table(name: str, count: int, minority: float, seed: int) -> tuple[ImageTable, torch.Tensor]:
    """Vectors: coordinate 0 says a, strongly; coordinate 1 says y, on a third of that scale.

    Gradient descent finds the large one first, which is wrong for the minority where y = a.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    a = np.where(rng.random(count) < minority, y, 1 - y)
    x = rng.normal(size=(count, WIDTH)) * 0.3
    x[:, 0] = (2 * a - 1) + rng.normal(size=count) * 0.5
    x[:, 1] = (2 * y - 1) * 0.3 + rng.normal(size=count) * 0.15
    return ImageTable(name, [str(i) for i in range(count)], y, a), torch.tensor(x).float()


class ToyLoader:
    """The interface of datasets.loader.Loader on vectors; a row's path is its place in x."""

    device = torch.device("cpu")

    delivered, stop_after = 0, None  # training batches, of all loaders; SIGTERM after so many

    def __init__(self, table, x, batch_size, train, seed, groups=None):
        self.table, self.x, self.train, self.seed, self.groups = table, x, train, seed, groups
        self.batch_size = batch_size if train else len(table)

    def __len__(self):
        return len(self.table) // self.batch_size

    def epoch(self, k):
        rng = np.random.default_rng((self.seed, k))
        n = len(self.table)
        rows = rng.permutation(n) if self.train else np.arange(n)
        if self.groups is not None:
            rows = evenly(self.seed, k, self.groups) % n
        place = np.array([int(path) for path in self.table.paths])
        for i in range(len(self)):
            part = torch.from_numpy(rows[i * self.batch_size : (i + 1) * self.batch_size])
            y = torch.from_numpy(self.table.y)[part]
            ToyLoader.delivered += self.train
            if self.train and ToyLoader.delivered == ToyLoader.stop_after:
                PREEMPTION.requested = True
            yield part, self.vectors(torch.from_numpy(place)[part]), y, torch.full_like(y, -1)

    def vectors(self, rows):
        return self.x[rows]


class ToyEdits(ToyLoader):
    """The interface of EditLoader: y's coordinates stay, the one that says a is moved to a side."""

    def __init__(self, data, sides, batch_size, seed):
        super().__init__(data.real, data.x, batch_size, True, seed)
        self.sides, self.rng = torch.from_numpy(sides), None

    def epoch(self, k):
        self.rng = np.random.default_rng((self.seed, k, 1))
        yield from super().epoch(k)

    def vectors(self, rows):
        return torch.cat([edited_vectors(self.x[rows], side[rows], self.rng)
                          for side in self.sides])


def edited_vectors(x, sides, rng):
    edits = x.clone()
    edits[:, 0] = torch.from_numpy(rng.uniform(0, 2, len(x))) * (2 * sides - 1)
    return edits


class ToyData:
    shape, pools, digests = None, (), {}

    def __init__(self, seed, count=600):
        self.real, self.x = toy_table("train", count, 0.1, seed)
        self.val, self.seed = None, seed
        self.edited = ImageTable("edits", [str(i) for i in range(2 * count)],
                                 np.repeat(self.real.y, 2), np.tile([0, 1], count))

    def loader(self, table, *, train, attributes=False, groups=None):
        x = self.x
        if table is self.edited:
            sides = torch.from_numpy(table.a)
            x = edited_vectors(x.repeat_interleave(2, 0), sides, np.random.default_rng(self.seed))
        return ToyLoader(table, x, 60, train, self.seed, groups)


def toy_run(name: str, data: ToyData, seed: int, folder: Path, epochs=12, **options) -> Run:
    config = SimpleNamespace(
        pretrain=Recipe(epochs, 0.1, milestone=9), backbone="mlp", pretrained="none",
        mean=None, std=None,
        device="cpu", autocast=None, compile=False, identity=lambda **_: {},
        checkpoint_seconds=0, batch_size=60, image_size=None, store_dir=None, workers=1,
        min_crop=None, start=None,
    )
    folder.mkdir(exist_ok=True)
    return Run(folder, config, data, seed, folder / "shared", METHODS[name].defaults | options)


def build_mlp(weights: None) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "mlp", build_mlp)
    monkeypatch.setattr(diga_module, "edit_loader", lambda run, sides, size, *, pairs: ToyEdits(
        run.data, sides, size, run.seed))


def run_toy(name: str, data: ToyData, seed: int, folder: Path, epochs=12, **options) -> tuple:
    run = toy_run(name, data, seed, folder, epochs, **(TOY_OPTIONS[name] | options))
    return DEBIASING[name].run(run), run.log


def worst_group(method: Method, seed: int) -> float:
    table, x = toy_table("test", 4000, 0.5, seed + 1000)
    return fairness_metrics((method.predict(x) > 0).long().numpy(), table.y, table.a)["wst"]


# What differs from the papers' values fits 10 batches of 60 vectors an epoch and 12 epochs.
SHORT = {"inference_steps": 1000, "inference_lr": 0.03}
TOY_OPTIONS = {
    "cvar_dro": {"alpha": 0.3}, "eiil": SHORT, "lff": {"lr": 0.03}, "jtt": {},
    "maple": SHORT | {"outer_lr": 0.05},
    "diga": {
        "byol_epochs": 60, "byol_lr": 0.03, "target_decay": 0.9, "hidden": 32, "projection": 8,
        "probe_lr": 0.2, "byol_batch": 60,
    },
}


@pytest.fixture(scope="module", params=[1, *(pytest.param(k, marks=pytest.mark.slow)
                                             for k in (2, 3))])
def erm(request, tmp_path_factory):
    """(seed, worst-group accuracy of ERM): computed once for all baselines."""
    seed, folder = request.param, tmp_path_factory.mktemp("erm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "mlp", build_mlp)
        run = toy_run("erm", ToyData(seed), seed, folder)
        method = Method(new_model(run), run.config.pretrain)
        fit(method, run.data.loader(run.data.real, train=True), None, folder, "erm")
    return seed, worst_group(method, seed)


@pytest.mark.parametrize("name", list(DEBIASING))
def test_worst_group_improves_over_erm(name, erm, tmp_path):
    seed, baseline = erm
    method, log = run_toy(name, ToyData(seed), seed, tmp_path)
    assert log[-1]["epoch"] == 12 and log[-1]["stage"] == METHODS[name].stages[-1]
    assert 0.5 < baseline < 0.95  # ERM learns something, and is biased
    assert worst_group(method, seed) > baseline + 0.01


def tensors_of(value, place="") -> dict:
    """Every number in a nested state, by its place."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {place: value}
    return {k: v for key, part in parts for k, v in tensors_of(part, f"{place}/{key}").items()}


@pytest.mark.parametrize("name", list(DEBIASING))
def test_a_stopped_run_ends_in_the_same_bits(name, tmp_path, monkeypatch):
    def run(folder):
        return run_toy(name, ToyData(1, 240), 1, folder, epochs=3, byol_epochs=1)

    check_resumption(run, tmp_path, monkeypatch)
    stage = tmp_path / "stopped" / "reference"
    kept = ["done", "log.jsonl", "logits.npy"]
    assert not stage.exists() or sorted(p.name for p in stage.iterdir()) == kept


def check_resumption(run, tmp_path, monkeypatch, places=(2, 5)):
    """run(folder), stopped by a SIGTERM after so many batches, and after so many more, ends in the
    bits of a whole run."""
    (tmp_path / "straight").mkdir()
    (tmp_path / "stopped").mkdir()
    monkeypatch.setattr(PREEMPTION, "requested", False)
    monkeypatch.setattr(ToyLoader, "stop_after", None)
    expected, expected_log = run(tmp_path / "straight")
    for after in places:  # 4 batches an epoch: within the first stage, and within the second
        monkeypatch.setattr(ToyLoader, "delivered", 0)
        monkeypatch.setattr(ToyLoader, "stop_after", after)
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path / "stopped")
        assert stopped.value.code == PREEMPTED
        monkeypatch.setattr(PREEMPTION, "requested", False)
    monkeypatch.setattr(ToyLoader, "stop_after", None)
    resumed, log = run(tmp_path / "stopped")
    states = [tensors_of(method.state_dict()) for method in (expected, resumed)]
    assert states[0].keys() == states[1].keys()
    for place, value in states[0].items():
        same = torch.equal(value, states[1][place]) if torch.is_tensor(value) else (
            value == states[1][place])
        assert same, place
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows]
                    for rows in (expected_log, log)]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("name", ["jtt", "eiil", "maple"])
def test_a_reference_without_errors_is_refused(name, tmp_path):
    data = ToyData(1, 240)
    data.x[:, 0] = (2.0 * torch.from_numpy(data.real.y) - 1) * 5  # separable at once
    with pytest.raises(UserError, match="reference model"):
        run_toy(name, data, 1, tmp_path)
    assert not (tmp_path / "reference").exists()  # another length may be tried in this folder


# --- train.py ------------------------------------------------------------------------------------


def test_jtt_from_the_command_line(tmp_path, monkeypatch, capsys):
    data = tiny.make(tmp_path / "data")
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)
    lengths, whole = {}, fit

    def command(results, upweight):
        return tiny.flags(data, results, "--backbone", "tiny", "--pretrain-epochs", 1, "--methods",
                          "jtt", "--set", f"upweight={upweight}", "--paper-table", 1)

    def watch(replacement):
        monkeypatch.setattr(method_module, "fit", replacement)

    def watched(method, loader, val, folder, name, *rest):
        lengths[name] = len(loader.table)
        return whole(method, loader, val, folder, name, *rest)

    watch(watched)
    train.main(command(tmp_path / "unbroken", 5))
    folder = tmp_path / "unbroken" / "tiny" / "jtt" / "seed100"
    config = json.loads((folder / "config.json").read_text())
    assert (config["upweight"], config["first_epochs"]) == (5, 1)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["reference", "train"]
    assert lengths == {"reference": 24, "train": 24 + 5 * log[0]["error_set"]}
    assert "Table 1, JTT" in (folder.parents[1] / "summary.md").read_text()

    def killed(method, loader, val, folder, name, *rest):
        if name == "train":
            raise KeyboardInterrupt
        return whole(method, loader, val, folder, name, *rest)

    def resumed(method, loader, val, folder, name, *rest):
        assert name == "train"  # the first stage is not trained again
        return whole(method, loader, val, folder, name, *rest)

    watch(killed)
    with pytest.raises(SystemExit):
        train.main(command(tmp_path / "killed", 5))
    watch(resumed)
    train.main(command(tmp_path / "killed", 5))
    assert tiny.end_state(tmp_path / "killed") == tiny.end_state(tmp_path / "unbroken")

    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        train.main(command(tmp_path / "killed", 6))
    assert refused.value.code == 2
    assert "upweight was 5 and is now 6" in capsys.readouterr().err


@pytest.mark.parametrize("target, protected", [
    ("Smiling", "Male"), ("Smiling", "Young"), ("Young", "Male")])
def test_every_row_of_table_1_stands_beside_ours(target, protected):
    names = ("erm", *DEBIASING, "aim_fair")
    rows = [paper_row("1", METHODS[name].paper_row, "celeba", target, protected)
            for name in names]
    paper = pd.read_csv(TABLES / "aim_fair.csv", dtype={"table": str})
    paper = paper[(paper.table == "1") & (paper.target == target) & (paper.protected == protected)]
    assert sorted(row["wst"] for row in rows) == sorted(paper.wst)


# --- hyper-parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DEBIASING))
def test_every_hyper_parameter_has_a_range_and_a_name_of_its_own(name):
    method = DEBIASING[name]
    assert method.uses_attributes == "none" and not method.needs_synthetic()
    assert method.ranges.keys() == method.defaults.keys()
    for key, value in method.defaults.items():
        assert method.ranges[key][0] <= value <= method.ranges[key][1]
    flags = {action.dest for action in train.parser()._actions}
    assert not flags & method.defaults.keys()  # both stand in one flat config.json


def test_options_are_read_in_their_types():
    assert parse_options(["upweight=20"], "jtt", *menu("jtt")) == {"upweight": 20}
    assert parse_options(["alpha=1"], "cvar_dro", *menu("cvar_dro")) == {"alpha": 1.0}
    assert parse_options([], "jtt", *menu("jtt")) == {}


def menu(name):
    return DEBIASING[name].defaults, DEBIASING[name].ranges


@pytest.mark.parametrize("pairs, words", [
    (["upweigth=20"], "no such hyper-parameter; it has: first_epochs (1), upweight (50)"),
    (["upweight=2.5"], "must be a whole number"),
    (["upweight=many"], "must be a whole number"),
    (["upweight=-1"], "must lie between 0 and"),
    (["upweight"], "write NAME=VALUE"),
    (["upweight=2", "upweight=3"], "given twice"),
])
def test_wrong_options_are_refused(pairs, words):
    with pytest.raises(UserError) as refused:
        parse_options(pairs, "jtt", *menu("jtt"))
    assert words in str(refused.value)


def test_not_a_number_is_out_of_range():
    with pytest.raises(UserError, match="must lie between"):
        parse_options(["alpha=nan"], "cvar_dro", *menu("cvar_dro"))


@pytest.mark.parametrize("flags, words", [
    (["--methods", "jtt", "--set", "upweigth=2"], "upweigth"),
    (["--methods", "erm", "--set", "alpha=2"], "erm has no such hyper-parameter; it has: none"),
    (["--methods", "jtt", "lff", "--set", "upweight=2"], "write METHOD.upweight=2"),
    (["--methods", "jtt", "lff", "--set", "maple.clip=2"], "maple is none of --methods jtt lff"),
    (["--methods", "diga", "--set", "hidden=0"], "must lie between 1 and"),
])
def test_the_command_line_names_the_mistake(flags, words, capsys):
    with pytest.raises(SystemExit) as refused:
        train.main([*flags, "--device", "cpu"])
    assert refused.value.code == 2
    assert words in capsys.readouterr().err
