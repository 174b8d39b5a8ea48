"""FairSMOTE (Chakraborty et al., ESEC/FSE 2021): balance every group (y, a). Sees a in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from datasets.array_loader import ArrayLoader
from datasets.augment import crop_boxes, flip_mask
from datasets.base import ArrayTable, ImageTable, concat
from datasets.edits import ViewLoader
from datasets.loader import Plan
from models.fairif.baselines.smote import oversampled, pairs
from models.features import penultimate
from models.method import Batch, Method, bce, pretrained
from utils.files import read_array, write_array
from utils.run import Run


class PartnerLoader(ViewLoader):
    """Batches of B images and their B partners, each pair cropped and flipped alike.

    The table holds N images and then the N partners. A batch's x is float32 [2B, 3, H, W]: row
    B + i is the partner of row i; index int64 [2B] are rows of the table. Every epoch takes each
    image once; the last incomplete batch is dropped.
    """

    def __init__(self, table: ImageTable, images: int, batch_size: int, **rest):
        super().__init__(table, 2, images, batch_size, **rest)

    def views(self, k: int, image: np.ndarray) -> np.ndarray:
        return np.stack([image, image + self.images])

    def plan(self, k: int) -> Plan:
        rows = self.rows(k).reshape(-1)
        height, width = self.store.sizes[rows].T
        image = rows % self.images  # the mixture is one image: its parts share their random draws
        boxes = crop_boxes(self.seed, k, image, height, width, self.min_crop)
        return Plan(rows, boxes, flip_mask(self.seed, k, image))


class FairSMOTE(Method):
    """ERM after every group (y, a) was filled up to the largest with new samples of its own.

    They are drawn once, so the training set is fixed; an epoch is as much longer. Rows of features
    and digits: as in the paper (smote.py). A new photograph is (1 - s) * parent + s * neighbour,
    pixel by pixel, s uniform in [0, 1) as in SMOTE: the parent is a random image of the group, the
    neighbour one of its 5 nearest there in the penultimate features of the setting's ERM model;
    both are cropped and flipped alike.
    Departures: on photographs the paper's f * (neighbour 1 - neighbour 2), attribute by attribute,
    leaves the range and shows two ghosts. Its removal of samples by "situation testing" is not
    part of this comparison.
    """

    stages = ("offspring", "train")
    uses_attributes = "train"
    paper_row = "FairSMOTE"

    def __init__(self, model: nn.Module, recipe, *, share: np.ndarray | None, **rest):
        # of photographs float32 [T]: the partner's part, s
        self.share = share
        if share is not None:
            self.share = torch.from_numpy(share).to(next(model.parameters()).device)
        super().__init__(model, recipe, **rest)

    @classmethod
    def offspring(cls, run: Run) -> None:
        """Of photographs offspring.npy: parents and neighbours, rows int64 [2, M] of the training
        set. New samples in memory are quicker to draw again than to read."""
        if isinstance(run.data.real, ArrayTable):
            return
        quiet, real = replace(run, log=[]), run.data.real
        erm = pretrained(quiet)
        run.passes = quiet.passes  # its epochs are not in this row's log, its images count
        with run.stage("offspring", "offspring.npy") as stage:
            if not stage.finished:
                features = penultimate(erm, run.data.loader(real, train=False))
                found = pairs(torch.from_numpy(features), real.y, real.a, run.seed)
                write_array(stage.folder / "offspring.npy", found)

    @classmethod
    def rows(cls, run: Run) -> np.ndarray:
        """int64 [2, T]: images of the training set and their partners; a photograph's is itself"""
        made = read_array(run.folder / "offspring" / "offspring.npy", (2, None), np.int64)
        real = np.arange(len(run.data.real))
        return np.concatenate([np.stack([real, real]), made], axis=1)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        if isinstance(run.data.real, ArrayTable):
            return {"share": None}
        real, total = len(run.data.real), cls.rows(run).shape[1]
        share = np.random.default_rng(run.seed).random(total - real, dtype=np.float32)
        return {"share": np.concatenate([np.zeros(real, np.float32), share])}

    @classmethod
    def batches(cls, run: Run) -> PartnerLoader | ArrayLoader:
        data, c = run.data, run.config
        if isinstance(data.real, ArrayTable):
            return data.loader(oversampled(data.real, run.seed), train=True)
        images, partners = (data.real.take(rows) for rows in cls.rows(run))
        return PartnerLoader(
            concat([images, partners], "images and their partners"), len(images), c.batch_size,
            image_size=c.image_size, device=c.device, seed=data.seed, store_dir=c.store_dir,
            workers=c.workers, min_crop=c.min_crop, pools=data.pools, mean=c.mean, std=c.std,
        )

    def passes(self, batch: Batch) -> int:
        return super().passes(batch) // (1 if self.share is None else 2)  # of two images comes one

    def loss(self, batch: Batch) -> Tensor:
        if self.share is None:
            return super().loss(batch)
        index, x, y, _ = batch
        (image, partner), (index, _), (y, _) = x.chunk(2), index.chunk(2), y.chunk(2)
        share = self.share[index].view(-1, *[1] * (x.ndim - 1))
        with self.precision(x):
            return bce(self.network, torch.lerp(image, partner, share), y)
