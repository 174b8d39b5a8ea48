"""One page a setting from its saved runs: `python -m utils.reporting.report results/<setting>`.

Writes results/<setting>/report.html: tables (summary.md), figures (figures/*.png), mask overlap
(masks.md), contact sheets (contact_sheets/), what training cost (log.jsonl) and the settings
(config.json). Everything is in the one file, without scripts, so it can be mailed or put on a
server as it is.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic
from utils.metrics import CELLS
from utils.options import ArgumentParser
from utils.records import read_log
from utils.reporting.html import image, markdown_to_html, page, table
from utils.reporting.row_settings import NO_SETTING
from utils.reporting.tables import read_json, run_folders, write_summary

THUMBNAIL, COLUMNS, ROWS = 72, 8, 2  # pixels, and images of a contact sheet
CAPTIONS = {
    "accuracy_against_eo": "Accuracy against fairness: each method, and each of its seeds",
    "training_curves": "Training loss and validation accuracy by epoch",
    "selected_tensors": "Tensors that the mask selects, by block and one by one",
    "freezing_one_block": "Fine-tuning with one block frozen",
    "updating_one_block": "Fine-tuning of one block alone",
    "fairif_weights": "Training images weighted most and least, and the mean weight of each cell",
    "top_k": "Accuracy and fairness against k",
    "tsne": "t-SNE of the test images' features by target and protected attribute",
    "generated_images": "Generated images by prompt set and cell: the first of each",
}


def write_contact_sheets(setting_dir: str | Path, tables: Mapping[str, Any]) -> list[Path]:
    """Save sheets of images by cell as contact_sheets/<name>_<y>_<a>.jpg; return their paths.

    tables: {name: image table with paths, y and a}, None for one that there is not. A sheet shows
    up to 16 images spread evenly over the rows of that cell; images whose protected label is
    unknown are in none.
    """
    written = []
    for name, images in tables.items():
        for y, a in CELLS if images is not None else ():
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

    Images that a run used can be read; of a pool of generated ones some may be unused and broken.
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
    setting_dir = Path(setting_dir)
    runs = run_folders(setting_dir)
    summary, masks = setting_dir / "summary.md", setting_dir / "masks.md"
    tables = summary.read_text() if summary.exists() else write_summary(setting_dir)
    configs = {
        method: [read_json(run / "config.json") for run in seeds.values()
                 if (run / "config.json").exists()]
        for method, seeds in runs.items()
    }
    sections = {
        "Tables": markdown_to_html(tables),
        "Figures": _figures(sorted((setting_dir / "figures").glob("*.png"))),
        "Masks": markdown_to_html(masks.read_text()) if masks.exists() else "",
        "Images": _contact_sheets(sorted((setting_dir / "contact_sheets").glob("*.jpg"))),
        "Cost": _cost(runs),
        "Settings": _settings(configs),
    }
    sections = {title: body for title, body in sections.items() if body}
    path = setting_dir / "report.html"
    write_atomic(path, page(setting_dir.resolve().name, _lead(runs, configs), sections))
    return path


def _lead(runs: Mapping[str, Mapping[int, Path]], configs: Mapping[str, list[dict]]) -> str:
    """One sentence: what was trained on what."""
    every = [config for group in configs.values() for config in group]
    what = ""
    if every and {"dataset", "target", "protected"} <= every[0].keys():
        first = every[0]
        what = f"{first['target']} on {first['dataset']}, fair about {first['protected']}: "
    number = len(set().union(*(seeds.keys() for seeds in runs.values())))
    plural = ("s" if len(runs) > 1 else "", "s" if number > 1 else "")
    return f"{what}{len(runs)} method{plural[0]}, {number} seed{plural[1]}."


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


def _cost(runs: Mapping[str, Mapping[int, Path]]) -> str:
    """Wall time by method and stage, and in all; a stage that methods share counts once there."""
    stages: dict[tuple[str, str], dict[int, list[float]]] = {}
    distinct = set()
    for method, seeds in runs.items():
        for seed, folder in seeds.items():
            log = folder / "log.jsonl"
            for row in read_log(log) if log.exists() else ():
                distinct.add((seed, row["stage"], row["epoch"], row["loss"], row["seconds"]))
                by_seed = stages.setdefault((method, row["stage"]), {})
                by_seed.setdefault(seed, []).append(row["seconds"])
    if not stages:
        return ""
    rows: list[list[str]] = []
    totals: dict[str, list[float]] = {}  # method -> seconds of each stage
    for (method, stage), by_seed in stages.items():
        epochs = [seconds for each in by_seed.values() for seconds in each]
        total = statistics.mean(sum(each) for each in by_seed.values())
        rows.append([method, stage, str(len(by_seed)), f"{len(epochs) / len(by_seed):g}",
                     f"{statistics.median(epochs):.2f}", _duration(total)])
        totals.setdefault(method, []).append(total)
    for method, parts in totals.items():
        if len(parts) > 1:
            place = max(i for i, row in enumerate(rows) if row[0] == method) + 1
            rows.insert(place, [method, "in all", "", "", "", _duration(sum(parts))])
    total = _duration(sum(row[-1] for row in distinct))
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


def _settings(configs: Mapping[str, list[dict]]) -> str:
    """What all runs have in common, what differs by method, and where the first one was run."""
    configs = {method: group for method, group in configs.items() if group}
    if not configs:
        return ""
    hidden = NO_SETTING
    first = {method: group[0] for method, group in configs.items()}
    keys = sorted(set().union(*first.values()) - hidden)
    lacking = object()
    common, other = [], []
    for key in keys:
        values = [config.get(key, lacking) for config in first.values()]
        (common if all(value == values[0] for value in values) else other).append(key)
    sample = next(iter(first.values()))
    text = table(["setting", "value"], [[key, _text(sample[key])] for key in common], "settings")
    if other:
        rows = [[method, *(_text(config.get(key, "–")) for key in other)]
                for method, config in first.items()]
        text += f"<h3>By method</h3>\n{table(['method', *other], rows)}"
    environment = sample.get("environment") or {}
    rows = [[key, _text(value)] for key, value in environment.items()]
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


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="A report of a setting from its saved runs.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    setting = parser.parse_args(arguments).setting
    if not setting.is_dir():
        raise UserError(f"{setting} is no folder; give that of a setting, such as results/demo")
    print(write_report(setting))


if __name__ == "__main__":
    main()
