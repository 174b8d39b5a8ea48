"""Synthetic images against photographs: each measure by its definition, and the audit's files."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from refusals import refused
from scipy.linalg import sqrtm

from datasets import celeba
from models.backbones import BACKBONES
from stable_diffusion import audit, correlate, judges, quality
from utils.metrics import GROUPS


def noise(n: int, width: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, width)).astype(np.float32)


# --- the measures --------------------------------------------------------------------------------


def test_fid_is_the_frechet_distance_of_the_fitted_gaussians():
    real, synthetic = noise(50), noise(40, seed=1, shift=0.7) * np.arange(1, 7)
    first, second = np.cov(real.T), np.cov(synthetic.T)
    means = np.sum((real.mean(0) - synthetic.mean(0)) ** 2)
    expected = means + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert quality.fid(real, synthetic) == pytest.approx(expected, rel=1e-4)
    assert quality.fid(real, real) == pytest.approx(0, abs=1e-4)
    assert quality.fid(real, real + 2) == pytest.approx(4 * 6, rel=1e-4)


def test_kid_is_the_unbiased_mean_discrepancy_of_a_cubic_kernel():
    real, synthetic = noise(20).astype(float), noise(20, seed=1, shift=0.5).astype(float)

    def kernel(one, other):
        return (one @ other.T / 6 + 1) ** 3

    pairs = 20 * 19
    expected = sum((k := kernel(x, x)).sum() - np.trace(k) for x in (real, synthetic)) / pairs
    expected -= 2 * kernel(real, synthetic).mean()
    assert quality.kid(real, synthetic) == pytest.approx(expected, rel=1e-6)


def test_kid_of_one_distribution_is_around_zero_and_the_same_each_time():
    real, synthetic = noise(400), noise(300, seed=1)
    state = torch.random.get_rng_state()
    first = quality.kid(real, synthetic)
    assert abs(first) < 0.05 < quality.kid(real, noise(300, seed=1, shift=0.5))
    assert quality.kid(real, synthetic) == first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mean_distance_is_that_of_all_pairs():
    values = noise(7)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j]
    assert quality.mean_distance(values) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert quality.mean_distance(np.ones((5, 3))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("width", [4, 40])
def test_the_vendi_score_counts_different_images(width):
    kinds = np.eye(width)[:3] * [[1], [2], [5]]  # their lengths do not matter
    assert quality.vendi_score(kinds) == pytest.approx(3)
    assert quality.vendi_score(np.repeat(kinds, 6, axis=0)) == pytest.approx(3)
    assert quality.vendi_score(np.repeat(kinds[:1], 6, axis=0)) == pytest.approx(1)


def test_density_and_coverage_by_their_definition():
    real, synthetic = noise(30), noise(30, seed=1)
    between = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(between, axis=1)[:, 5]  # the first is the photograph itself
    inside = np.linalg.norm(real[:, None] - synthetic[None], axis=2) <= radius[:, None]
    density, coverage = quality.density_and_coverage(real, synthetic)
    assert density == pytest.approx(inside.sum() / (5 * 30))
    assert coverage == pytest.approx(inside.any(1).mean())
    assert quality.density_and_coverage(real, real)[1] == 1
    assert quality.density_and_coverage(real, real + 100) == (0, 0)


def test_too_few_images_are_nan_not_a_number():
    one = noise(1)
    assert math.isnan(quality.fid(noise(9), one)) and math.isnan(quality.kid(noise(9), one))
    assert math.isnan(quality.mean_distance(one)) and math.isnan(quality.vendi_score(one[:0]))
    assert all(map(math.isnan, quality.density_and_coverage(noise(9), noise(5))))


def test_copies_are_near_copies_and_new_images_are_not():
    real = {group: noise(60, 12, seed) for seed, group in enumerate(GROUPS)}
    unseen = {group: noise(60, 12, 10 + seed) for seed, group in enumerate(GROUPS)}
    images = {group: noise(60, 12, 20 + seed) for seed, group in enumerate(GROUPS)}
    images[0, 1] = np.concatenate([real[1, 1][7:8] + 1e-4, images[0, 1]])  # of another group
    images[1, 0] = images[1, 0][:0]
    groups, rows, distances = quality.by_group(real, unseen, images)
    assert list(groups) == ["0_0", "0_1", "1_1", "all"]
    assert rows[60] == 3 * 60 + 7 and distances[60] < 1e-5
    assert 1 / 61 <= groups["0_1"]["near_copies"] < 0.1 and groups["1_1"]["near_copies"] < 0.1
    assert groups["all"]["synthetic"] == 181 and groups["0_0"]["real"] == 60
    nothing = {group: noise(0, 12) for group in GROUPS}
    alone, _, _ = quality.by_group(real, nothing, images)
    assert math.isnan(alone["all"]["near_copies"]) and math.isnan(alone["all"]["fid_held_out"])
    assert alone["all"]["fid"] == groups["all"]["fid"]


def test_diversity_of_each_prompts_own_images():
    values = np.array([[1, 0], [0, 1], [2, 0], [0, 3]], np.float32)
    first, second = quality.per_prompt(values, ["a", "b", "a", "a"])
    assert (first["prompt"], first["images"], second["images"]) == ("a", 3, 1)
    assert first["distance"] == pytest.approx(2 / 3) and first["vendi"] > 1.5
    assert math.isnan(second["distance"]) and second["vendi"] == pytest.approx(1)


# --- the networks --------------------------------------------------------------------------------


def checkpoint(path, backbone: str = "resnet18_quarter", target: str = "Smiling"):
    torch.manual_seed(0)
    model = BACKBONES[backbone](None).eval()
    torch.save({"model": model.state_dict(), "backbone": backbone, "target": target,
                "image_size": 32}, path)
    return model


@pytest.mark.parametrize("backbone", ["resnet18_quarter", "resnet18_h128", "vit_small_patch32"])
def test_a_classifiers_features_are_what_its_last_layer_is_given(backbone, tmp_path):
    model = checkpoint(tmp_path / "judge.pt", backbone)
    pictures = [tiny.face(np.random.default_rng(seed), 0, 1) for seed in range(3)]
    device = torch.device("cpu")
    values = judges.classifier_features(tmp_path / "judge.pt", device).values(pictures)
    logits = judges.load_judge(tmp_path / "judge.pt", device).logits(pictures)
    head = [part for part in model.modules() if isinstance(part, torch.nn.Linear)][-1]
    assert values.shape == (3, head.in_features)
    with torch.inference_mode():
        assert torch.allclose(head(values).squeeze(1), logits, atol=1e-5)


def test_a_timm_models_features_come_in_order_and_do_not_depend_on_the_batch():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0)
    features = judges.timm_features(model, "timm:resnet10t", torch.device("cpu"))
    pictures = [tiny.face(np.random.default_rng(seed), seed, 1) for seed in range(2)]
    both = features.values(pictures)
    assert both.shape == (2, model.num_features) and not torch.allclose(*both)
    assert torch.allclose(both[1], features.values(pictures[1:])[0], atol=1e-5)


def test_without_inception_the_judge_gives_the_features(tmp_path, monkeypatch, capsys):
    weights = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"damaged")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoint(tmp_path / "judge.pt")
    features = judges.load_features("auto", [tmp_path / "judge.pt"], torch.device("cpu"))
    assert features.name == str(tmp_path / "judge.pt")
    assert "inception cannot be loaded" in capsys.readouterr().out
    with pytest.raises(judges.UserError, match="pip install torch-fidelity"):
        judges.load_features("auto", [], torch.device("cpu"))


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny data with a manifest; the third image of 1_0 is a photograph of training."""
    root = tiny.make(tmp_path_factory.mktemp("quality"))
    folder = root / "synthetic" / "Smiling_Male"
    with Image.open(root / "celeba" / "img_align_celeba" / "000005.jpg") as photograph:
        photograph.save(folder / "1_0" / "00002.png")
    rows = [f"{p.parent.name}/{p.name},{p.parent.name.replace('_', ',')},face {int(p.stem) % 2}"
            for p in sorted(folder.glob("*/*.png"))]
    (folder / "manifest.csv").write_text("\n".join(["path,y,a,prompt", *rows]) + "\n")
    checkpoint(root / "judge.pt")
    return root


def arguments(root, *more) -> list[str]:
    fixed = ["--images", root / "synthetic", "--dataset", "celeba", "--data-root", root / "celeba",
             "--features", root / "judge.pt", "--grid", 2, "--device", "cpu", *more]
    return [str(argument) for argument in fixed]


def test_the_audit_compares_with_the_training_photographs(made, capsys):
    audit.main(arguments(made))
    folder = made / "synthetic" / "Smiling_Male"
    report = json.loads((folder / "audit.json").read_text())["quality"]
    assert report["features"] == str(made / "judge.pt")
    assert report["photographs"] == "48 training photographs of celeba"
    assert {name: (row["synthetic"], row["real"], row["held_out"])
            for name, row in report["groups"].items()} == {
        **{f"{y}_{a}": (14, 12, 4) for y, a in GROUPS}, "all": (56, 48, 16)}
    assert all(row["fid"] > 0 and row[name] is not None
               for row in report["groups"].values() for name in correlate.MEASURES)
    assert [(row["prompt"], row["images"]) for row in report["prompts"]["0_1"]] == [
        ("face 0", 7), ("face 1", 7)]
    rows = list(csv.DictReader((folder / "nearest.csv").open()))
    assert len(rows) == 56
    copy = min(rows, key=lambda row: float(row["distance"]))
    assert copy["path"] == "1_0/00002.png" and copy["real"].endswith("000005.jpg")
    assert report["closest"][0]["path"] == copy["path"] and len(report["closest"]) == 20
    with Image.open(folder / "closest.png") as sheet:
        left, right = (np.asarray(sheet, float)[:120, x : x + 120] for x in (0, 128))
    assert np.abs(left - right).mean() < 2  # the first pair is the photograph and its copy
    out = capsys.readouterr().out
    assert "against 48 training photographs of celeba, in features of" in out


def test_fewer_photographs_are_drawn_the_same_each_time(made, tmp_path):
    def run(folder):
        shutil.copytree(made / "synthetic", folder)
        audit.main(["--images", str(folder), *arguments(made, "--photographs", 7)[2:]])
        return (folder / "Smiling_Male" / "audit.json").read_text()

    first = run(tmp_path / "a")
    assert json.loads(first)["quality"]["groups"]["all"]["real"] == 28
    assert run(tmp_path / "b") == first


def test_photographs_without_a_validation_part_hold_nothing_out(made, tmp_path):
    shutil.copytree(made / "synthetic", tmp_path / "synthetic")
    (tmp_path / "own").mkdir()
    lines = ["file_name,Smiling,Male,split"]
    for number, name in enumerate(sorted((made / "celeba" / "img_align_celeba").iterdir())[:12]):
        shutil.copy(name, tmp_path / "own")
        part = "train" if number < 8 else "test"
        lines.append(f"{name.name},{number % 2},{number // 2 % 2},{part}")
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(lines) + "\n")
    audit.main(["--images", str(tmp_path / "synthetic"), "--dataset", "folder", "--data-root",
                str(tmp_path / "own"), *arguments(made)[6:]])
    report = json.loads((tmp_path / "synthetic" / "Smiling_Male" / "audit.json").read_text())
    groups = report["quality"]["groups"]
    assert (groups["all"]["real"], groups["all"]["held_out"]) == (8, 0)
    assert groups["all"]["fid"] > 0 and groups["all"]["fid_held_out"] is None
    assert groups["all"]["near_copies"] is None


@pytest.mark.parametrize(("wrong", "names"), [
    (["--dataset", "adult"], "--dataset adult"),
    (["--dataset", "faces"], "--dataset faces"),
    (["--data-root", "nowhere"], "nowhere"),
    (["--photographs", "5"], "--photographs"),
    (["--positive", "man"], "--positive"),
    (["--features", "nowhere.pt"], "--features nowhere.pt"),
    (["--features", "timm:no_such_model"], "--features timm:no_such_model"),
    (["--features", "timm:resnet10t"], "--features timm:resnet10t"),  # the hub is out of reach
])
def test_a_wrong_comparison_is_one_sentence(wrong, names, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, audit.main, arguments(made, *wrong), names=names, out=made)


@pytest.mark.parametrize("flags", [["--features", "inception"], ["--photographs", "7"],
                                   ["--positive", "man"], ["--data-root", "."]], ids=str)
def test_a_flag_of_the_comparison_needs_photographs(flags, made, capsys):
    refused(capsys, audit.main, ["--images", made / "synthetic", *flags],
            names=f"{flags[0]} is of the comparison", out=made)


def test_the_audit_takes_the_words_of_ones_own_labels(made, tmp_path):
    lists = celeba.read_table(made / "celeba")
    rows = [(name, row.Smiling, "man" if row.Male > 0 else "woman",
             celeba.PARTITIONS[row.partition]) for name, row in lists.iterrows()]
    photos = Path(shutil.copytree(celeba.image_folder(made / "celeba"), tmp_path / "photos"))
    pd.DataFrame(rows, columns=["file_name", "Smiling", "Male", "split"]).to_csv(
        photos / "metadata.csv", index=False)
    images = shutil.copytree(made / "synthetic", tmp_path / "images")
    audit.main(["--images", str(images), *arguments(made)[2:], "--dataset", "folder",
                "--data-root", str(photos), "--positive", "man"])
    report = json.loads((images / "Smiling_Male" / "audit.json").read_text())["quality"]
    assert report["photographs"] == "48 training photographs of folder"


# --- over prompt sets ----------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    """The flags of four sets: the worst group gains with the Vendi score; coverage is the same."""
    flags = []
    for number, wst in enumerate((0.5, 0.6, 0.7, 0.8)):
        images, runs = tmp_path / f"set{number}", tmp_path / "results" / f"rows{number}"
        values = dict.fromkeys(correlate.MEASURES, 1.0)
        values |= {"vendi": 3.0 + number, "fid": 30.0 - number, "near_copies": None}
        images.mkdir()
        groups = {"0_0": {"agreement": {"Smiling": 0.9}}, "0_1": {"agreement": {"Smiling": 0.7}}}
        (images / "audit.json").write_text(json.dumps(
            {"cells": groups, "quality": {"features": "inception", "groups": {"all": values}}}))
        for seed, change in ((1, -0.05), (2, 0.05)):
            test = dict.fromkeys(correlate.METRICS, 0.5) | {"wst": wst + change}
            test |= {key: {f"{y}_{a}": 1 for y, a in GROUPS}
                     for key in ("group_acc", "group_count")}
            (runs / f"seed{seed}").mkdir(parents=True)
            (runs / f"seed{seed}" / "metrics.json").write_text(json.dumps({"test": test}))
        flags += ["--set", str(images), str(runs)]
    return flags


def test_measures_are_correlated_with_the_worst_group(sets, tmp_path, capsys):
    correlate.main([*sets, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    row = found["sets"][sets[4]]
    assert (row["wst"], row["vendi"], row["agreement"]) == pytest.approx((60, 4, 0.8))
    assert found["correlations"]["vendi"] == pytest.approx({"tau": 1, "p": 2 / 24})
    assert found["correlations"]["fid"]["tau"] == pytest.approx(-1)
    assert found["correlations"]["near_copies"] == {"tau": None, "p": None}  # not known
    assert found["correlations"]["coverage"]["tau"] is None  # never differs
    assert "over 4 sets, features of inception" in capsys.readouterr().out


def spoil(file, **fields) -> None:
    report = json.loads(file.read_text())
    file.write_text(json.dumps({**report, "quality": {**report["quality"], **fields}}))


@pytest.mark.parametrize(("change", "names"), [
    (lambda root, flags: flags.__delitem__(slice(6, None)), "--set"),
    (lambda root, flags: (root / "set2" / "audit.json").unlink(), "audit.json"),
    (lambda root, flags: (root / "set2" / "audit.json").write_text("[]"), "audit.json"),
    (lambda root, flags: spoil(root / "set2" / "audit.json", groups={}), "audit.json"),
    (lambda root, flags: spoil(root / "set2" / "audit.json", features="judge"), "judge"),
    (lambda root, flags: shutil.rmtree(root / "results" / "rows1"), "rows1"),
    (lambda root, flags: shutil.rmtree(root / "results"), "rows0"),
    (lambda root, flags: flags.extend(["--metric", "accuracy"]), "--metric"),
], ids=range(8))
def test_sets_that_cannot_be_correlated(change, names, sets, tmp_path, capsys):
    change(tmp_path, sets)
    refused(capsys, correlate.main, sets, names=names, out=tmp_path)


def test_tied_measures_are_correlated_too():
    table = pd.DataFrame({"vendi": [1.0, 1.0, 2.0, 3.0], "wst": [50.0, 60.0, 70.0, 80.0]})
    found = correlate.correlations(table, "wst")
    assert 0.8 < found.loc["vendi", "tau"] < 1 and 0 < found.loc["vendi", "p"] < 0.2
