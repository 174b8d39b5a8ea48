"""Classifiers with one logit, by name: `build(name, pretrained, shape)`.

The four small ones are the networks of FairIF's Tables 1 to 4 (appendix F). The paper gives the
MLP's hidden width, the size and number of the CNN's filters' layers (two, 5x5) and LeNet's (three).
The rest is textbook: the CNN has the widths of the MNIST example of PyTorch (10 and 20 channels,
then 50), without its dropout; LeNet is LeNet-5 (6, 16 and 120 channels of 5x5, then 84) with
rectified linear units and max pooling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from models import libraries
from models.weights import load_weights
from utils.errors import UserError

Shape = tuple[int, ...]  # of one sample: (D,) features or an image's (3, H, W)
DIGIT = (3, 28, 28)


class Numbers(nn.Module):
    """x [B, ...] in the network's own type, whatever a table holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.like.dtype)


def _logistic(shape: Shape) -> nn.Module:
    """Logistic regression; [B, ...] of any shape -> logit [B, 1]. In float64: the fit must come to
    rest at its minimum, and float32 rounds off the last of the way."""
    linear = nn.Linear(math.prod(shape), 1)
    return nn.Sequential(Numbers(), nn.Flatten(), linear).double()


def _mlp(shape: Shape) -> nn.Module:
    """One hidden layer of 64 rectified linear units; 150,657 parameters on digits."""
    return nn.Sequential(
        Numbers(), nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU(),
        nn.Linear(64, 1),
    )


def _digit_cnn(shape: Shape) -> nn.Module:
    """Two 5x5 convolutions, float [B, 3, 28, 28] -> logit [B, 1]; 21,881 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 10, 12, 12]
        nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 20, 4, 4]
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 1),
    )  # fmt: skip


def _digit_lenet(shape: Shape) -> nn.Module:
    """LeNet-5, float [B, 3, 28, 28] -> logit [B, 1]; 61,241 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),  # [B, 6, 14, 14]
        nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 16, 5, 5]
        nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),  # [B, 120]
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 1),
    )  # fmt: skip


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


class QuarterResNet(ResNet):
    """torchvision's ResNet of basic blocks with a quarter of its channels in every layer, the stem
    too: the same tensors by the same names. float [B, 3, H, W] -> [B, 1000]."""

    def _make_layer(self, block, planes: int, *args, **rest) -> nn.Sequential:
        if not hasattr(self, "layer1"):  # torchvision has made the stem, and initialises it later
            self.inplanes //= 4
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, planes // 4, *args, **rest)


def _resnet18_quarter(weights: None) -> nn.Module:
    """ResNet-18 with 16 to 128 channels instead of 64 to 512, for the demo's 64 pixels on a CPU: 62
    tensors, 702,225 parameters. Nobody publishes weights for it."""
    model = QuarterResNet(BasicBlock, [2, 2, 2, 2])
    model.fc = nn.Linear(128, 1)  # torchvision's is of the full width
    return model


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


@dataclass(frozen=True)
class Small:
    """A network of random weights whose first layer depends on the `shape` of a sample. Called with
    no weights it is the one for digits: its tensors have the same names for every shape."""

    make: Callable[[Shape], nn.Module]
    any_shape: bool

    def __call__(self, weights: None) -> nn.Module:
        return self.make(DIGIT)


SMALL = {
    "logistic": Small(_logistic, True), "mlp": Small(_mlp, True),
    "digit_cnn": Small(_digit_cnn, False), "digit_lenet": Small(_digit_lenet, False),
}
RESNETS = ("resnet18", "resnet34", "resnet50")
HIDDEN = "_h128"  # FairIF's networks: "the final layer's hidden dimension was set to 128"
BACKBONES = {
    **{name: _resnet(name) for name in RESNETS},
    "resnet18_quarter": _resnet18_quarter,
    "vit_small_patch32": _vit_s32,
    **{name + HIDDEN: _resnet(name, 128) for name in RESNETS},
    **SMALL,
}
WITHOUT_WEIGHTS = ("resnet18_quarter", *SMALL)  # of which there are none to start from
VIT_WEIGHTS = "timm/vit_small_patch32_224.augreg_in21k_ft_in1k"


def maker(name: str) -> Callable[[dict | None], nn.Module]:
    """What makes the backbone, from None (random weights) or the pre-trained network's state dict.

    name: of BACKBONES, timm:NAME or torchvision:NAME. Raises UserError for any other.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if libraries.is_library(name):
        return libraries.maker(name)
    raise UserError(f"--backbone {name} is unknown; choose from {', '.join(BACKBONES)}, timm:NAME "
                    "and torchvision:NAME")


@functools.cache
def tensor_names(name: str) -> Sequence[str]:
    """Names of the backbone's parameter tensors."""
    own = name in BACKBONES  # of the libraries some compute their widths, for which meta has none
    with torch.device("meta" if own else "cpu"):  # the names without the numbers
        return parameter_names(maker(name)(None))


def _imagenet(name: str) -> dict:
    """The ImageNet weights of a backbone, downloaded once. Raises UserError where they cannot."""
    name = name.removesuffix(HIDDEN)
    try:
        if name in RESNETS or libraries.is_library(name):
            source, fetch = libraries.weights_of(
                f"torchvision:{name}" if name in RESNETS else name)
            return fetch()
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


def build(name: str, pretrained: str = "none", shape: Shape | None = None) -> nn.Module:
    """A backbone mapping float [B, *shape] to one logit [B, 1].

    pretrained: "none" (random, from torch's seed), "imagenet" (torchvision's IMAGENET1K_V1, the
    release's choice, or timm's augreg_in21k_ft_in1k for the ViT; downloaded once), or a file with
    the state dict of the ImageNet model. The last layer is always new. shape: of one sample; None
    is an image of any size. Raises UserError where weights cannot be had or do not fit, and where
    the backbone does not take samples of that shape.
    """
    make = maker(name)
    check_shape(name, shape)
    pretrained = initial_weights(name, pretrained)
    if isinstance(make, Small):
        return make.make(shape)
    if pretrained == "none":
        return make(None)
    if pretrained == "imagenet":
        weights = _imagenet(name)
    else:
        weights = load_weights(Path(pretrained), "--pretrained")
    try:
        return make(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"--pretrained {pretrained} does not fit {name} ({_shortened(error)}); give the state "
            f"dict of the ImageNet {name} or choose that file's --backbone"
        ) from None


def initial_weights(name: str, pretrained: str) -> str:
    """--pretrained, with "auto" replaced: "imagenet" where the backbone has such weights.

    Raises UserError where weights are asked for that the backbone does not have.
    """
    if libraries.is_library(name) and pretrained == "auto":
        return "imagenet" if libraries.has_weights(name) else "none"
    if name not in WITHOUT_WEIGHTS:
        return "imagenet" if pretrained == "auto" else pretrained
    if pretrained not in ("auto", "none"):
        raise UserError(f"--pretrained {pretrained}: {name} starts from random weights, as nobody "
                        "publishes others; give none")
    return "none"


def check_shape(name: str, shape: Shape | None) -> None:
    """Raise UserError where the backbone does not take samples of that shape."""
    small = BACKBONES[name] if isinstance(BACKBONES.get(name), Small) else None
    if small and (shape is None if small.any_shape else shape != DIGIT):
        taken = "samples of one fixed shape" if small.any_shape else _said(DIGIT)
        raise UserError(f"--backbone {name} takes {taken}, not {_said(shape)}: choose another")
    if not small and shape is not None and len(shape) != 3:
        fit = [name for name, network in SMALL.items() if network.any_shape]
        raise UserError(
            f"--backbone {name} takes images, not {_said(shape)}: choose {' or '.join(fit)}"
        )


def _said(shape: Shape | None) -> str:
    if shape is None:
        return "images of any size"
    if len(shape) == 1:
        return f"rows of {shape[0]} features"
    return "images of " + "x".join(map(str, shape))


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameter tensors in the model's own order (62 for ResNet-18)."""
    return [name for name, _ in model.named_parameters()]
