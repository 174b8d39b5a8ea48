"""What mirrors hold, in the layout of the official distribution, which the loaders read."""

from __future__ import annotations

import csv
import gzip
import io
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datasets.celeba import PARTITIONS
from datasets.sources import SourceError
from utils.files import is_plain_name
from utils.progress import progress

GENDERS = ("Male", "Female")  # the numbers of HuggingFaceM4/FairFace
RACES = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic",
         "Southeast Asian")
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")


def archive(path: Path, folder: Path) -> None:
    """Unpack a zip or tar file into a folder. Raises SourceError where it is neither or damaged;
    members that leave the folder are refused."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                packed.extractall(folder)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as packed:
                _untar(packed, folder)
        else:
            path.unlink()  # not to be taken for a whole one the next time
            raise SourceError(f"{path.name} is no archive")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        path.unlink()
        raise SourceError(f"{path.name} is damaged ({error})") from None


def _untar(packed: tarfile.TarFile, folder: Path) -> None:
    """What extractall's filter "data" does, which Debian's Python 3.11.2 lacks: files and folders,
    none of them outside `folder`. Raises tarfile.TarError for any other member."""
    for member in packed:
        pieces = PurePosixPath(member.name).parts
        if not (member.isfile() or member.isdir()) or not all(map(is_plain_name, pieces)):
            raise tarfile.TarError(f"{member.name} is no file below its folder")
        place = folder.joinpath(*pieces)
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with packed.extractfile(member) as content, place.open("wb") as file:
            shutil.copyfileobj(content, file)


def rows(files: Sequence[Path], what: str) -> Iterator[dict]:
    """The rows of parquet files, one after the other. Raises SourceError for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for file in files:
        try:
            with parquet.ParquetFile(file) as table:
                bar = progress(total=table.metadata.num_rows, desc=f"{what} {file.name}",
                               unit="image", leave=False)
                with bar:
                    for batch in table.iter_batches(batch_size=256):
                        yield from batch.to_pylist()
                        bar.update(len(batch))
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise SourceError(f"{file.name} is no whole parquet file ({error})") from None


def _image(row: dict, *columns: str) -> tuple[bytes, str]:
    """The bytes of a row's picture, and the name that it had or ""."""
    for column in columns:
        if isinstance(row.get(column), dict) and row[column].get("bytes"):
            name = re.split(r"[/\\]", row[column].get("path") or "")[-1]
            return row[column]["bytes"], name
    raise SourceError(f"a row has no picture in {' or '.join(columns)}")


def celeba(parts: dict[str, Sequence[Path]], folder: Path) -> None:
    """CelebA's images and two lists from the parquet files of train, val and test.

    Images are numbered in the mirror's order, which the hashes of the released lists confirm
    afterwards; their bytes stay as they are, PNG under .jpg names, too, which no reader minds.
    """
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    names, lines, partition = None, [], []
    for number, part in enumerate(PARTITIONS):
        for row in rows(parts[part], "unpacking"):
            name = f"{len(lines) + 1:06d}.jpg"
            (images / name).write_bytes(_image(row, "image")[0])
            given = {key: value for key, value in row.items()
                     if isinstance(value, bool | int) and key != "celeb_id"}
            names = names or list(given)
            values = (1 if given[key] == 1 else -1 for key in names)
            lines.append(f"{name} {' '.join(f'{value:2d}' for value in values)}")
            partition.append(f"{name} {number}")
    if not names:
        raise SourceError("the mirror holds no image")
    text = "\n".join([str(len(lines)), " ".join(names), *lines])
    (folder / "list_attr_celeba.txt").write_text(text + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


def fairface(parts: dict[str, Sequence[Path]], folder: Path) -> None:
    """FairFace's two label files and folders from parquet files of train and val."""
    for part, files in parts.items():
        (folder / part).mkdir(parents=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("file", "age", "gender", "race", "service_test"))
        for number, row in enumerate(rows(files, "unpacking"), 1):
            data, _ = _image(row, "image", "file")
            name = f"{part}/{number}.jpg"
            (folder / name).write_bytes(data)
            writer.writerow((name, *(
                known[row[key]] if isinstance(row[key], int) else row[key]
                for key, known in (("age", AGES), ("gender", GENDERS), ("race", RACES))
            ), row["service_test"]))
        (folder / f"fairface_label_{part}.csv").write_text(text.getvalue())


def mnist(parts: dict[str, Sequence[Path]], folder: Path) -> None:
    """MNIST's four idx files (.gz) from parquet files of train and t10k."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, files in parts.items():
        digits, labels = [], []
        for row in rows(files, "unpacking"):
            with Image.open(io.BytesIO(_image(row, "image")[0])) as image:
                digits.append(np.asarray(image.convert("L")))
            labels.append(row["label"])
        for kind, array in (("images-idx3", np.stack(digits)), ("labels-idx1", np.array(labels))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.astype(np.uint8).tobytes())


def first_folder(root: Path, name: str, holding: str) -> Path:
    """The first folder `name` at or below root that holds files like `holding`. SourceError else"""
    for path in sorted((root, *root.rglob(name)), key=lambda path: len(path.parts)):
        if path.is_dir() and path.name == name and any(path.glob(holding)):
            return path
    raise SourceError(f"the archive holds no folder {name} with {holding}")


def move_into(source: Path, target: Path) -> None:
    """Move everything in one folder into another, whose entries of that name must not be there."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        shutil.move(entry, target / entry.name)
