"""What every dataset hands on: a table of image files, or of arrays in memory, with target and
protected labels."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from utils.errors import UserError, is_systems
from utils.files import write_atomic
from utils.metrics import GROUPS
from utils.records import files_digest

if TYPE_CHECKING:
    from typing import Self

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # not EPS, whose decoder starts a program
MAX_PIXELS = 50_000_000  # a few kB of PNG can claim more; no face photograph is this large
DAMAGED = ("missing", "empty", "unreadable")  # kinds of bad images; empty: of zero bytes
UNFIT = f"too large (over {MAX_PIXELS // 10**6} million pixels) or animated"
READERS = 16  # threads opening files: the wait is the disk's or the network's, not the processor's


class Table(ABC):
    """Samples with their labels, in a fixed order; a batch's index is a row of this table.

    name: where the rows come from, for messages. y: int64 [N], target label 0 or 1. a: int64 [N],
    protected label 0 or 1, -1 where unknown.
    """

    name: str
    y: np.ndarray
    a: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "y", np.asarray(self.y, dtype=np.int64).reshape(-1))
        object.__setattr__(self, "a", np.asarray(self.a, dtype=np.int64).reshape(-1))
        if not len(self) == len(self.y) == len(self.a):
            raise ValueError(
                f"{self.name}: {len(self)} samples, {len(self.y)} y and {len(self.a)} a labels"
            )

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the samples and their labels."""

    @abstractmethod
    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """The given rows (int [M]) in the given order."""

    def withheld(self) -> Self:
        """The same samples without protected labels: a = -1."""
        return replace(self, a=np.full(len(self), -1))

    def counts(self) -> dict[tuple[int, int], int]:
        """Samples per (y, a): always the four groups, (y, -1) only where it occurs."""
        counts = dict.fromkeys(GROUPS, 0)
        groups, numbers = np.unique(np.stack([self.y, self.a]), axis=1, return_counts=True)
        for (y, a), number in zip(groups.T.tolist(), numbers.tolist(), strict=True):
            counts[y, a] = number
        return counts


@dataclass(frozen=True, eq=False)
class ImageTable(Table):
    """Image files with their labels. paths: N absolute file names; the rest as in Table.

    Raises ValueError where the three lengths differ.
    """

    name: str
    paths: list[str]
    y: np.ndarray
    a: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | np.ndarray) -> ImageTable:
        rows = np.asarray(rows, dtype=np.int64)
        return ImageTable(self.name, [self.paths[i] for i in rows], self.y[rows], self.a[rows])

    def digest(self) -> str:
        return files_digest(self.paths, self.y.tolist(), self.a.tolist())


@dataclass(frozen=True, eq=False)
class ArrayTable(Table):
    """Samples in memory. x: float64 [N, D] or uint8 [N, C, H, W]; columns: the D features' names.

    rows: int64 [N], where each stands in the whole data set, by default its row here. Raises
    ValueError where lengths differ.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    a: np.ndarray
    columns: tuple[str, ...] = ()
    rows: np.ndarray | None = None

    def __post_init__(self):
        super().__post_init__()
        rows = np.arange(len(self)) if self.rows is None else np.asarray(self.rows, np.int64)
        object.__setattr__(self, "rows", rows)
        if len(rows) != len(self):
            raise ValueError(f"{self.name}: {len(self)} samples and {len(rows)} row numbers")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Sequence[int] | np.ndarray) -> ArrayTable:
        rows = np.asarray(rows, dtype=np.int64)
        return replace(self, x=self.x[rows], y=self.y[rows], a=self.a[rows], rows=self.rows[rows])

    def digest(self) -> str:
        total = hashlib.sha256()
        for part in (self.x, self.y, self.a):
            total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()[:16]

    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The columns of every categorical attribute, which are named "attribute=value"."""
        found: dict[str, list[int]] = {}
        for number, column in enumerate(self.columns):
            attribute, equals, _ = column.partition("=")
            if equals:
                found.setdefault(attribute, []).append(number)
        return tuple(map(tuple, found.values()))


def concat(tables: Iterable[ImageTable], name: str) -> ImageTable:
    """The tables' rows one after the other, under a new name."""
    tables = list(tables)
    if not tables:
        return ImageTable(name, [], np.zeros(0), np.zeros(0))
    paths = [path for table in tables for path in table.paths]
    return ImageTable(name, paths, *(
        np.concatenate([getattr(table, part) for table in tables]) for part in ("y", "a")))


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint tables of one setting; val is None where no image is held out."""

    train: Table
    val: Table | None
    test: Table


def save_list(table: Table, path: str | Path, root: str | Path | None = None) -> None:
    """Write the rows as csv: `file,y,a`, file relative to root (default: their common folder), or,
    of samples in memory, `row,y,a`, the row in the whole data set."""
    if isinstance(table, ArrayTable):
        head, names = "row", table.rows.tolist()
    else:
        folders = {os.path.dirname(file) for file in table.paths}
        root = os.path.abspath(root) if root else os.path.commonpath(folders) if folders else "."
        head = "file"
        names = [Path(os.path.relpath(file, root)).as_posix() for file in table.paths]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((head, "y", "a"))
    writer.writerows(zip(names, table.y.tolist(), table.a.tolist(), strict=True))
    write_atomic(path, text.getvalue())


def check_val(val: str) -> None:
    """Raise ValueError for another choice of validation images than "official" and "none"."""
    if val not in ("official", "none"):
        raise ValueError(f"validation is 'official' or 'none', not '{val}'")


def check_pair(dataset: str, attributes: tuple[str, str], target: str, protected: str) -> None:
    """Raise UserError unless target and protected are the two attributes, either way round."""
    if {target, protected} != set(attributes):
        raise UserError(
            f"{dataset}'s target and protected attribute are {' and '.join(attributes)}, "
            f"not {target} and {protected}; change --target and --protected"
        )


def check_fixed(dataset: str, attributes: tuple[str, str], target: str, protected: str) -> None:
    """Raise UserError unless target and protected are the only ones that the dataset has."""
    if (target, protected) != attributes:
        raise UserError(
            f"{dataset}'s target is {attributes[0]} and its protected attribute {attributes[1]}, "
            f"not {target} and {protected}; leave out --target and --protected"
        )


def named(names: Sequence[str], limit: int = 20) -> str:
    """The names joined for a message; beyond `limit` only their number."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def bad_images(paths: Sequence[str]) -> dict[str, list[str]]:
    """Images that cannot be used, by kind: DAMAGED's, UNFIT, or "closed" and what the system says.

    A JPEG whose first and last bytes are in place passes without being decoded, which is what
    makes this fast enough to run before every training; any other file must decode.
    """
    present: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        try:
            with os.scandir(folder) as entries:
                present[folder] = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            present[folder] = set()
        except OSError as error:  # perhaps it may be entered: nothing is known to be missing
            raise UserError(
                f"the images in {folder} cannot be listed ({error.strerror}); give yourself the "
                "right to read that folder, or mend its disk"
            ) from None
    bad = defaultdict(list)
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if name in present[folder]:
            found.append(path)
        else:
            bad["missing"].append(path)
    blocks = [found[i : i + 256] for i in range(0, len(found), 256)]
    with ThreadPoolExecutor(READERS) as pool:
        for block, kinds in zip(blocks, pool.map(_kinds, blocks), strict=True):
            for path, kind in zip(block, kinds, strict=True):
                if kind:
                    bad[kind].append(path)
    return dict(bad)


def _kinds(paths: list[str]) -> list[str | None]:
    return [_kind(path) for path in paths]


def _kind(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return "empty"
            head = file.read(3)
            file.seek(max(0, size - 64))
            # 0xFFD9 ends a JPEG and cannot occur inside its image data; some cameras pad after it
            if head == b"\xff\xd8\xff" and b"\xff\xd9" in file.read(64):
                return None
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or getattr(image, "is_animated", False):
                return UNFIT
            image.load()
    except OSError as error:
        if is_systems(error):
            return f"closed ({error.strerror})"
        return "missing" if isinstance(error, FileNotFoundError) else "unreadable"  # a dead link
    except Exception:  # noqa: BLE001 - Pillow's decoders raise many types, each means unusable
        return "unreadable"
    return None


AGAIN = "copy these again from the original archive"


def check_images(
    tables: Iterable[ImageTable | None], root: str | Path, *, again: str = AGAIN
) -> None:
    """Raise one UserError that names every kind of unusable image among the tables' rows; again:
    what to do about missing and damaged ones."""
    paths = list(dict.fromkeys(path for table in tables if table for path in table.paths))
    bad = bad_images(paths)
    if bad:
        kinds = [
            f"{len(files)} {kind} ({named([os.path.basename(file) for file in files])})"
            for kind, files in bad.items()
        ]
        remedies = {
            again: bad.keys() & set(DAMAGED),
            "replace what is too large or moves": bad.keys() & {UNFIT},
            "give yourself the right to read what is closed, or mend its disk":
                bad.keys() - {*DAMAGED, UNFIT},
        }  # fmt: skip
        raise UserError(
            f"of the {len(paths)} images needed under {root}, {'; '.join(kinds)}: "
            + "; ".join(remedy for remedy, kinds in remedies.items() if kinds)
        )
