"""The paper's Figures 4 and 7: synthetic images side by side, by prompt set and group.

    python -m stable_diffusion.grids data/synthetic_narrow --out results/demo/figures
    python -m stable_diffusion.grids data/synthetic_narrow --groups 1_1 --out results/demo/figures

The first draws generated_images (PNG and PDF): a row of panels per prompt set, a column per group
(y, a). The second draws generated_images_1_1: more images of one group, as the paper's Figure 4
does for smiling men. They are always the first images in file order; nothing is picked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path: python stable_diffusion/grids.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from datasets.base import ImageTable
from datasets.decoding import decode
from datasets.synthetic import find_pool, load_synthetic
from stable_diffusion.manifest import GROUPS, read_table
from utils.errors import UserError, exit_cleanly, is_systems, reason
from utils.options import ArgumentParser, path
from utils.reporting.figure_style import STYLE, Figure, plt, save

SETS = ("plain", "contextual_25", "contextual_50", "contextual_head_poses_50")  # Table 5's order
PANEL = {1: (2, 10), 2: (2, 6)}  # number of groups -> rows and columns of images; else:
NARROW_PANEL = (2, 4)
LABEL, WIDTH = 1.4, 9.2  # inches, of the sets' names and of all images in a row
SIDE = 112  # pixels at most: at the paper's 224 the PDF would be tens of MB
GAP = 2  # white pixels between images


def find_sets(root: Path, target: str, protected: str, wanted: list[str] | None) -> dict[str, Path]:
    """{prompt set: its folder} in the order of `wanted`, or those of SETS that exist.

    Each is called what its folder is, also where root is the folder of one set. Images in
    <root>/<Target>_<Protected>/<y>_<a>/, without a set's name, are "synthetic images".
    Raises UserError where one of `wanted` is missing, or all are.
    """
    found: dict[str, Path] = {}
    for name in wanted or SETS:
        try:
            folder, _ = find_pool(root, target, protected, name)
        except UserError:
            if wanted:
                raise
            continue
        names = [n for n in (name, *SETS) if n in (folder.name, folder.parent.name)]
        found[names[0] if names else "synthetic images"] = folder
    if not found:
        raise UserError(
            f"{root} holds no synthetic images for {target}/{protected} in any of the prompt sets "
            f"{', '.join(SETS)}; generate them with stable_diffusion/generation.sh, or give "
            "another folder, --target or --protected"
        )
    return found


def describe(folder: Path, table: ImageTable) -> str:
    """How many images a group has and, where there is a manifest, how many different prompts."""
    counts = sorted({count for count in table.counts().values() if count})
    images = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else str(counts[0])
    if not (folder / "manifest.csv").is_file():
        return f"{images} images a group"
    prompts: dict[tuple[str, str], set[str]] = {}
    for row in read_table(folder / "manifest.csv"):
        prompts.setdefault((row["y"], row["a"]), set()).add(row.get("prompt") or "")
    number = max(map(len, prompts.values()))
    return f"{number} prompt{'s' if number > 1 else ''},\n{images} images a group"


def mosaic(paths: list[str], rows: int, columns: int) -> np.ndarray:
    """The first rows * columns images, row by row: uint8 [H, W, 3]; missing ones are white.

    Each is cut to its middle square and resized to the first one's size, at most SIDE pixels.
    Raises UserError for a file that is not an image.
    """
    pictures = [_square(path) for path in paths[: rows * columns]]
    side = min(SIDE, pictures[0].width)
    step = side + GAP
    sheet = Image.new("RGB", (columns * step - GAP, rows * step - GAP), "white")
    for place, picture in enumerate(pictures):
        if picture.width != side:
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (place % columns * step, place // columns * step))
    return np.asarray(sheet)


def _square(path: str) -> Image.Image:
    try:
        image = decode(path)
    except Exception as error:
        if is_systems(error):
            raise
        raise UserError(
            f"{path} cannot be read ({reason(error)}); delete it and run the generation again"
        ) from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def grid(
    tables: dict[str, ImageTable], notes: dict[str, str], groups: list[tuple[int, int]],
    names: tuple[str, str],
) -> Figure:
    """One panel of images for every prompt set (row) and group (column).

    tables: {prompt set: its images}. notes: {prompt set: text under its name}. names: target and
    protected attribute. Raises UserError where a set has no image of a group.
    """
    rows, columns = PANEL.get(len(groups), NARROW_PANEL)
    size = WIDTH / (columns * len(groups))  # inches a picture
    figure, axes = plt.subplots(
        len(tables), 1 + len(groups), squeeze=False, layout="constrained",
        width_ratios=(LABEL, *[WIDTH / len(groups)] * len(groups)),
        figsize=(LABEL + WIDTH, 0.4 + len(tables) * (rows * size + 0.1)),
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for (label, *line), (name, table) in zip(axes, tables.items(), strict=True):
        text = f"{name.replace('_head', '_' + chr(10) + 'head')}\n{notes[name]}"
        label.text(1, 0.5, text, ha="right", va="center", transform=label.transAxes)
        for axis, (y, a) in zip(line, groups, strict=True):
            places = np.flatnonzero((table.y == y) & (table.a == a))
            axis.imshow(mosaic([table.paths[i] for i in places], rows, columns),
                        interpolation="lanczos")
    for axis, group in zip(axes[0, 1:], groups, strict=True):
        axis.set_title(", ".join(word if value else f"not {word}"
                                 for word, value in zip(names, group, strict=True)), fontsize=10)
    return figure


def draw(
    root: Path, target: str, protected: str, out: Path, *, sets: list[str] | None = None,
    groups: list[tuple[int, int]] | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the figure; returns its files and the prompt sets it shows."""
    found = find_sets(root, target, protected, sets)
    tables = {name: load_synthetic(root, target, protected, name, check=False) for name in found}
    notes = {name: describe(folder, tables[name]) for name, folder in found.items()}
    name = "_".join(["generated_images", *(f"{y}_{a}" for y, a in groups or ())])
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure = grid(tables, notes, groups or list(GROUPS), (target, protected))
        return save(figure, out, name), list(found)


def group(text: str) -> tuple[int, int]:
    """(y, a) from its name, "0_1"."""
    names = {f"{y}_{a}": (y, a) for y, a in GROUPS}
    if text not in names:
        raise argparse.ArgumentTypeError(f"'{text}' is none of the groups {', '.join(names)}")
    return names[text]


def parser() -> ArgumentParser:
    p = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                       formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("root", type=path, help="folder of synthetic images (generate.py's --out)")
    p.add_argument("--target", default="Smiling", help="attribute to learn (y)")
    p.add_argument("--protected", default="Male", help="attribute to be fair about (a)")
    p.add_argument("--sets", nargs="+", default=None, metavar="SET",
                   help=f"prompt sets; by default those of {', '.join(SETS)} that exist")
    p.add_argument("--groups", nargs="+", default=None, type=group, metavar="Y_A",
                   help="groups such as 1_1; by default all four")
    p.add_argument("--out", type=path, required=True, help="folder of the figure")
    return p


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    written, shown = draw(args.root, args.target, args.protected, args.out, sets=args.sets,
                          groups=args.groups)
    if lacking := [name for name in SETS if args.sets is None and name not in shown]:
        print(f"not shown, because they do not exist: {', '.join(lacking)}")
    for file in written:
        print(file)


if __name__ == "__main__":
    main()
