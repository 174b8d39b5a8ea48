"""LoRA (Hu et al., ICLR 2022): a low-rank update beside every frozen weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.blocks import OUTPUT_BLOCKS, block_of


class LowRank(nn.Module):
    """weight -> weight + alpha / rank * up @ down, the product shaped like the weight.

    down float [rank, in * kernel] is normal, up float [out, rank] zero, so that training starts at
    the given weight (Hu 2022, section 4.1).
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.up @ self.down).view(weight.shape)


def add_lora(model: nn.Module, seed: int, *, rank: int, alpha: float) -> None:
    """Give every linear and convolution weight but the output layer's a LowRank update, in place.

    For the ViT these are the patch embedding, attention and feed-forward matrices, for a ResNet all
    convolutions. The first matrices follow the seed alone, so a restart finds the same ones.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and block_of(name) not in OUTPUT_BLOCKS:
            update = LowRank(module.weight, rank, alpha, generator)
            parametrize.register_parametrization(module, "weight", update, unsafe=True)


def merge_lora(model: nn.Module) -> None:
    """Write the updates into the weights: the model has its backbone's own tensors again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            with torch.no_grad():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def is_adapter(tensor: str) -> bool:
    """Whether a parameter tensor is one of LoRA's matrices, from its name."""
    return ".parametrizations.weight.0." in tensor
