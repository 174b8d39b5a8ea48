"""What a run cost: the parameters that it changed, its arithmetic, and a GPU's memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.method import Method

PASS = 3  # times the forward pass: gradients of inputs and of weights take as much each


def forward_flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of the model on x, [B, ...], an addition and a multiplication each
    one; of convolutions and matrix products, beside which the rest hardly counts. Nothing is
    computed: shapes say it."""
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(x.to("meta"))
    return counter.get_total_flops()


def cost(trained: Method, shape: Sequence[int], passes: int) -> dict[str, Any]:
    """{"trainable": parameters that the last stage changed, "parameters": all of the network,
    "flops": of `passes` image passes, "gpu_bytes": the process's peak on a GPU so far, or None}.

    shape: of one sample. Where few tensors move, a pass needs fewer gradients than is counted.
    """
    parameters = list(trained.model.parameters())
    device, x = parameters[0].device, torch.empty(1, *shape, device="meta")
    return {
        "trainable": sum(p.numel() for p in trained.trained()),
        "parameters": sum(p.numel() for p in parameters),
        "flops": PASS * passes * forward_flops(trained.model, x),
        "gpu_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }
