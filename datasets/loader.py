"""Batches (index, x, y, a) from a table of images that are decoded once (image_store.py).

On the CPU, threads crop and resize in uint8 ahead of the step. On a GPU with room the decoded
images live on the device, an epoch's boxes are sent there once, and a batch is gathered and
augmented without the host; with too little room the threads send uint8 batches.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets import resident
from datasets.augment import (
    SCALE,
    crop_boxes,
    evenly,
    flip_mask,
    normalise,
    resample_cpu,
    resample_device,
    shuffled,
    standardisation,
    standardised,
)
from datasets.base import ImageTable
from datasets.image_store import open_store
from utils.devices import cores
from utils.errors import UserError

FEEDERS = 8  # threads at most that feed a GPU on which the images have no room

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

@dataclass(frozen=True)
class Plan:
    """One epoch, row by row in the order it is delivered: all that its batches depend on."""

    rows: np.ndarray  # int64 [M], rows of the table
    boxes: np.ndarray  # int64 [M, 4]
    flips: np.ndarray  # bool [M]


class Loader:
    """Batches of a table at one image size.

    train=True: every epoch in its own order, RandomResizedCrop(image_size) with torchvision's
    defaults and a horizontal flip, all derived from (seed, epoch, index) alone: an epoch is the
    same for any number of workers and after a restart. train=False: table order, each image resized
    to exactly image_size x image_size, no flip, never a dropped batch.

    `attributes=False` delivers a = -1: a method that was not granted the protected attribute cannot
    see it. `store_dir`, `pools`: see image_store.open_store. `workers`: threads that prepare
    batches where the images are not on the device. `min_crop`: the smallest share of an image that
    a training crop holds, in (0, 1]. `groups`: int [N], a group of each image, of which training
    batches hold evenly many (augment.evenly). `mean`, `std`: of the three channels in [0, 1], by
    which a batch is normalised, 0.5 by default. Raises ValueError for sizes below 1, UserError
    for an empty table, images that cannot be decoded and where drop_last would leave no batch.
    """

    def __init__(
        self,
        table: ImageTable,
        batch_size: int,
        *,
        image_size: int,
        train: bool,
        device: str | torch.device,
        seed: int = 0,
        drop_last: bool = False,
        attributes: bool = False,
        store_dir: str | Path | None = None,
        workers: int = 1,
        min_crop: float = SCALE[0],
        pools: Sequence[ImageTable] = (),
        groups: np.ndarray | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        for name, value in (
            ("batch size", batch_size),
            ("image size", image_size),
            ("number of data workers", workers),
        ):
            if value < 1:
                raise ValueError(f"the {name} is {value}; it must be at least 1")
        self.drop_last = drop_last and train
        if self.drop_last and len(table) < batch_size:
            raise UserError(
                f"{table.name} has {len(table)} images, fewer than one batch of {batch_size}; "
                "choose a smaller batch size"
            )
        self.table = table
        self.batch_size = batch_size
        self.image_size = image_size
        self.min_crop = min_crop
        self.train = train
        self.device = torch.device(device)
        self.seed = seed
        self.workers = workers
        self.groups = groups
        self.standard = standardisation(mean, std, self.device)
        self.store = open_store(table, store_dir, pools=pools)
        self._y = table.y
        self._a = table.a if attributes else np.full(len(table), -1, np.int64)
        self._resident = resident.upload(self.store, self.device)
        if self._resident is None and self.device.type != "cpu":
            self.workers = max(workers, min(FEEDERS, cores()))
            print(f"{table.name}: its {self.store.nbytes / 1e9:.2f} GB have no room on "
                  f"{self.device} beside the training; {self.workers} threads feed it",
                  file=sys.stderr)

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.drop_last:
            return len(self.table) // self.batch_size
        return math.ceil(len(self.table) / self.batch_size)

    def epoch(self, k: int) -> Iterator[Batch]:
        """Yield epoch k's batches on the device.

        index int64 [B], rows of the table; x float32 [B, 3, image_size, image_size] in [-1, 1], or
        normalised by `mean` and `std`, channels_last; y int64 [B]; a int64 [B], -1 where unknown or
        not granted.
        """
        for index, x, y, a in self._epoch(k):
            yield index, x if self.standard is None else standardised(x, self.standard), y, a

    def _epoch(self, k: int) -> Iterator[Batch]:
        """`epoch` in [-1, 1]."""
        if self._resident is not None:
            yield from self._device_epoch(k)
            return
        on_cpu = self.device.type == "cpu"

        def tensors(arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
            parts = map(torch.from_numpy, arrays)  # pinning copies: the threads do it
            return list(parts) if on_cpu else [part.pin_memory() for part in parts]

        for parts in self.host_epoch(k, normalised=on_cpu, finish=tensors):
            if not on_cpu:
                parts = [part.to(self.device, non_blocking=True) for part in parts]
            index, x, y, a = parts
            x = x.permute(0, 3, 1, 2)
            yield index, x if on_cpu else normalise(x), y, a

    def host_epoch(
        self, k: int, *, normalised: bool, finish: Callable = lambda arrays: arrays
    ) -> Iterator:
        """Epoch k from the threads as arrays (index, images, y, a), or what `finish` makes of them
        there.

        images: [B, image_size, image_size, 3], float32 in [-1, 1] or, not normalised, uint8.
        """
        plan = self.plan(k)

        def prepare(span: slice):
            rows = plan.rows[span]
            images = resample_cpu(
                [self.store.image(row) for row in rows.tolist()],
                plan.boxes[span],
                plan.flips[span],
                self.image_size,
                normalised=normalised,
            )
            return finish((rows, images, self._y[rows], self._a[rows]))

        yield from _ahead(prepare, self._spans(), self.workers)

    def _spans(self) -> list[slice]:
        size = self.batch_size
        return [slice(i * size, min((i + 1) * size, len(self.table))) for i in range(len(self))]

    def plan(self, k: int) -> Plan:
        if not self.train:
            rows = np.arange(len(self.table))
            whole = np.concatenate([np.zeros_like(self.store.sizes), self.store.sizes], axis=1)
            return Plan(rows, whole, np.zeros(len(rows), bool))
        count = len(self.table)
        whole = self.groups is None
        draws = shuffled(self.seed, k, count) if whole else evenly(self.seed, k, self.groups)
        height, width = self.store.sizes[draws % count].T
        boxes = crop_boxes(self.seed, k, draws, height, width, self.min_crop)
        return Plan(draws % count, boxes, flip_mask(self.seed, k, draws))

    def _device_epoch(self, k: int) -> Iterator[Batch]:
        """The epoch from images on the device; the host only launches, it never waits.

        A batch with several native sizes is resampled size by size and put back in its order.
        """
        plan, (resident, rows) = self.plan(k), self._resident
        group = self.store.group[plan.rows]
        batch = np.arange(len(plan.rows)) // self.batch_size
        order = np.lexsort((group, batch))  # stable: within each batch, by native size
        back = np.empty_like(order)
        back[order] = np.arange(len(order)) - batch * self.batch_size  # place within the batch
        by_size = plan.rows[order]
        index, y, a, back, at, boxes, flips = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            for part in (
                plan.rows,
                self._y[plan.rows],
                self._a[plan.rows],
                back,
                rows[by_size],
                plan.boxes[order],
                plan.flips[order],
            )
        )
        group = group[order]
        for span in self._spans():
            cuts = np.searchsorted(group[span], np.arange(len(resident) + 1)) + span.start
            parts = []
            for images, start, stop in zip(resident, cuts[:-1], cuts[1:], strict=True):
                if start < stop:
                    here = slice(start, stop)
                    parts.append(
                        resample_device(images[at[here]], boxes[here], flips[here], self.image_size)
                    )
            x = parts[0] if len(parts) == 1 else torch.cat(parts)[back[span]]
            yield index[span], x, y[span], a[span]


def send(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; the host does not wait until it is there."""
    if device.type == "cpu":
        return part
    return part.pin_memory().to(device, non_blocking=True)


def _ahead(work: Callable, items: list, workers: int) -> Iterator:
    """work(item) of every item in order, done by `workers` threads up to one result ahead each."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    try:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller leaves the epoch early
        pool.shutdown(wait=True, cancel_futures=True)
