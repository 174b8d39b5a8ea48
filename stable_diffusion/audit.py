"""Look at synthetic images: counts per group, unreadable files, label agreement, contact sheets.

    python -m stable_diffusion.audit --images data/synthetic --judge judge.pt
    python -m stable_diffusion.audit --images data/synthetic --judge judge.pt \
        --dataset demo --data-root data/demo

Agreement is the share of a group's images to which a classifier gives the label that their prompt
asked for: what the images can teach is limited by it. The judge is a classifier's checkpoint (give
--judge twice for target and protected attribute), or CLIP zero-shot with --clip.

With --dataset they are also compared with its training photographs (quality.py): FID, KID and
diversity, and the nearest photograph of every image, which shows what the generator has memorised.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path: python stable_diffusion/audit.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image

from datasets.decoding import decode
from stable_diffusion.manifest import GROUPS, read_table
from utils.config import number
from utils.errors import UserError, exit_cleanly, is_systems
from utils.files import atomic_path, write_json
from utils.options import ArgumentParser, path
from utils.progress import progress

if TYPE_CHECKING:  # torch comes after the flags
    from stable_diffusion.judges import Judge
    from stable_diffusion.photographs import Photographs


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that training could not use: see decoding.decode."""

    def broken(path: Path) -> bool:
        try:
            decode(path)
        except Exception as error:  # what Pillow's decoders raise varies
            if is_systems(error):  # to delete the file would not help
                raise
            return True
        return False

    with ThreadPoolExecutor() as pool:
        flags = progress(pool.map(broken, paths), total=len(paths), unit="img", desc="read")
        return [path for path, bad in zip(paths, flags, strict=True) if bad]


def contact_sheet(paths: Sequence[Path], out: Path, grid: int = 10) -> None:
    """A PNG of the first grid * grid images in their own size; empty places are white."""
    images = [decode(path) for path in paths[: grid * grid]]
    width, height = images[0].size if images else (64, 64)
    sheet = Image.new("RGB", (grid * width, grid * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image.resize((width, height)), (i % grid * width, i // grid * height))
    with atomic_path(out) as temporary:
        sheet.save(temporary, "PNG")


def pair_of(folder: Path) -> tuple[str, str]:
    """(target, protected) of a folder named <Target>_<Protected>. UserError for another name."""
    target, _, protected = folder.name.partition("_")
    if not target or not protected:
        raise UserError(
            f"--images: {folder} is not named <Target>_<Protected>, which says what its labels "
            "mean; give it the name that generate.py gave it"
        )
    return target, protected


def audit(
    folder: Path, judges: Sequence[Judge], grid: int = 10,
    photographs: Photographs | None = None,
) -> dict[str, object]:
    """Check one pair's folder against its manifest; writes contact_<y>_<a>.png and audit.json.

    Returns {"cells": {"y_a": {"listed", "made", "unreadable", "agreement": {attribute: share in
    [0, 1]}}}, "unreadable": [relative paths]}, and with photographs {"quality": see
    photographs.compare_with}. Raises UserError for a wrong manifest and for a judge of another
    attribute.
    """
    from stable_diffusion.judges import agreement
    from stable_diffusion.photographs import compare_with

    rows = read_table(folder / "manifest.csv")
    target, protected = pair_of(folder)
    for judge in judges:
        if judge.attribute not in (target, protected):
            raise UserError(
                f"{judge.name} judges {judge.attribute}, which {folder.name} is not about; give a "
                f"judge of {target} or {protected}"
            )
    made = [folder / row["path"] for row in rows if (folder / row["path"]).is_file()]
    broken = set(unreadable(made))
    groups = {}
    for y, a in GROUPS:
        listed = [folder / row["path"] for row in rows if (row["y"], row["a"]) == (str(y), str(a))]
        there = [path for path in listed if path.is_file()]
        good = [path for path in there if path not in broken]
        groups[f"{y}_{a}"] = {
            "listed": len(listed),
            "made": len(there),
            "unreadable": len(there) - len(good),
            "agreement": {
                judge.attribute: agreement(
                    judge.logits, good, y if judge.attribute == target else a
                )
                for judge in judges
            },
        }
        contact_sheet(good, folder / f"contact_{y}_{a}.png", grid)
    report = {"cells": groups, "unreadable": sorted(str(p.relative_to(folder)) for p in broken)}
    if photographs:
        good = set(made) - broken
        rows = [row for row in rows if folder / row["path"] in good]
        report["quality"] = compare_with(photographs, folder, rows)
    write_json(folder / "audit.json", report)
    return report


def _print_report(folder: Path, report: dict) -> None:
    print(f"\n{folder}")
    print(f"{'group':6}{'listed':>8}{'made':>8}{'broken':>8}  agreement")
    for group, row in report["cells"].items():
        shares = ", ".join(f"{name} {100 * v:.1f}%" for name, v in row["agreement"].items())
        counts = f"{row['listed']:>8}{row['made']:>8}{row['unreadable']:>8}"
        print(f"{group:6}{counts}  {shares or '-'}")
    for name in report["unreadable"]:
        print(f"unreadable: {folder / name}")
    if report["unreadable"]:
        print("delete these files and run the generation again, which makes what is missing")
    print(f"contact sheets: {folder}/contact_<y>_<a>.png")
    if quality := report.get("quality"):
        print(f"\nagainst {quality['photographs']}, in features of {quality['features']}:")
        names = ("fid", "fid_held_out", "kid", "distance", "vendi", "density", "coverage",
                 "nearest", "near_copies")  # fmt: skip
        print(f"{'group':6}{'images':>7}{'photos':>8}" + "".join(f"{n:>13}" for n in names))
        for group, row in quality["groups"].items():
            numbers = "".join(f"{row[name]:>13.4g}" for name in names)
            print(f"{group:6}{row['synthetic']:>7}{row['real']:>8}{numbers}")
        print(f"nearest photographs: {folder}/nearest.csv, closest.png")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m stable_diffusion.audit", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--images", required=True, type=path,
                        help="folder that generate.py wrote, any level")
    parser.add_argument("--judge", action="append", type=path, default=[],
                        help="checkpoint of train.py; may be given twice")
    parser.add_argument("--clip", metavar="ID", help="CLIP model (hub id or folder), zero-shot")
    parser.add_argument("--grid", type=number(int, 1, 100), default=10,
                        help="n of the n x n contact sheets")
    parser.add_argument("--dataset", help="photographs to compare with, by train.py's name for "
                        "them; none where not given")
    parser.add_argument("--data-root", type=path, help="their folder; of the demo not needed")
    parser.add_argument("--positive", nargs="+", default=(), metavar="[COLUMN=]VALUE",
                        help="as of train.py, for --dataset folder")
    parser.add_argument("--photographs", type=number(int, 6, 10**9),
                        help="at most so many of each group, drawn at random (default: 5000)")
    parser.add_argument("--features", metavar="NETWORK",
                        help="in which images are compared: inception, timm:NAME, a checkpoint of "
                        "train.py, or auto, the default: Inception where it can be loaded, else "
                        "the first judge")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, complete. UserError for one of the comparison without --dataset, which asks for
    it: it would be ignored."""
    args = _parser().parse_args(arguments)
    defaults = {"photographs": 5000, "features": "auto"}
    for name in ("positive", "data_root", *defaults):
        if getattr(args, name) and args.dataset is None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is of the comparison with photographs; name these with "
                            f"--dataset, or leave out {flag}")
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name) or value)
    return args


def _find_folders(root: Path) -> list[Path]:
    """Folders with a manifest.csv at most two below the root. UserError where there are none."""
    if root.is_dir():
        os.listdir(root)  # what may not be listed would look empty below
    folders = sorted(
        file.parent for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}manifest.csv")
    )
    if not folders:
        raise UserError(
            f"--images {root}: no manifest.csv there or up to two folders below; "
            "give the folder that generate.py wrote (its --out)"
        )
    return folders


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit code 1 if images are missing or broken."""
    args = _parse(arguments)
    folders = _find_folders(args.images)
    from stable_diffusion.judges import load_clip, load_features, load_judge
    from stable_diffusion.photographs import load_photographs
    from stable_diffusion.pipeline import pick_device

    device = pick_device(args.device)
    judges = [load_judge(file, device) for file in args.judge]
    features = load_features(args.features, args.judge, device) if args.dataset else None
    known: dict[tuple[str, str], Photographs] = {}
    complete = True
    for folder in folders:
        pair = pair_of(folder)
        if features and pair not in known:
            known[pair] = load_photographs(
                args.dataset, args.data_root, pair, features, limit=args.photographs,
                positive=args.positive,
            )
        clip = [load_clip(args.clip, attribute, device) for attribute in pair] if args.clip else []
        report = audit(folder, [*judges, *clip], args.grid, known.get(pair))
        _print_report(folder, report)
        counts = report["cells"].values()
        complete &= all(c["listed"] == c["made"] and not c["unreadable"] for c in counts)
    if not complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
