"""Mean gradients over a dataset at fixed weights (AIM-Fair, Equations 1-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from utils.progress import progress


def mean_gradients(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    count: int,
    name: str,
    autocast: torch.dtype | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Mean over batches of the gradient of the batch's mean loss, per parameter tensor, on the CPU.

    `batches` yields (index, x, y, a), `count` of them; `check` is called after each and may raise.
    `autocast`: forward passes in that precision, as in training; the sum is kept in the weights'.
    The gradients are taken in training mode (batch statistics, as the release does) on a copy, so
    the model's batch-norm buffers and weights do not move. Frozen tensors get their gradient too.
    Raises ValueError where there are not `count` batches.
    """
    copy = deepcopy(model).train().requires_grad_(True)
    copy.zero_grad(set_to_none=True)
    seen = 0
    for _, x, y, _ in progress(batches, total=count, desc=name, unit="batch", leave=False):
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            value = loss(copy, x, y)
        value.backward()  # accumulates: the sum over batches
        seen += 1
        check()
    if seen != count or not seen:
        raise ValueError(f"{name}: {seen} batches instead of {count}")
    return {
        key: (torch.zeros_like(p) if p.grad is None else p.grad / count).float().cpu()
        for key, p in copy.named_parameters()
    }
