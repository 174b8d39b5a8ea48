"""Models and checkpoints of another kind, cut off, holding code, or giving black images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import torchvision
from PIL import Image
from refusals import contents, refused
from safetensors.torch import load_file, save_file

import train
from stable_diffusion import audit, generate
from utils.engine import fit
from utils.errors import UserError
from utils.recipe import Recipe

GROUPS = {f"{y}_{a}": ["a face", "faces"] for y in (0, 1) for a in (0, 1)}
UNET = "unet/diffusion_pytorch_model.safetensors"


class Shouting:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


SHOUT = "open({path!r}, 'w').close()\n"


# --- text-to-image models ------------------------------------------------------------------------


@pytest.fixture
def model(tiny_pipeline_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "model"))


def command(model: Path, tmp_path: Path, groups: dict | None = None) -> list:
    prompts = tmp_path / "Smiling_Male_plain.json"
    document = {"set": "plain", "target": "Smiling", "protected": "Male", "cells": groups or GROUPS}
    prompts.write_text(json.dumps(document))
    fixed = ["--model", model, "--prompts", prompts, "--out", tmp_path / "out"]
    return [*fixed, "--images-per-group", 2, "--steps", 1, "--batch-size", 2, "--device", "cpu"]


def configured(part: str, **values) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        path = model / part
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def widened(model: Path) -> None:
    """As an inpainting model: nine channels in, four of them the latents."""
    configured("unet/config.json", in_channels=9)(model)
    weights = load_file(model / UNET)
    weights["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(weights, model / UNET)


def pickled(model: Path) -> None:
    (model / UNET).unlink()
    torch.save({"x": Shouting(model / "shout")}, (model / UNET).with_suffix(".bin"))


def code_in_a_part(model: Path) -> None:
    configured("model_index.json", unet=["mine", "Mine"])(model)
    (model / "unet" / "mine.py").write_text(SHOUT.format(path=str(model / "shout")))


def code_beside_the_parts(model: Path) -> None:
    configured("model_index.json", _class_name=["mine", "Mine"])(model)
    (model / "mine.py").write_text(SHOUT.format(path=str(model / "shout")))


def cut(part: str, size: int) -> Callable[[Path], None]:
    return lambda model: (model / part).write_bytes((model / part).read_bytes()[:size])


FOLDERS: dict[str, Callable[[Path], None]] = {
    "no index": lambda model: (model / "model_index.json").unlink(),
    "index that is no JSON": cut("model_index.json", 40),
    "index that is a list": lambda model: (model / "model_index.json").write_text("[]"),
    "another text encoder": configured("model_index.json", text_encoder=["transformers", "T5"]),
    "no UNet": lambda model: shutil.rmtree(model / "unet"),
    "no weights": lambda model: (model / UNET).unlink(),
    "weights cut off": cut(UNET, 3000),
    "weights of zero bytes": cut(UNET, 0),
    "weights of another shape": configured("unet/config.json", block_out_channels=[8, 32]),
    "an inpainting UNet": widened,
    "a UNet for another text encoder": configured(
        "text_encoder/config.json", hidden_size=32, intermediate_size=64
    ),
    "no vocabulary": lambda model: shutil.rmtree(model / "tokenizer"),
    "only pickled weights": pickled,
    "code in a part": code_in_a_part,
    "code beside the parts": code_beside_the_parts,
}


@pytest.mark.parametrize("case", FOLDERS)
def test_generation_with_a_wrong_folder(case, model, tmp_path, capsys):
    FOLDERS[case](model)
    refused(
        capsys, generate.main, command(model, tmp_path), names=f"--model {model}",
        out=tmp_path / "out",
    )  # fmt: skip
    assert not (model / "shout").exists()


def other_architecture(path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)


def code(path: Path) -> None:
    torch.save({"state_dict": Shouting(path.with_name("shout"))}, path)


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "another architecture": ("one.safetensors", other_architecture),
    "text": ("one.safetensors", lambda path: path.write_text("404: not found")),
    "zero bytes": ("one.safetensors", Path.touch),
    "a header that is too long": ("one.safetensors", lambda path: path.write_bytes(b"\xff" * 64)),
    "pickled code": ("one.ckpt", code),
    "half a pickle": ("one.ckpt", lambda path: path.write_bytes(b"PK\x03\x04 half")),
}


@pytest.mark.parametrize("case", FILES)
def test_generation_with_a_wrong_file(case, model, tmp_path, capsys):
    name, write = FILES[case]
    write(tmp_path / name)
    arguments = [*command(tmp_path / name, tmp_path), "--model-config", model]
    sentence = refused(capsys, generate.main, arguments, names=name, out=tmp_path / "out")
    assert str(model) in sentence  # where the architecture was taken from
    assert not (tmp_path / "shout").exists()


def test_a_model_that_gives_nothing_but_one_colour(model, tmp_path, capsys):
    """What an overflow in half precision looks like: NaN, which is saved as black."""
    weights = load_file(model / UNET)
    weights["conv_out.bias"] = torch.full_like(weights["conv_out.bias"], torch.nan)
    save_file(weights, model / UNET)
    sentence = refused(capsys, generate.main, command(model, tmp_path), names="--precision")
    assert "one colour" in sentence
    assert not list((tmp_path / "out").rglob("*.png"))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_prompt_beyond_the_models_context(model, tmp_path, capsys):
    groups = {**GROUPS, "1_0": ["a face", "a face " + "and another " * 40]}
    sentence = refused(
        capsys, generate.main, command(model, tmp_path, groups), names="Smiling_Male_plain.json",
        out=tmp_path / "out",
    )  # fmt: skip
    assert "prompt 2 of group 1_0" in sentence
    assert "the model's 77" in sentence


# --- classifiers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


def weights_of(network: str) -> dict:
    return getattr(torchvision.models, network)(weights=None).state_dict()


def cut_weights(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:9000])


WEIGHTS: dict[str, Callable[[Path], object]] = {  # beside those of test_training
    "of ResNet-34": lambda path: torch.save(weights_of("resnet34"), path),
    "of SqueezeNet": lambda path: torch.save(weights_of("squeezenet1_1"), path),
    "a number": lambda path: torch.save(7, path),
    "tensors that are numbers": lambda path: torch.save({"conv1.weight": 7}, path),
    "half": cut_weights,
    "safetensors": other_architecture,
    "code": lambda path: torch.save({"conv1.weight": Shouting(path.with_name("shout"))}, path),
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_train_from_wrong_weights(case, data, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    WEIGHTS[case](path)
    arguments = tiny.flags(
        data, tmp_path / "results", "--methods", "erm", "--pretrained", path,
        "--store-dir", data / "store",
    )  # fmt: skip
    sentence = refused(
        capsys, train.main, arguments, names="--pretrained", out=tmp_path / "results"
    )
    assert str(path) in sentence
    assert "weights_only` set to `False" not in sentence  # torch's advice
    assert not (tmp_path / "shout").exists()


def judge(network: str = "resnet18", **fields) -> dict:
    model = getattr(torchvision.models, network)(weights=None)
    model.fc = torch.nn.Linear(model.fc.in_features, 1)
    content = {"model": model.state_dict(), "backbone": network, "target": "Male"}
    return {**content, "image_size": 32, **fields}


JUDGES: dict[str, Callable[[Path], object]] = {
    "an unknown backbone": lambda path: torch.save(judge(backbone="resnet19"), path),
    "another backbone's weights": lambda path: torch.save(
        judge("resnet34", backbone="resnet18"), path),
    "bare weights": lambda path: torch.save(weights_of("resnet18"), path),
    "an image size of 0": lambda path: torch.save(judge(image_size=0), path),
    "an image size of a million": lambda path: torch.save(judge(image_size=10**6), path),
    "an attribute of another pair": lambda path: torch.save(judge(target="Young"), path),
    "half": cut_weights,
    "code": lambda path: torch.save(judge(target=Shouting(path.with_name("shout"))), path),
    "an empty folder": Path.mkdir,
    "two in a folder": lambda path: [
        path.mkdir(), (path / "a.pt").touch(), (path / "b.pt").touch()],
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGES)
def test_audit_with_a_wrong_judge(case, tmp_path, capsys):
    images = tmp_path / "images" / "plain" / "Smiling_Male"
    (images / "0_0").mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(images / "0_0" / "00000.png")
    (images / "manifest.csv").write_text("path,y,a\n0_0/00000.png,0,0\n")
    path = tmp_path / "judge.pt"
    JUDGES[case](path)
    arguments = ["--images", images, "--judge", path, "--device", "cpu"]
    refused(capsys, audit.main, arguments, names=str(path), out=tmp_path)
    assert not (tmp_path / "shout").exists()


# --- a run's own checkpoints ---------------------------------------------------------------------


class NoBatch:
    device = "cpu"

    def __len__(self):
        return 1


STATES: dict[str, Callable[[Path], object]] = {
    "of another network": lambda path: torch.save(
        {"method": {"model": {"weight": torch.zeros(9)}, "optimizer": {}, "schedule": {}}}, path),
    "with nothing in it": lambda path: torch.save({}, path),
    "a list": lambda path: torch.save([1], path),
    "half": cut_weights,
    "zero bytes": Path.touch,
    "code": lambda path: torch.save({"method": Shouting(path.with_name("shout"))}, path),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_cannot_be_resumed(case, tmp_path):
    from models.method import Method

    path = tmp_path / "state.pt"
    STATES[case](path)
    before = contents(tmp_path)
    method = Method(torch.nn.Linear(3, 1), Recipe(epochs=1, lr=0.1))
    with pytest.raises(UserError, match="state.pt is damaged .*; delete it: training restarts"):
        fit(method, NoBatch(), None, tmp_path, "stage")
    assert contents(tmp_path) == before
