"""Classifiers with one logit, and the named blocks that block-wise strategies speak of."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import nn

from utils.errors import UserError


def _resnet(name: str):
    def build(weights: dict | None) -> nn.Module:
        model = torchvision.models.get_model(name, weights=None)
        if weights is not None:
            model.load_state_dict(weights)
        model.fc = nn.Linear(model.fc.in_features, 1)
        return model

    return build


BACKBONES = {name: _resnet(name) for name in ("resnet18", "resnet34", "resnet50")}


def build(name: str, pretrained: str = "none") -> nn.Module:
    """A backbone mapping float [B, 3, H, W] to one logit [B, 1].

    pretrained: "none" (random, from torch's seed), "imagenet" (torchvision's IMAGENET1K_V1, the
    release's choice; downloaded once), or a file with the state dict of the ImageNet model. The
    last layer is always new. Raises UserError where weights cannot be had or do not fit.
    """
    if name not in BACKBONES:
        raise UserError(f"--backbone {name} is unknown; choose from {', '.join(BACKBONES)}")
    if pretrained == "none":
        return BACKBONES[name](None)
    if pretrained == "imagenet":
        enum = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            weights = enum.get_state_dict(progress=True, weights_only=True)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a wrong hash
            raise UserError(
                f"--pretrained imagenet: {enum.url} cannot be downloaded ({error}); give a local "
                "copy (--pretrained FILE.pth) or start from random weights (--pretrained none)"
            ) from None
    else:
        weights = load_weights(Path(pretrained), "--pretrained")
    try:
        return BACKBONES[name](weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else reason[:200] + " ..."
        raise UserError(
            f"--pretrained {pretrained} does not fit {name} ({reason}); give the state dict of "
            f"torchvision's {name} or choose that file's --backbone"
        ) from None


def load_weights(path: Path, flag: str) -> dict:
    """A state dict of tensors; nothing in the file is executed. UserError names file and flag."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{flag}: {path} does not exist") from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{flag}: {path} is not a weights file that loads with weights_only ({reason})"
        ) from None


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameter tensors in the model's own order (62 for ResNet-18)."""
    return [name for name, _ in model.named_parameters()]


def block_of(tensor: str) -> str:
    """The block a ResNet's parameter tensor belongs to: stem, layer1-4 or fc (Figure 2)."""
    head = tensor.split(".")[0]
    return head if head.startswith("layer") or head == "fc" else "stem"
