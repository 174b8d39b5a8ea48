"""Figure 6: the features are the network's, the probes tell what is there, the panels show it."""

from __future__ import annotations

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiny
import torch
from refusals import refused

import train
from datasets.base import GROUPS, ImageTable
from datasets.loader import Loader
from models import backbones, heads, tsne
from models.features import Features, penultimate
from utils.reporting.plots import STYLE
from utils.reporting.report import write_report


def features(n=300, dimensions=20, seed=0, **labels) -> Features:
    """Noise features float32 [n, dimensions] with labels drawn evenly, or as given."""
    rng = np.random.default_rng(seed)
    y, a = (labels.get(name, rng.integers(0, 2, n)) for name in ("y", "a"))
    return Features(rng.normal(size=(n, dimensions)).astype(np.float32), y, a)


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(backbones.BACKBONES))
def test_features_are_what_the_output_layer_is_given(name, tmp_path):
    rng, paths = np.random.default_rng(0), []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        tiny.face(rng, number % 2, 0).save(paths[-1])
    torch.manual_seed(0)
    model = backbones.BACKBONES[name](None)
    loader = Loader(ImageTable("faces", paths, [0, 1, 0], [0, 0, 0]), 2, image_size=28,
                    train=False, device="cpu", store_dir=tmp_path)
    values = torch.from_numpy(penultimate(model, loader))
    head = model.get_submodule(heads.output_layer(model))
    assert values.shape == (3, head.in_features) and values.dtype == torch.float32
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for _, x, _, _ in loader.epoch(0)])
        torch.testing.assert_close(head(values.to(logits.dtype)), logits)
    assert logits.std() > 0 and not head._forward_pre_hooks




# --- probes --------------------------------------------------------------------------------------


def test_the_probes_do_not_find_what_is_not_there():
    told = tsne.probe(features(600))
    assert all(abs(value - 0.5) < 0.07 for value in told.values()), told
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 2400)  # y is in the features, and a is y for nine of ten
    given = features(2400, y=y, a=np.where(rng.random(2400) < 0.9, y, 1 - y))
    given.values[:, 0] += 8 * given.y
    told = tsne.probe(given)
    assert all(abs(value - 0.5) < 0.07 for value in told.values()), told


def test_the_probes_find_what_is_planted():
    near = features(400)
    near.values[:, 0] += 12 * near.a * np.where(near.y == 1, 1, -1)  # another way in each class
    assert min(tsne.probe(near).values()) > 0.97
    wide = features(400, dimensions=40)
    wide.values[:, 1:] *= 30  # drowns the planted direction for a distance, not for a line
    wide.values[:, 0] += 8 * wide.a
    told = tsne.probe(wide)
    assert told["linear"] > 0.97 and abs(told["neighbours"] - 0.5) < 0.12
    few = features(60, a=np.r_[np.ones(50, int), np.zeros(10, int)])
    assert np.isnan(list(tsne.probe(few).values())).all()


# --- points and panels ---------------------------------------------------------------------------


def test_at_most_so_many_points_of_each_group_are_drawn():
    y, a = np.repeat(GROUPS, (3, 20, 40, 8), axis=0).T
    rows = tsne.draw_rows(y, a, 8, seed=1)
    assert [((y[rows] == i) & (a[rows] == j)).sum() for i, j in GROUPS] == [3, 8, 8, 8]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == tsne.draw_rows(y, a, 8, seed=1).tolist()
    assert rows.tolist() != tsne.draw_rows(y, a, 8, seed=2).tolist()


def test_tsne_parts_planted_clusters_and_repeats_itself():
    given = features(80, dimensions=60)
    given.values[:, 0] += 40 * given.a
    places = tsne.embed(given.values, seed=3)
    assert places.shape == (80, 2)
    centres = np.array([places[given.a == value].mean(axis=0) for value in (0, 1)])
    distance = np.linalg.norm(places[:, None] - centres, axis=2)
    assert (distance.argmin(axis=1) == given.a).all()
    assert (places == tsne.embed(given.values, seed=3)).all()


def test_a_panel_for_every_row_shows_its_groups_and_numbers():
    shown = features(50)
    places = np.arange(100.0).reshape(50, 2)
    told = {"erm": {"neighbours": {1: 0.7, 2: 0.8}, "linear": {1: 0.9, 2: 0.9}},
            "aim_fair": {"neighbours": {1: 0.5}, "linear": {1: float("nan")}}}
    with plt.rc_context(STYLE):
        points = {"erm": (places, shown), "aim_fair": (-places, shown)}
        figure = tsne.panels(points, told, ("Smiling", "Male"))
    assert [axis.get_title() for axis in figure.axes] == ["erm", "aim_fair"]
    for axis, sign in zip(figure.axes, (1, -1), strict=True):
        for (y, a), dots in zip(GROUPS, axis.collections, strict=True):
            here = (shown.y == y) & (shown.a == a)
            assert (dots.get_offsets() == sign * places[here]).all() and here.sum() > 5
            assert dots.get_label().endswith(f" ({here.sum()})")
    left, right = (axis.get_xlabel() for axis in figure.axes)
    assert "nearest images: 75.0 ± 7.1%" in left and "linear probe: 90.0 ± 0.0%" in left
    assert "nearest images: 50.0%" in right and "linear probe: n/a" in right
    assert tsne.TOO_FEW in right and tsne.TOO_FEW not in left
    colours = {dots.get_facecolor()[0].tobytes() for dots in figure.axes[0].collections}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(colours) == 4 and labels[2].startswith("Smiling, not Male")
    title = figure.legends[0].get_title().get_text()
    assert "seed 1;" in title and "2 seeds" in title
    plt.close(figure)


# --- from runs to the figure ---------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_legend_lies_within_the_figure(rows):
    shown, told = features(50), {"neighbours": {1: 0.5, 2: 0.5}, "linear": {1: 0.5, 2: 0.5}}
    names = [f"row{number}" for number in range(rows)]
    with plt.rc_context(STYLE):
        figure = tsne.panels({name: (np.arange(100.0).reshape(50, 2), shown) for name in names},
                             dict.fromkeys(names, told), ("Wearing_Hat", "Eyeglasses"))
        figure.canvas.draw()
        legend = figure.legends[-1].get_window_extent()
    assert len(figure.legends) == 1 and legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    plt.close(figure)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, results/tiny) with two finished runs of train.py: erm, seeds 1 and 2."""
    data = tiny.make(tmp_path_factory.mktemp("tsne"))
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        tiny.without_pictures(patch)
        train.main(tiny.flags(data, data / "results", "--backbone", "tiny", "--methods", "erm",
                              "--seeds", 1, 2, "--pretrain-epochs", 6, "--pretrain-lr", 0.05))
    return data, data / "results" / "tiny"


@pytest.fixture
def setting(trained, tmp_path, monkeypatch):
    tiny.with_network(monkeypatch)
    shutil.copytree(trained[1], tmp_path / "tiny")
    return tmp_path / "tiny"


def command(setting, root, *more):
    return [str(word) for word in (setting, "--rows", "erm", "--data-root", root, "--device", "cpu",
                                   "--store-dir", setting.parent / "store", *more)]


def test_the_figure_comes_from_the_runs_and_features_are_kept(trained, setting, capsys):
    root = trained[0] / "celeba"
    tsne.main(command(setting, root, "--points", 3))
    assert "| erm |     2 |" in capsys.readouterr().out
    figures = setting / "figures"
    assert {path.name for path in figures.iterdir()} == {
        "tsne.png", "tsne.pdf", "features_erm_seed1.npz", "features_erm_seed2.npz"}
    run = setting / "erm" / "seed1"
    saved = torch.load(run / "classifier.pt", weights_only=True)["model"]
    with np.load(figures / "features_erm_seed1.npz") as file:
        logits = file["features"] @ saved["fc.weight"].numpy().T + saved["fc.bias"].numpy()
        right = (logits[:, 0] > 0) == file["y"]
        assert 0.5 < right.mean() < 1
        first = file["features"]
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    assert right.mean() == pytest.approx(metrics["acc"])  # these images, these weights, this order
    assert "t-SNE of the test images" in write_report(setting).read_text()

    before = {path.name: path.read_bytes() for path in figures.iterdir()}
    tsne.main(command(setting, setting / "nowhere", "--points", 3))  # reads no image
    assert before == {path.name: path.read_bytes() for path in figures.iterdir()}

    checkpoint = torch.load(run / "classifier.pt", weights_only=True)
    checkpoint["model"]["conv1.weight"] *= -1
    torch.save(checkpoint, run / "classifier.pt")
    refused(capsys, tsne.main, command(setting, setting / "nowhere"), names="nowhere", out=setting)
    tsne.main(command(setting, root))
    with np.load(figures / "features_erm_seed1.npz") as file:
        assert np.abs(file["features"] - first).max() > 0.01
    assert (figures / "features_erm_seed2.npz").read_bytes() == before["features_erm_seed2.npz"]


def test_mistakes_are_one_sentence(trained, setting, capsys):
    root = trained[0] / "celeba"
    for more, names in (
        (["--rows", "erm", "aim_fair"], "aim_fair"),
        (["--seeds", "1", "7"], "--seeds 7"),
        (["--seeds", "one"], "--seeds"),
        (["--points", "1"], "--points"),
        (["--seed", "-1"], "--seed"),
        (["--data-root", setting / "none"], "none"),
    ):
        refused(capsys, tsne.main, command(setting, root, *more), names=names, out=setting)
    refused(capsys, tsne.main, command(setting / "erm", root), names="erm")
    other = setting.parent / "other"
    shutil.copytree(root, other)
    shutil.copy(other / "img_align_celeba" / "000001.jpg", other / "img_align_celeba/000070.jpg")
    refused(capsys, tsne.main, command(setting, other), names="--data-root", out=setting)
    (setting / "erm" / "seed2" / "classifier.pt").write_bytes(b"no weights")
    arguments = command(setting, root, "--seeds", 2)
    refused(capsys, tsne.main, arguments, names="seed2/classifier.pt", out=setting)
    (setting / "erm" / "seed2" / "classifier.pt").unlink()
    refused(capsys, tsne.main, arguments, names="seed2/classifier.pt", out=setting)
    (setting / "erm" / "seed2" / "config.json").unlink()
    refused(capsys, tsne.main, arguments, names="seed2", out=setting)
