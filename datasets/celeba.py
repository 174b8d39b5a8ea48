"""CelebA in the official layout, in that of its zip file, or in Kaggle's csv form.

<root>/img_align_celeba/000001.jpg ...      or Img/img_align_celeba/, Kaggle's doubled folder
<root>/list_attr_celeba.txt                 or Anno/, or list_attr_celeba.csv
<root>/list_eval_partition.txt              or Eval/, or list_eval_partition.csv
"""

from __future__ import annotations

import csv
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.base import ImageTable, Splits, check_images, check_val, named
from datasets.subsets import balanced_counts, biased_subset, draw_groups, labels
from utils.errors import UserError
from utils.files import is_plain_name

PARTITIONS = ("train", "val", "test")  # 0, 1, 2 in list_eval_partition
AGAIN = "download the file again"


def find(root: Path, name: str) -> Path:
    """The list `name` (.txt or .csv) under root. Raises UserError saying where it was sought."""
    for ending in (".txt", ".csv"):
        for folder in ("", "Anno", "Eval"):
            path = root / folder / (name + ending)
            if path.is_file():
                return path
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds img_align_celeba/")
    raise UserError(
        f"{root} holds no {name}.txt or .csv (nor do its Anno/ and Eval/); "
        "put CelebA's lists beside img_align_celeba/"
    )


def image_folder(root: Path) -> Path:
    """The folder of aligned photographs under root. Raises UserError where there is none."""
    inner = "img_align_celeba"
    for folder in (root / inner / inner, root / inner, root / "Img" / inner):
        if folder.is_dir():
            return folder
    zipped = [
        path for path in (root / f"{inner}.zip", root / "Img" / f"{inner}.zip") if path.is_file()
    ]
    raise UserError(
        f"{zipped[0]} is still packed; unzip it there"
        if zipped
        else f"{root} holds no folder img_align_celeba/; put CelebA's aligned photographs there"
    )


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of every line that is not blank; any kind of line end."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text ({error}); {AGAIN}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; {AGAIN}")
    return lines


def _split_rows(
    path: Path, lines: list[tuple[int, str]], width: int
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line, `width` fields each."""
    texts = (line for _, line in lines)
    if path.suffix == ".csv":
        rows = csv.reader(texts, skipinitialspace=True, strict=True)
    else:
        rows = map(str.split, texts)
    try:
        for (number, _), row in zip(lines, rows, strict=True):
            if len(row) != width:
                raise UserError(f"{path}, line {number}: {len(row)} fields, not {width}; {AGAIN}")
            yield number, row
    except (csv.Error, ValueError) as error:  # ValueError: a quoted field took several lines
        raise UserError(f"{path} is no well-formed csv file ({error}); {AGAIN}") from None


def _check_names(path: Path, names: list[str]) -> None:
    outside = [name for name in names if not is_plain_name(name)]
    if outside:
        raise UserError(
            f"{path} names files outside the image folder ({named(outside, 5)}); "
            "mend these lines, only plain file names are taken"
        )
    if len(set(names)) != len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise UserError(f"{path} names files twice ({named(twice, 5)}); remove the extra lines")


def _files(names: list[str]) -> pd.Index:
    return pd.Index(names, name="file", dtype=object)  # pandas' own strings: seconds for 200,000


def read_attributes(path: Path) -> pd.DataFrame:
    """The attribute list: int8 columns of 1 and -1, indexed by file name in file order.

    A csv file may use 0 for -1, throughout. Raises UserError naming the file and line for a wrong
    count, a wrong number of fields, other values, and names that are doubled or hold a path.
    """
    lines = _read_lines(path)
    known = {"1": 1, "-1": -1}
    if path.suffix == ".csv":
        known["0"] = 0
        columns = [column.strip(' "') for column in lines.pop(0)[1].split(",")][1:]
    else:
        first = lines.pop(0)[1].split()
        if len(first) != 1 or not first[0].isdecimal():
            raise UserError(f"{path}, line 1: must be the number of images alone; {AGAIN}")
        columns = lines.pop(0)[1].split() if lines else []
        if int(first[0]) != len(lines):
            raise UserError(
                f"{path}: line 1 says {first[0]} images, but {len(lines)} follow; {AGAIN}"
            )
    if not columns or len(set(columns)) != len(columns) or set(columns) & set(known):
        raise UserError(f"{path} has no line of attribute names, or a name twice; {AGAIN}")
    names, values = [], array("b")
    for number, row in _split_rows(path, lines, 1 + len(columns)):
        names.append(row[0])
        try:
            values.extend(map(known.__getitem__, row[1:]))
        except KeyError as error:
            column = columns[row.index(error.args[0], 1) - 1]
            raise UserError(
                f"{path}, line {number} ({row[0]}): {column} is '{error.args[0]}', "
                f"must be one of {', '.join(known)}; {AGAIN}"
            ) from None
    _check_names(path, names)
    numbers = np.array(values, dtype=np.int8).reshape(len(names), len(columns))
    if (numbers == 0).any():
        if (numbers == -1).any():
            raise UserError(f"{path} holds both 0 and -1; write one of them for 'no' throughout")
        numbers = 2 * numbers - 1
    return pd.DataFrame(numbers, index=_files(names), columns=columns)


def read_partition(path: Path) -> pd.Series:
    """0 train, 1 validation, 2 test by file name. Raises UserError as `read_attributes`."""
    lines = _read_lines(path)
    if path.suffix == ".csv":
        lines = lines[1:]
    names, numbers = [], []
    for number, row in _split_rows(path, lines, 2):
        if row[1] not in ("0", "1", "2"):
            raise UserError(
                f"{path}, line {number}: partition '{row[1]}' is not 0, 1 or 2; {AGAIN}"
            )
        names.append(row[0])
        numbers.append(int(row[1]))
    _check_names(path, names)
    return pd.Series(numbers, index=_files(names), dtype=np.int8)


def read_table(root: str | Path) -> pd.DataFrame:
    """All attributes (1 and -1) and the column `partition` (0, 1, 2), in the attributes' order.

    Raises UserError where a file is missing or wrong, or where the two lists name other images.
    """
    root = Path(root)
    attribute_file, partition_file = (
        find(root, "list_attr_celeba"),
        find(root, "list_eval_partition"),
    )
    table, partition = read_attributes(attribute_file), read_partition(partition_file)
    for names, others, there, missing in (
        (partition.index, table.index, partition_file, attribute_file),
        (table.index, partition.index, attribute_file, partition_file),
    ):
        unknown = names[~names.isin(others)].tolist()
        if unknown:
            raise UserError(
                f"{there} names {len(unknown)} images that {missing} lacks ({named(unknown, 5)}); "
                "take both files from the same copy of CelebA"
            )
    return table.assign(partition=partition.reindex(table.index).to_numpy())


def image_table(
    table: pd.DataFrame, folder: Path, target: str, protected: str, name: str
) -> ImageTable:
    """Rows of `read_table` as images in `folder` with their labels."""
    y, a = labels(table, target, protected)
    prefix = os.path.abspath(folder)
    return ImageTable(name, [os.path.join(prefix, file) for file in table.index], y, a)


def partitions(root: str | Path, target: str, protected: str, name: str = "celeba") -> Splits:
    """The whole official partitions, files not yet checked; val is None where it is empty.

    Raises UserError as `read_table`, for an unknown attribute (with those there are), and where
    the training or the test partition is empty.
    """
    root = Path(root)
    table, folder = read_table(root), image_folder(root)
    return _partitions(root, table, folder, target, protected, name)


def require_attributes(root: Path, attributes: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise UserError for a name that is no column, listing those there are."""
    for name in names:
        if name not in attributes.columns:
            raise UserError(
                f"{find(root, 'list_attr_celeba')} has no attribute '{name}'; "
                f"it has: {', '.join(attributes.columns)}"
            )


def _partitions(root, table, folder, target, protected, name) -> Splits:
    attributes = table.drop(columns="partition")
    require_attributes(root, attributes, (target, protected))
    parts = [
        image_table(
            attributes[table["partition"] == number], folder, target, protected, f"{name} {part}"
        )
        for number, part in enumerate(PARTITIONS)
    ]
    if not len(parts[0]) or not len(parts[2]):
        raise UserError(
            f"{find(root, 'list_eval_partition')} marks no image as "
            f"{'test (2)' if len(parts[0]) else 'training (0)'}; {AGAIN}"
        )
    return Splits(parts[0], parts[1] if len(parts[1]) else None, parts[2])


def load(
    root: str | Path,
    target: str,
    protected: str,
    *,
    size: int | None,
    minority: float = 0.1,
    rule: str = "first",
    seed: int = 0,
    val: str = "official",
    test_size: int | None = None,
    name: str = "celeba",
) -> Splits:
    """A biased training set from the training partition, official validation and test partition.

    size, minority, rule, seed: see `subsets.biased_subset`; size None takes the whole training
    partition (minority and rule then have no use). val: "official" or "none".
    test_size: None for the whole test partition, else a balanced test set of that many images
    (a quarter from each group, drawn with seed). Every image that is used is checked first.
    Raises UserError for wrong lists, an unknown attribute, unusable images and, as
    NotEnoughImages, for a group that is too small.
    """
    check_val(val)
    root = Path(root)
    table, folder = read_table(root), image_folder(root)
    whole = _partitions(root, table, folder, target, protected, name)
    if val == "official" and whole.val is None:
        raise UserError(
            f"{find(root, 'list_eval_partition')} marks no image as validation (1); "
            "train without validation (val 'none')"
        )
    rows = np.arange(len(whole.train))
    if size is not None:
        train = table[table["partition"] == 0]
        names = biased_subset(train, target, protected, size, minority, rule, seed)
        rows = train.index.get_indexer(names)
    test = whole.test
    if test_size is not None:
        test = draw_groups(test, balanced_counts(test_size), seed)
    splits = Splits(whole.train.take(rows), whole.val if val == "official" else None, test)
    check_images((splits.train, splits.val, splits.test), root)
    return splits
