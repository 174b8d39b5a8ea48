"""The output layer of a network: where the logit comes from, and what it is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.errors import UserError


def output_layer(model: nn.Module) -> str:
    """Name of the layer that gives the logit: the last linear one with one output. Where there is
    none the last convolution with one (timm's DPN), or the last linear layer of any width."""
    parts = list(model.named_modules())
    linear = [(name, part.out_features) for name, part in parts if isinstance(part, nn.Linear)]
    convolutions = [(name, part.out_channels) for name, part in parts
                    if isinstance(part, nn.Conv2d)]
    single = [[name for name, width in layers if width == 1] for layers in (linear, convolutions)]
    return (single[0] or single[1] or [name for name, _ in linear])[-1]


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the logit; its in_features D is the number of features.

    Raises UserError where the logit comes from a convolution.
    """
    head = model.get_submodule(output_layer(model))
    if not isinstance(head, nn.Linear):
        raise UserError("--backbone: the network ends in a convolution, and this method needs a "
                        "linear layer there: leave out that row or choose another")
    return head


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(features [B, D] that the output layer is given, logits [B]) in one pass, with gradients.

    Both in the type of the output layer's weights. D is 512 for ResNet-18 and -34, 2048 for
    ResNet-50; the features of a logistic regression are its inputs.
    """
    given: list[Tensor] = []
    head = head_of(model)
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        hook.remove()
    return given[0].to(head.weight), logits.squeeze(1).to(head.weight)


def one_logit(state: dict[str, Tensor], layer: str, model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the two outputs of `layer` turned into their difference, exactly.

    softmax(z)_1 = sigmoid(z_1 - z_0), so the network's probability of class 1 stays what it was.
    state: of a network that is `model` but for that layer's width. Raises UserError for a layer of
    another width than one or two.
    """
    own, changed = model.state_dict(), dict(state)
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name not in own or name not in state:
            continue
        outputs = len(state[name]) if state[name].ndim else 0
        if outputs not in (1, 2):
            raise UserError(f"{layer} gives {outputs} outputs, and a repair needs one logit or two "
                            "of two classes: give a classifier of the target attribute")
        if outputs == 2:
            zero, one = state[name].to(torch.float64)
            changed[name] = (one - zero)[None].to(own[name].dtype)
    return changed


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [B] of a sample each: float64 of a network in float64, else float32."""
    logits = model(x).squeeze(1)
    return logits if logits.dtype == torch.float64 else logits.float()
