"""The audit's comparison with photographs: which ones, and what it writes of their distances."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets import DATASETS, root_of
from datasets.base import ImageTable
from datasets.decoding import decode
from datasets.folder import NoValidation
from stable_diffusion.judges import Features
from stable_diffusion.quality import by_group, per_prompt
from utils.errors import UserError
from utils.files import atomic_path, write_atomic
from utils.metrics import GROUPS, group_index

Groups = dict[tuple[int, int], np.ndarray]
CLOSEST, COLUMNS, SIDE, CAPTION = 20, 4, 128, 14  # pairs, pairs a row; pixels


@dataclass(frozen=True)
class Photographs:
    """name: for results. network: what the features are of. paths: per group, those of `real`.

    real, held_out: features float32 [N, D] per group of training photographs, and of validation
    photographs, which may be none.
    """

    name: str
    network: Features
    paths: dict[tuple[int, int], list[str]]
    real: Groups
    held_out: Groups


def load_photographs(
    dataset: str, root: Path | None, pair: tuple[str, str], network: Features, *, limit: int,
    positive: Sequence[str] = (),
) -> Photographs:
    """At most `limit` training photographs of each group, and as many held out for validation.

    The draw has a fixed seed. root: the dataset's own where it has one, if None. positive: as of
    the dataset. Raises UserError for a dataset that has no image files or no labels of the user's
    for `positive`, what its `load` refuses, and a group without photographs.
    """
    images = [name for name, entry in DATASETS.items() if not entry.in_memory]
    if dataset not in images:
        raise UserError(f"--dataset {dataset} has no photographs; choose from {', '.join(images)}")
    if positive and not DATASETS[dataset].own_labels:
        raise UserError(f"--positive is for labels of your own, and {dataset} has known ones: "
                        "leave out that flag")
    load = partial(DATASETS[dataset], root_of(dataset, root), *pair, size=None, positive=positive)
    try:
        splits = load()
    except NoValidation:  # then nothing is held out
        splits = load(val="none")
    real = {group: _draw(splits.train, group, limit) for group in GROUPS}
    if empty := [f"{y}_{a}" for (y, a), paths in real.items() if not paths]:
        raise UserError(
            f"--dataset {dataset} has no training photographs of group {', '.join(empty)} of "
            f"{' and '.join(pair)}; choose another dataset"
        )
    unseen = {group: _draw(splits.val, group, limit) for group in GROUPS}
    return Photographs(
        f"{sum(map(len, real.values()))} training photographs of {dataset}", network, real,
        _features(network, real, "training photographs"),
        _features(network, unseen, "validation photographs"),
    )


def _draw(table: ImageTable | None, group: tuple[int, int], limit: int) -> list[str]:
    if table is None:
        return []
    rows = np.flatnonzero(group_index(table.y, table.a) == GROUPS.index(group))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    return [table.paths[row] for row in rows]


def _features(network: Features, paths: dict[tuple[int, int], list[str]], what: str) -> Groups:
    """Features per group, computed in one go; [0, 0] each where there is no image at all."""
    if not any(paths.values()):
        return {group: np.empty((0, 0), np.float32) for group in GROUPS}
    values = network.of([path for group in GROUPS for path in paths[group]], what)
    ends = np.cumsum([len(paths[group]) for group in GROUPS])[:-1]
    return dict(zip(GROUPS, np.split(values, ends), strict=True))


def compare_with(
    photographs: Photographs, folder: Path, rows: Sequence[dict[str, str]]
) -> dict[str, object]:
    """Compare the manifest's rows, all of them readable, with the photographs.

    Writes nearest.csv (path, real, distance: each image's nearest training photograph) and
    closest.png, the CLOSEST images that are nearest to one, into the folder. Returns {"features",
    "photographs", "groups": see quality.by_group, "prompts": {"y_a": see quality.per_prompt},
    "closest": [{"path", "real", "distance"}]}. Raises UserError where there is no image.
    """
    if not rows:
        raise UserError(f"{folder} has no image that can be read; generate them first")
    grouped = {
        (y, a): [row for row in rows if (row["y"], row["a"]) == (str(y), str(a))] for y, a in GROUPS
    }
    paths = {group: [str(folder / row["path"]) for row in own] for group, own in grouped.items()}
    values = _features(photographs.network, paths, "synthetic images")
    groups, places, distances = by_group(photographs.real, photographs.held_out, values)
    real = [path for group in GROUPS for path in photographs.paths[group]]
    images = [row["path"] for group in GROUPS for row in grouped[group]]
    found = [
        {"path": path, "real": real[place], "distance": float(distance)}
        for path, place, distance in zip(images, places, distances, strict=True)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ("path", "real", "distance"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomic(folder / "nearest.csv", text.getvalue())
    closest = sorted(found, key=lambda row: row["distance"])[:CLOSEST]
    closest_sheet(folder, closest)
    return {
        "features": photographs.network.name,
        "photographs": photographs.name,
        "groups": groups,
        "prompts": {
            f"{y}_{a}": per_prompt(values[y, a], [row["prompt"] for row in own])
            for (y, a), own in grouped.items()
            if own and all(row.get("prompt") for row in own)
        },
        "closest": closest,
    }


def closest_sheet(folder: Path, closest: Sequence[dict]) -> None:
    """Write closest.png: pairs of a synthetic image (left) and its nearest photograph (right)."""
    step, lines = 2 * SIDE + 8, -(-len(closest) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * step, lines * (SIDE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(closest):
        left, top = place % COLUMNS * step, place // COLUMNS * (SIDE + CAPTION)
        for number, file in enumerate((folder / row["path"], row["real"])):
            picture = decode(file)
            picture.thumbnail((SIDE, SIDE))
            picture = picture.resize(
                [round(side * SIDE / max(picture.size)) for side in picture.size],
                Image.Resampling.LANCZOS,
            )
            sheet.paste(picture, (left + number * SIDE, top))
        label = f"{row['path']} | {os.path.basename(row['real'])}  {row['distance']:.3f}"
        draw.text((left, top + SIDE + 1), label, fill="black")
    with atomic_path(folder / "closest.png") as temporary:
        sheet.save(temporary, "PNG")
