"""Compare a copy of CelebA, UTKFace or FairFace with what is known of it, before days of training.

    python -m datasets.check --dataset celeba --root /data/CelebA
    python -m datasets.check --dataset folder --root photos --target glasses --protected gender

prints images per split and per group, compares them with the official numbers (of your own
photographs: looks for missing labels, empty groups and the same image in two splits), opens every
listed image, and names each difference or problem. Exit code 0: none; 1: some; 2: unusable.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

if not __package__:  # started by its path: python datasets/check.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from datasets import celeba, demo, fairface, metadata, utkface
from datasets.base import GROUPS, bad_images, named
from datasets.folder import saved_split
from datasets.subsets import NotEnoughImages, biased_subset, labels, list_hash
from utils.errors import UserError, exit_cleanly
from utils.options import ArgumentParser, path

# CelebA's own counts, and the lists the AIM-Fair release trains on (SHA-256, see `list_hash`)
CELEBA_SPLITS = {"train": 162770, "val": 19867, "test": 19962}
CELEBA_RANGES = {
    "train": ("000001.jpg", "162770.jpg"),
    "val": ("162771.jpg", "182637.jpg"),
    "test": ("182638.jpg", "202599.jpg"),
}
CELEBA_TEST_GROUPS = {("Smiling", "Male"): (5354, 4621, 6893, 3094)}
CELEBA_LISTS = {
    ("Smiling", "Male"): "670888bcdee34f9050eda273e51f46110da330fe674dca916f44d3fe4217056a",
    ("Smiling", "Young"): "657441635b65e9786f6b1ec5eb6d12125699d5533dda62d52369d89af5f1479d",
    ("Young", "Male"): "ef270a876645eb374f35447821d855ab8e2f40db7b2552305867e6a0819582a7",
}
LIST_SIZE = 20000
UTKFACE_IMAGES = 23705  # of the 23,708 aligned and cropped files; three lack the race field
UTKFACE_WHITE_MEN = 5477
# Women and men (y), Black and White (a), of both parts. FairIF's Table 10 has the two middle
# groups swapped, as its Table 9 has for CelebA's Blond_Hair/Male: 89931, 82685, 28234 and 1749.
FAIRFACE_GROUPS = (6894, 8789, 6895, 9823)

Facts = dict[str, object]  # what was found or is known, under the words it is reported with


def _report(line: str, y, a) -> None:
    numbers = [int(((y == t) & (a == p)).sum()) for t, p in GROUPS]
    groups = "  ".join(f"{t}_{p} {n:6d}" for (t, p), n in zip(GROUPS, numbers, strict=True))
    print(f"  {line:<24} {len(y):7d}   {groups}")


def celeba_known() -> Facts:
    """The official numbers, under the same keys as `celeba_facts` gives."""
    known: Facts = {}
    for part, count in CELEBA_SPLITS.items():
        known[f"{part} images"] = count
        known[f"{part} range"] = " .. ".join(CELEBA_RANGES[part])
    for pair, groups in CELEBA_TEST_GROUPS.items():
        known[f"test groups of {'/'.join(pair)}"] = groups
    for pair, digest in CELEBA_LISTS.items():
        known[f"SHA-256 of the first {LIST_SIZE} of {'/'.join(pair)}"] = digest
    return known


def celeba_facts(table) -> Facts:
    """What `celeba.read_table`'s table gives for every key of `celeba_known`."""
    facts: Facts = {}
    for number, part in enumerate(celeba.PARTITIONS):
        names = table.index[table["partition"] == number]
        facts[f"{part} images"] = len(names)
        facts[f"{part} range"] = f"{names.min()} .. {names.max()}" if len(names) else "none"
    for pair in CELEBA_TEST_GROUPS:
        y, a = labels(table[table["partition"] == 2], *pair)
        facts[f"test groups of {'/'.join(pair)}"] = tuple(
            int(((y == t) & (a == p)).sum()) for t, p in GROUPS
        )
    for pair in CELEBA_LISTS:
        try:
            digest = list_hash(biased_subset(table[table["partition"] == 0], *pair, LIST_SIZE))
        except NotEnoughImages as error:
            digest = f"none: {error}"
        facts[f"SHA-256 of the first {LIST_SIZE} of {'/'.join(pair)}"] = digest
    return facts


def differences(found: Facts, known: Facts) -> list[str]:
    """One line for each known fact that was found otherwise."""
    return [
        f"{key}: {found[key]}, expected {known[key]}" for key in known if found[key] != known[key]
    ]


def check_celeba(root: Path, pairs, official: bool) -> tuple[list[str], list[str]]:
    """Print the groups of every split; return (differences, image paths)."""
    table = celeba.read_table(root)
    attributes = table.drop(columns="partition")
    wanted = [*pairs, *(CELEBA_LISTS if official else ())]
    celeba.require_attributes(root, attributes, [name for pair in wanted for name in pair])
    for target, protected in pairs:
        print(f"{target}/{protected}: images, and by {target}_{protected}")
        for number, part in enumerate(celeba.PARTITIONS):
            _report(part, *labels(attributes[table["partition"] == number], target, protected))
    found = differences(celeba_facts(table), celeba_known()) if official else []
    folder = os.path.abspath(celeba.image_folder(root))
    return found, [os.path.join(folder, name) for name in table.index]


def check_utkface(root: Path) -> tuple[list[str], list[str]]:
    """As `check_celeba`, for Female/White."""
    table, folder, bad = utkface.read_table(root)
    print("Female/White: images, and by Female_White")
    y, a = labels(table, "Female", "White")
    _report("all", y, a)
    if bad:
        print(f"{len(bad)} names without labels are skipped: {named(bad)}")
    known = {"images with labels": UTKFACE_IMAGES, "white men": UTKFACE_WHITE_MEN}
    facts = {"images with labels": len(table), "white men": int(((y == 0) & (a == 1)).sum())}
    paths = [os.path.join(os.path.abspath(folder), name) for name in table.index]
    return differences(facts, known), paths


def check_fairface(root: Path) -> tuple[list[str], list[str]]:
    """As `check_celeba`, for Male/White: the Black and White faces of both parts.

    The counts by group are FairIF's, whose Table 10 has the two middle ones swapped (so has its
    Table 9, of CelebA's Blond_Hair/Male): women with white skin are 8789, men with black skin 6895.
    """
    print("Male/White: images, and by Male_White")
    tables = {part: fairface.read_table(root, part) for part in fairface.CSV}
    for part, table in tables.items():
        _report(part, *labels(table, "Male", "White"))
    whole = pd.concat(tables.values())
    y, a = labels(whole, "Male", "White")
    _report("all", y, a)
    known = {"images by Male_White": FAIRFACE_GROUPS}
    facts = {"images by Male_White": tuple(int(((y == t) & (a == p)).sum()) for t, p in GROUPS)}
    return differences(facts, known), [os.path.join(os.path.abspath(root), n) for n in whole.index]


def check_folder(root: Path, pair: tuple[str, str] | None, positive) -> tuple[list[str], list[str]]:
    """As `check_celeba`, for a metadata file and one pair of its columns, or without a pair how
    often every column with two values has which."""
    table, source = metadata.read_table(root), metadata.where(root)
    paths = [os.path.join(os.path.abspath(root), *name.split("/")) for name in table.index]
    part = table.get("split")
    if pair is None:
        print(f"{source}: {len(table)} images; columns with two values:")
        for column in metadata.attributes(table):
            counts = metadata.values_of(table, column)
            held = ", ".join(f"{number:7d} {value}" for value, number in counts.items())
            print(f"  {column:<24} {held}, {len(table) - sum(counts.values())} missing")
        return _empty_parts(part) + _twins(paths, part), paths
    y, a = metadata.labels_of(table, source, *pair, positive)
    found = []
    if (y < 0).any():
        found.append(f"{(y < 0).sum()} images have no {pair[0]} and are not used: "
                     f"{named(table.index[y < 0].tolist(), 5)}")
    if part is None:
        part = pd.Series("", index=table.index)
        part[y >= 0] = saved_split(root, table.index[y >= 0], y[y >= 0], a[y >= 0], pair, 0)
    for column, values in zip(pair, (y, a), strict=True):
        print(metadata.meaning(table, column, values))
    print(f"{'/'.join(pair)}: images, and by {'_'.join(pair)}")
    for name in metadata.PARTS:
        found += _report_part(name, (part == name).to_numpy() & (y >= 0), y, a, pair)
    found += _empty_parts(part[y >= 0])
    if not ((part == "test").to_numpy() & (y >= 0) & (a >= 0)).any():
        found.append(f"no test image has both {pair[0]} and {pair[1]}: nothing can be measured")
    return found + _twins(paths, part), paths


def _report_part(name: str, here, y, a, pair: tuple[str, str]) -> list[str]:
    """Print the groups of a part's rows, `here` bool [N]; return its empty groups as a problem."""
    _report(name, y[here], a[here])
    if here.any() and (a[here] < 0).any():
        print(f"  {'':<24} {(a[here] < 0).sum():7d} of them without {pair[1]}" + (
            ": not used" if name == "test" else ""))
    empty = [f"{t}_{p}" for t, p in GROUPS if not ((y == t) & (a == p) & here).any()]
    if empty and (here & (a >= 0)).any():
        return [f"no {name} image is of group {', '.join(empty)}"]
    return []


def _empty_parts(part: pd.Series | None) -> list[str]:
    """A line for each of training and validation that has no image: train.py would refuse then."""
    if part is None:
        return []
    lines = {"train": "no image is marked as training: mark some in the column split",
             "val": "no image is marked as validation: mark some in the column split, or train "
                    "with --val none"}
    return [line for name, line in lines.items() if not (part == name).any()]


def _twins(paths: list[str], part: pd.Series | None) -> list[str]:
    """One line for images of the same bytes in two splits, and one for those within a split."""
    by_size: dict[int, list[int]] = {}
    for row, file in enumerate(paths):
        with suppress(OSError):  # a missing one is named elsewhere
            by_size.setdefault(os.path.getsize(file), []).append(row)
    twins: dict[bytes, list[int]] = {}
    for row in (row for rows in by_size.values() if len(rows) > 1 for row in rows):
        with suppress(OSError), open(paths[row], "rb") as file:
            twins.setdefault(hashlib.file_digest(file, "sha256").digest(), []).append(row)
    names = [os.path.basename(path) for path in paths]
    groups = [rows for rows in twins.values() if len(rows) > 1]
    parts = part.tolist() if part is not None else [""] * len(paths)
    across = [" = ".join(f"{names[row]} ({parts[row]})" for row in rows) for rows in groups
              if len({parts[row] for row in rows} - {""}) > 1]
    within = [" = ".join(names[row] for row in rows) for rows in groups
              if len({parts[row] for row in rows} - {""}) < 2]
    return [f"{len(same)} images lie {where} by their bytes: {named(same, 5)}"
            for where, same in (("in several splits", across), ("there twice", within)) if same]


PAIRS = {"utkface": "Female/White", "fairface": "Male/White"}  # of those that have one


@exit_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 where nothing differs, else 1."""
    parser = ArgumentParser(
        prog="python -m datasets.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", choices=("celeba", *PAIRS, "demo", "folder"), required=True)
    parser.add_argument("--root", "--data-root", type=path, required=True,
                        help="the dataset's folder")
    parser.add_argument("--target", help="with --protected: show this pair's groups (CelebA, demo, "
                        "folder)")
    parser.add_argument("--protected")
    parser.add_argument("--positive", nargs="+", default=(), metavar="[COLUMN=]VALUE",
                        help="as of train.py, for --dataset folder")
    parser.add_argument("--no-images", action="store_true", help="do not open the images")
    args = parser.parse_args(arguments)
    if (args.target is None) != (args.protected is None):
        raise UserError("--target and --protected go together; give both or neither")
    if args.positive and (args.dataset != "folder" or not args.target):
        raise UserError("--positive is of --dataset folder with --target and --protected; leave it "
                        "out or give these")
    if args.dataset == "folder":
        pair = (args.target, args.protected) if args.target else None
        found, paths = check_folder(args.root, pair, args.positive)
    elif args.dataset in PAIRS:
        if args.target:
            raise UserError(
                f"{args.dataset} has one pair, {PAIRS[args.dataset]}; leave out --target and "
                "--protected"
            )
        check = check_utkface if args.dataset == "utkface" else check_fairface
        found, paths = check(args.root)
    else:
        root = demo.unpack(args.root) if args.dataset == "demo" else args.root
        pairs = [(args.target, args.protected)] if args.target else list(CELEBA_LISTS)
        found, paths = check_celeba(root, pairs, official=args.dataset == "celeba")
    if not args.no_images:
        print(f"opening {len(paths)} images", flush=True)
        found += [
            f"{len(files)} images {kind}: {named([os.path.basename(f) for f in files])}"
            for kind, files in bad_images(paths).items()
        ]
    what = "problem" if args.dataset == "folder" else "difference"  # from which none is known
    for line in found:
        print(f"{what}: {line}")
    print(f"{len(found) or 'no'} {what}{'' if len(found) == 1 else 's'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
