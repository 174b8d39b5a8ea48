"""Generated images in folders <t>_<p>, t the target label and p the protected label.

Three layouts are read, the first that exists:
    <root>/<prompt set>/<Target>_<Protected>/<t>_<p>/      this repository's generate.py
    <root>/<Target>_<Protected>/<prompt set>/<t>_<p>/      as the AIM-Fair release writes them
    <root>/<Target>_<Protected>/<t>_<p>/                   as the AIM-Fair release reads them
and, where none does, the same with <Protected>_<Target>, the groups transposed (AIM-Fair's
Table 11).
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from datasets.base import GROUPS, ImageTable, check_images, named
from utils.errors import UserError
from utils.files import is_plain_name

ENDINGS = (".png", ".jpg", ".jpeg")
COLUMNS = ("path", "y", "a")


def find_pool(root: str | Path, target: str, protected: str, prompt_set: str) -> tuple[Path, bool]:
    """(folder of the groups, whether they are transposed). Raises UserError listing what was tried.

    A layout counts where the folder holds a manifest or at least one group folder.
    """
    root = Path(root)
    tried = []
    for transposed in (False, True):
        pair = f"{protected}_{target}" if transposed else f"{target}_{protected}"
        for folder in (root / prompt_set / pair, root / pair / prompt_set, root / pair):
            groups = [folder / f"{t}_{p}" for t, p in GROUPS]
            if (folder / "manifest.csv").is_file() or any(group.is_dir() for group in groups):
                return folder, transposed
            tried.append(f"{folder}/")
    raise UserError(
        f"no generated images for {target}/{protected}, prompt set '{prompt_set}': none of "
        f"{', '.join(tried)} holds folders 0_0 to 1_1; generate them with "
        "stable_diffusion/generation.sh or name another root or prompt set"
    )


def _natural(name: str) -> list:
    """Sort key by which 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)] + [name]


def _from_folders(folder: Path) -> list[tuple[str, int, int]]:
    """(path relative to folder, t, p) of every image in the four group folders."""
    rows = []
    for t, p in GROUPS:
        group = folder / f"{t}_{p}"
        names = [
            name
            for name in (os.listdir(group) if group.is_dir() else [])
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
        if not names:
            raise UserError(
                f"{group} holds no images ({', '.join(ENDINGS)}); generate that group with "
                "stable_diffusion/generation.sh"
            )
        rows += [(f"{t}_{p}/{name}", t, p) for name in names]
    return rows


def read_list(path: str | Path) -> list[tuple[str, int, int]]:
    """(relative path, y, a) of every row of a csv list: manifest.csv, balanced.csv, biased.csv.

    Further columns are ignored. Raises UserError naming the file and row for a missing column, a
    label that is not 0 or 1, a path that is absolute or leaves the folder, and a path named twice.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns, lines = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as csv ({error}); generate it again") from None
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; generate it again")
    if not lines:
        raise UserError(f"{path} lists no image; generate it again")
    rows, seen, twice = [], set(), []
    for number, line in enumerate(lines, 1):
        file, y, a = (line[column] or "" for column in COLUMNS)
        if not all(is_plain_name(part) for part in file.split("/")):
            raise UserError(
                f"{path}, row {number}: '{file}' is no path inside {path.parent}; "
                "mend that row, only relative paths without '..' are taken"
            )
        if y not in ("0", "1") or a not in ("0", "1"):
            raise UserError(f"{path}, row {number}: labels '{y}' and '{a}' must be 0 or 1")
        if file in seen:
            twice.append(file)
        seen.add(file)
        rows.append((file, int(y), int(a)))
    if twice:
        raise UserError(f"{path} lists images twice ({named(twice, 5)}); remove the extra rows")
    return rows


def load_synthetic(
    root: str | Path, target: str, protected: str, prompt_set: str, check: bool = True
) -> ImageTable:
    """The whole pool of generated images: groups 0_0, 0_1, 1_0, 1_1, each by file name.

    Numbers in file names sort as numbers. Where the folder holds a manifest.csv, the images and
    their labels are the manifest's; else they are the files and folders found. A transposed pool's
    labels are swapped. check=False leaves the files unopened. Raises UserError where no layout
    fits, a group is empty, the manifest is wrong, or images are missing or cannot be read.
    """
    folder, transposed = find_pool(root, target, protected, prompt_set)
    manifest = folder / "manifest.csv"
    rows = read_list(manifest) if manifest.is_file() else _from_folders(folder)
    if transposed:
        rows = [(file, p, t) for file, t, p in rows]
    empty = [f"{y}_{a}" for y, a in GROUPS if not any(row[1:] == (y, a) for row in rows)]
    if empty:
        raise UserError(f"{folder} has no images with labels {', '.join(empty)}; generate them")
    rows.sort(key=lambda row: (row[1], row[2], _natural(row[0])))
    prefix = os.path.abspath(folder)
    table = ImageTable(
        f"synthetic {prompt_set}",
        [os.path.join(prefix, *file.split("/")) for file, _, _ in rows],
        [y for _, y, _ in rows],
        [a for _, _, a in rows],
    )
    if check:
        check_images([table], folder)
    return table
