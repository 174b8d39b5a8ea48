"""Classifiers with one logit, and the named blocks that block-wise strategies speak of."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import nn

from utils.errors import UserError, reason


def _resnet(name: str, hidden: int = 0):
    """hidden: units of one more layer before the output, within the block fc; 0 is none."""

    def build(weights: dict | None) -> nn.Module:
        model = torchvision.models.get_model(name, weights=None)
        if weights is not None:
            model.load_state_dict(weights)
        features = model.fc.in_features
        model.fc = nn.Linear(hidden or features, 1)
        if hidden:
            model.fc = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), model.fc)
        return model

    return build


def _vit_s32(weights: dict | None) -> nn.Module:
    """timm's ViT-S/32 for images of any size: position embeddings are resampled to the patches.

    Images whose side is no multiple of 32 are padded. Table 8.
    """
    import timm  # seconds to import, and only this backbone needs it

    model = timm.create_model(
        "vit_small_patch32_224", num_classes=1000 if weights else 1, pretrained=False,
        dynamic_img_size=True, dynamic_img_pad=True,
    )
    if weights is not None:
        model.load_state_dict(weights)
        model.reset_classifier(1)
    return model


RESNETS = ("resnet18", "resnet34", "resnet50")
HIDDEN = "_h128"  # FairIF's networks: "the final layer's hidden dimension was set to 128"
BACKBONES = {
    **{name: _resnet(name) for name in RESNETS},
    "vit_small_patch32": _vit_s32,
    **{name + HIDDEN: _resnet(name, 128) for name in RESNETS},
}
VIT_WEIGHTS = "timm/vit_small_patch32_224.augreg_in21k_ft_in1k"


def _imagenet(name: str) -> dict:
    """The ImageNet weights of a backbone, downloaded once. Raises UserError where they cannot."""
    name = name.removesuffix(HIDDEN)
    try:
        if name in RESNETS:
            enum = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
            source = enum.url
            return enum.get_state_dict(progress=True, weights_only=True)
        import timm

        source = f"https://huggingface.co/{VIT_WEIGHTS}"
        return timm.models.load_state_dict_from_hf(VIT_WEIGHTS, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a wrong hash
        raise UserError(
            f"--pretrained imagenet: {source} cannot be downloaded ({_shortened(error)}); "
            "give a local copy (--pretrained FILE.pth) or start from random weights "
            "(--pretrained none)"
        ) from None


def _shortened(error: Exception) -> str:
    """What a library raised as one line, its start where it is long (a list of tensor names)."""
    line = " ".join(str(error).split())
    return line if len(line) < 200 else line[:200] + " ..."


def build(name: str, pretrained: str = "none") -> nn.Module:
    """A backbone mapping float [B, 3, H, W] to one logit [B, 1].

    pretrained: "none" (random, from torch's seed), "imagenet" (torchvision's IMAGENET1K_V1, the
    release's choice, or timm's augreg_in21k_ft_in1k for the ViT; downloaded once), or a file with
    the state dict of the ImageNet model. The last layer is always new.
    Raises UserError where weights cannot be had or do not fit.
    """
    if name not in BACKBONES:
        raise UserError(f"--backbone {name} is unknown; choose from {', '.join(BACKBONES)}")
    if pretrained == "none":
        return BACKBONES[name](None)
    if pretrained == "imagenet":
        weights = _imagenet(name)
    else:
        weights = load_weights(Path(pretrained), "--pretrained")
    try:
        return BACKBONES[name](weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"--pretrained {pretrained} does not fit {name} ({_shortened(error)}); give the state "
            f"dict of the ImageNet {name} or choose that file's --backbone"
        ) from None


def load_weights(path: Path, flag: str) -> dict:
    """A state dict of tensors; nothing in the file is executed. UserError names file and flag."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{flag}: {path} does not exist") from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        raise UserError(
            f"{flag}: {path} is not a weights file that loads with weights_only ({reason(error)}); "
            "give a state dict that torch.save wrote"
        ) from None


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameter tensors in the model's own order (62 for ResNet-18)."""
    return [name for name, _ in model.named_parameters()]


def output_layer(model: nn.Module) -> str:
    """Name of the linear layer that gives the logit: the last one of the network."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
