"""Mean gradients over a dataset at fixed weights (AIM-Fair, Equations 1-3), and their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.progress import progress

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Moments(NamedTuple):
    """By tensor name, over the batches' gradients: their mean, the mean of their squares, and the
    variance of that mean, s^2 / n with n batches."""

    mean: dict[str, Tensor]
    squares: dict[str, Tensor]
    variance: dict[str, Tensor]


def mean_gradients(
    model: nn.Module,
    batches: Iterable,
    loss: Loss,
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
    copy = _copy(model)
    for _ in _backward(copy, batches, loss, count, name, autocast, check):
        pass  # accumulates: the sum over batches
    return {
        key: (torch.zeros_like(p) if p.grad is None else p.grad / count).float().cpu()
        for key, p in copy.named_parameters()
    }


def gradient_moments(
    model: nn.Module,
    batches: Iterable,
    loss: Loss,
    *,
    count: int,
    name: str,
    autocast: torch.dtype | None = None,
    check: Callable[[], None] = lambda: None,
) -> Moments:
    """`mean_gradients` with the batches' scatter, in float64. Raises ValueError as it does, and
    for a single batch, which has none."""
    if count < 2:
        raise ValueError(f"{name}: the noise of a mean gradient needs two batches")
    copy = _copy(model)
    sums, squares = ({key: torch.zeros_like(p, dtype=torch.float64)
                      for key, p in copy.named_parameters()} for _ in range(2))
    for _ in _backward(copy, batches, loss, count, name, autocast, check):
        for key, p in copy.named_parameters():
            if p.grad is not None:
                gradient = p.grad.double()
                sums[key] += gradient
                squares[key] += gradient * gradient
        copy.zero_grad(set_to_none=True)
    mean = {key: value.cpu() / count for key, value in sums.items()}
    square = {key: value.cpu() / count for key, value in squares.items()}
    # rounding can leave less than nothing of a tensor without scatter
    variance = {key: (square[key] - mean[key] ** 2).clamp_min(0) / (count - 1) for key in mean}
    return Moments(mean, square, variance)


def _copy(model: nn.Module) -> nn.Module:
    copy = deepcopy(model).train().requires_grad_(True)
    copy.zero_grad(set_to_none=True)
    return copy


def _backward(
    copy: nn.Module, batches: Iterable, loss: Loss, count: int, name: str,
    autocast: torch.dtype | None, check: Callable[[], None],
) -> Iterator[None]:
    """Add each batch's gradient to the parameters' `grad`."""
    seen = 0
    for _, x, y, _ in progress(batches, total=count, desc=name, unit="batch", leave=False):
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            value = loss(copy, x, y)
        value.backward()
        seen += 1
        yield
        check()
    if seen != count or not seen:
        raise ValueError(f"{name}: {seen} batches instead of {count}")
