"""--start and --mask: a model that somebody else trained is repaired in place of pre-training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from refusals import refused
from safetensors.torch import save_file
from torch import nn

import train
from models import backbones, heads, libraries
from models.checkpoints import classifier
from utils.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def biased(data) -> Path:
    """The run folder of an ERM model."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        train.main(tiny.flags(data, data / "results", "--backbone", "tiny", "--methods", "erm",
                              "--no-tables", "--pretrain-epochs", 15, "--pretrain-lr", 0.05))
    return data / "results" / "tiny" / "erm" / "seed100"


def state_of(biased: Path) -> dict[str, torch.Tensor]:
    return torch.load(biased / "classifier.pt", weights_only=True)["model"]


def two_logits(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network of two classes with the same probabilities: a softmax ignores a common shift."""
    shift = {name: torch.randn_like(state[name]) for name in ("fc.weight", "fc.bias")}
    return {name: torch.cat([shift[name], state[name] + shift[name]]) if name in shift else part
            for name, part in state.items()}


FORMS = {
    "classifier.pt": lambda state, path: None,
    "state dict": lambda state, path: torch.save(state, path),
    "wrapped": lambda state, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": part for key, part in state.items()}}, path),
    "lightning": lambda state, path: torch.save(
        {"state_dict": {f"model._orig_mod.{key}": part for key, part in state.items()}}, path),
    "two logits": lambda state, path: torch.save(two_logits(state), path),
    "half": lambda state, path: torch.save(
        {key: part.double() if part.is_floating_point() else part for key, part in state.items()},
        path),
}


@pytest.mark.parametrize("form", [*FORMS, "safetensors", "folder"])
def test_erm_is_the_given_model_measured(form, data, biased, tmp_path, capsys):
    path = tmp_path / ("given.safetensors" if form == "safetensors" else "given.pt")
    if form == "safetensors":
        save_file({name: part.contiguous() for name, part in state_of(biased).items()}, path)
    elif form in ("classifier.pt", "folder"):
        path = biased / "classifier.pt" if form == "classifier.pt" else biased
    else:
        FORMS[form](state_of(biased), path)
    own = [] if form in ("classifier.pt", "folder") else ["--backbone", "tiny"]
    train.main(tiny.flags(data, tmp_path, "--store-dir", data / "results" / "store",
                          "--no-tables", "--methods", "erm", "--start", path, *own))
    assert ("unwrapped" in capsys.readouterr().err) == (form in ("wrapped", "lightning"))
    folder = tmp_path / "tiny" / "erm" / "seed100"
    first, again = (json.loads((run / "metrics.json").read_text()) for run in (biased, folder))
    assert 0.5 < first["test"]["acc"] < 1
    assert (first["test"], first["validation"]) == (again["test"], again["validation"])
    assert again["passes"] == 0 and again["selected_epoch"] == 0
    assert not (tmp_path / "tiny" / "shared").exists()
    kept = torch.load(folder / "classifier.pt", weights_only=True)
    assert kept["backbone"] == "tiny" and kept["image_size"] == 32
    for name, part in state_of(biased).items():
        torch.testing.assert_close(kept["model"][name], part, rtol=0, atol=1e-6)


def test_a_mask_of_names_moves_these_tensors_alone(data, biased, tmp_path):
    train.main(tiny.flags(data, tmp_path, *tiny.quick("given_mask"), "--start", biased,
                          "--no-tables",
                          "--store-dir", data / "results" / "store"))
    folder = tmp_path / "tiny" / "given_mask" / "seed100"
    mask = json.loads((folder / "mask.json").read_text())["tensors"]
    assert {name for name, chosen in mask.items() if chosen} == {
        name for name in mask if name.startswith(("layer3.", "layer4.")) or name == "fc.weight"}
    after = torch.load(folder / "classifier.pt", weights_only=True)["model"]
    for name, chosen in mask.items():
        assert torch.equal(state_of(biased)[name], after[name]) != chosen, name
    again = ["--methods", "given_mask", "--mask", folder / "mask.json", "--start", biased]
    train.main(tiny.flags(data, tmp_path, *again, "--setting", "again", "--no-tables",
                          "--store-dir", data / "results" / "store"))
    second = torch.load(tmp_path / "again" / "given_mask" / "seed100" / "classifier.pt",
                        weights_only=True)["model"]
    assert all(torch.equal(after[name], second[name]) for name in after)


def test_another_start_and_mask_are_another_run(data, biased, tmp_path, capsys):
    def command(start, mask):
        return tiny.flags(data, tmp_path, "--methods", "given_mask", "--start", start, "--mask",
                          mask, "--backbone", "tiny", "--store-dir", data / "results" / "store")

    torch.manual_seed(1)
    torch.save(tiny.Network().state_dict(), tmp_path / "other.pt")
    (tmp_path / "fc").write_text("fc.*\n")
    train.main(command(biased, tiny.MASK))
    for said, start, mask in (("start was", tmp_path / "other.pt", tiny.MASK),
                              ("mask was", biased, tmp_path / "fc")):
        with pytest.raises(SystemExit):  # the sentence holds digests of trained weights
            train.main(command(start, mask))
        assert said in capsys.readouterr().err


def test_a_network_sees_images_by_its_own_mean_and_std(data, biased, tmp_path):
    """The same function of the pixels, written for other units, is measured the same."""
    state = state_of(biased)
    weight = state["conv1.weight"]
    # x in [-1, 1] is 2p - 1; with mean 0 and std 0.25 the network is given 4p. No bias and zero
    # padding: the shift is left out of both, so only the scale can be compared
    torch.save(state | {"conv1.weight": weight * 2}, tmp_path / "scaled.pt")
    train.main(tiny.flags(
        data, tmp_path, "--methods", "erm", "--start", tmp_path / "scaled.pt", "--backbone", "tiny",
        "--no-tables", "--mean", "0.5", "--std", "1", "--store-dir", data / "results" / "store"))
    folder = tmp_path / "tiny" / "erm" / "seed100"
    first, again = (json.loads((run / "metrics.json").read_text()) for run in (biased, folder))
    assert first["test"] == again["test"]
    assert torch.load(folder / "classifier.pt", weights_only=True)["std"] == (1.0,) * 3


WRONG = {  # what is given -> what the sentence says
    "another network": (lambda: nn.Linear(3, 1).state_dict(), "so it is no tiny"),
    "three classes": (lambda: tiny.Network().state_dict() | {
        "fc.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}, "gives 3 outputs"),
    "a list": (lambda: [1, 2], "holds no state dict"),
    "not finite": (lambda: tiny.Network().state_dict() | {"fc.bias": torch.tensor([torch.nan])},
                   "fc.bias is not finite"),
    "another shape": (lambda: tiny.Network().state_dict() | {
        "conv1.weight": torch.zeros(16, 1, 3, 3)}, "conv1.weight has shape [16, 1, 3, 3]"),
    "a whole module": (tiny.Network, "no file of plain tensors"),
    "our own of another backbone": (lambda: {"model": tiny.Network().state_dict(),
                                             "backbone": "resnet34"}, "is a resnet34"),
}


@pytest.mark.parametrize("what", [*WRONG, "empty file", "empty folder", "cut safetensors"])
def test_a_wrong_start_is_one_sentence(what, data, tmp_path, capsys):
    path = tmp_path / "given.pt"
    if what in WRONG:
        content, said = WRONG[what]
        torch.save(content(), path)
    elif what == "empty file":
        path.touch()
        said = "weights file"
    elif what == "empty folder":
        path, said = tmp_path, "is a folder without classifier.pt"
    else:
        save_file(tiny.Network().state_dict(), tmp_path / "whole.safetensors")
        path, said = tmp_path / "given.safetensors", "no whole safetensors"
        path.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    command = tiny.flags(data, tmp_path / "results", "--methods", "erm", "--start", path,
                         "--backbone", "tiny", "--store-dir", data / "results" / "store")
    assert said in refused(capsys, train.main, command, names=str(path))


@pytest.mark.parametrize(("content", "said"), [
    ("layer9.*", "no tensor of the backbone is called layer9.*"), ("", "selects no tensor"),
    ("{}", "neither a mask.json"), ("[1]", "neither a mask.json"), ('{"tensors": [', "neither"),
])  # fmt: skip
def test_a_wrong_mask_is_one_sentence(content, said, data, tmp_path, capsys):
    (tmp_path / "mask").write_text(content)
    command = tiny.flags(data, tmp_path / "results", "--methods", "given_mask", "--mask",
                         tmp_path / "mask", "--backbone", "tiny")
    assert said in refused(capsys, train.main, command, names="--mask")


def test_a_program_and_a_file_cut_off_are_told_apart(tmp_path, capsys):
    net = tiny.Network()
    torch.save(net.state_dict(), tmp_path / "whole.pt")
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.trace(net.eval(), torch.rand(1, 3, 32, 32)).save(str(tmp_path / "model.ts"))
    for name in ("whole.pt", "old.pt"):
        (tmp_path / f"cut_{name}").write_bytes((tmp_path / name).read_bytes()[:-5000])
    for name, said in (("model.ts", "is a TorchScript program"), ("cut_whole.pt", "is cut off"),
                       ("cut_old.pt", "is cut off")):
        command = ["--methods", "erm", "--start", tmp_path / name, "--backbone", "tiny"]
        assert said in refused(capsys, train.main, command, names=name)


def test_what_a_bare_file_leaves_open_is_said(tmp_path):
    said, file = [], tmp_path / "bare.pt"
    torch.save(tiny.Network().state_dict(), file)
    classifier(file, backbone="tiny", mean=[0.4], say=said.append)
    assert said == [f"{file} does not say how its images were prepared; assumed is --image-size "
                    "224, --std 0.5: give these flags where it was otherwise"]
    said.clear()
    classifier(file, backbone="tiny", image_size=32, mean=[0.4], std=[0.2], say=said.append)
    assert not said


def test_a_head_behind_dropout_is_the_output_layer(tmp_path):
    net, said = tiny.Network().eval(), []
    state = {re.sub(r"^fc\.", "fc.1.", name): part for name, part in net.state_dict().items()}
    torch.save(state, tmp_path / "dropout.pt")
    found = classifier(tmp_path / "dropout.pt", backbone="tiny", image_size=32, say=said.append)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.model(x), net(x))
    assert any("unwrapped head 'fc.1'" in line for line in said)


# --- any network of timm and torchvision ---------------------------------------------------------


@pytest.mark.parametrize("name", [
    "timm:test_resnet", "timm:test_vit", "timm:test_convnext", "timm:test_efficientnet",
    "timm:dpn48b", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5",
])  # fmt: skip
def test_two_logits_of_any_network_become_their_difference(name, tmp_path):
    """Its probability of class 1 is what softmax gives of the library's own network."""
    library, plain = name.split(":")
    if library == "timm":
        import timm

        theirs = timm.create_model(plain, num_classes=2)
    else:
        import torchvision

        theirs = torchvision.models.get_model(plain, num_classes=2)
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = classifier(tmp_path / "theirs.pt", backbone=name, image_size=64).model
    x = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(x).softmax(1)[:, 1]
        torch.testing.assert_close(ours(x)[:, 0].sigmoid(), expected, rtol=1e-5, atol=1e-6)
    assert heads.output_layer(ours).split(".")[0] in ("fc", "head", "classifier")


def test_weights_of_a_library_fill_all_but_the_output_layer(tmp_path):
    import torchvision

    whole = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    model = backbones.build("torchvision:shufflenet_v2_x0_5", str(tmp_path / "whole.pth"))
    own = model.state_dict()
    for name, part in whole.state_dict().items():
        assert name.startswith("fc.") or torch.equal(own[name], part), name
    assert own["fc.weight"].shape == (1, 1024)


def test_a_network_without_published_weights_starts_from_random_ones():
    assert backbones.initial_weights("timm:vit_small_patch8_224", "auto") == "imagenet"
    assert backbones.initial_weights("timm:resnet14t", "none") == "none"
    with pytest.raises(UserError, match="resnet18"):
        libraries.maker("timm:resnet81")


def test_a_timm_model_is_repaired(data, tmp_path):
    torch.manual_seed(0)
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "two.pt")
    train.main(tiny.flags(data, tmp_path, "--backbone", "timm:test_resnet", "--start",
                          tmp_path / "two.pt", "--methods", "erm", "linear_probing", "aim_fair",
                          "--no-tables", "--finetune-lr", "0.001"))
    runs = {name: tmp_path / "tiny" / name / "seed100"
            for name in ("erm", "linear_probing", "aim_fair")}
    for folder in runs.values():
        assert json.loads((folder / "metrics.json").read_text())["test"]["acc"] > 0
    probed = json.loads((runs["linear_probing"] / "mask.json").read_text())["tensors"]
    assert [name for name, chosen in probed.items() if chosen] == ["fc.weight", "fc.bias"]
