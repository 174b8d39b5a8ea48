"""Mean gradients over a dataset at fixed weights (AIM-Fair, Equations 1-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from tqdm import tqdm


def mean_gradients(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    count: int,
    name: str,
) -> dict[str, Tensor]:
    """Mean over batches of the gradient of the batch's mean loss, per parameter tensor, on the CPU.

    `batches` yields (index, x, y, a). The gradients are taken in training mode (batch statistics,
    as the release does) on a copy, so the model's batch-norm buffers and weights do not move.
    """
    copy = deepcopy(model).train()
    copy.zero_grad(set_to_none=True)
    for _, x, y, _ in tqdm(batches, total=count, desc=name, unit="batch", leave=False):
        loss(copy, x, y).backward()  # accumulates: the sum over batches
    return {
        key: (torch.zeros_like(p) if p.grad is None else p.grad / count).float().cpu()
        for key, p in copy.named_parameters()
    }
