"""The paper's Figures 4 and 7: generated images side by side, by prompt set and cell.

    python -m stable_diffusion.grids data/synthetic_narrow --out results/demo/figures
    python -m stable_diffusion.grids data/synthetic_narrow --cells 1_1 --out results/demo/figures

The first draws generated_images (PNG and PDF): a row of panels for every prompt set, a column for
every cell (y, a). The second draws generated_images_1_1: one cell alone, more images of it, as the
paper's Figure 4 shows smiling men. Always the first images by file order: nothing is picked.
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
from stable_diffusion.manifest import CELLS, read_table
from utils.errors import UserError, exit_cleanly, is_systems, reason
from utils.options import ArgumentParser, path
from utils.reporting.figure_style import STYLE, Figure, plt, save

SETS = ("plain", "contextual_25", "contextual_50", "contextual_head_poses_50")  # Table 5's order
PANEL = {1: (2, 10), 2: (2, 6)}  # number of cells -> rows and columns of images; else:
NARROW_PANEL = (2, 4)
LABEL, WIDTH = 1.4, 9.2  # inches: of the prompt sets' names, and of all images of a row
SIDE = 112  # pixels at most: four cells of the paper's 224 would make a PDF of tens of MB
GAP = 2  # white pixels between images


def find_sets(root: Path, target: str, protected: str, wanted: list[str] | None) -> dict[str, Path]:
    """{prompt set: folder of its cells} in the order of `wanted`, or of SETS, those that exist.

    Raises UserError where one of `wanted` is missing, or all are. Images that lie in
    <root>/<Target>_<Protected>/<t>_<p>/, under no set's name, stand as "generated images".
    """
    found: dict[str, Path] = {}
    for name in wanted or SETS:
        try:
            folder, _ = find_pool(root, target, protected, name)
        except UserError:
            if wanted:
                raise
            continue
        named = name in (folder.name, folder.parent.name)
        found[name if named else "generated images"] = folder
    if not found:
        raise UserError(
            f"{root} holds no generated images for {target}/{protected}, in none of the prompt "
            f"sets {', '.join(SETS)}; generate them with stable_diffusion/generation.sh or name "
            "another folder, --target and --protected"
        )
    return found


def describe(folder: Path, table: ImageTable) -> str:
    """How many images and, where there is a manifest, different prompts a cell has."""
    counts = sorted({count for count in table.counts().values() if count})
    images = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else str(counts[0])
    if not (folder / "manifest.csv").is_file():
        return f"{images} images a cell"
    prompts: dict[tuple[str, str], set[str]] = {}
    for row in read_table(folder / "manifest.csv"):
        prompts.setdefault((row["y"], row["a"]), set()).add(row.get("prompt") or "")
    number = max(map(len, prompts.values()))
    return f"{number} prompt{'s' if number > 1 else ''},\n{images} images a cell"


def mosaic(paths: list[str], rows: int, columns: int) -> np.ndarray:
    """The first rows * columns images row by row: uint8 [H, W, 3]; missing ones are white.

    Each is its middle square, the size of the first image's, at most SIDE pixels. Raises UserError
    for a file that is no image.
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
            f"{path} cannot be read ({reason(error)}); delete it and generate it again"
        ) from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def grid(
    tables: dict[str, ImageTable], notes: dict[str, str], cells: list[tuple[int, int]],
    names: tuple[str, str],
) -> Figure:
    """One panel of images for every prompt set (row) and cell (column).

    tables: {prompt set: its images}. notes: {prompt set: text under its name}. names: target and
    protected attribute. Raises UserError where a set has no image of a cell.
    """
    rows, columns = PANEL.get(len(cells), NARROW_PANEL)
    size = WIDTH / (columns * len(cells))  # inches a picture
    figure, axes = plt.subplots(
        len(tables), 1 + len(cells), squeeze=False, layout="constrained",
        width_ratios=(LABEL, *[WIDTH / len(cells)] * len(cells)),
        figsize=(LABEL + WIDTH, 0.4 + len(tables) * (rows * size + 0.1)),
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for (label, *line), (name, table) in zip(axes, tables.items(), strict=True):
        text = f"{name.replace('_head', '_' + chr(10) + 'head')}\n{notes[name]}"
        label.text(1, 0.5, text, ha="right", va="center", transform=label.transAxes)
        for axis, (y, a) in zip(line, cells, strict=True):
            places = np.flatnonzero((table.y == y) & (table.a == a))
            axis.imshow(mosaic([table.paths[i] for i in places], rows, columns),
                        interpolation="lanczos")
    for axis, cell in zip(axes[0, 1:], cells, strict=True):
        axis.set_title(", ".join(word if value else f"not {word}"
                                 for word, value in zip(names, cell, strict=True)), fontsize=10)
    return figure


def draw(
    root: Path, target: str, protected: str, out: Path, *, sets: list[str] | None = None,
    cells: list[tuple[int, int]] | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the figure; returns its files and the prompt sets that it shows."""
    found = find_sets(root, target, protected, sets)
    tables = {name: load_synthetic(root, target, protected, name, check=False) for name in found}
    notes = {name: describe(folder, tables[name]) for name, folder in found.items()}
    name = "_".join(["generated_images", *(f"{y}_{a}" for y, a in cells or ())])
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure = grid(tables, notes, cells or list(CELLS), (target, protected))
        return save(figure, out, name), list(found)


def cell(text: str) -> tuple[int, int]:
    """(y, a) from its name, "0_1"."""
    names = {f"{y}_{a}": (y, a) for y, a in CELLS}
    if text not in names:
        raise argparse.ArgumentTypeError(f"'{text}' is none of the cells {', '.join(names)}")
    return names[text]


def parser() -> ArgumentParser:
    p = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                       formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("root", type=path, help="folder of generated images (generate.py's --out)")
    p.add_argument("--target", default="Smiling", help="attribute that is learned (y)")
    p.add_argument("--protected", default="Male", help="attribute to be fair about (a)")
    p.add_argument("--sets", nargs="+", default=None, metavar="SET",
                   help=f"prompt sets; where not given, those there are of {', '.join(SETS)}")
    p.add_argument("--cells", nargs="+", default=None, type=cell, metavar="Y_A",
                   help="cells such as 1_1; where not given, all four")
    p.add_argument("--out", type=path, required=True, help="folder of the figure")
    return p


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    written, shown = draw(args.root, args.target, args.protected, args.out, sets=args.sets,
                          cells=args.cells)
    if lacking := [name for name in SETS if args.sets is None and name not in shown]:
        print(f"not generated, so not shown: {', '.join(lacking)}")
    for file in written:
        print(file)


if __name__ == "__main__":
    main()
