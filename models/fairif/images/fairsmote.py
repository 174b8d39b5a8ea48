"""FairSMOTE (Chakraborty et al., ESEC/FSE 2021) on images. Sees a in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from datasets.augment import crop_boxes, flip_mask, shuffled
from datasets.base import CELLS, ImageTable, concat
from datasets.edits import PairLoader
from datasets.loader import Plan
from datasets.mixing import Data
from models.fairif.baselines.fairsmote import missing, trios
from models.features import penultimate
from models.method import Batch, Method, bce, pretrained
from utils.files import read_array, write_array
from utils.run import Run


def offspring(features: Tensor, y: np.ndarray, a: np.ndarray, seed: int) -> np.ndarray:
    """Rows int64 [2, M] of the training set: parents and a near neighbour of each in its cell.

    features: float [N, D], in which neighbours are near; y, a: int64 [N]. Every cell gets as many
    as it lacks of the largest one. Raises UserError as `missing`.
    """
    generator, pairs = torch.Generator().manual_seed(seed), [np.zeros((2, 0), np.int64)]
    lacks = missing(torch.from_numpy(y), torch.from_numpy(a))
    for (label, protected), lack in zip(CELLS, lacks, strict=True):
        if lack:
            rows = np.flatnonzero((y == label) & (a == protected))
            pairs.append(rows[trios(features[rows], lack, generator)[:2].numpy()])
    return np.concatenate(pairs, axis=1)


class PartnerLoader(PairLoader):
    """Batches of B images and their B partners, each pair cropped and flipped alike.

    The table holds N images and then the N partners. A batch's x is float32 [2B, 3, H, W]: row
    B + i is the partner of row i; index int64 [2B] are rows of the table. Every epoch takes each
    image once; the last incomplete batch is dropped.
    """

    def pairs(self, k: int) -> np.ndarray:
        """int64 [batches, 2, B]: the rows of epoch k."""
        size = self.batch_size // 2
        image = shuffled(self.seed, k, self.images)[: len(self) * size]
        rows = np.stack([image, image + self.images])  # [2, batches * B]
        return rows.reshape(2, len(self), size).transpose(1, 0, 2)

    def plan(self, k: int) -> Plan:
        rows = self.pairs(k).reshape(-1)
        height, width = self.store.sizes[rows].T
        image = rows % self.images  # the mixture is one image: its parts share their random draws
        boxes = crop_boxes(self.seed, k, image, height, width, self.min_crop)
        return Plan(rows, boxes, flip_mask(self.seed, k, image))


def partner_loader(data: Data, images: ImageTable, partners: ImageTable) -> PartnerLoader:
    """The images and their partners, row by row, in batches of the setting."""
    c = data.config
    return PartnerLoader(
        concat([images, partners], "images and their partners"), len(images), c.batch_size,
        image_size=c.image_size, device=c.device, seed=data.seed, store_dir=c.store_dir,
        workers=c.workers, min_crop=c.min_crop, pools=data.pools,
    )


class FairSMOTE(Method):
    """ERM after every cell (y, a) was filled up to the largest with mixtures of its own images.

    A new image is (1 - s) * parent + s * neighbour, pixel by pixel, s uniform in [0, 1) as in
    SMOTE: the parent is a random image of the cell, the neighbour one of its 5 nearest there in the
    penultimate features of the setting's ERM model. Pairs and s are drawn once, so the training set
    is fixed; both images of a pair are cropped and flipped alike. An epoch is as much longer.
    Departures: the paper's f * (neighbour 1 - neighbour 2), attribute by attribute with probability
    cr, is made for tables: on pixels it leaves the range and shows two ghosts (Table 2 of FairIF,
    on digits, does it: baselines/fairsmote.py). Its removal of samples by "situation testing" is
    not part of this comparison.
    """

    stages = ("offspring", "train")
    uses_attributes = "train"
    paper_row = "FairSMOTE"

    def __init__(self, model: nn.Module, recipe, *, share: np.ndarray, **rest):
        device = next(model.parameters()).device
        self.share = torch.from_numpy(share).to(device)  # float32 [T]: the partner's part, s
        super().__init__(model, recipe, **rest)

    @classmethod
    def offspring(cls, run: Run) -> None:
        """offspring.npy: parents and neighbours, rows int64 [2, M] of the training set."""
        quiet = replace(run, log=[])
        erm = pretrained(quiet)
        run.passes = quiet.passes  # its epochs are not in this row's log, its images count
        with run.stage("offspring", "offspring.npy") as stage:
            if not stage.finished:
                features = penultimate(erm, run.data.loader(run.data.real, train=False))
                pairs = offspring(torch.from_numpy(features), run.data.real.y, run.data.real.a,
                                  run.seed)
                write_array(stage.folder / "offspring.npy", pairs)

    @classmethod
    def rows(cls, run: Run) -> np.ndarray:
        """int64 [2, T]: the images of the training set and their partners; a real one is its own"""
        made = read_array(run.folder / "offspring" / "offspring.npy", (2, None), np.int64)
        real = np.arange(len(run.data.real))
        return np.concatenate([np.stack([real, real]), made], axis=1)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        real, total = len(run.data.real), cls.rows(run).shape[1]
        share = np.random.default_rng(run.seed).random(total - real, dtype=np.float32)
        return {"share": np.concatenate([np.zeros(real, np.float32), share])}

    @classmethod
    def batches(cls, run: Run) -> PartnerLoader:
        images, partners = cls.rows(run)
        return partner_loader(run.data, run.data.real.take(images), run.data.real.take(partners))

    def passes(self, batch: Batch) -> int:
        return len(batch[1]) // 2  # of two images comes one

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        (image, partner), (index, _), (y, _) = x.chunk(2), index.chunk(2), y.chunk(2)
        share = self.share[index].view(-1, *[1] * (x.ndim - 1))
        with self.precision(x):
            return bce(self.network, torch.lerp(image, partner, share), y)
