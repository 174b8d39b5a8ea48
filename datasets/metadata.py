"""The metadata file of a folder of photographs, as in Hugging Face's imagefolder.

metadata.csv, .tsv or .parquet: a column of file names, columns of attributes with two values, and
perhaps a column `split`.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.base import named
from utils.errors import UserError, is_systems
from utils.files import is_plain_name

ENDINGS = (".csv", ".tsv", ".parquet")
NAMES = ("file_name", "image_id", "filename")  # columns of file names, the first that there is
PARTS = ("train", "val", "test")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val",
          "validation": "val", "test": "test", "testing": "test"}
YES = {"1", "1.0", "yes", "y", "true", "t"}
NO, MINUS = {"0", "0.0", "no", "n", "false", "f"}, {"-1", "-1.0"}
MISSING = {"", "na", "n/a", "nan", "null", "<na>"}


def metadata_files(root: str | Path) -> dict[str, Path]:
    """The metadata file of a folder, as {"": file}, or those of its split folders, by part.

    Raises UserError where there is none, or more than one where one is meant.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds metadata.csv")
    found = {"": _metadata_in(root)}
    if found[""] is None:
        found = {entry.name: _metadata_in(entry) for entry in sorted(root.iterdir())
                 if entry.is_dir() and entry.name.lower() in SPLITS}
        found = {name: file for name, file in found.items() if file}
    if not found:
        raise UserError(f"{root} holds no metadata.csv, .tsv or .parquet; write one with the "
                        f"columns {NAMES[0]}, your attributes and, where you have one, split")
    return found


def _metadata_in(folder: Path) -> Path | None:
    files = [folder / f"metadata{ending}" for ending in ENDINGS]
    files = [file for file in files if file.is_file()]
    if len(files) > 1:
        raise UserError(f"{folder} holds {named([file.name for file in files])}; remove all but "
                        "one")
    return files[0] if files else None


def read_table(root: str | Path) -> pd.DataFrame:
    """All rows as text, "" where a value is missing, indexed by file name relative to root.

    A column `split` holds train, val or test, or is left out where the folder does not say it.
    Raises UserError for a file that cannot be read, without a column of file names, and for rows
    that repeat a file, leave the folder or name an unknown split.
    """
    root = Path(root)
    frames = []
    for part, file in metadata_files(root).items():
        frame = _read(file)
        if part:
            frame["split"] = SPLITS[part.lower()]
            frame.index = f"{part}/" + frame.index
        frames.append(frame)
    table = pd.concat(frames).fillna("")
    twice = table.index[table.index.duplicated()].unique().tolist()
    if twice:
        raise UserError(f"{where(root)} names files twice ({named(twice, 5)}); remove the extra "
                        "rows")
    return table


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            with warnings.catch_warnings():  # of rows with more fields than the head line
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False,
                                    encoding="utf-8-sig", index_col=False)
            with path.open(encoding="utf-8-sig", newline="") as file:  # pandas renames the second
                heads = next(filter(None, csv.reader(file, delimiter=separator)))
            frame.columns = [head.strip() or own for head, own in zip(heads, frame, strict=True)]
    except (ValueError, OSError, csv.Error, pd.errors.ParserWarning) as error:  # pyarrow
        if is_systems(error):
            raise
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); write it as a "
                        f"{path.suffix} file with one head line, in UTF-8") from None
    # "Split" is the split: what is not seen as one would be drawn anew, tests among the training
    frame.columns = [name.lower() if name.lower() in (*NAMES, "split") else name
                     for name in (str(column).strip() for column in frame.columns)]
    frame = frame.astype(object).where(frame.notna(), "").astype(str)
    frame = frame.apply(lambda column: column.str.strip())
    column = next((name for name in NAMES if name in frame.columns), None)
    if column is None:
        raise UserError(f"{path} has no column {NAMES[0]} (nor {' or '.join(NAMES[1:])}); it has: "
                        f"{', '.join(frame.columns)}")
    if frame.columns.duplicated().any():
        raise UserError(f"{path} has two columns of one name, {NAMES[0]} and split in any "
                        "case; rename one of "
                        f"{named(sorted(frame.columns[frame.columns.duplicated()]))}")
    if frame.empty:
        raise UserError(f"{path} has no rows; write one for each image")
    for number, name in enumerate(frame[column], 2):
        if not name or name.startswith("/") or not all(map(is_plain_name, name.split("/"))):
            raise UserError(f"{path}, line {number}: '{name}' is no file below its folder; write "
                            "the path relative to it, with '/'")
    frame = frame.set_index(pd.Index(frame.pop(column), name="file"))
    if "split" in frame.columns:
        wrong = sorted(set(frame["split"].str.lower()) - set(SPLITS))
        if wrong:
            raise UserError(f"{path}: the split '{wrong[0]}' is unknown; write train, validation "
                            "or test in every row, or leave the column out")
        frame["split"] = frame["split"].str.lower().map(SPLITS)
    return frame


def where(root: str | Path) -> str:
    """The metadata files' names, for messages."""
    return named([str(file) for file in metadata_files(root).values()], 3)


def values_of(table: pd.DataFrame, column: str) -> dict[str, int]:
    """{value, as it is first spelled: rows}, the most frequent first; case says nothing."""
    given = table[column][~table[column].str.lower().isin(MISSING)]
    counts = given.str.lower().value_counts()
    spelled = given.groupby(given.str.lower()).first()
    return {spelled[value]: int(number) for value, number in counts.items()}


def _are_known(values: set[str]) -> bool:
    """Whether 1 and 0 need no --positive among these lower-case values."""
    return values <= YES | NO or values <= YES | MINUS


def attributes(table: pd.DataFrame) -> list[str]:
    """The columns that hold 0/1, -1/1, yes/no or true/false, or any two values, and blanks."""
    def is_binary(column: str) -> bool:
        values = {value.lower() for value in values_of(table, column)}
        return len(values) == 2 or bool(values) and _are_known(values)

    return [column for column in table.columns if column != "split" and is_binary(column)]


def require_columns(table: pd.DataFrame, source: str, columns: Sequence[str]) -> None:
    """Raise UserError where the table lacks one of the columns."""
    there = [name for name in table.columns if name != "split"]
    for column in columns:
        if column not in there:
            raise UserError(f"{source} has no column '{column}'; it has: {', '.join(there)}")


def binary(
    table: pd.DataFrame, column: str, source: str, positive: Sequence[str] = ()
) -> np.ndarray:
    """A column as int64 [N]: 1, 0, and -1 where the value is missing.

    positive: values that mean 1, each VALUE or COLUMN=VALUE; where the column holds one of them,
    its other value means 0, and by COLUMN=VALUE every other. Raises UserError for an unknown
    column, and for values that are neither 0/1, -1/1, yes/no nor true/false nor two of which
    `positive` names one.
    """
    require_columns(table, source, [column])
    given = table[column].str.lower()
    missing = given.isin(MISSING).to_numpy()
    counts = values_of(table, column)
    found = {value.lower() for value in counts}
    mine = {value.removeprefix(f"{column}=").lower() for value in positive} & found
    held = named([f"'{value}' ({number})" for value, number in counts.items()], 8)
    said = {value.lower() for value in positive} & {f"{column}={value}".lower() for value in mine}
    if len(found) > 2 and not said and (mine or not _are_known(found)):  # who is neither is not 0
        raise UserError(f"{source}: column '{column}' holds {held}; correct or empty all but two, "
                        f"or give --positive {column}=VALUE, and every other value means 0")
    if mine == found:
        raise UserError(f"--positive names every value of the column '{column}' of {source}, "
                        f"{held}; leave out what means 0")
    if mine:
        return np.where(missing, -1, given.isin(mine)).astype(np.int64)
    if not _are_known(found):
        raise UserError(f"{source}: column '{column}' holds {held}; give --positive with the one "
                        "that means 1, or write 0/1, -1/1, yes/no or true/false")
    return np.where(missing, -1, given.isin(YES)).astype(np.int64)


def meaning(table: pd.DataFrame, column: str, labels: np.ndarray) -> str:
    """Which value of a column is 1 and which 0 in its labels int [N], in words."""
    sides = [", ".join(values_of(table[labels == side], column)) or "none" for side in (1, 0)]
    return f"{column}: 1 = {sides[0]}; 0 = {sides[1]}"


def labels_of(
    table: pd.DataFrame, source: str, target: str, protected: str, positive: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """(y, a), int64 [N] of 0, 1 and -1 (missing). Raises UserError as `binary`, for equal names and
    for a value of `positive` that neither column holds."""
    if target == protected:
        raise UserError(f"--target and --protected are both '{target}'; name two columns")
    pair = (target, protected)
    require_columns(table, source, pair)
    for value in positive:
        if not any(value.removeprefix(f"{column}=").lower() in set(table[column].str.lower())
                   for column in pair):
            raise UserError(f"--positive {value} is in neither column, {target} nor {protected}, "
                            f"of {source}; give a value that is there")
    y, a = (binary(table, column, source, positive) for column in pair)
    return y, a
