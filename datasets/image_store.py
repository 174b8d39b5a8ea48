"""Every image of a table decoded once into one memory-mapped file of uint8 pixels.

A store is named by a hash of its files' paths, sizes and modification times, so changing any file
names another store and a stale one is never read. Old stores are left where they are: deleting the
folder is always safe, it is only rebuilt. Several runs that want the same store build it once: the
first holds an advisory lock (released by the kernel if it is killed), the others wait.

Images keep their native size. The MAX_SIZES most common sizes of a table are kept as they are (so
that real 178x218 and synthetic square images can be mixed undistorted); an image of any other size
is resized (Lanczos) to the most common one, and how many were is printed.

The file: a .npy array int64 [U, 2] with the stored height and width of each distinct path in sorted
order, then the pixels, size by size, each size one uint8 [n, H, W, 3].
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENODEV
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import ImageTable, named
from datasets.decoding import decode, header_size
from utils.devices import cores
from utils.errors import UserError
from utils.files import atomic_path, lock, remove_leftovers, reserve, write_at
from utils.preemption import PREEMPTION
from utils.progress import progress

VERSION = 1  # raise it whenever decoding changes: older stores are then not read
DEFAULT_DIR = Path(__file__).resolve().parents[1] / "data" / "store"
MAX_SIZES = 4
IN_MEMORY = 64 * 2**20  # bytes; a smaller store is read once instead of mapped


@dataclass(frozen=True)
class ImageStore:
    """The decoded images of a table with N rows.

    `arrays`: one uint8 [n, H, W, 3] per native size, read-only, and `files`, in which file each
    lies; `group` and `row`, int64 [N]: table row i is `arrays[group[i]][row[i]]`.
    """

    files: list[Path]
    arrays: list[np.ndarray]
    group: np.ndarray
    row: np.ndarray

    def image(self, i: int) -> np.ndarray:
        """uint8 [H, W, 3], RGB: the image of table row i, not copied."""
        return self.arrays[self.group[i]][self.row[i]]

    @property
    def sizes(self) -> np.ndarray:
        """int64 [N, 2]: height and width of each table row's image as stored."""
        return np.array([array.shape[1:3] for array in self.arrays], np.int64)[self.group]

    def used(self, number: int) -> np.ndarray:
        """int64 [n], ascending: the rows of array `number` that the table has."""
        return np.unique(self.row[self.group == number])

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels that the table has."""
        return sum(len(self.used(i)) * array[0].nbytes for i, array in enumerate(self.arrays))


def open_store(
    table: ImageTable,
    store_dir: str | Path | None = None,
    threads: int | None = None,
    pools: Sequence[ImageTable] = (),
) -> ImageStore:
    """The store of a table's images, built first where it is not there (or not whole).

    Images that a table of `pools` has, too, are read from the store of that whole table: every
    seed draws other generated images, and so they are decoded once for all seeds. `store_dir`:
    where stores live, by default data/store in this repository. `threads` decode at once, by
    default one per available core. Raises UserError naming every file that is missing or cannot be
    decoded, and for a folder that cannot be written.
    """
    if not len(table.paths):
        raise UserError(f"{table.name} has no images; check its folder and its labels")
    folder = Path(store_dir) if store_dir is not None else DEFAULT_DIR
    files, arrays = [], []
    group, row = np.full((2, len(table.paths)), -1, np.int64)
    for whole in (*pools, None):
        left = np.flatnonzero(group < 0).tolist()
        if whole is not None:
            held = set(whole.paths)
            left = [i for i in left if table.paths[i] in held]
        if not left:
            continue
        here = [table.paths[i] for i in left]
        source = (whole.name, whole.paths) if whole is not None else (table.name, here)
        path, more, kind, row[left] = _open(*source, here, folder, threads or cores())
        group[left] = kind + len(arrays)
        files += [path] * len(more)
        arrays += more
    return ImageStore(files, arrays, group, row)


def _open(
    name: str, paths: list[str], wanted: list[str], folder: Path, threads: int
) -> tuple[Path, list[np.ndarray], np.ndarray, np.ndarray]:
    """(file, arrays, and int64 array number and row of each `wanted`) of the store of `paths`."""
    paths = sorted(set(paths))
    path = folder / f"{_key(paths, name)}.images"
    sizes = _read_sizes(path)
    if sizes is None:
        with _locked(path):
            sizes = _read_sizes(path)  # another run may have built it while this one waited
            if sizes is None:
                _build(paths, path, name, threads)
                sizes = _read_sizes(path)
    layout = _Layout.of(sizes)
    position = {image: i for i, image in enumerate(paths)}
    picked = np.array([position[image] for image in wanted], np.int64)
    return path, layout.open(path), layout.group[picked], layout.row[picked]


def _key(paths: list[str], name: str) -> str:
    """32 hex digits over the version and every file's path, size in bytes and time of change."""
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    missing = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            missing.append((path, getattr(error, "strerror", None) or str(error)))
            continue
        digest.update(os.fsencode(path))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    _refuse(missing, len(paths), name)
    return digest.hexdigest()[:32]


@contextmanager
def _locked(path: Path):
    """Hold the lock beside `path`; a SIGTERM is noticed while another run holds it."""
    lock_path = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock_path, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot hold the decoded images ({error.strerror}); "
            "name a folder that can be written as the store's folder"
        ) from None
    with file:
        lock(file, f"waiting for another run that is decoding into {path}", PREEMPTION.check)
        yield
        # Reached only with the store in place: whoever opens a new lock file now finds it built.
        with suppress(OSError):  # Windows keeps an open file
            lock_path.unlink()


@dataclass(frozen=True)
class _Layout:
    """Where each of U images lies: group and row int64 [U], and the groups' shapes and offsets."""

    shapes: list[tuple[int, int, int, int]]
    starts: list[int]  # byte of each group's first pixel, from the start of the pixels
    group: np.ndarray
    row: np.ndarray
    header: int  # bytes before the pixels; known once a file has been written or read

    @classmethod
    def of(cls, sizes: np.ndarray) -> _Layout:
        kinds, group = np.unique(sizes, axis=0, return_inverse=True)
        group = group.reshape(-1)
        row = np.zeros(len(sizes), np.int64)
        for kind in range(len(kinds)):
            row[group == kind] = np.arange(np.count_nonzero(group == kind))
        counts = np.bincount(group)
        shapes = [(int(n), int(h), int(w), 3) for n, (h, w) in zip(counts, kinds, strict=True)]
        nbytes = [int(np.prod(shape)) for shape in shapes]
        starts = [sum(nbytes[:i]) for i in range(len(nbytes))]
        return cls(shapes, starts, group, row, len(_npy(sizes)))

    @property
    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def offset(self, i: int) -> int:
        """The byte of the file at which image i begins."""
        _, height, width, channels = self.shapes[self.group[i]]
        start = self.header + self.starts[self.group[i]]
        return start + int(self.row[i]) * height * width * channels

    def open(self, path: Path) -> list[np.ndarray]:
        arrays = []
        for shape, start in zip(self.shapes, self.starts, strict=True):
            try:
                array = np.memmap(path, np.uint8, "r", offset=self.header + start, shape=shape)
            except OSError as error:
                if error.errno != ENODEV:
                    raise
                raise UserError(
                    f"{path.parent} lies on a file system that cannot map files into memory; give "
                    "a folder on another disk for the decoded images (--store-dir)"
                ) from None
            # A plain array over the map: indexing np.memmap costs microseconds an image.
            arrays.append(np.array(array) if self.nbytes < IN_MEMORY else np.asarray(array))
        return arrays


def _npy(array: np.ndarray) -> bytes:
    """The array in .npy format."""
    buffer = BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _read_sizes(path: Path) -> np.ndarray | None:
    """int64 [U, 2] from a store's head, or None where there is no whole store."""
    try:
        with open(path, "rb") as file:
            sizes = np.lib.format.read_array(file, allow_pickle=False)
            layout = _Layout.of(sizes)
            whole = os.fstat(file.fileno()).st_size == layout.header + layout.nbytes
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
        return None
    return sizes if whole else None


def _build(paths: list[str], path: Path, name: str, threads: int) -> None:
    """Decode `paths` into `path`; called with the lock held."""
    remove_leftovers(path.parent, path.name)  # of a run that was killed while building this store
    with ThreadPoolExecutor(threads) as pool:
        sizes = _stored_sizes(list(pool.map(header_size, paths)), name)
        layout = _Layout.of(sizes)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(_npy(sizes))
            file.flush()
            descriptor = file.fileno()
            reserve(descriptor, layout.header, layout.nbytes)

            def store(i: int) -> str | None:
                height, width = (int(side) for side in sizes[i])
                try:
                    image = decode(paths[i])
                except Exception as error:  # noqa: BLE001 - what Pillow's decoders raise varies
                    return str(error) or type(error).__name__
                if image.size != (width, height):
                    image = image.resize((width, height), Image.Resampling.LANCZOS)
                write_at(descriptor, image.tobytes(), layout.offset(i))
                return None

            done = progress(
                pool.map(store, range(len(paths))),
                total=len(paths),
                desc=f"decoding {name}",
                unit="image",
                leave=False,
            )
            faults = [(paths[i], fault) for i, fault in enumerate(done) if fault]
            _refuse(faults, len(paths), name)


def _refuse(faults: list[tuple[str, str]], total: int, name: str) -> None:
    """Raise one UserError naming the files at fault, if there are any."""
    if not faults:
        return
    listed = named([f"{path} ({fault})" for path, fault in faults])
    raise UserError(
        f"{len(faults)} of the {total} images of {name} cannot be read, replace them or remove "
        f"them from the data: {listed}"
    )


def _stored_sizes(found: list[tuple[int, int] | None], name: str) -> np.ndarray:
    """int64 [U, 2]: the size each image is stored at, given the size in its file's header."""
    counts = Counter(size for size in found if size)
    ranked = sorted(counts, key=lambda size: (-counts[size], size)) or [(1, 1)]
    kept = set(ranked[:MAX_SIZES])
    others = sum(count for size, count in counts.items() if size not in kept)
    if others:
        height, width = ranked[0]
        print(
            f"{name}: {others} of {len(found)} images have one of {len(ranked) - MAX_SIZES} rarer "
            f"sizes and are resized to the most common one, {width}x{height}",
            file=sys.stderr,
        )
    return np.array([size if size in kept else ranked[0] for size in found], np.int64)
