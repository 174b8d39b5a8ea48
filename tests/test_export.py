"""models.export: what others are given is the network that was trained."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from refusals import refused
from safetensors import safe_open

import train
from models import backbones, evaluate, export
from models.checkpoints import classifier


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny.with_network(monkeypatch)


@pytest.fixture(scope="module")
def runs(data) -> dict[str, Path]:
    """Run folders of a model and of the same repaired, on images normalised in another way."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        train.main(tiny.flags(
            data, data / "results", "--backbone", "tiny", "--methods", "erm", "full_finetuning",
            "--no-tables", "--pretrain-epochs", 15, "--pretrain-lr", 0.05,
            "--mean", 0.5, 0.4, 0.3, "--std", 0.25))
    return {name: data / "results" / "tiny" / name / "seed100"
            for name in ("erm", "full_finetuning")}


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        export.main([str(runs["full_finetuning"]), "--out", str(out), "--before", str(runs["erm"]),
                     "--export", "torchscript", "onnx"])
    return out


def expected(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Probabilities of images in [0, 1], by the formula."""
    network = tiny.Network(torch.load(run / "classifier.pt", weights_only=True)["model"]).eval()
    mean, std = (torch.tensor(part)[:, None, None] for part in ((0.5, 0.4, 0.3), (0.25,) * 3))
    with torch.inference_mode():
        return network((pixels - mean) / std)[:, 0].sigmoid()


def test_the_tensors_are_the_runs(runs, exported, data, tmp_path):
    saved = torch.load(runs["full_finetuning"] / "classifier.pt", weights_only=True)["model"]
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert dict.fromkeys(saved, True) == {
            name: bool(torch.equal(file.get_tensor(name), saved[name])) for name in file.keys()}  # noqa: SIM118
    again = classifier(exported)  # it says itself what it needs
    assert (again.backbone, again.image_size, again.std) == ("tiny", 32, (0.25,) * 3)
    evaluate.main([str(exported), "--dataset", "celeba", "--data-root", str(data / "celeba"),
                   "--json", str(tmp_path / "out.json"), "--store-dir",
                   str(data / "results" / "store"), "--device", "cpu"])
    found = json.loads((tmp_path / "out.json").read_text())
    run = json.loads((runs["full_finetuning"] / "metrics.json").read_text())["test"]
    assert {name: found[name] for name in run} == run


def test_programs_give_the_networks_probabilities(runs, exported):
    pixels = torch.rand(5, 3, 32, 32)  # another number of images than it was traced with
    wanted = expected(runs["full_finetuning"], pixels)
    script = torch.jit.load(str(exported / "model.ts"))(pixels)
    torch.testing.assert_close(script, wanted, rtol=0, atol=1e-5)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_torchscript_runs_without_this_repository(exported, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import sys, torch; "
         "print(torch.jit.load(sys.argv[1])(torch.zeros(1, 3, 32, 32)).shape)",
         str(exported / "model.ts")], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1])"


def test_the_card_has_the_hubs_front_matter_and_the_runs_numbers(runs, exported):
    text = (exported / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["pipeline_tag"] == "image-classification"
    test = json.loads((runs["full_finetuning"] / "metrics.json").read_text())["test"]
    results = front["model-index"][0]["results"][0]
    assert results["dataset"]["type"] == "celeba"
    assert {m["type"]: m["value"] for m in results["metrics"]}["acc"] == test["acc"]
    for heading in ("Data and training", "Metrics", "Intended use", "What was not tested"):
        assert f"## {heading}" in body
    before = json.loads((runs["erm"] / "metrics.json").read_text())["test"]
    (line,) = [line for line in body.splitlines() if line.startswith("| accuracy |")]
    for value in (before["acc"], test["acc"]):
        assert f"{100 * value:.2f} [" in line
    for group, number in test["group_count"].items():
        assert f"| {group.replace('_', ', ')} | {number} | " in body
    assert "target Smiling, protected attribute Male" in body and "full_finetuning" in body


def test_a_bare_checkpoint_says_that_nothing_is_known(tmp_path):
    torch.manual_seed(0)
    torch.save(tiny.Network().state_dict(), tmp_path / "bare.pt")
    export.main([str(tmp_path / "bare.pt"), "--out", str(tmp_path / "out"), "--backbone", "tiny",
                 "--image-size", "32"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured" in text and "Not known" in text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:mobilenet_v3_small"])
def test_networks_of_the_libraries_are_exported(name, tmp_path):
    torch.manual_seed(0)
    torch.save(backbones.build(name).state_dict(), tmp_path / "given.pt")
    export.main([str(tmp_path / "given.pt"), "--out", str(tmp_path / "out"), "--backbone", name,
                 "--image-size", "64", "--export", "torchscript"])
    assert (tmp_path / "out" / "model.ts").stat().st_size > 10_000


def test_what_was_exported_is_exported_again(exported, data, tmp_path):
    """Without a run there is no record; what config.json says of the data goes on."""
    out = tmp_path / "again"
    for _ in range(2):  # its own folder is written anew
        export.main([str(exported), "--out", str(out)])
    assert "Not measured" in (out / "README.md").read_text()
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((exported / "config.json").read_text())
    assert (config["dataset"], config["precision"]) == ("celeba", "fp32")


def test_folders_of_others_stay_as_they_are(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    refused(capsys, export.main, [runs["erm"], "--out", tmp_path / "mine"], names="mine exists",
            out=tmp_path)

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)  # a folder that may not be written
    refused(capsys, export.main, [runs["erm"], "--out", tmp_path / "out"],
            names="cannot be written", out=tmp_path)


def test_wrong_flags_are_one_sentence(runs, tmp_path, capsys):
    erm, out = runs["erm"], tmp_path / "out"
    (tmp_path / "file").touch()
    for wrong, names in (
        (["nowhere", "--out", out], "nowhere"), ([erm], "--out"),
        ([erm, "--out", out, "--export", "coreml"], "--export"),
        ([erm, "--out", out, "--before", tmp_path], "--before"),
        ([erm, "--out", tmp_path / "file"], "file"),
        ([erm, "--out", out, "--backbone", "resnet18"], "is a tiny"),
    ):
        refused(capsys, export.main, wrong, names=names, out=tmp_path)
