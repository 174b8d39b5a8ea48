"""Every form of a text-to-image model is read, or refused with the real cause."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, errors

from stable_diffusion import manifest, model_files
from stable_diffusion.model_files import local_path, read_pipeline, variant_of
from utils.errors import UserError

PAPER = model_files.PAPER_MODEL


@pytest.fixture
def model(tiny_pipeline_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "model"))


@pytest.fixture
def variant(model) -> Path:
    """A model whose weights exist as the fp16 variant only, as often on the hub."""
    files = [*model.glob("*/*.safetensors")]
    assert len(files) == 3
    for file in files:
        file.rename(file.with_suffix(".fp16.safetensors"))
    return model


def same_weights(pipe, tiny_pipeline_dir) -> bool:
    own = read_pipeline(str(tiny_pipeline_dir), torch.float32, PAPER)
    return all(
        torch.equal(a, b)
        for part in ("unet", "vae", "text_encoder")
        for a, b in zip(getattr(pipe, part).parameters(), getattr(own, part).parameters())
    )


def refusal(model: str) -> str:
    with pytest.raises(UserError) as refused:
        read_pipeline(model, torch.float32, PAPER)
    return str(refused.value)


def test_a_folder_of_variant_weights(variant, tiny_pipeline_dir):
    assert variant_of(variant) == "fp16"
    assert same_weights(read_pipeline(str(variant), torch.float32, PAPER), tiny_pipeline_dir)


def test_plain_weights_go_before_a_variants(model):
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert variant_of(model) is None
    (model / "vae" / "diffusion_pytorch_model.safetensors").rename(
        model / "vae" / "diffusion_pytorch_model.fp16-00001-of-00001.safetensors")
    assert variant_of(model) == "fp16"


def test_a_hub_id_whose_weights_are_a_variant(variant, tiny_pipeline_dir, tmp_path, monkeypatch):
    """From the hub's cache, laid out as huggingface_hub keeps it."""
    repository = tmp_path / "hub" / "models--owner--half"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(variant, repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert same_weights(read_pipeline("owner/half", torch.float32, PAPER), tiny_pipeline_dir)
    sentence = refusal("owner/other")
    assert f"HF_HUB_OFFLINE is set and {tmp_path / 'hub'} does not have it" in sentence
    assert "give the folder below its snapshots/" in refusal(str(repository))


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF", "weights.pt", "model"])
def test_a_file_of_another_kind_is_not_called_missing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"GGUF" * 4)
    for model in (name, str(tmp_path / name)):
        assert f"it is a {Path(name).suffix} file of 16 bytes" .replace(
            "a  file", "a file without a suffix") in refusal(model)


@pytest.mark.parametrize("model", ["none.gguf", "none.safetensors", "./none", "a/b/c", "~/none"])
def test_a_path_that_is_not_there(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "(no such file or folder)" in refusal(model)


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MODELS", "/models")
    assert local_path("owner/name") is None and local_path("stable-diffusion-v1.5") is None
    assert local_path("~/sd") == Path("/home/me/sd")
    assert local_path("$MODELS/sd") == Path("/models/sd")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert local_path("owner/name") == Path("owner/name")


def test_a_suffix_in_capitals(model, tmp_path, capsys):
    """MODEL.SAFETENSORS is read as safetensors, not as a pickle."""
    file = tmp_path / "MODEL.SAFETENSORS"
    shutil.copy(model / "unet" / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(UserError) as capitals:
        read_pipeline(str(file), torch.float32, str(model))
    shutil.copy(file, tmp_path / "MODEL.safetensors")
    with pytest.raises(UserError) as small:
        read_pipeline(str(tmp_path / "MODEL.safetensors"), torch.float32, str(model))
    assert "SAFETENSORS" in str(capitals.value)
    assert str(capitals.value).replace("SAFETENSORS", "safetensors") == str(small.value)


def test_links_and_folders_that_may_not_be_read(model, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert f"it is a link to {tmp_path / 'gone'}, which does not exist" in refusal(
        str(tmp_path / "link"))
    (model / "model_index.json").rename(model / "one.safetensors")
    assert "no model_index.json; it holds one.safetensors: give that file" in refusal(str(model))
    listdir = os.listdir

    def refuse(path="."):
        if str(path) == str(model):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert f"({model}: Permission denied)" in refusal(str(model))


def test_a_cache_that_cannot_be_written_is_not_the_hubs_fault(monkeypatch):
    error = OSError("Cannot load model")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/hub/x")
    assert model_files.hub_cause(error) == (
        "/hub/x: Permission denied; HF_HOME sets where the hub's files are kept")


@pytest.mark.parametrize(("cause", "words"), [
    (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    (errors.LocalEntryNotFoundError("not cached"), "the hub cannot be reached"),
    (ConnectionError("no route"), "the hub cannot be reached"),
])
def test_why_the_hub_gave_nothing(cause, words):
    error = OSError("Cannot load model")
    error.__cause__ = cause
    assert words in model_files.hub_cause(error)
    assert model_files.hub_cause(ValueError("no such file in the repository")) is None


def test_one_model_may_be_named_by_another_path():
    rows = [{"path": "0_0/0.png", "model": "models/sd"}, {"path": "0_0/1.png", "model": "other"}]
    assert [row["model"] for row in manifest.same_model(rows, "/home/me/models/sd")] == [
        "/home/me/models/sd", "other"]
