"""The plan: which images are to be made, from which prompt and seed, and which exist already."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from stable_diffusion.prompt_set import GROUPS, PromptSet
from utils.errors import UserError
from utils.files import write_atomic

COLUMNS = ("path", "y", "a", "prompt", "seed", "model", "settings")
SET_COLUMNS = ("path", "y", "a")
# The release draws these numbers from the 10,500 images that it generates of each group.
PAPER_PER_GROUP, PAPER_BALANCED, PAPER_MAJORITY, PAPER_MINORITY = 10500, 5000, 9000, 1000


@dataclass(frozen=True)
class Row:
    """One image of the plan; `path` is relative to the manifest's folder, `seed` in [0, 2^63)."""

    path: str
    y: int
    a: int
    number: int
    prompt: str
    seed: int


def derive_seed(*parts: str | int) -> int:
    """A 63-bit integer from the SHA-256 of the parts: the same on every machine and version."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan(prompts: PromptSet, images_per_group: int, seed: int) -> list[Row]:
    """Every image to be made, group by group; 4 * images_per_group rows.

    Image i of a group uses prompt i mod P, so a smaller plan holds the first rows of each group of
    a larger one. The noise seed of an image depends on set, pair, group, prompt, number and base
    seed only.
    """
    rows = []
    for y, a in GROUPS:
        group, texts = f"{y}_{a}", prompts.groups[y, a]
        for i in range(images_per_group):
            prompt = texts[i % len(texts)]
            image_seed = derive_seed(prompts.name, prompts.pair, group, prompt, i, seed)
            rows.append(Row(f"{group}/{i:05d}.png", y, a, i, prompt, image_seed))
    return rows


def cut_batches(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
    """Cut the plan into batches of one group each, the groups taking turns; the last may be short.

    They are cut from the plan, not from what is missing, so an image shares its batch with the same
    others after a restart; and group by group, so a larger plan keeps the full batches.
    """
    groups = [[row for row in rows if (row.y, row.a) == group] for group in GROUPS]
    longest = max((len(group) for group in groups), default=0)
    return [
        group[start : start + batch_size]
        for start in range(0, longest, batch_size)
        for group in groups
        if start < len(group)
    ]


def existing(folder: Path, groups: Iterable[tuple[int, int]] = GROUPS) -> set[str]:
    """Paths, relative to `folder`, of the images there. Files are renamed into place, so whole."""
    found = set()
    for y, a in groups:
        images = folder / f"{y}_{a}"
        if images.is_dir():
            found.update(f"{y}_{a}/{name}" for name in os.listdir(images) if name.endswith(".png"))
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a manifest, balanced.csv or biased.csv.

    Raises UserError for missing columns, a path other than <y>_<a>/<name>, a label other than 0 or
    1, and a path listed twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({error}); restore or delete it") from None
    if not rows or any(row.get(column) is None for row in rows for column in SET_COLUMNS):
        raise UserError(f"{path} has no rows with the columns path, y, a; restore or delete it")
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if not re.fullmatch(r"[01]_[01]/[^/\\\0]+", row["path"]):
            fault = f"'{row['path']}' is not in a group's folder, such as 0_1/"
        elif row["y"] not in ("0", "1") or row["a"] not in ("0", "1"):
            fault = f"the labels '{row['y']}' and '{row['a']}' are not 0 or 1"
        elif row["path"] in seen:
            fault = f"'{row['path']}' is listed twice"
        else:
            seen.add(row["path"])
            continue
        raise UserError(f"{path}, row {number}: {fault}; restore or delete that file")
    return rows


def write_manifest(folder: Path, rows: Sequence[Row], model: str, settings: dict) -> list[str]:
    """Write `folder`/manifest.csv, or check the one there; returns the paths that it lists.

    settings: JSON values, what the images depend on besides prompt and seed. A manifest with more
    images per group is kept, one with fewer is extended. UserError for any other difference.
    """
    path = folder / "manifest.csv"
    text = json.dumps(settings, sort_keys=True)
    new = {
        row.path: dict(zip(COLUMNS, (row.path, str(row.y), str(row.a), row.prompt, str(row.seed),
                                     model, text), strict=True))
        for row in rows
    }  # fmt: skip
    there = same_model(read_table(path), model) if path.exists() else []
    old = {row["path"]: row for row in there}
    if old:
        _check_agreement(path, old, new)
    elif existing(folder):
        raise UserError(
            f"{folder} holds images but no manifest.csv to say what they show; give another --out "
            "or delete the folder"
        )
    if new.keys() <= old.keys():
        return list(old)
    write_atomic(path, _csv_text(new.values(), COLUMNS))
    return list(new)


def same_model(rows: list[dict[str, str]], model: str) -> list[dict[str, str]]:
    """The rows, with `model` in place of any --model of the same last name.

    One folder has different paths from other folders and machines; the settings identify the
    weights.
    """
    name = PurePath(model).name
    return [
        row | {"model": model} if PurePath(row.get("model") or "").name == name else row
        for row in rows
    ]


def _check_agreement(path: Path, old: dict[str, dict], new: dict[str, dict]) -> None:
    """Raise UserError naming what differs between the existing manifest and the plan."""
    differences: list[str] = []
    for image in [image for image in new if image in old]:
        before, now = old[image], new[image]
        if before == now:
            continue
        if before.get("model") != now["model"]:
            differences.append(f"--model was {before.get('model')}, now it is {now['model']}")
        differences += _settings_difference(before.get("settings") or "{}", now["settings"])
        if before.get("prompt") != now["prompt"]:
            was, now_is = before.get("prompt"), now["prompt"]
            differences.append(f"the prompt of {image} was {was!r}, now it is {now_is!r}")
        elif before.get("seed") != now["seed"] and not differences:
            differences.append(f"the noise seed of {image} differs (another --seed?)")
        differences = differences or [f"the row of {image} differs"]
        break
    if not new.keys() <= old.keys() and not old.keys() <= new.keys():
        differences.append("it lists images that are not in the plan")
    if differences:
        raise UserError(
            f"{path} was written for other images: {'; '.join(differences)}; give another --out or "
            f"delete the folder {path.parent}"
        )


def _settings_difference(before: str, now: str) -> list[str]:
    try:
        old, new = dict(json.loads(before)), json.loads(now)
    except (ValueError, TypeError):
        return ["its settings cannot be read"]
    return [
        f"{key} was {old.get(key)}, now it is {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def draw_sets(
    rows: Sequence[dict[str, str]], seed: int, balanced: int, majority: int, minority: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The paper's two synthetic sets, (balanced, biased), in manifest order.

    `balanced` images of every group; `majority` of (0, 1) and (1, 0), `minority` of (0, 0) and
    (1, 1). The draws are independent, so the sets may overlap, as in the release. Images are ranked
    by a hash of their path, so the draw does not depend on a library's random numbers. ValueError
    where a group has fewer images than are to be drawn.
    """

    def draw(name: str, counts: dict[tuple[int, int], int]) -> list[dict[str, str]]:
        chosen = set()
        for y, a in GROUPS:
            paths = [row["path"] for row in rows if (int(row["y"]), int(row["a"])) == (y, a)]
            if counts[y, a] > len(paths):
                raise ValueError(f"{counts[y, a]} of {len(paths)} images of group {y}_{a}")
            paths.sort(key=lambda path: derive_seed(name, seed, path))
            chosen.update(paths[: counts[y, a]])
        return [{key: row[key] for key in SET_COLUMNS} for row in rows if row["path"] in chosen]

    biased = {(y, a): minority if y == a else majority for y, a in GROUPS}
    return draw("balanced", dict.fromkeys(GROUPS, balanced)), draw("biased", biased)


def set_sizes(
    per_group: int, balanced: int | None, majority: int | None, minority: int | None
) -> tuple[int, int, int]:
    """Sizes for `draw_sets`; None is the paper's, scaled from 10,500 to `per_group` images."""

    def scaled(value: int | None, paper: int) -> int:
        return max(1, round(per_group * paper / PAPER_PER_GROUP)) if value is None else value

    return (
        scaled(balanced, PAPER_BALANCED),
        scaled(majority, PAPER_MAJORITY),
        scaled(minority, PAPER_MINORITY),
    )


def finish(
    folder: Path,
    seed: int,
    *,
    balanced: int | None = None,
    majority: int | None = None,
    minority: int | None = None,
) -> int:
    """Write balanced.csv and biased.csv once every image of the manifest exists.

    Returns how many are missing. Any process may call it: they all write the same bytes.
    """
    rows = read_table(folder / "manifest.csv")
    there = existing(folder)
    missing = sum(row["path"] not in there for row in rows)
    if not missing:
        sizes = set_sizes(len(rows) // len(GROUPS), balanced, majority, minority)
        for name, table in zip(("balanced", "biased"), draw_sets(rows, seed, *sizes), strict=True):
            write_atomic(folder / f"{name}.csv", _csv_text(table, SET_COLUMNS))
    return missing


def _csv_text(rows: Iterable[dict[str, str]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
