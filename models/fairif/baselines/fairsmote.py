"""FairSMOTE (Chakraborty et al., ESEC/FSE 2021): balance every cell (y, a). Sees a in training.

Each cell is filled up to the largest with new samples. A new sample starts from a random parent of
the cell and two different ones of its 5 nearest neighbours there; every attribute is changed with
probability cr: a numeric one to parent + f * (neighbour 1 - neighbour 2), a categorical one to the
value of one of the three. The one-hot columns of an attribute change together. The reference also
removes samples by "situation testing"; as in the comparison of FairIF, that is not part of it here.
The reference takes absolute values of numeric columns; they are standardised here, so it is not
done. For images the method is applied to features, which need a trained backbone.
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


def nearest(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Indices int64 [R, count] of the nearest other rows of x, float [n, D], nearest first."""
    result = []
    for some in rows.split(1024):
        distance = torch.cdist(x[some], x)
        distance[torch.arange(len(some)), some] = torch.inf  # a sample is not its own neighbour
        result.append(distance.topk(count, largest=False).indices)
    return torch.cat(result)


def offspring(x: Tensor, count: int, blocks, generator: torch.Generator) -> Tensor:
    """`count` new samples, float [count, D], from a cell's samples x, float [n, D], n >= 3.

    blocks: lists of columns that code one categorical attribute each; other columns are numeric.
    """
    parents = torch.randint(len(x), (count,), generator=generator)
    unique, back = parents.unique(return_inverse=True)
    near = nearest(x, unique, min(NEIGHBOURS, len(x) - 1))[back]
    order = torch.rand(near.shape, generator=generator).argsort(dim=1)
    first, second = (x[near[torch.arange(count), order[:, i]]] for i in (0, 1))
    parent = x[parents]
    numeric = sorted(set(range(x.shape[1])) - {column for block in blocks for column in block})
    new = parent.clone()
    change = torch.rand(count, len(numeric), generator=generator) < CR
    moved = parent[:, numeric] + F * (first - second)[:, numeric]
    new[:, numeric] = torch.where(change, moved, parent[:, numeric])
    trio = torch.stack([parent, first, second])
    for block in blocks:
        change = torch.rand(count, generator=generator) < CR
        pick = torch.randint(3, (count,), generator=generator)
        chosen = torch.where(change, pick, 0)
        new[:, list(block)] = trio[chosen, torch.arange(count)][:, list(block)]
    return new


def oversampled(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """x, y, a of the training set followed by the new samples, all four cells of equal size.

    Raises UserError for a cell with fewer than three samples, which has no two neighbours.
    """
    x, y, a = problem.train.x, problem.train.y, problem.train.a
    group = group_index(y, a)
    counts = torch.bincount(group, minlength=4).tolist()
    if min(counts) < 3:
        cell = CELLS[counts.index(min(counts))]
        raise UserError(
            f"FairSMOTE: the training set has {min(counts)} samples with y = {cell[0]} and "
            f"a = {cell[1]}; it needs at least 3"
        )
    generator = torch.Generator().manual_seed(problem.seed)
    xs, ys, sensitive = [x], [y], [a]
    for g, (label, protected) in enumerate(CELLS):
        missing = max(counts) - counts[g]
        if missing:
            xs.append(offspring(x[group == g], missing, problem.blocks, generator))
            ys.append(torch.full((missing,), label))
            sensitive.append(torch.full((missing,), protected))
    return torch.cat(xs), torch.cat(ys), torch.cat(sensitive)


def train(problem: Problem) -> nn.Module:
    """The model fitted on the oversampled training set. Raises UserError as `oversampled`."""
    x, y, _ = oversampled(problem)
    return problem.fit(problem.build(), x, y, torch.full((len(y),), 1 / len(y)).double())
