"""FairFace's Black and White faces: gender as target, race as protected attribute (FairIF, app. E).

The folder holds fairface_label_train.csv, fairface_label_val.csv (columns file, gender, race) and
the images under train/ and val/ that their column `file` names.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from datasets.base import GROUPS, ImageTable, Splits, check_images, check_pair, check_val
from datasets.subsets import (
    balanced_counts,
    check_rule,
    draw_biased,
    group_rows,
    labels,
    take_counts,
)
from utils.errors import UserError
from utils.files import is_plain_name

ATTRIBUTES = ("Male", "White")
CSV = {"train": "fairface_label_train.csv", "val": "fairface_label_val.csv"}


def read_table(root: str | Path, part: str) -> pd.DataFrame:
    """Labels of the "train" or "val" part: int columns Male and White (0 or 1), in file order.

    Indexed by file name ("train/1.jpg"); rows of other races than Black and White are left out.
    Raises UserError for a missing or damaged csv and for labels it does not know.
    """
    path = Path(root) / CSV[part]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: copy FairFace's two label files and its folders train/ and val/ "
            f"to {root}"
        ) from None
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    missing = {"file", "gender", "race"} - set(frame.columns)
    if missing:
        raise UserError(f"{path} has no column {', '.join(sorted(missing))}; copy it again")
    frame = frame[frame["race"].isin(("Black", "White"))]
    if frame.empty or not set(frame["gender"]) <= {"Male", "Female"}:
        raise UserError(
            f"{path} holds no Black or White face, or a gender other than Male and Female; "
            "copy it again"
        )
    for name in frame["file"]:
        if not all(is_plain_name(piece) for piece in PurePosixPath(name).parts):
            raise UserError(f"{path} names the file {name}, which is not below its folder")
    if frame["file"].duplicated().any():
        raise UserError(f"{path} names a file twice; copy it again")
    return pd.DataFrame(
        {"Male": (frame["gender"] == "Male").astype(int).to_numpy(),
         "White": (frame["race"] == "White").astype(int).to_numpy()},
        index=pd.Index(frame["file"], name="file"),
    )  # fmt: skip


def load(
    root: str | Path,
    target: str,
    protected: str,
    *,
    size: int | None = None,
    minority: float = 0.1,
    rule: str = "first",
    seed: int = 0,
    val: str = "official",
    test_size: int | None = None,
) -> Splits:
    """Training and validation images of FairFace's train part, test images of its val part.

    target and protected: Male and White, either way round. size: None takes all images as FairIF
    does (minority and rule then have no use), a number the biased subset of `biased_counts`, in
    file order or by seed. val "official": a tenth of each group of the training images, drawn by
    seed, is held out, as FairFace has no third part; "none": all of them train. test_size: None
    takes all of the val part, a number draws a balanced set. Raises UserError for unusable files
    and wrong arguments, NotEnoughImages for a small group.
    """
    check_val(val)
    check_rule(rule)
    check_pair("FairFace", ATTRIBUTES, target, protected)
    train, test = (_images(root, part, target, protected) for part in CSV)
    if size is not None:
        what = f"{size} training images of {target}/{protected}"
        train = draw_biased(train, size, minority, seed if rule == "random" else None, what)
    held = np.zeros(0, dtype=np.int64)
    if val == "official":
        rows = group_rows(train.y, train.a, seed)
        held = np.sort(np.concatenate([rows[group][: len(rows[group]) // 10] for group in GROUPS]))
        if not len(held):
            raise UserError(f"{len(train)} images are too few to hold a tenth out; use val 'none'")
    if test_size is not None:
        rows, what = group_rows(test.y, test.a, seed), f"{test_size} test images"
        test = test.take(take_counts(rows, balanced_counts(test_size), what))
    kept = np.setdiff1d(np.arange(len(train)), held)
    splits = Splits(
        _named("train", train.take(kept)),
        _named("val", train.take(held)) if val == "official" else None,
        _named("test", test),
    )
    check_images((splits.train, splits.val, splits.test), root)
    return splits


def _images(root: str | Path, part: str, target: str, protected: str) -> ImageTable:
    table = read_table(root, part)
    y, a = labels(table, target, protected)
    prefix = os.path.abspath(root)
    return ImageTable("fairface", [os.path.join(prefix, name) for name in table.index], y, a)


def _named(part: str, table: ImageTable) -> ImageTable:
    return ImageTable(f"fairface {part}", table.paths, table.y, table.a)
