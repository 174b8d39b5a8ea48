"""python -m models.evaluate and models.predict against fairlearn, scipy and the runs themselves."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from fairlearn.metrics import (
    MetricFrame,
    count,
    equalized_odds_difference,
    false_positive_rate,
    true_positive_rate,
)
from PIL import Image
from refusals import refused
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score

import train
from models import checkpoints, evaluate, predict
from utils.bootstrap import group_accuracies, intervals, measures, of_counts, percentiles
from utils.metrics import METRICS, fairness_metrics


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny.with_network(monkeypatch)


@pytest.fixture(scope="module")
def runs(data) -> dict[str, Path]:
    """Run folders of two rows."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        train.main(tiny.flags(
            data, data / "results", "--backbone", "tiny", "--methods", "erm", "full_finetuning",
            "--no-tables", "--pretrain-epochs", 15, "--pretrain-lr", 0.05))
    return {name: data / "results" / "tiny" / name / "seed100"
            for name in ("erm", "full_finetuning")}


def of_data(data: Path, *more) -> list[str]:
    return [str(word) for word in (
        "--dataset", "celeba", "--data-root", data / "celeba", "--target", "Smiling",
        "--protected", "Male", "--device", "cpu", "--store-dir", data / "results" / "store",
        *more)]


def table(seed: int, images: int = 200) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y, a = rng.integers(0, 2, (2, images))
    score = np.clip(0.5 + 0.25 * (2 * y - 1) - 0.2 * a * y + rng.normal(0, 0.25, images), 0, 1)
    return y, a, score


def write(path: Path, y, a, score) -> Path:
    pd.DataFrame({"y": y, "a": a, "score": score}).to_csv(path, index=False)
    return path


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_table_agrees_with_fairlearn(seed, tmp_path, capsys):
    y, a, score = table(seed)
    file = write(tmp_path / "made.csv", y, a, score)
    evaluate.main(["--predictions", str(file), "--json", str(tmp_path / "out.json"),
                   "--bootstrap", "200"])
    found = json.loads((tmp_path / "out.json").read_text())
    prediction = (score > 0.5).astype(int)
    assert found["acc"] == pytest.approx(accuracy_score(y, prediction))
    for agg, name in (("worst_case", "eo_worst"), ("mean", "eo_mean")):
        assert found[name] == pytest.approx(
            equalized_odds_difference(y, prediction, sensitive_features=a, agg=agg))
    frame = MetricFrame(metrics={"acc": accuracy_score, "n": count}, y_true=y, y_pred=prediction,
                        sensitive_features=pd.DataFrame({"y": y, "a": a}))
    for (t, p), row in frame.by_group.iterrows():
        assert found["group_acc"][f"{t}_{p}"] == pytest.approx(row["acc"])
        assert found["group_count"][f"{t}_{p}"] == row["n"]
    worst = frame.by_group["acc"].astype(float).idxmin()
    assert found["worst_group"] == f"{worst[0]}_{worst[1]}"
    assert found["wst"] == pytest.approx(frame.group_min()["acc"])
    rates = MetricFrame(metrics={"tpr": true_positive_rate, "fpr": false_positive_rate}, y_true=y,
                        y_pred=prediction, sensitive_features=a).by_group
    for value in (0, 1):
        c = found["confusion"][str(value)]
        assert c["tp"] / (c["tp"] + c["fn"]) == pytest.approx(rates["tpr"][value])
        assert c["fp"] / (c["fp"] + c["tn"]) == pytest.approx(rates["fpr"][value])
    printed = capsys.readouterr().out
    assert f"| eo_worst | {100 * found['eo_worst']:.2f} |" in printed and "(worst)" in printed


def test_measures_are_those_of_fairness_metrics():
    y, a, score = table(7)
    metrics = fairness_metrics(score > 0.5, y, a)
    given = np.array(list(metrics["group_acc"].values()))
    found = measures(given, list(metrics["group_count"].values()))
    for name in METRICS:
        assert float(found[name]) == pytest.approx(metrics[name])


def test_draws_are_scipys():
    """scipy draws rows again; one stratum each, so that its draws are stratified, too."""
    y, a, score = table(3, 400)
    right = (score > 0.5) == y
    drawn = measures(group_accuracies(right[None], y, a, 20_000, 1)[:, 0],
                     np.bincount(2 * y + a, minlength=4))
    groups = [right[(2 * y + a) == g].astype(float) for g in range(4)]

    def gap(g0, g1, g2, g3, axis=-1):
        return np.maximum(abs(g0.mean(axis) - g1.mean(axis)), abs(g2.mean(axis) - g3.mean(axis)))

    def worst(*parts, axis=-1):
        return np.min([part.mean(axis) for part in parts], axis=0)

    for name, statistic in (("eo_worst", gap), ("wst", worst)):
        theirs = bootstrap(groups, statistic, method="percentile", n_resamples=20_000,
                           vectorized=True, random_state=0).confidence_interval
        assert percentiles(drawn[name]) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("truth", [
    [0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.85], [0.9, 0.7, 0.6, 0.85], [0.8, 0.82, 0.84, 0.86]])
def test_intervals_cover_what_they_should(truth):
    """Of 300 test sets, about 95% of the intervals hold the figure from which they are drawn, also
    where no group is treated otherwise than another."""
    rng, truth, held = np.random.default_rng(0), np.array(truth), dict.fromkeys(METRICS, 0)
    y, a = np.repeat([0, 0, 1, 1], 150), np.repeat([0, 1, 0, 1], 150)
    true = measures(truth, [150] * 4)
    for _ in range(300):
        right = rng.random(600) < truth[2 * y + a]
        for name, (low, high) in intervals(right[None], y, a, 500)[0][0].items():
            if name in held:
                held[name] += low - 1e-9 <= true[name] <= high + 1e-9
    assert 0.91 < held.pop("acc") / 300 < 0.98
    assert min(held.values()) / 300 > 0.91


@pytest.mark.parametrize(("before", "after"), [
    ([0.9] * 4, [0.9] * 4), ([0.9, 0.8, 0.8, 0.9], [0.9, 0.85, 0.85, 0.9]),
    ([0.9, 0.88, 0.9, 0.9], [0.9, 0.9, 0.88, 0.9])])
def test_intervals_of_differences_cover_what_they_should(before, after):
    rng, held = np.random.default_rng(0), dict.fromkeys(METRICS, 0)
    y, a = np.repeat([0, 0, 1, 1], 150), np.repeat([0, 1, 0, 1], 150)
    both = np.array([before, after])
    true = measures(both, [150] * 4)
    for _ in range(200):
        luck = np.where(rng.random(600) < 0.6, rng.random(600), rng.random((2, 600)))  # paired
        right = luck < both[:, 2 * y + a]
        found = intervals(right, y, a, 500)[1][0]
        for name in METRICS:
            low, high = found[name]
            held[name] += low - 1e-9 <= true[name][1] - true[name][0] <= high + 1e-9
    assert min(held.values()) / 200 > 0.89


def test_differences_are_paired():
    """Of a model and the same model but for few images: much narrower than two intervals."""
    y, a, score = table(5, 1000)
    right = (score > 0.5) == y
    other = right.copy()
    other[:10] = True
    own, (difference,) = intervals(np.stack([right, other]), y, a, 4000)
    width = {key: high - low for key, (low, high) in (
        ("own", own[0]["acc"]), ("difference", difference["acc"]))}
    assert width["difference"] < width["own"] / 3
    assert difference["acc"][0] >= 0


def test_an_empty_group_is_not_a_number(tmp_path, capsys):
    y, a, score = table(1)
    kept = (y != 1) | (a != 1)
    file = write(tmp_path / "made.csv", y[kept], a[kept], score[kept])
    evaluate.main(["--predictions", str(file), "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["wst"] is None and found["intervals"]["wst"] == [None, None]
    assert found["group_count"]["1_1"] == 0 and found["intervals"]["acc"][0] > 0
    assert "Without images: group 1_1" in capsys.readouterr().out


def test_intervals_from_counts_alone():
    y, a, score = table(2)
    metrics = fairness_metrics(score > 0.5, y, a)
    own, _ = intervals(((score > 0.5) == y)[None], y, a, 4000, 3)
    of_run = of_counts(list(metrics["group_acc"].values()), list(metrics["group_count"].values()),
                       4000, 3)
    for name in METRICS:
        assert of_run[name] == pytest.approx(own[0][name], abs=0.02)
    assert np.isnan(group_accuracies(np.ones((1, 2), bool), [0, 1], [0, 0], 5)[..., 1]).all()


# --- networks ------------------------------------------------------------------------------------


def test_a_checkpoint_is_measured_as_its_run_was(data, runs, tmp_path):
    saved = json.loads((runs["erm"] / "metrics.json").read_text())["test"]
    for given in (runs["erm"], runs["erm"] / "classifier.pt"):
        evaluate.main([str(given), *of_data(
            data, "--json", tmp_path / "out.json", "--save-logits", tmp_path / "logits.csv",
            "--figure", tmp_path / "figure.png")])
        found = json.loads((tmp_path / "out.json").read_text())
        assert {key: found[key] for key in saved} == saved
        assert set(found["intervals"]) >= set(METRICS)
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 800
    # what it saved gives the same numbers again
    evaluate.main(["--predictions", str(tmp_path / "logits.csv"), "--json",
                   str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again.pop("calibration_error") == pytest.approx(found.pop("calibration_error"))
    assert again == found


def test_two_checkpoints_side_by_side(data, runs, tmp_path, capsys):
    evaluate.main([*map(str, runs.values()), *of_data(data, "--json", tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    first, second = (found["models"][str(run)] for run in runs.values())
    ((name, differences),) = found["differences"].items()
    assert name == str(runs["full_finetuning"])
    assert differences["acc"]["difference"] == pytest.approx(second["acc"] - first["acc"])
    low, high = differences["acc"]["interval"]
    assert low <= differences["acc"]["difference"] <= high
    assert "minus" in capsys.readouterr().out


def test_predictions_agree_with_the_evaluation(data, runs, tmp_path, capsys):
    evaluate.main([str(runs["erm"]), *of_data(data, "--save-logits", tmp_path / "logits.csv")])
    logits = pd.read_csv(tmp_path / "logits.csv")
    folder = data / "celeba" / "img_align_celeba"
    predict.main([str(runs["erm"]), str(folder), "--out", str(tmp_path / "out.csv"),
                  "--device", "cpu", "--batch-size", "7"])
    found = pd.read_csv(tmp_path / "out.csv").set_index("file_name")
    assert list(found.columns) == ["score", "prediction"]
    assert len(found) == sum(tiny.PARTITIONS)
    assert list(found.index) == sorted(found.index)
    for file, score in zip(logits["file"], logits["score"]):
        assert found["score"][Path(file).name] == pytest.approx(score, abs=1e-5)
    assert ((found["score"] > 0.5) == found["prediction"]).all()


def test_unreadable_images_are_listed(data, runs, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    good = next((data / "celeba" / "img_align_celeba").iterdir())
    shutil.copy(good, folder / "more" / "good.jpg")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:200])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    predict.main([str(runs["erm"]), str(folder), "--out", str(tmp_path / "out.csv")])
    with open(tmp_path / "out.csv") as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["more/good.jpg"]
    printed = capsys.readouterr()
    assert "unreadable: cut.jpg" in printed.err and "unreadable: empty.png" in printed.err
    assert "1 images, 2 unreadable" in printed.out


def test_a_run_says_what_it_was_tested_on(data, runs, tmp_path, capsys):
    """Nothing of the demo is measured or unpacked for a run of other images."""
    saved = json.loads((runs["erm"] / "metrics.json").read_text())["test"]
    own = ["--device", "cpu", "--store-dir", str(data / "results" / "store")]
    root = ["--data-root", str(data / "celeba")]
    evaluate.main([str(runs["erm"]), *own, *root, "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert {key: found[key] for key in saved} == saved
    assert "was trained with" not in capsys.readouterr().err
    evaluate.main([str(runs["erm"]), *own, *root, "--protected", "Young"])
    assert "was trained with --protected Male; now it is Young" in capsys.readouterr().err
    refused(capsys, evaluate.main, [runs["erm"], *own], names="--data-root")
    torch.save(tiny.Network().state_dict(), tmp_path / "bare.pt")
    bare = [tmp_path / "bare.pt", *own, "--backbone", "tiny", "--image-size", 32]
    refused(capsys, evaluate.main, [*bare, *root], names="--dataset is missing")


def test_scores_are_of_the_runs_precision(runs, tmp_path, capsys):
    run = Path(shutil.copytree(runs["erm"], tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"precision": "bf16"}))
    x = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        given = checkpoints.classifier(run)
        with torch.autocast("cpu", torch.bfloat16):
            expected = given.model(x)[:, 0].float()
        plain = checkpoints.classifier(runs["erm"]).logits(x)
        assert torch.equal(given.logits(x), expected) and not torch.equal(plain, expected)
    (tmp_path / "images").mkdir()
    tiny.face(np.random.default_rng(0), 1, 1).save(tmp_path / "images" / "a.png")
    predict.main([str(run), str(tmp_path / "images"), "--out", str(tmp_path / "out.csv"),
                  "--device", "cpu"])
    assert f"{run}: device: cpu, bf16" in capsys.readouterr().err


# --- mistakes ------------------------------------------------------------------------------------


BAD_TABLES = {
    "y,score\n1,0.5\n": "has no column a", "y,a,score\n": "has no row",
    "y,a,score\n2,0,0.5\n": "line 2: y is '2' and must be 0 or 1",
    "y,a,score\n1,0,0.5\n1,1,1.5\n": "line 3: score is '1.5' and must be a probability",
    "y,a,score\n1,0,x\n": "score is 'x'", "": "cannot be read",
}


@pytest.mark.parametrize("content", BAD_TABLES)
def test_a_wrong_table_is_one_sentence(content, tmp_path, capsys):
    file = tmp_path / "made.csv"
    file.write_text(content)
    command = ["--predictions", file, "--json", tmp_path / "out.json"]
    assert BAD_TABLES[content] in refused(capsys, evaluate.main, command, names="--predictions",
                                          out=tmp_path)


def test_files_of_the_users_are_not_replaced(data, runs, tmp_path, capsys):
    images = data / "celeba" / "img_align_celeba"
    (tmp_path / "labels.csv").write_text("file_name,glasses\na.jpg,1\n")
    (tmp_path / "a.json").write_text('{"acc": 1}')
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    refused(capsys, predict.main, [runs["erm"], images, "--out", tmp_path / "labels.csv"],
            names="labels.csv exists", out=tmp_path)
    for flag, name in (("--json", "a.json"), ("--save-logits", "labels.csv"), ("--figure", "a.png"),
                       ("--json", ".")):
        refused(capsys, evaluate.main, [runs["erm"], *of_data(data, flag, tmp_path / name)],
                names="exists", out=tmp_path)
    y, a, score = table(1)
    made = write(tmp_path / "made.csv", y, a, score)
    for _ in range(2):  # its own are replaced
        evaluate.main([str(word) for word in (
            "--predictions", made, "--json", tmp_path / "b.json", "--save-logits",
            tmp_path / "b.csv", "--figure", tmp_path / "b.png")])


def test_images_that_cannot_be_read_are_no_result(runs, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    command = [runs["erm"], tmp_path / "images", "--out", tmp_path / "out.csv", "--device", "cpu"]
    refused(capsys, predict.main, command, names="none of 1 images can be read", out=tmp_path)


def test_wrong_flags_are_one_sentence(data, runs, tmp_path, capsys):
    erm, out = str(runs["erm"]), str(tmp_path / "out.csv")
    y, a, score = table(1)
    made = write(tmp_path / "made.csv", y, a, score)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "none").mkdir()
    for wrong, names in (
        ([], "CHECKPOINT"), (["--bootstrap", "1"], "--bootstrap"),
        ([erm, *of_data(data), "--dataset", "imagenet"], "--dataset imagenet"),
        ([erm, *of_data(data), "--dataset", "german"], "--dataset german"),
        ([erm, *of_data(data), "--target", "Nose"], "Nose"),
        ([erm, *of_data(data), "--data-root", "nowhere"], "nowhere"),
        ([erm, *of_data(data), "--backbone", "resnet18"], "is a tiny"),
        ([erm, *of_data(data), "--device", "gpu"], "--device"),
        ([erm, erm, *of_data(data)], "given twice"),
        ([erm, *runs.values(), *of_data(data), "--save-logits", out], "--save-logits"),
        ([erm, *of_data(data), "--figure", "x.gif"], "--figure"),
        ([erm, *of_data(data), "--predictions", made], "same images"),
        ([tmp_path / "other.pt", *of_data(data)], "other.pt"),
        (["nowhere.pt", *of_data(data)], "nowhere.pt"),
    ):
        refused(capsys, evaluate.main, wrong, names=names, out=tmp_path)
    for wrong, names in (
        ([erm, "nowhere.jpg", "--out", out], "nowhere.jpg"),
        ([erm, tmp_path / "none", "--out", out], "no images"),
        ([erm, made.parent / "made.csv"], "--out"),
        (["nowhere.pt", data / "celeba" / "img_align_celeba", "--out", out], "nowhere.pt"),
    ):
        refused(capsys, predict.main, wrong, names=names, out=tmp_path)
