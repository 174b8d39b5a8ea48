"""Edited versions of the training images: DiGA's generator is whatever wrote their manifest.

A folder holds manifest.csv with at least the columns
    path     an edited image, relative to the folder
    source   the training image it was made from; its file name counts, folders before it do not
and at least two rows for every training image. stable_diffusion/edit.py writes one; any other
editor can.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.augment import crop_boxes, flip_mask, shuffled, uniform
from datasets.base import ImageTable, check_images, named
from datasets.loader import Loader, Plan
from utils.errors import UserError
from utils.files import is_plain_name

COLUMNS = ("path", "source")
FIRST_VIEW, SECOND_VIEW = 1000, 1001  # numbers of random draws; a crop takes those below 50


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """{file name of the training image: paths of its edits, in the manifest's order}.

    Raises UserError naming the file and row for a missing column, a path that leaves the folder
    and a path listed twice.
    """
    path, edits, seen = folder / "manifest.csv", {}, set()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--edits {folder}: {path} cannot be read ({error}); make the edited images first, for "
            "example with python -m stable_diffusion.edit"
        ) from None
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; write it again")
    for number, row in enumerate(rows, 1):
        file, source = (row[column] or "" for column in COLUMNS)
        if not all(is_plain_name(part) for part in file.split("/")):
            raise UserError(
                f"{path}, row {number}: '{file}' is no path inside {folder}; only relative paths "
                "without '..' are taken"
            )
        if file in seen:
            raise UserError(f"{path}, row {number} lists {file} again; remove the extra row")
        seen.add(file)
        edits.setdefault(PurePosixPath(source).name, []).append(file)
    return edits


def load_edits(folder: str | Path, images: ImageTable) -> ImageTable:
    """K edits of each of the N training images, image by image: row i*K + j is edit j of image i.

    K >= 2 is the smallest number of edits that any of them has; further edits are left out. y is
    that of the source (an edit must keep the target), a is -1. Raises UserError for a wrong
    manifest, images with fewer than two edits, and edited images that are missing or unreadable.
    """
    folder = Path(folder)
    edits = read_manifest(folder)
    names = [os.path.basename(path) for path in images.paths]
    if len(set(names)) < len(names):
        raise UserError(
            f"--edits {folder}: training images of the same file name cannot be told apart; rename "
            "them or leave diga out of --methods"
        )
    without = [name for name in names if len(edits.get(name, ())) < 2]
    if without:
        raise UserError(
            f"--edits {folder}: {len(without)} of the {len(names)} training images have fewer than "
            f"two edits ({named(without, 3)}); edit the images of this setting's train.csv"
        )
    copies = min(len(edits[name]) for name in names)
    prefix = os.path.abspath(folder)
    table = ImageTable(
        "edited images",
        [os.path.join(prefix, *file.split("/")) for name in names for file in edits[name][:copies]],
        np.repeat(images.y, copies),
        np.full(len(names) * copies, -1),
    )
    check_images([table], folder)
    return table


class PairLoader(Loader):
    """Batches of two different edits of each of B images, all differently cropped and flipped.

    A batch's x is float32 [2B, 3, H, W]: row i and row B + i are edits of one image. index int64
    [2B] are rows of the table of `load_edits`, so index // K is the image. Every epoch takes each
    image once, in another order with other pairs; the last incomplete batch is dropped. All of it
    follows from (seed, epoch, index), as in Loader.
    """

    def __init__(self, edits: ImageTable, images: int, batch_size: int, **rest):
        """edits: K rows an image; images: their number N; batch_size: B; rest: as for Loader."""
        self.images, self.copies = images, len(edits) // images
        super().__init__(edits, 2 * batch_size, train=True, drop_last=True, **rest)

    def __len__(self) -> int:
        return self.images // (self.batch_size // 2)

    def pairs(self, k: int) -> np.ndarray:
        """int64 [batches, 2, B]: the rows of epoch k."""
        size = self.batch_size // 2
        image = shuffled(self.seed, k, self.images)[: len(self) * size]
        first = uniform(self.seed, k, image, FIRST_VIEW) * self.copies
        step = 1 + np.floor(uniform(self.seed, k, image, SECOND_VIEW) * (self.copies - 1))
        first = first.astype(np.int64)
        second = (first + step.astype(np.int64)) % self.copies  # never the first one
        rows = image * self.copies + np.stack([first, second])  # [2, batches * B]
        return rows.reshape(2, len(self), size).transpose(1, 0, 2)

    def plan(self, k: int) -> Plan:
        rows = self.pairs(k).reshape(-1)
        height, width = self.store.sizes[rows].T
        boxes = crop_boxes(self.seed, k, rows, height, width, self.min_crop)
        return Plan(rows, boxes, flip_mask(self.seed, k, rows))


def pair_loader(run) -> PairLoader:
    """A run's edited training images in batches of pairs."""
    data, c = run.data, run.config
    return PairLoader(
        data.edited, len(data.real), c.batch_size, image_size=c.image_size, device=c.device,
        seed=run.seed, store_dir=c.store_dir, workers=c.workers, min_crop=c.min_crop,
        mean=c.mean, std=c.std,
    )
