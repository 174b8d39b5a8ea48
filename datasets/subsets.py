"""Which images a biased training set consists of (AIM-Fair, section 4.1, and released lists)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np
import pandas as pd

from datasets.base import GROUPS, ImageTable
from utils.errors import UserError

RULES = ("first", "random")


class SubsetError(UserError, ValueError):
    """A subset that cannot be drawn: a wrong size, ratio, rule, attribute or value."""


class NotEnoughImages(SubsetError):
    """Some group holds fewer images than the subset needs; `needed`, `available`: {(y, a): n}."""

    def __init__(self, what: str, needed: Mapping, available: Mapping):
        self.needed, self.available = dict(needed), dict(available)
        short = ", ".join(
            f"group {y}_{a} needs {self.needed[y, a]} and has {self.available[y, a]}"
            for y, a in GROUPS
            if self.needed[y, a] > self.available[y, a]
        )
        total = sum(self.available[group] for group in GROUPS)
        super().__init__(
            f"too few images for {what}: {short} ({total} images in all); "
            "ask for fewer images (--size, --test-size, --synthetic-ratio) or another minority "
            "share (--minority, --synthetic-minority)"
        )


def check_rule(rule: str) -> None:
    """Raise SubsetError for a rule that does not exist."""
    if rule not in RULES:
        raise SubsetError(f"the subset rule is one of {', '.join(RULES)}, not '{rule}'")


def biased_counts(size: int, minority: float = 0.1) -> dict[tuple[int, int], int]:
    """Images per group (y, a) of a biased set: size*minority/2 in (0,0) and in (1,1).

    Where that is not whole it is rounded to the nearest integer, halves up, but to no more than
    size // 2. (0,1) and (1,0) share the rest equally; an odd image goes to (0,1). The four numbers
    always sum to size. The paper's 20,000 at 0.1 gives 1000, 9000, 9000, 1000.
    Raises SubsetError (a ValueError) for size < 1 or minority outside [0, 1].
    """
    if isinstance(size, bool) or size != int(size) or size < 1:
        raise SubsetError(
            f"the subset size must be a whole number of at least 1, not {size}; change --size or "
            "--synthetic-biased-ratio"
        )
    if not 0 <= minority <= 1:
        raise SubsetError(
            f"the minority share must lie between 0 and 1, not {minority}; change --minority or "
            "--synthetic-minority"
        )
    size = int(size)
    # the decimal the user wrote: in floats 200 * 0.29 / 2 is 28.999...
    exact = size * Fraction(str(minority)) / 2
    minor = min(math.floor(exact + Fraction(1, 2)), size // 2)
    rest = size - 2 * minor
    return {(0, 0): minor, (0, 1): rest - rest // 2, (1, 0): rest // 2, (1, 1): minor}


def balanced_counts(size: int) -> dict[tuple[int, int], int]:
    """size/4 images in every group. Raises SubsetError where size is no positive multiple of 4."""
    if isinstance(size, bool) or size != int(size) or size < 4 or size % 4:
        raise SubsetError(
            f"a balanced set's size must be a positive multiple of 4, not {size}; change "
            "--test-size or --synthetic-ratio"
        )
    return dict.fromkeys(GROUPS, int(size) // 4)


def binary_column(table: pd.DataFrame, attribute: str) -> np.ndarray:
    """The attribute as int64 [N] of 0 and 1; values {-1, 1} and {0, 1} are taken.

    Raises SubsetError for a missing column (listing those there are), other values, or -1 beside 0.
    """
    if attribute not in table.columns:
        raise SubsetError(
            f"no attribute '{attribute}'; there are: {', '.join(map(str, table.columns))}"
        )
    values = table[attribute].to_numpy()
    found = set(pd.unique(values).tolist())
    if not (found <= {-1, 1} or found <= {0, 1}):
        raise SubsetError(
            f"attribute '{attribute}' must hold 1 and -1, or 1 and 0; it holds "
            + ", ".join(sorted(map(str, found))[:5])
        )
    return (values == 1).astype(np.int64)


def labels(table: pd.DataFrame, target: str, protected: str) -> tuple[np.ndarray, np.ndarray]:
    """(y, a), int64 [N] of 0 and 1. Raises SubsetError as `binary_column`, and for equal names."""
    if target == protected:
        raise SubsetError(f"target and protected attribute are both '{target}'; name two different")
    return binary_column(table, target), binary_column(table, protected)


def group_rows(y: np.ndarray, a: np.ndarray, seed: int | None = None) -> dict:
    """{(y, a): int64 [n]} rows of each group, in table order, or shuffled by default_rng(seed).

    Taking the first n of a shuffled group is a draw without replacement, and with the same seed a
    smaller draw is part of a larger one.
    """
    rows = {group: np.flatnonzero((y == group[0]) & (a == group[1])) for group in GROUPS}
    if seed is not None:
        rng = np.random.default_rng(seed)
        rows = {group: rng.permutation(rows[group]) for group in GROUPS}
    return rows


def take_counts(rows: Mapping, counts: Mapping, what: str) -> np.ndarray:
    """The first counts[group] rows of each group, sorted. Raises NotEnoughImages."""
    needed = {group: counts.get(group, 0) for group in GROUPS}
    available = {group: len(rows[group]) for group in GROUPS}
    if any(needed[group] > available[group] for group in GROUPS):
        raise NotEnoughImages(what, needed, available)
    return np.sort(np.concatenate([rows[group][: needed[group]] for group in GROUPS]))


def biased_subset(
    table: pd.DataFrame,
    target: str,
    protected: str,
    size: int,
    minority: float = 0.1,
    rule: str = "first",
    seed: int = 0,
) -> list[str]:
    """File names of a biased subset with the groups of `biased_counts`, in table order.

    table: indexed by file name in file order, attribute values in {-1, 1} or {0, 1}; any subset of
    rows, other columns ignored, no file is opened. rule "first" walks the table and takes images
    until each group is full, as the released lists do (seed is not used); "random" draws without
    replacement with numpy's default_rng(seed).
    Raises NotEnoughImages (a ValueError) with the counts, SubsetError for other wrong input.
    """
    check_rule(rule)
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique().tolist()
        raise SubsetError(f"file names occur twice: {', '.join(map(str, twice[:5]))}")
    y, a = labels(table, target, protected)
    rows = group_rows(y, a, seed if rule == "random" else None)
    what = f"{size} images of {target}/{protected} at minority share {minority}"
    return table.index[take_counts(rows, biased_counts(size, minority), what)].tolist()


def draw_biased(
    table: ImageTable, size: int, minority: float, seed: int | None, what: str
) -> ImageTable:
    """The table's images by `biased_counts`: of each group the first ones, or drawn by the seed.

    what: they are, for the message. Raises SubsetError as `biased_counts`, and NotEnoughImages.
    """
    rows = group_rows(table.y, table.a, seed)
    return table.take(take_counts(rows, biased_counts(size, minority), what))


def draw_groups(table: ImageTable, counts: Mapping[tuple[int, int], int], seed: int) -> ImageTable:
    """Draw counts[(y, a)] images of each group with default_rng(seed), kept in table order.

    A group without an entry gives none. Draws with different seeds are independent and may overlap.
    Raises NotEnoughImages.
    """
    return table.take(take_counts(group_rows(table.y, table.a, seed), counts, f"'{table.name}'"))


def list_hash(names: Iterable[str]) -> str:
    """SHA-256 (hex) over the sorted names, one a line, each ending in a newline."""
    return hashlib.sha256("".join(name + "\n" for name in sorted(names)).encode()).hexdigest()
