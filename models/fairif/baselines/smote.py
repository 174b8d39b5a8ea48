"""The new samples of FairSMOTE (Chakraborty et al., ESEC/FSE 2021), for groups (y, a) of one size.

Each group is filled up to the largest with new samples. A new sample starts from a random parent of
the group and two different ones of its 5 nearest neighbours there (its released code takes the two
nearest); every attribute is changed with
probability cr: a numeric one to parent + f * (neighbour 1 - neighbour 2), a categorical one to the
value of one of the three. The one-hot columns of an attribute change together. The reference also
removes samples by "situation testing"; as in the comparison of FairIF, that is not part of it here.
The reference takes absolute values of numeric columns; they are standardised here, so it is not
done. Of digits, which are bytes, every pixel's channel is a numeric attribute: neighbours are those
in pixel space, and new values are rounded and clipped to bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from datasets.base import ArrayTable
from utils.errors import UserError
from utils.metrics import GROUPS, group_index

F = 0.8  # the paper's scale of the neighbours' difference
CR = 0.8  # and its probability of a change
NEIGHBOURS = 5
PIECE = 2**22  # attributes changed at once; 16 MB each of draws and differences


def nearest(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Indices int64 [R, count] of the nearest other rows of x, [n, D], nearest first."""
    x = x if x.is_floating_point() else x.float()
    result = []
    for some in rows.split(1024):
        distance = torch.cdist(x[some], x)
        distance[torch.arange(len(some)), some] = torch.inf  # a sample is not its own neighbour
        result.append(distance.topk(count, largest=False).indices)
    return torch.cat(result)


def trios(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows int64 [3, count] of x, [n, D], n >= 3: random parents and two neighbours of each."""
    parents = torch.randint(len(x), (count,), generator=generator)
    unique, back = parents.unique(return_inverse=True)
    near = nearest(x, unique, min(NEIGHBOURS, len(x) - 1))[back]
    order = torch.rand(near.shape, generator=generator).argsort(dim=1)
    return torch.stack([parents, *near.gather(1, order[:, :2]).T])


def offspring(x: Tensor, count: int, blocks, generator: torch.Generator) -> Tensor:
    """`count` new samples, [count, D], from a group's samples x, [n, D], n >= 3, of its type.

    x: float, or uint8. blocks: lists of columns that code one categorical attribute each; other
    columns are numeric.
    """
    trio = trios(x, count, generator)
    numeric = sorted(set(range(x.shape[1])) - {column for block in blocks for column in block})
    new = x[trio[0]]
    for rows in torch.arange(count).split(max(1, PIECE // max(1, len(numeric)))):
        change = torch.rand(len(rows), len(numeric), generator=generator) < CR
        parent, first, second = (x[some][:, numeric] for some in trio[:, rows])
        moved = between(parent, first, second)
        new[rows[:, None], numeric] = torch.where(change, moved, parent)
    for block in blocks:
        change = torch.rand(count, generator=generator) < CR
        pick = torch.randint(3, (count,), generator=generator)
        chosen = torch.where(change, pick, 0)
        new[:, list(block)] = x[trio[chosen, torch.arange(count)]][:, list(block)]
    return new


def between(parent: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """parent + F * (first - second), of the inputs' type; bytes are rounded and clipped."""
    if parent.is_floating_point():
        return parent + F * (first - second)
    moved = parent.float() + F * (first.float() - second.float())
    return moved.round().clamp(0, 255).to(parent.dtype)


def missing(y: Tensor, a: Tensor) -> list[int]:
    """How many samples each group lacks of the largest one, in the order of GROUPS.

    y, a: int64 [n]. Raises UserError for a group of fewer than three, which has no two neighbours.
    """
    counts = torch.bincount(group_index(y, a), minlength=4).tolist()
    if min(counts) < 3:
        group = GROUPS[counts.index(min(counts))]
        raise UserError(
            f"FairSMOTE: the training set has {min(counts)} samples with y = {group[0]} and "
            f"a = {group[1]}; it needs at least 3"
        )
    return [max(counts) - count for count in counts]


def oversampled(table: ArrayTable, seed: int) -> ArrayTable:
    """The samples and, after them, the new ones: four groups of equal size. UserError as `missing`.
    """
    x, y, a = (torch.from_numpy(part) for part in (table.x, table.y, table.a))
    x, generator = x.flatten(1), torch.Generator().manual_seed(seed)
    xs, labels = [x], [np.stack([table.y, table.a])]
    for (label, protected), lack in zip(GROUPS, missing(y, a), strict=True):
        if lack:
            group = x[(y == label) & (a == protected)]
            xs.append(offspring(group, lack, table.blocks(), generator))
            labels.append(np.tile([[label], [protected]], lack))
    y, a = np.concatenate(labels, axis=1)
    x = torch.cat(xs).view(-1, *table.x.shape[1:]).numpy()
    return replace(table, x=x, y=y, a=a, rows=None)


def pairs(features: Tensor, y: np.ndarray, a: np.ndarray, seed: int) -> np.ndarray:
    """Rows int64 [2, M] of the training set: parents and a near neighbour of each in its group.

    features: float [N, D], in which neighbours are near; y, a: int64 [N]. Every group gets as many
    as it lacks of the largest one. Raises UserError as `missing`.
    """
    generator, found = torch.Generator().manual_seed(seed), [np.zeros((2, 0), np.int64)]
    lacks = missing(torch.from_numpy(y), torch.from_numpy(a))
    for (label, protected), lack in zip(GROUPS, lacks, strict=True):
        if lack:
            rows = np.flatnonzero((y == label) & (a == protected))
            found.append(rows[trios(features[rows], lack, generator)[:2].numpy()])
    return np.concatenate(found, axis=1)
