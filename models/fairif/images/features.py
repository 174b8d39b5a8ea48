"""The penultimate features of any backbone, in the same pass as its logit."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones import output_layer


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the logit; its in_features D is the number of features."""
    return model.get_submodule(output_layer(model))


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(features [B, D] that the output layer is given, logits [B]), float32, both with gradients.

    x: float [B, 3, H, W]. 512 features for ResNet-18 and -34, 2048 for ResNet-50.
    """
    given: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        hook.remove()
    return given[0].float(), logits.squeeze(1).float()
