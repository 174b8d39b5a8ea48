"""Where the debiasing baselines start, and EIIL's even batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_debiasing import ToyData, check_resumption, run_toy, toy, toy_run, worst_group

from datasets.array_loader import ArrayLoader
from datasets.augment import evenly
from datasets.base import ArrayTable, ImageTable
from datasets.loader import Loader
from models.debiasing import DEBIASING
from models.debiasing.diga import side_of_class_1
from models.method import Method, pretrained

__all__ = ["toy"]  # a fixture of every test here

STARTS = [name for name, method in DEBIASING.items() if "warm_start" in method.defaults]


def test_the_papers_start_is_the_default():
    assert STARTS == ["cvar_dro", "eiil", "maple", "diga"]
    assert all(DEBIASING[name].defaults["warm_start"] == 0 for name in STARTS)


@pytest.mark.parametrize("name", STARTS)
def test_a_warm_start_is_the_shared_erm_model(name, tmp_path):
    (run := toy_run("erm", ToyData(1), 1, tmp_path / "erm")).shared = tmp_path / "shared"
    erm = pretrained(run)
    train_x, train_y = run.data.x, torch.from_numpy(run.data.real.y)
    (run := toy_run(name, ToyData(1), 1, tmp_path / "own", warm_start=1, byol_epochs=1,
                    byol_batch=60, hidden=8, projection=4, inference_steps=100,
                    inference_lr=0.03, outer_lr=0.05, rate=1e-30, byol_lr=1e-30,
                    )).shared = tmp_path / "shared"
    trained = DEBIASING[name].run(run)
    # at a rate of nearly 0 the start is what is left
    kept = [key for key in erm.state_dict() if name != "diga" or not key.startswith("2.")]
    for key in kept:
        torch.testing.assert_close(trained.model.state_dict()[key], erm.state_dict()[key])
    if name != "diga":
        own = (trained.predict(train_x) > 0) == (train_y == 1)
        assert float(own.float().mean()) > 0.9
    stages = [row["stage"] for row in run.log]
    assert stages.count("pretrain") == 12 and stages[-1] == DEBIASING[name].stages[-1]
    assert stages.count("train") == (name != "diga")  # the epochs that warm_start says
    counted = sum(row["passes"] for row in run.log)
    assert run.passes == counted  # the shared model's are among them, once


@pytest.mark.parametrize("name", STARTS)
def test_a_run_that_was_stopped_after_a_warm_start_ends_in_the_same_bits(
    name, tmp_path, monkeypatch
):
    def run(folder):
        return run_toy(name, ToyData(1, 240), 1, folder, epochs=3, byol_epochs=1, warm_start=1)

    check_resumption(run, tmp_path, monkeypatch, places=(2, 5, 3))


@pytest.mark.parametrize("name", ["cvar_dro", "eiil", "maple"])
def test_a_warm_start_repairs_too(name, tmp_path):
    run = toy_run("erm", ToyData(2), 2, tmp_path / "erm")
    baseline = worst_group(Method(pretrained(run), run.config.pretrain), 2)
    method, _ = run_toy(name, ToyData(2), 2, tmp_path / "own", warm_start=12)
    assert worst_group(method, 2) > baseline + 0.01


@pytest.mark.parametrize("turned", [False, True])
def test_the_side_of_a_class_follows_from_the_erm_model_alone(turned, tmp_path):
    data = ToyData(1)
    assert set(data.real.a[data.real.y == 1]) == {0, 1}  # mostly 0: coordinate 0 is low
    data.x[:, 0] *= -1 if turned else 1
    run = toy_run("diga", data, 1, tmp_path)
    assert side_of_class_1(pretrained(run), run) == (1 if turned else 0)


# --- even batches --------------------------------------------------------------------------------

GROUPS = np.array([0] * 43 + [1] * 7)


def test_an_even_epoch_takes_the_groups_in_turn():
    seen = set()
    for k in range(5):
        draws = evenly(3, k, GROUPS)
        rows = draws % 50
        assert GROUPS[rows].tolist() == [0, 1] * 25
        assert len(set(draws.tolist())) == 50  # a sample drawn again is another draw
        assert len(set(rows[::2].tolist())) == 25  # the large group: none twice
        small = rows[1::2].reshape(-1).tolist()
        for i in (0, 7, 14):  # the small one: all of them, in another order, again and again
            assert sorted(small[i : i + 7]) == list(range(43, 50))
        assert small[:7] != small[7:14]
        seen.add(tuple(rows.tolist()))
        assert evenly(3, k, GROUPS).tolist() == draws.tolist()
    assert len(seen) == 5
    used = {row for rows in seen for row in rows}
    assert len(used) > 45  # over the epochs everything is used
    assert (np.diff(np.unique(evenly(3, 0, np.arange(4) % 3) % 4, return_counts=True)[1]) < 2).all()


def test_the_image_loader_crops_each_draw_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(50):
        pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    table = ImageTable("t", [str(tmp_path / f"{i}.png") for i in range(50)], GROUPS, GROUPS)

    def loader(groups):
        return Loader(table, 10, image_size=16, train=True, device="cpu", seed=1, drop_last=True,
                      store_dir=tmp_path / "store", groups=groups)

    even, plain = loader(GROUPS), loader(None)
    batches = list(even.epoch(2))
    assert len(batches) == len(plain) == 5  # as many steps as without groups
    for index, x, y, _ in batches:
        assert y.tolist() == [0, 1] * 5 == GROUPS[index.numpy()].tolist()
        assert len(x) == 10
    plan = even.plan(2)
    for row in range(43, 50):
        boxes = plan.boxes[plan.rows == row]
        assert len(boxes) > 2 and len(np.unique(boxes, axis=0)) == len(boxes)


def test_arrays_are_drawn_evenly_too():
    table = ArrayTable("t", np.arange(50.0)[:, None], GROUPS, GROUPS)
    even = ArrayLoader(table, 10, train=True, device="cpu", seed=1, groups=GROUPS)
    for index, x, y, _ in even.epoch(0):
        assert y.tolist() == [0, 1] * 5 and x[:, 0].tolist() == index.tolist()
    (whole,) = ArrayLoader(table, None, train=True, device="cpu", groups=GROUPS).epoch(0)
    assert whole[0].tolist() == list(range(50))  # one batch of all, as it is


def test_eiils_batches_are_even(tmp_path):
    run = toy_run("eiil", ToyData(1), 1, tmp_path, inference_steps=1000, inference_lr=0.03)
    eiil = DEBIASING["eiil"]
    eiil.reference(run)
    eiil.inference(run)
    environments = eiil.arguments(run)["environments"]
    assert 0.05 < environments.mean() < 0.95 and abs(environments.mean() - 0.5) > 0.1
    batches = list(eiil.batches(run).epoch(0))
    assert len(batches) == 10  # as many as ERM's
    assert all(environments[index.numpy()].sum() == 30 for index, *_ in batches)
