"""Samples in memory: tables of arrays, their batches, and the small networks that take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets import ci_mnist, tabular
from datasets.array_loader import ArrayLoader
from datasets.augment import shuffled
from datasets.base import ArrayTable, save_list
from models import backbones, heads
from utils.errors import UserError

SAMPLE = Path(__file__).parent / "mnist"  # 240 and 40 digits


def table(count: int = 10, seed: int = 0) -> ArrayTable:
    generator = np.random.default_rng(seed)
    return ArrayTable("t", generator.normal(size=(count, 3)), generator.integers(2, size=count),
                      generator.integers(2, size=count), ("age", "job=a", "job=b"))


# --- tables --------------------------------------------------------------------------------------


def test_a_table_keeps_samples_labels_and_rows_together(tmp_path):
    whole = table()
    some = whole.take([4, 1, 4])
    assert np.array_equal(some.x, whole.x[[4, 1, 4]]) and some.rows.tolist() == [4, 1, 4]
    assert some.take([1]).rows.tolist() == [1] and some.columns == whole.columns
    assert (some.withheld().a == -1).all() and np.array_equal(some.withheld().x, some.x)
    for (y, a), count in whole.counts().items():
        assert count == ((whole.y == y) & (whole.a == a)).sum()
    assert whole.blocks() == ((1, 2),)
    save_list(some, tmp_path / "list.csv")
    lines = (tmp_path / "list.csv").read_text().splitlines()
    assert lines == ["row,y,a", *(f"{r},{whole.y[r]},{whole.a[r]}" for r in (4, 1, 4))]
    with pytest.raises(ValueError, match="t: 2 samples, 3 y and 2 a labels"):
        ArrayTable("t", np.zeros((2, 1)), np.zeros(3), np.zeros(2))


def test_a_digest_is_of_features_and_labels():
    whole = table()
    assert whole.digest() == table().digest() == whole.take(range(10)).digest()
    moved = ArrayTable("t", whole.x + 1e-12, whole.y, whole.a, whole.columns)
    turned = ArrayTable("t", whole.x, 1 - whole.y, whole.a, whole.columns)
    others = {t.digest() for t in (whole, moved, turned, whole.withheld(), whole.take([0, 1]))}
    assert len(others) == 5


@pytest.mark.parametrize("name", list(tabular.TABLES))
def test_a_tabular_set_is_split_by_the_seed(name):
    pair = tabular.ATTRIBUTES[name]
    parts = tabular.load(name, "anywhere", *pair, seed=3)
    own = tabular.split(tabular.read(name), 3)
    for one, other in ((parts.train, own.train), (parts.val, own.val), (parts.test, own.test)):
        assert np.array_equal(one.x, other.x) and np.array_equal(one.rows, other.rows)
    rows = np.concatenate([part.rows for part in (parts.train, parts.val, parts.test)])
    assert np.array_equal(np.sort(rows), np.arange(len(rows)))  # every row once
    assert not np.array_equal(tabular.load(name, "", *pair, seed=4).train.rows, parts.train.rows)
    assert tabular.load(name, "", *pair, seed=3, val="none").val is None
    with pytest.raises(UserError, match=f"target is {pair[0]} and its protected attribute {pair[1]}"
                                        ", not Smiling and Male; leave out --target"):
        tabular.load(name, "", "Smiling", "Male")
    with pytest.raises(ValueError, match="'official' or 'none', not 'some'"):
        tabular.load(name, "", *pair, val="some")


def test_digits_are_bytes_and_their_rows_are_the_files():
    parts = ci_mnist.load("class", SAMPLE, *ci_mnist.ATTRIBUTES, seed=1)
    own = ci_mnist.read(SAMPLE, "class", 1)
    assert np.array_equal(parts.train.x, own.train.x) and parts.train.x.dtype == np.uint8
    assert len(parts.train) < 200 and (np.diff(parts.train.rows) > 0).all()
    assert ci_mnist.load("class", SAMPLE, "even", "red", val="none").val is None
    with pytest.raises(UserError, match="CI-MNIST's target is even"):
        ci_mnist.load("class", SAMPLE, "red", "even")


# --- batches -------------------------------------------------------------------------------------


def test_an_epoch_has_every_sample_once_in_the_image_loaders_order():
    whole = table(50)
    loader = ArrayLoader(whole, 16, train=True, device="cpu", seed=7, attributes=True)
    assert len(loader) == 4
    orders = []
    for k in (0, 1):
        batches = list(loader.epoch(k))
        assert [len(batch[0]) for batch in batches] == [16, 16, 16, 2]
        index, x, y, a = (torch.cat(part) for part in zip(*batches, strict=True))
        assert np.array_equal(index, shuffled(7, k, 50))
        for got, held in ((x, whole.x), (y, whole.y), (a, whole.a)):
            assert np.array_equal(got, held[index])
        assert x.dtype == torch.float64
        orders.append(index.tolist())
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(50))
    again = [batch[0].tolist() for batch in loader.epoch(1)]
    assert sum(again, []) == orders[1]  # an epoch does not depend on what was read before


def test_evaluation_and_whole_batches_are_in_table_order():
    whole = table(50)
    for loader in (ArrayLoader(whole, 20, train=False, device="cpu"),
                   ArrayLoader(whole, None, train=True, device="cpu", seed=7)):
        index, x, _, a = (torch.cat(part) for part in zip(*loader.epoch(5), strict=True))
        assert index.tolist() == list(range(50)) and np.array_equal(x, whole.x)
        assert (a == -1).all()  # not granted
    assert len(ArrayLoader(whole, None, train=True, device="cpu")) == 1
    with pytest.raises(ValueError, match="batch size is 0"):
        ArrayLoader(whole, 0, train=True, device="cpu")
    with pytest.raises(UserError, match="t has no samples"):
        ArrayLoader(whole.take([]), 4, train=True, device="cpu")


def test_bytes_become_numbers_between_0_and_1():
    part = ci_mnist.read(SAMPLE, "shift", 1).train
    (_, x, _, _), = ArrayLoader(part, None, train=True, device="cpu").epoch(0)
    assert x.dtype == torch.float32 and x.shape == (200, 3, 28, 28)
    assert np.allclose(x.numpy(), part.x / 255, atol=1e-6)


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters", "features"), [
    ("logistic", 2352 + 1, 2352),
    ("mlp", 2352 * 64 + 64 + 65, 64),
    ("digit_cnn", (75 * 10 + 10) + (250 * 20 + 20) + (320 * 50 + 50) + 51, 50),
    ("digit_lenet",
     (75 * 6 + 6) + (150 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + 85, 84),
])
def test_the_small_networks_are_the_papers(name, parameters, features):
    model = backbones.build(name, "none", (3, 28, 28))
    assert sum(p.numel() for p in model.parameters()) == parameters
    if name != "logistic":
        assert f"{parameters:,} parameters" in backbones.SMALL[name].make.__doc__
    head = model.get_submodule(heads.output_layer(model))
    assert isinstance(head, nn.Linear) and head.in_features == features
    x = torch.rand(5, 3, 28, 28)
    assert model(x).shape == (5, 1) and model[:-1](x).shape == (5, features)
    kernels = [m.kernel_size for m in model if isinstance(m, nn.Conv2d)]
    assert kernels == [(5, 5)] * {"digit_cnn": 2, "digit_lenet": 3}.get(name, 0)


@pytest.mark.parametrize(("name", "dtype"), [("logistic", torch.float64), ("mlp", torch.float32)])
def test_networks_of_features_take_any_shape_and_keep_their_type(name, dtype):
    for shape in ((7,), (3, 16, 16)):
        model = backbones.build(name, "none", shape)
        for given in (torch.float64, torch.float32):
            assert model(torch.rand(4, *shape, dtype=given)).dtype == dtype


def test_a_network_that_does_not_fit_the_samples_is_refused():
    for name, pretrained, shape, said in (
        ("digit_cnn", "none", (7,), "takes images of 3x28x28, not rows of 7 features"),
        ("digit_lenet", "none", (3, 64, 64), "images of 3x28x28, not images of 3x64x64"),
        ("resnet18", "none", (7,), "takes images, not rows of 7 features: choose logistic or mlp"),
        ("mlp", "imagenet", (7,), "--pretrained imagenet: mlp starts from random weights"),
    ):
        with pytest.raises(UserError, match=said):
            backbones.build(name, pretrained, shape)
