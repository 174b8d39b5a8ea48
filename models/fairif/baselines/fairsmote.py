"""FairSMOTE (Chakraborty et al., ESEC/FSE 2021): balance every cell (y, a). Sees a in training.

Each cell is filled up to the largest with new samples. A new sample starts from a random parent of
the cell and two different ones of its 5 nearest neighbours there; every attribute is changed with
probability cr: a numeric one to parent + f * (neighbour 1 - neighbour 2), a categorical one to the
value of one of the three. The one-hot columns of an attribute change together. The reference also
removes samples by "situation testing"; as in the comparison of FairIF, that is not part of it here.
The reference takes absolute values of numeric columns; they are standardised here, so it is not
done. On images that are held as bytes every pixel's channel is a numeric attribute: neighbours are
those in pixel space among all images of the cell, and new values are rounded and clipped to bytes.
(Features of a trained network would be another choice; pixels need none, and the whole network
learns from what is made.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.fairif.problem import Problem
from utils.errors import UserError
from utils.metrics import CELLS, group_index

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
    """`count` new samples, [count, D], from a cell's samples x, [n, D], n >= 3, of its type.

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
    """How many samples each cell lacks of the largest one, in the order of CELLS.

    y, a: int64 [n]. Raises UserError for a cell of fewer than three, which has no two neighbours.
    """
    counts = torch.bincount(group_index(y, a), minlength=4).tolist()
    if min(counts) < 3:
        cell = CELLS[counts.index(min(counts))]
        raise UserError(
            f"FairSMOTE: the training set has {min(counts)} samples with y = {cell[0]} and "
            f"a = {cell[1]}; it needs at least 3"
        )
    return [max(counts) - count for count in counts]


def oversampled(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """x, y, a of the training set and the new samples, all four cells of equal size, on the CPU.

    Raises UserError as `missing`.
    """
    x, y, a = (part.cpu() for part in (problem.train.x, problem.train.y, problem.train.a))
    generator = torch.Generator().manual_seed(problem.seed)
    xs, ys, sensitive = [x], [y], [a]
    for (label, protected), lack in zip(CELLS, missing(y, a), strict=True):
        if lack:
            cell = x[(y == label) & (a == protected)]
            xs.append(offspring(cell, lack, problem.blocks, generator))
            ys.append(torch.full((lack,), label))
            sensitive.append(torch.full((lack,), protected))
    return torch.cat(xs), torch.cat(ys), torch.cat(sensitive)


def train(problem: Problem) -> nn.Module:
    """The model fitted on the oversampled training set. Raises UserError as `oversampled`."""
    x, y, _ = (part.to(problem.train.x.device) for part in oversampled(problem))
    return problem.fit(problem.build(), x, y, torch.full((len(y),), 1 / len(y)).double())
