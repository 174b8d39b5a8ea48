"""Edited versions of the training images: DiGA's generator is whatever wrote their manifest.

A folder holds manifest.csv with at least the columns
    path     an edited image, relative to the folder
    source   the training image it was made from; its file name counts, folders before it do not
    protected   0 or 1: the side of the spurious attribute that it was moved to
and at least one row of each side for every training image. stable_diffusion/edit.py writes one; any
other editor can.
"""

from __future__ import annotations

import csv
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from datasets.augment import crop_boxes, flip_mask, shuffled, uniform
from datasets.base import ImageTable, check_images, named
from datasets.loader import Batch, Loader, Plan
from utils.errors import UserError
from utils.files import is_plain_name

COLUMNS = ("path", "source", "protected")
VIEW, COLOUR = 1000, 1100  # numbers of random draws from these on; a crop takes those below 50
# Of a pair's views, and of the probe's images: the smallest share of an image in a crop (reference)
PAIR_CROP, PROBE_CROP = 0.8, 0.9
JITTERED, GREY = 0.8, 0.2  # shares of a pair's views whose colours are changed, that are grey
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.4, 0.1  # how far, as in torchvision's jitter
LUMA = (0.299, 0.587, 0.114)


def read_manifest(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """{file name of the training image: paths of its edits of side 0 and of side 1, in the
    manifest's order}.

    Raises UserError naming the file and row for a missing column, a path that leaves the folder, a
    path listed twice and a side that is not 0 or 1.
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
        file, source, side = (row[column] or "" for column in COLUMNS)
        if not all(is_plain_name(part) for part in file.split("/")):
            raise UserError(
                f"{path}, row {number}: '{file}' is no path inside {folder}; only relative paths "
                "without '..' are taken"
            )
        if file in seen:
            raise UserError(f"{path}, row {number} lists {file} again; remove the extra row")
        if side not in ("0", "1"):
            raise UserError(f"{path}, row {number}: protected is '{side}'; it must be 0 or 1")
        seen.add(file)
        edits.setdefault(PurePosixPath(source).name, ([], []))[int(side)].append(file)
    return edits


def load_edits(folder: str | Path, images: ImageTable) -> ImageTable:
    """2K edits of each of the N training images, image by image: row (2i + s) K + j is edit j of
    side s of image i.

    K >= 1 is the smallest number of edits of a side that any of them has; further ones are left
    out. y is that of the source (an edit must keep the target), a the side: it is what the editor
    was told and nobody's annotation. Raises UserError for a wrong manifest, images without an edit
    of each side, and edited images that are missing or unreadable.
    """
    folder = Path(folder)
    edits = read_manifest(folder)
    names = [os.path.basename(path) for path in images.paths]
    if len(set(names)) < len(names):
        raise UserError(
            f"--edits {folder}: training images of the same file name cannot be told apart; rename "
            "them or leave diga out of --methods"
        )
    without = [name for name in names if not all(edits.get(name, ((),)))]
    if without:
        raise UserError(
            f"--edits {folder}: {len(without)} of the {len(names)} training images have no edits "
            f"of both sides ({named(without, 3)}); edit the images of this setting's train.csv"
        )
    copies = min(len(side) for name in names for side in edits[name])
    prefix = os.path.abspath(folder)
    table = ImageTable(
        "edited images",
        [os.path.join(prefix, *file.split("/"))
         for name in names for side in edits[name] for file in side[:copies]],
        np.repeat(images.y, 2 * copies),
        np.tile(np.repeat([0, 1], copies), len(names)),
    )
    check_images([table], folder)
    return table


class ViewLoader(Loader, ABC):
    """Batches of V images that belong together of each of B; `views` says which.

    A batch's x is float32 [V B, 3, H, W]: rows b, B + b, ... belong together. Every epoch takes
    each of the N once, in another order, differently cropped and flipped; the last incomplete batch
    is dropped. All of it follows from (seed, epoch, index), as in Loader.
    """

    def __init__(self, table: ImageTable, together: int, images: int, batch_size: int, **rest):
        """together: V; images: N; batch_size: B; rest: as for Loader."""
        self.together, self.images = together, images
        super().__init__(table, together * batch_size, train=True, drop_last=True, **rest)

    def __len__(self) -> int:
        return self.images // (self.batch_size // self.together)

    @abstractmethod
    def views(self, k: int, image: np.ndarray) -> np.ndarray:
        """int64 [V, M]: in epoch k, the rows of the table that belong to images int64 [M]."""

    def rows(self, k: int) -> np.ndarray:
        """int64 [batches, V, B]: the rows of epoch k."""
        size = self.batch_size // self.together
        image = shuffled(self.seed, k, self.images)[: len(self) * size]
        rows = self.views(k, image).reshape(self.together, len(self), size)
        return rows.transpose(1, 0, 2)

    def plan(self, k: int) -> Plan:
        rows = self.rows(k).reshape(-1)
        height, width = self.store.sizes[rows].T
        boxes = crop_boxes(self.seed, k, rows, height, width, self.min_crop)
        return Plan(rows, boxes, flip_mask(self.seed, k, rows))


class EditLoader(ViewLoader):
    """V views of each image; a view is one of its edits of a given side, drawn in every epoch."""

    def __init__(
        self, edits: ImageTable, sides: np.ndarray, batch_size: int, *, jitter: bool, **rest
    ):
        """edits: of `load_edits`; sides: int [V, N], of each view and image; jitter: the views'
        colours are changed; the others as for ViewLoader."""
        self.sides, self.copies = sides, len(edits) // (2 * sides.shape[1])
        self.jitter = jitter
        super().__init__(edits, *sides.shape, batch_size, **rest)

    def views(self, k: int, image: np.ndarray) -> np.ndarray:
        drawn = [uniform(self.seed, k, image, VIEW + v) for v in range(self.together)]
        edit = np.floor(np.stack(drawn) * self.copies).astype(np.int64)
        return (2 * image + self.sides[:, image]) * self.copies + edit

    def epoch(self, k: int) -> Iterator[Batch]:
        if not self.jitter:
            yield from super().epoch(k)
            return
        rows = self.rows(k)
        draws = np.stack([uniform(self.seed, k, rows, COLOUR + part) for part in range(6)], axis=-1)
        draws = torch.from_numpy(draws.reshape(len(rows), -1, 6)).float()  # [batches, V B, 6]
        draws = draws.to(self.device)  # of the whole epoch: for each batch's the host would wait
        for drawn, (index, x, y, a) in zip(draws, super().epoch(k), strict=True):
            yield index, jitter_colours(x, drawn), y, a


def jitter_colours(x: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of a share JITTERED of the images changed, each in
    its own way, and a share GREY of all made grey; x float [B, 3, H, W] in [-1, 1], drawn float
    [B, 6] uniform in [0, 1).

    What torchvision's ColorJitter and RandomGrayscale do, with its factors, for a whole batch; in
    this order, and hue is turned in the plane of YIQ's two colours instead of HSV's circle.
    """
    luma, *_ = _colours(x.device)
    changed = drawn[:, 0] < JITTERED

    def factor(column: int, strength: float) -> torch.Tensor:
        far = 1 + strength * (2 * drawn[:, column] - 1)
        return torch.where(changed, far, 1.0).view(-1, 1, 1, 1)

    def grey(image: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,c->bhw", image, luma)[:, None]

    image = ((x + 1) / 2 * factor(1, BRIGHTNESS)).clamp(0, 1)
    mean = grey(image).mean((2, 3), keepdim=True)
    image = (mean + (image - mean) * factor(2, CONTRAST)).clamp(0, 1)
    level = grey(image)
    image = (level + (image - level) * factor(3, SATURATION)).clamp(0, 1)
    image = torch.einsum("bdc,bchw->bdhw", _turns(factor(4, HUE).flatten() - 1), image).clamp(0, 1)
    image = torch.where((drawn[:, 5] < GREY).view(-1, 1, 1, 1), grey(image), image)
    return (image * 2 - 1).to(memory_format=torch.channels_last)


@functools.cache
def _colours(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LUMA float [3], RGB -> YIQ and its inverse float [3, 3] there; sent once, as the host waits
    for a constant that it sends and for an inverse."""
    yiq = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    return tuple(part.to(device) for part in (torch.tensor(LUMA), yiq, torch.linalg.inv(yiq)))


def _turns(turns: torch.Tensor) -> torch.Tensor:
    """RGB -> RGB with the hue turned by a share of the circle each: float [B, 3, 3]."""
    _, yiq, back = _colours(turns.device)
    angle, rotation = 2 * torch.pi * turns, torch.zeros(len(turns), 3, 3, device=turns.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return back @ rotation @ yiq


def edit_loader(run, sides: np.ndarray, batch_size: int, *, pairs: bool) -> EditLoader:
    """A run's edited training images: pairs of views for BYOL, or single ones for the probe."""
    data, c = run.data, run.config
    return EditLoader(
        data.edited, sides, batch_size, jitter=pairs, image_size=c.image_size, device=c.device,
        seed=run.seed, store_dir=c.store_dir, workers=c.workers,
        min_crop=PAIR_CROP if pairs else PROBE_CROP,
        mean=c.mean, std=c.std,
    )
