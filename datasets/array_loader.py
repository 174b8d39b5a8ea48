"""Batches (index, x, y, a) from a table in memory: the image loader's interface without images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from datasets.augment import evenly, shuffled
from datasets.base import ArrayTable
from datasets.loader import Batch
from utils.errors import UserError


class ArrayLoader:
    """Batches of a table whose samples are held on the device.

    batch_size: None is one batch of all samples, in table order. train=True: every epoch in its own
    order, the image loader's, derived from (seed, epoch) alone; the last batch may be smaller.
    train=False: table order. Nothing is augmented. `groups`: as for Loader, where there are
    batches. `attributes=False` delivers a = -1, so that a method cannot see what it was not
    granted. Raises UserError for an empty table, ValueError for a batch size below 1.
    """

    def __init__(
        self, table: ArrayTable, batch_size: int | None, *, train: bool,
        device: str | torch.device, seed: int = 0, attributes: bool = False,
        groups: np.ndarray | None = None,
    ):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; it must be at least 1")
        if len(table) == 0:
            raise UserError(f"{table.name} has no samples")
        self.table = table
        self.batch_size = batch_size or len(table)
        self.train = train and batch_size is not None
        self.device = torch.device(device)
        self.seed, self.groups = seed, groups
        a = table.a if attributes else np.full(len(table), -1)
        self._parts = tuple(
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            for part in (table.x, table.y, a)
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.table) / self.batch_size)

    def epoch(self, k: int) -> Iterator[Batch]:
        """Yield epoch k's batches on the device.

        index int64 [B], rows of the table; x float64 [B, D], or float32 [B, C, H, W] in [0, 1] of a
        table of bytes; y int64 [B]; a int64 [B], -1 where unknown or not granted.
        """
        count = len(self.table)
        order = np.arange(count)
        if self.train:
            whole = self.groups is None
            order = shuffled(self.seed, k, count) if whole else evenly(self.seed, k, self.groups)
            order %= count
        for index in torch.from_numpy(order).to(self.device).split(self.batch_size):
            # ten times faster than indexing where a sample is many bytes
            x, y, a = (part.index_select(0, index) for part in self._parts)
            if x.dtype == torch.uint8:
                x = x.float().mul_(1 / 255)
            yield index, x, y, a
