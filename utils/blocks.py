"""Which block of a network a parameter tensor belongs to, from its name."""

from __future__ import annotations

from collections.abc import Iterable

from utils.errors import UserError

RESNET_BLOCKS = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")  # of ResNet-18, -34, -50
# The last layer in torchvision's ResNets and timm's ViTs; in the libraries' other networks.
OUTPUT_BLOCKS = ("fc", "head", "classifier", "heads", "head_dist", "last_linear")
NUMBERED = ("blocks", "stages", "features")  # whose parts are blocks of their own


def block_of(tensor: str) -> str:
    """The block a parameter tensor belongs to, from its name in torchvision's or timm's models.

    "layer2.0.conv1.weight" -> "layer2", "blocks.3.attn.qkv.bias" -> "blocks.3", the output layer
    -> "fc" or "head", a ViT's last norm -> "norm", all that comes before the blocks -> "stem".
    """
    first, *rest = tensor.split(".")
    if first in NUMBERED and rest:
        return f"{first}.{rest[0]}"
    return first if first.startswith("layer") or first in (*OUTPUT_BLOCKS, "norm") else "stem"


def blocks_of(tensors: Iterable[str]) -> list[str]:
    """The named blocks of a network, from its parameter tensors' names, in their order."""
    return list(dict.fromkeys(map(block_of, tensors)))


def require_block(block: str, tensors: Iterable[str], network: str) -> None:
    """Raise UserError where a network has no block of that name; `network`: what it is called."""
    blocks = blocks_of(tensors)
    if block not in blocks:
        raise UserError(
            f"{network} has no block {block}; it has {', '.join(blocks)}: leave that row out of "
            "--methods or choose another --backbone"
        )
