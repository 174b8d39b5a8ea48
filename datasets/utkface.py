"""UTKFace, labelled by its file names: age_gender_race_date.jpg, gender 0 male, race 0 White.

The archive has no split, and its authors released no list: test, validation and training images
are drawn here with a seed, and the run saves the lists.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.base import GROUPS, ImageTable, Splits, check_images, check_pair, check_val, named
from datasets.subsets import (
    balanced_counts,
    biased_counts,
    check_rule,
    group_rows,
    labels,
    take_counts,
)
from utils.errors import UserError

ATTRIBUTES = ("Female", "White")
NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d{8,})[^/\\]*\.jpe?g", re.ASCII | re.IGNORECASE)
OLDEST = 116  # years, the range the dataset's page gives
TEST_SIZE = 3200  # 800 images per group, AIM-Fair section 4.1


def read_table(root: str | Path) -> tuple[pd.DataFrame, Path, list[str]]:
    """(labels, image folder, names that hold no labels); the images lie in root or root/UTKFace.

    The table is indexed by file name, sorted, with int columns Female, White (0 or 1), age (years,
    0 to 116), gender (0 male, 1 female) and race (0 White, 1 Black, 2 Asian, 3 Indian, 4 other).
    Raises UserError where there is no folder or no image with labels in its name.
    """
    root = Path(root)
    folder = root / "UTKFace" if (root / "UTKFace").is_dir() else root
    if not folder.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds UTKFace's images")
    names = sorted(
        name
        for name in os.listdir(folder)
        if name.lower().endswith((".jpg", ".jpeg")) and not name.startswith(".")
    )
    good, rows, bad = [], [], []
    for name in names:
        match = NAME.fullmatch(name)
        if match and int(match[1]) <= OLDEST:
            age, gender, race = int(match[1]), int(match[2]), int(match[3])
            good.append(name)
            rows.append((gender == 1, race == 0, age, gender, race))
        else:
            bad.append(name)
    if not good:
        raise UserError(
            f"{folder} holds no image named age_gender_race_date.jpg; "
            "name the folder of UTKFace's aligned and cropped faces"
        )
    columns = [*ATTRIBUTES, "age", "gender", "race"]
    numbers = np.array(rows, dtype=np.int64).reshape(-1, len(columns))
    return pd.DataFrame(numbers, index=pd.Index(good, name="file"), columns=columns), folder, bad


def draw(y: np.ndarray, a: np.ndarray, train: dict, val: dict, test: dict, seed: int, what: str):
    """Rows (int64 each, sorted) of disjoint train, validation and test draws.

    The test images are drawn first and the validation images out of the training images, so the
    test set is the same for every training size, ratio and choice of validation.
    """
    rows = group_rows(y, a, seed)
    needed = {group: test[group] + train[group] for group in GROUPS}
    take_counts(rows, needed, what)  # raises where a group is too small
    left = {group: rows[group][test[group] :] for group in GROUPS}
    rest = {group: left[group][val[group] :] for group in GROUPS}
    only = {group: train[group] - val[group] for group in GROUPS}
    return (
        take_counts(rest, only, what),
        take_counts(left, val, what),
        take_counts(rows, test, what),
    )


def load(
    root: str | Path,
    target: str,
    protected: str,
    *,
    size: int | None = 10000,
    minority: float = 0.1,
    rule: str = "first",
    seed: int = 0,
    val: str = "official",
    test_size: int | None = None,
) -> Splits:
    """A biased training set and a balanced test set (default 3,200), disjoint, drawn with seed.

    size: None takes all images that the test set leaves (minority then has no use).
    target and protected: Female and White, either way round. val "official": a tenth of each group
    of the training images (rounded down) is held out, since UTKFace has no split of its own;
    "none": all of them train. rule: UTKFace has no file order but that of the ages its names begin
    with, so "first" draws with the seed as "random" does. Bad names are skipped with a warning.
    Raises UserError for unusable images and wrong arguments, NotEnoughImages for a small group.
    """
    check_val(val)
    check_rule(rule)
    check_pair("UTKFace", ATTRIBUTES, target, protected)
    train = {} if size is None else biased_counts(size, minority)
    test = balanced_counts(TEST_SIZE if test_size is None else test_size)
    table, folder, bad = read_table(root)
    if bad:
        print(
            f"warning: {len(bad)} of {len(bad) + len(table)} images in {folder} are not named "
            f"age_gender_race_date.jpg and are skipped: {named(bad)}",
            file=sys.stderr,
        )
    y, a = labels(table, target, protected)
    if size is None:
        train = {group: max(0, len(rows) - test[group]) for group, rows in group_rows(y, a).items()}
    held = {group: train[group] // 10 if val == "official" else 0 for group in GROUPS}
    size = sum(train.values())
    if val == "official" and not sum(held.values()):
        raise UserError(f"{size} images are too few to hold a tenth out; use more, or val 'none'")
    what = f"{size} training and {sum(test.values())} test images of {target}/{protected}"
    rows = draw(y, a, train, held, test, seed, what)
    prefix = os.path.abspath(folder)
    whole = ImageTable("utkface", [os.path.join(prefix, name) for name in table.index], y, a)
    tables = [
        ImageTable(f"utkface {part}", chosen.paths, chosen.y, chosen.a)
        for part, chosen in zip(("train", "val", "test"), map(whole.take, rows), strict=True)
    ]
    splits = Splits(tables[0], tables[1] if val == "official" else None, tables[2])
    check_images((splits.train, splits.val, splits.test), folder)
    return splits
