"""One page a setting from its saved runs, results/<setting>/report.html.

Tables (summary.md), figures (figures/*.png), contact sheets (contact_sheets/), what training cost
(log.jsonl) and the settings (config.json). Everything is in the one file, without scripts, so it
can be mailed or put on a server as it is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from utils.files import write_atomic
from utils.metrics import GROUPS
from utils.reporting.html import image, markdown_to_html, page, table
from utils.reporting.results import Results
from utils.reporting.row_settings import NO_SETTING
from utils.reporting.tables import write_summary

THUMBNAIL, COLUMNS, ROWS = 72, 8, 2  # pixels, and images of a contact sheet
CAPTIONS = {
    "accuracy_against_eo": "Accuracy against fairness: each method, and each of its seeds",
    "training_curves": "Training loss and validation accuracy by epoch",
    "selected_tensors": "Tensors that the mask selects, by block and one by one",
    "freezing_one_block": "Fine-tuning with one block frozen",
    "updating_one_block": "Fine-tuning of one block alone",
    "fairif_weights": "Training images weighted most and least, and the mean weight of each group",
    "top_k": "Accuracy and fairness against k",
    "tsne": "t-SNE of the test images' features by target and protected attribute",
    "generated_images": "Synthetic images by prompt set and group: the first of each",
}


def write_contact_sheets(setting_dir: str | Path, tables: Mapping[str, Any]) -> list[Path]:
    """Save sheets of images by group as contact_sheets/<name>_<y>_<a>.jpg; return their paths.

    tables: {name: image table with paths, y and a}, None for one that there is not. A sheet shows
    up to 16 images spread evenly over the rows of that group; images whose protected label is
    unknown are in none.
    """
    written = []
    for name, images in tables.items():
        for y, a in GROUPS if images is not None else ():
            rows = np.flatnonzero((images.y == y) & (images.a == a))
            if not len(rows):
                continue
            shown = np.unique(np.linspace(0, len(rows) - 1, COLUMNS * ROWS).round().astype(int))
            sheet = _sheet([images.paths[row] for row in rows[shown]])
            written.append(Path(setting_dir) / "contact_sheets" / f"{name}_{y}_{a}.jpg")
            write_atomic(written[-1], sheet)
    return written


def _sheet(paths: Sequence[str]) -> bytes:
    """A JPEG of the images' middle squares, row by row; an unreadable one's place stays white.

    Images that a run used can be read; of a pool of synthetic ones some may be unused and broken.
    """
    rows = -(-len(paths) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * THUMBNAIL), "white")
    for place, path in enumerate(paths):
        with suppress(OSError), Image.open(path) as face:
            side = min(face.size)
            left, top = (face.width - side) // 2, (face.height - side) // 2
            box, size = (left, top, left + side, top + side), (THUMBNAIL, THUMBNAIL)
            thumbnail = face.convert("RGB").resize(size, Image.Resampling.LANCZOS, box)
            corner = place % COLUMNS * THUMBNAIL, place // COLUMNS * THUMBNAIL
            sheet.paste(thumbnail, corner)
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=88)
    return out.getvalue()


def write_report(setting_dir: str | Path) -> Path:
    """Write report.html from what the setting's folder holds; return its path.

    summary.md is read, and written where it is missing. Raises UserError for a folder without runs.
    """
    results = Results(setting_dir)
    folder, configs = results.folder, results.first_configs
    summary = folder / "summary.md"
    text = summary.read_text(encoding="utf-8") if summary.exists() else write_summary(folder)
    sections = {
        "Tables": markdown_to_html(text),
        "Figures": _figures(sorted((folder / "figures").glob("*.png"))),
        "Images": _contact_sheets(sorted((folder / "contact_sheets").glob("*.jpg"))),
        "Cost": _cost(results),
        "Settings": _settings(configs),
    }
    sections = {title: body for title, body in sections.items() if body}
    path = folder / "report.html"
    write_atomic(path, page(folder.resolve().name, _lead(results), sections))
    return path


def _lead(results: Results) -> str:
    """One sentence: what was trained on what."""
    first = next(iter(results.first_configs.values()), {})
    what = ""
    if {"dataset", "target", "protected"} <= first.keys():
        what = f"{first['target']} on {first['dataset']}, fair about {first['protected']}: "
    methods, seeds = len(results.runs), len(set().union(*results.runs.values()))
    plural = ("s" if methods > 1 else "", "s" if seeds > 1 else "")
    return f"{what}{methods} method{plural[0]}, {seeds} seed{plural[1]}."


def _figures(paths: Sequence[Path]) -> str:
    order = list(CAPTIONS)

    def kind(path: Path) -> str | None:
        return next((name for name in order if path.stem.startswith(name)), None)

    parts = []
    for path in sorted(paths, key=lambda p: order.index(kind(p)) if kind(p) else len(order)):
        caption = CAPTIONS.get(kind(path), path.stem.replace("_", " "))
        if kind(path) and (method := path.stem.removeprefix(kind(path)).strip("_")):
            caption += f" ({method})"
        parts.append(
            f'<figure class="plot"><div class="scroll" tabindex="0">{image(path, caption)}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>\n"
        )
    return "".join(parts)


def _contact_sheets(paths: Sequence[Path]) -> str:
    groups: dict[str, list[str]] = {}
    for path in paths:
        name, y, a = path.stem.rsplit("_", 2)
        caption = f"target {y}, protected {a}"
        groups.setdefault(name, []).append(
            f"<figure>{image(path, f'{name} images, {caption}')}"
            f"<figcaption>{caption}</figcaption></figure>\n"
        )
    return "".join(
        f'<h3>{escape(name.capitalize())}</h3>\n<div class="sheets">{"".join(figures)}</div>\n'
        for name, figures in groups.items()
    )


def _cost(results: Results) -> str:
    """Wall time by method and stage, and in all; a stage that methods share counts once there."""
    log = results.log
    if log.empty:
        return ""
    rows: list[list[str]] = []
    for method, of_method in log.groupby("method", sort=False):
        total, stages = 0.0, of_method.groupby("stage", sort=False)
        for stage, epochs in stages:
            seeds, seconds = epochs["seed"].nunique(), epochs["seconds"]
            total += seconds.sum() / seeds
            rows.append([method, stage, str(seeds), f"{len(epochs) / seeds:g}",
                         f"{seconds.median():.2f}", _duration(seconds.sum() / seeds)])
        if len(stages) > 1:
            rows.append([method, "in all", "", "", "", _duration(total)])
    distinct = log.drop_duplicates(["seed", "stage", "epoch", "loss", "seconds"])
    total = _duration(distinct["seconds"].sum())
    header = ["method", "stage", "seeds", "epochs", "s an epoch (median)", "a seed (mean)"]
    return (
        "<p>Wall time of the epochs with their validation, as logged by the runs. A stage that "
        "several methods share was run once and stands with each of them; without such repeats "
        f"all of it took <strong>{total}</strong>.</p>\n{table(header, rows)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _settings(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """What all runs have in common, what differs by method, and where the first one was run."""
    if not configs:
        return ""
    keys = sorted(set().union(*configs.values()) - NO_SETTING)
    frame = pd.DataFrame({method: {key: _text(config.get(key, "–")) for key in keys}
                          for method, config in configs.items()}, index=keys)  # a row a setting
    same = frame.nunique(axis=1) == 1
    text = table(["setting", "value"], frame.loc[same].iloc[:, :1].reset_index().to_numpy(),
                 "settings")
    if not same.all():
        other = frame.loc[~same].T
        text += f"<h3>By method</h3>\n{table(['method', *other], other.reset_index().to_numpy())}"
    rows = [[key, _text(value)]
            for key, value in (next(iter(configs.values())).get("environment") or {}).items()]
    if rows:
        text += (f"<details><summary>Where and how the first run was made</summary>\n"
                 f"{table(['what', 'value'], rows, 'settings')}</details>\n")
    return text


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "none" if value is None else str(value)
