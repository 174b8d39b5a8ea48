"""Which block of a network a parameter tensor belongs to, from its name."""

from __future__ import annotations

RESNET_BLOCKS = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")  # of ResNet-18, -34, -50
OUTPUT_BLOCKS = ("fc", "head")  # the last layer in torchvision's ResNets and in timm's ViTs


def block_of(tensor: str) -> str:
    """The block a parameter tensor belongs to, from its name in torchvision's or timm's models.

    "layer2.0.conv1.weight" -> "layer2", "blocks.3.attn.qkv.bias" -> "blocks.3", the output layer
    -> "fc" or "head", a ViT's last norm -> "norm", all that comes before the blocks -> "stem".
    """
    first, *rest = tensor.split(".")
    if first == "blocks":
        return f"blocks.{rest[0]}"
    return first if first.startswith("layer") or first in (*OUTPUT_BLOCKS, "norm") else "stem"
