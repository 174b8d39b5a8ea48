"""Rules of our own beside AIM-Fair's: what is compared, and what a selection consists of.

AIM-Fair ranks tensors by the mean |difference| of two mean gradients. That number grows with the
size of a tensor's gradients, whatever the domain or the bias does to them, and a part of it is the
noise of two finite sets. The rules here divide by one or the other, rank once instead of twice, or
select channels instead of tensors; none of them reads a group label of a real image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.selection import (
    REAL_AND_SYNTHETIC,
    Gradients,
    Rule,
    differences,
    intersection,
    mask_of,
    not_empty,
    resolve_k,
    top,
)
from utils.errors import UserError
from utils.gradients import Moments

Difference = Callable[[Moments, Moments, str], float]


def _mean(values: Tensor, what: Tensor) -> float:
    """Mean over the elements, those without scale (0 / 0 and x / 0) counting as 0."""
    return float(torch.where(what == 0, 0.0, values).mean())


def t_statistic(a: Moments, b: Moments, name: str) -> float:
    """Mean over a tensor's elements of |a - b| / sqrt(var a + var b), Welch's t of two means over
    batches; about 0.8 where both sets have the same gradient, of any size."""
    variance = a.variance[name] + b.variance[name]
    return _mean((a.mean[name] - b.mean[name]).abs() / variance.sqrt(), variance)


def fisher_difference(a: Moments, b: Moments, name: str) -> float:
    """Mean over a tensor's elements of (a - b)^2 / F, F the mean of both sets' squared gradients of
    batches, an empirical Fisher information's diagonal."""
    fisher = (a.squares[name] + b.squares[name]) / 2
    return _mean((a.mean[name] - b.mean[name]) ** 2 / fisher, fisher)


def two_rankings(difference: Difference, criterion: str) -> Rule:
    """AIM-Fair's rule (Equations 4-7) with another difference, of moments."""

    def choose(names: list[str], moments: Mapping[str, Moments], config, seed: int) -> dict:
        real, biased, balanced = (moments[name] for name in REAL_AND_SYNTHETIC)
        k = resolve_k(config.top_k, len(names))
        delta1 = {name: difference(real, biased, name) for name in names}
        delta2 = {name: difference(biased, balanced, name) for name in names}
        chosen = not_empty(intersection(delta1, delta2, k), k)
        return mask_of(names, chosen, criterion, k=k, delta1=delta1, delta2=delta2)

    return Rule(choose, REAL_AND_SYNTHETIC, noise=True)


T_STATISTIC = two_rankings(t_statistic, "t statistic")
FISHER = two_rankings(fisher_difference, "Fisher")


def ratio(delta1: Mapping[str, float], delta2: Mapping[str, float]) -> dict[str, float]:
    """Delta2 / Delta1 by tensor name: bias for domain. 0 / 0 is 0, x / 0 infinite."""
    return {name: delta2[name] / delta1[name] if delta1[name] else
            (float("inf") if delta2[name] else 0.0) for name in delta1}


def _by_ratio(names: list[str], gradients: Mapping[str, Gradients], config, seed: int) -> dict:
    real, biased, balanced = (gradients[name] for name in REAL_AND_SYNTHETIC)
    k = resolve_k(config.top_k, len(names))
    delta1, delta2 = (differences(*pair, config.criterion)
                      for pair in ((real, biased), (biased, balanced)))
    chosen = top(ratio(delta1, delta2), k, largest=True)
    return mask_of(names, chosen, "ratio", k=k, delta1=delta1, delta2=delta2)


# One ranking: the k tensors with the most difference by bias for their difference by domain.
RATIO = Rule(_by_ratio, REAL_AND_SYNTHETIC)


def channel_differences(a: Gradients, b: Gradients) -> dict[str, Tensor]:
    """Mean |a - b| of every output channel: float64 [the tensor's first dimension], by name."""
    return {name: (a[name].double() - b[name].double()).abs().flatten(1).mean(1)
            if a[name].ndim > 1 else (a[name].double() - b[name].double()).abs().reshape(-1)
            for name in a}


def select_channels(delta1: Mapping[str, Tensor], delta2: Mapping[str, Tensor], share: float
                    ) -> dict[str, list[int]]:
    """AIM-Fair's intersection over the channels of all tensors: those among the `share` of smallest
    delta1 and among the `share` of largest delta2. {tensor: its selected channels, ascending}.

    delta1, delta2: one number a channel, by tensor. share in (0, 1]; of equal channels the first.
    """
    one, two = (torch.cat([part[name] for name in delta1]) for part in (delta1, delta2))
    k = max(1, round(share * len(one)))
    chosen = torch.zeros(len(one), dtype=torch.bool)
    chosen[torch.argsort(one, stable=True)[:k]] = True
    sensitive = torch.zeros_like(chosen)
    sensitive[torch.argsort(two, descending=True, stable=True)[:k]] = True
    parts = (chosen & sensitive).split([len(part) for part in delta1.values()])
    return {name: part.nonzero()[:, 0].tolist() for name, part in zip(delta1, parts, strict=True)}


def _channels(names: list[str], gradients: Mapping[str, Gradients], config, seed: int) -> dict:
    real, biased, balanced = (gradients[name] for name in REAL_AND_SYNTHETIC)
    share = resolve_k(config.top_k, len(names)) / len(names)
    chosen = select_channels(channel_differences(real, biased),
                             channel_differences(biased, balanced), share)
    if not any(chosen.values()):
        raise UserError("the mask is empty: the two sets of channels share none; raise --top-k")
    updated = [name for name in names if chosen[name]]
    return mask_of(names, updated, "channels", share=share, channels=chosen)


# Channels instead of tensors: a tensor without a selected channel is not updated at all, and of the
# others the channels that are not selected stay as they are (strategies.ChannelFineTuning).
CHANNELS = Rule(_channels, REAL_AND_SYNTHETIC)
