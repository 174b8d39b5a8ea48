"""Your own photographs: any image files below a folder, labelled by its metadata file.

<root>/metadata.csv (or .tsv, .parquet), as Hugging Face's imagefolder has it: a column `file_name`
(`image_id` and `filename` are understood), relative to the folder of the metadata; a column for
every attribute; and a column `split` (train, validation, test), or one metadata file in each of
<root>/train/, <root>/validation/ and <root>/test/, or neither: then a split is drawn and saved.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from datasets.base import GROUPS, ImageTable, Splits, check_images, check_val, named
from datasets.metadata import PARTS, labels_of, read_table, where
from datasets.subsets import (
    balanced_counts,
    check_rule,
    draw_biased,
    draw_groups,
)
from utils.errors import UserError
from utils.files import write_atomic

SHARES = {"test": 0.2, "val": 0.1}  # of a drawn split; the rest is for training


def draw_split(y: np.ndarray, a: np.ndarray, seed: int) -> np.ndarray:
    """A part of PARTS for each row (str [N]): a fifth of every group is for the test, a tenth for
    validation, at least one image each where the group has three.

    Rows without protected label are for training and validation only.
    """
    part, rng = np.full(len(y), "train", dtype=object), np.random.default_rng(seed)
    for group in [*GROUPS, (0, -1), (1, -1)]:
        rows = rng.permutation(np.flatnonzero((y == group[0]) & (a == group[1])))
        total = len(rows)
        for name, share in SHARES.items():
            if name == "test" and group[1] < 0:
                continue
            number = max(round(share * total), 1) if total >= 3 else 0
            taken, rows = rows[:number], rows[number:]
            part[taken] = name
    return part.astype(str)


def saved_split(
    root: str | Path, files: pd.Index, y: np.ndarray, a: np.ndarray, pair: tuple[str, str],
    seed: int,
) -> np.ndarray:
    """The split of a pair and seed, str [N]: drawn and saved in root at first, then read.

    files: the images' names. It is the same for the pair turned round and does not depend on the
    rows' order; an image whose row is removed changes nothing for the others. Raises UserError
    where the saved one lacks an image.
    """
    slug = "_".join(re.sub(r"\W+", "-", name) for name in sorted(pair))
    path = Path(root) / f"split_{slug}_{seed}.csv"
    remedy = "delete it to draw another one, or add a column split to the metadata"
    if path.is_file():
        try:
            saved = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("file_name")
            saved = saved["split"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); {remedy}") from None
        if not (set(files) <= set(saved.index) and saved.isin(PARTS).all()
                and saved.index.is_unique):
            raise UserError(f"{path} was drawn when the metadata did not list all images of today; "
                            f"{remedy}")
        return saved.reindex(files).to_numpy(dtype=str)
    order = np.argsort(files.to_numpy(dtype=str))
    part = np.empty(len(files), dtype="<U5")
    part[order] = draw_split(y[order], a[order], seed)
    text = pd.DataFrame({"file_name": files[order], "split": part[order]}).to_csv(index=False)
    try:
        write_atomic(path, text)
        print(f"the split of {root} by seed {seed} is saved in {path}", file=sys.stderr)
    except UserError as error:  # a shared folder: the same rows give the same split
        print(f"warning: the drawn split is not saved: {error}", file=sys.stderr)
    return part


class NoValidation(UserError):
    """Validation images were asked for, and the metadata marks none."""


def partitions(
    root: str | Path, target: str, protected: str, *, positive: Sequence[str] = (), seed: int = 0
) -> Splits:
    """All labelled images of each part, files not yet checked; val is None where it has none.

    a is -1 where the protected label is missing, in training and validation only: test images
    without it, and all images without target, are left out with a warning. Raises UserError as
    `read_table` and `labels_of`, and where the training or the test part is empty.
    """
    root, table = Path(root), read_table(root)
    y, a = labels_of(table, where(root), target, protected, positive)
    known = y >= 0
    if not known.all():
        _warn(f"{(~known).sum()} of {len(y)} images have no {target} and are left out: "
              f"{named(table.index[~known].tolist(), 5)}")
        table, y, a = table[known], y[known], a[known]
    if "split" in table.columns:
        part = table["split"].to_numpy(dtype=str)
    else:
        part = saved_split(root, table.index, y, a, (target, protected), seed)
    unlabelled = (part == "test") & (a < 0)
    if unlabelled.any():
        _warn(f"{unlabelled.sum()} of {(part == 'test').sum()} test images have no {protected} and "
              "are left out")
    part[unlabelled] = ""
    prefix = os.path.abspath(root)
    whole = ImageTable("folder", [os.path.join(prefix, *PurePosixPath(name).parts)
                                  for name in table.index], y, a)
    train, val, test = (replace(whole.take(np.flatnonzero(part == name)), name=f"folder {name}")
                        for name in PARTS)
    for empty, what in ((train, "training image"), (test, f"test image with a {protected}")):
        if not len(empty):
            raise UserError(f"{where(root)} has no {what}; label some and mark them in the column "
                            "split, or remove that column: a split is then drawn")
    lacking = [f"{target} {y} and {protected} {a}" for (y, a), n in test.counts().items() if not n]
    if lacking:
        _warn(f"no test image has {' or '.join(lacking)}: what needs that group is NaN")
    return Splits(train, val if len(val) else None, test)


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


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
    positive: Sequence[str] = (),
) -> Splits:
    """Training, validation and test images of a folder for any pair of its columns.

    size None: all training images, as they are; a number: the biased subset of `biased_counts`, in
    the metadata's order or by seed. val "official": the validation part; "none": it is not used.
    test_size: None for the whole test part, a number for a balanced draw. seed also draws the split
    of a folder that says none (see `draw_split`). positive: see `binary`. Every image that is used
    is checked first. Raises UserError for wrong metadata, unusable images and wrong arguments,
    NotEnoughImages for a small group, NoValidation.
    """
    check_val(val)
    check_rule(rule)
    whole = partitions(root, target, protected, positive=positive, seed=seed)
    train, test = whole.train, whole.test
    if val == "official" and whole.val is None:
        raise NoValidation(
            f"{where(root)} marks no image as validation; train without (--val none)")
    if size is not None:
        if (train.a < 0).all():
            raise UserError(f"--size {size} draws by group, and no training image of {root} has a "
                            f"{protected}: use --size all")
        what = f"{size} training images of {target}/{protected}"
        train = draw_biased(train, size, minority, seed if rule == "random" else None, what)
    if test_size is not None:
        test = draw_groups(test, balanced_counts(test_size), seed)
    splits = Splits(train, whole.val if val == "official" else None, test)
    check_images((splits.train, splits.val, splits.test), root,
                 again="copy these there again or remove their rows from the metadata")
    return splits
