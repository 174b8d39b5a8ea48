"""One page about a repair: the model before and after, group by group, on the same test images.

    python -m models.repair results/repair_demo_Smiling_Male --data-root data/demo

The folder is a setting of train.py with the rows erm (the model that was given) and --row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: python models/repair.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import root_of
from models import card, scores
from models.checkpoints import classifier
from models.evaluate import device_of, evaluated, percent, spanned
from models.evaluate_figure import draw
from models.features import run_config, test_images
from utils.config import COUNT, number
from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic, write_json
from utils.metrics import GROUPS
from utils.options import ArgumentParser, path
from utils.records import read_record
from utils.reporting import html

LOWER = ("std", "eo_mean", "eo_worst", "ad", "aod", "eod")  # the smaller the fairer
MAIN = {"acc": "accuracy", "wst": "worst group's accuracy", "eo_worst": "equalized odds difference"}


def verdict(before: Mapping, after: Mapping, differences: Mapping) -> list[str]:
    """One sentence a measure of MAIN: how it changed, and whether the images can tell."""
    sentences = []
    for name, said in MAIN.items():
        found, (low, high) = differences[name]["difference"], differences[name]["interval"]
        if low <= 0 <= high or found != found:
            change = "these test images cannot tell whether it changed"
        else:
            better = (found < 0) == (name in LOWER)
            change = "better" if better else "worse"
        sentences.append(f"{said.capitalize()}: {percent(before[name])}% before, "
                         f"{percent(after[name])}% after ({100 * found:+.2f} "
                         f"{spanned((low, high))}): {change}.")
    return sentences


def sections_of(
    result: Mapping[str, Any], names: tuple[str, str], config: Mapping[str, Any], setting: Path,
    mask: Mapping[str, Any] | None, figure: Path, control: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The page's sections as HTML. names: of the model before and after. control: metrics.json of
    the row erm_longer, where there is one."""
    before, after = (result["models"][name] for name in names)
    differences = result["differences"][names[1]]
    rows = [[card.SAID[name], _cell(before, name), _cell(after, name),
             f"{100 * differences[name]['difference']:+.2f} "
             f"{spanned(differences[name]['interval'])}"]
            for name in card.SAID]
    groups = []
    for y, a in GROUPS:
        key = f"group_acc_{y}_{a}"
        marks = ["worst" if part["worst_group"] == f"{y}_{a}" else "" for part in (before, after)]
        groups.append([
            f"{config['target']} {y}, {config['protected']} {a}",
            str(before["group_count"][f"{y}_{a}"]),
            *(f"{_cell(part, key)} {mark}".strip() for part, mark in
              zip((before, after), marks, strict=True)),
            f"{100 * differences[key]['difference']:+.2f} "
            f"{spanned(differences[key]['interval'])}",
        ])
    few = ("" if min(before["group_count"].values()) >= card.FEW else
           f"<p>A group has fewer than {card.FEW} images: its intervals are too narrow.</p>\n")
    error = [[part, percent(before["calibration_error"][part]),
              percent(after["calibration_error"][part])] for part in before["calibration_error"]]
    head = ["before", "after", "difference [95%], paired"]
    sections = {
        "Result": "".join(f"<p>{escape(line)}</p>\n" for line in
                          verdict(before, after, differences))
        + _control(control) + html.table(["in %", *head], rows),
        "Groups": html.table(["group", "test images", *head], groups) + few,
        "Scores": f'<figure class="plot">{html.image(figure, "calibration and thresholds")}'
        "<figcaption>Above before, below after. Left: share of images with label 1 among those of "
        "a score; on the line a score is a probability. Right: accuracy of each group by the "
        "threshold.</figcaption></figure>\n"
        + html.table(["calibration error, %", "before", "after"], error),
        "Mask": _mask(mask),
        "Images": _sheets(setting),
        "Limits": "<p>Measured on the test part of one data set with one seed of the fine-tuning; "
        "the intervals are over its images (bootstrap, stratified by group) and hold for images "
        "like these. The protected attribute has two values here. Nothing was chosen on the test "
        "images. The other rows stand in report.html.</p>\n",
    }
    return {title: body for title, body in sections.items() if body}


def _control(control: Mapping[str, Any] | None) -> str:
    """What the same model reaches that is trained on for as long, but on its own biased images."""
    if control is None:
        return ""
    values = ", ".join(f"{said} {percent(control['test'][name])}%" for name, said in MAIN.items()
                       if control["test"][name] is not None)
    return (f"<p>The control, the given model trained on for as many images of its own training "
            f"set: {escape(values)}.</p>\n")


def _cell(part: Mapping[str, Any], name: str) -> str:
    value = part["group_acc"][name[-3:]] if name.startswith("group_acc") else part[name]
    return f"{percent(value)} {spanned(part['intervals'][name])}"


def _mask(mask: Mapping[str, Any] | None) -> str:
    if mask is None:
        return ""
    tensors = mask["tensors"]
    frozen = [name for name, chosen in tensors.items() if not chosen]
    return (f"<p>Fine-tuned were {len(tensors) - len(frozen)} of {len(tensors)} parameter tensors "
            f"({escape(str(mask['criterion']))}); the others are bit for bit those of the given "
            f"model{': ' + escape(', '.join(frozen)) if frozen else ''}.</p>\n")


def _sheets(setting: Path) -> str:
    parts = []
    for kind in ("real", "synthetic"):
        files = sorted((setting / "contact_sheets").glob(f"{kind}_*.jpg"))
        figures = "".join(
            f"<figure>{html.image(file, file.stem)}<figcaption>{kind}, target {file.stem[-3]}, "
            f"protected {file.stem[-1]}</figcaption></figure>\n" for file in files)
        if figures:
            parts.append(f'<h3>{kind.capitalize()}</h3>\n<div class="sheets">{figures}</div>\n')
    return "".join(parts)


def run_of(setting: Path, row: str, seed: int) -> Path:
    run = setting / row / f"seed{seed}"
    if not (run / "done").exists():
        raise UserError(f"{run} is no finished run: start that training again, or name another "
                        "--row or --seed")
    return run


def write_page(
    setting: Path, row: str, seed: int, args: argparse.Namespace
) -> tuple[Path, list[str]]:
    """Measure both models and write <setting>/repair.html and repair.json; the page, and what it
    says of the repair."""
    runs = [run_of(setting, name, seed) for name in ("erm", row)]
    config, device = run_config(runs[0]), device_of(args.device)
    table = test_images(root_of(config["dataset"], args.data_root), runs[0], config)
    every = []
    for run, name in zip(runs, ("before", "after"), strict=True):
        given = classifier(run, device=device)
        found = scores.of_classifier(given, table, device=device, store_dir=args.store_dir)
        every.append(scores.Scores(name, found.logit, found.y, found.a, found.files))
    result = evaluated(every, args.bootstrap, 0)
    write_json(setting / "repair.json", result)
    figure = setting / "figures" / "before_and_after.png"
    draw(every, figure, (config["target"], config["protected"]))
    mask_file = runs[1] / "mask.json"
    mask = read_record(mask_file, "tensors") if mask_file.exists() else None
    longer = setting / "erm_longer" / f"seed{seed}" / "metrics.json"
    control = read_record(longer, "test") if longer.exists() else None
    sections = sections_of(result, ("before", "after"), config, setting, mask, figure, control)
    title = f"{config['target']}, repaired to be fair about {config['protected']}"
    lead = (f"{len(table)} test images of {config['dataset']}; the repair is {row}, seed {seed}.")
    write_atomic(setting / "repair.html", html.page(title, lead, sections))
    measured = result["models"]
    return setting / "repair.html", verdict(
        measured["before"], measured["after"], result["differences"]["after"])


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    p = ArgumentParser(prog="python -m models.repair", description=__doc__.split("\n")[0])
    p.add_argument("setting", type=path, metavar="FOLDER", help="such as results/repair_demo")
    p.add_argument("--row", default="aim_fair", help="the repaired model's")
    p.add_argument("--seed", type=number(int, 0, 2**31), default=100)
    p.add_argument("--data-root", type=path, help="the photographs; of the demo not needed")
    p.add_argument("--store-dir", type=path, help="folder of decoded images")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--bootstrap", type=COUNT, default=10_000, help="draws of the test images")
    args = p.parse_args(arguments)
    page, said = write_page(args.setting, args.row, args.seed, args)
    print(*said, page, sep="\n")


if __name__ == "__main__":
    main()
