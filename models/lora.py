"""LoRA (Hu et al., ICLR 2022): a low-rank update beside every frozen weight matrix, by peft."""

from __future__ import annotations

import torch
from torch import nn

from utils.blocks import OUTPUT_BLOCKS, block_of


def add_lora(model: nn.Module, seed: int, *, rank: int, alpha: float) -> None:
    """Give every linear layer and convolution but the output layer's a low-rank update, in place.

    For the ViT these are the patch embedding, attention and feed-forward matrices, for a ResNet all
    convolutions. An update is alpha / rank * B A, A random and B zero, so that training starts at
    the given weights (Hu 2022, section 4.1). A follows the seed alone, so a restart finds the same
    one. Everything but A and B is frozen.
    """
    # seconds to import, and only LoRA needs it
    from peft import LoraConfig, inject_adapter_in_model

    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and block_of(name) not in OUTPUT_BLOCKS
    ]
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, wherever the weights are
        torch.default_generator.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
        inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Write the updates into the weights: the model has its backbone's own tensors again.

    Raises AttributeError for a model without LoRA.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    del model.peft_config
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def is_adapter(tensor: str) -> bool:
    """Whether a parameter tensor is one of LoRA's matrices A and B, from its name."""
    return ".lora_A." in tensor or ".lora_B." in tensor
