"""Accuracy and fairness of any classifier on a data set's test images, with intervals.

    python -m models.evaluate results/demo/erm/seed100 results/demo/aim_fair/seed100 --dataset demo

Every metric and every group's, both definitions of equalized odds, confusion counts, calibration;
of several models the differences to the first, paired over the same images. --predictions takes a
csv of scores made elsewhere (columns y, a, score) instead of a network.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: python models/evaluate.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from models.evaluate_files import add_data_flags, check_outputs, test_table
from utils.config import COUNT, SHARE, number
from utils.devices import describe, pick
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.imports import heavy_imports
from utils.metrics import GROUPS, METRICS, fairness_metrics, to_json
from utils.options import ArgumentParser, check_device, path

BINS = 15  # of the calibration error; Guo et al., ICML 2017
FEW = 30  # images of a group below which an interval is said to mean little


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="python -m models.evaluate", description=__doc__.split("\n")[0])
    p.add_argument("checkpoints", nargs="*", type=path, metavar="CHECKPOINT",
                   help="classifier.pt, state dict, safetensors, or the folder of a run")
    p.add_argument("--predictions", nargs="+", type=path, default=[], metavar="FILE",
                   help="csv with columns y, a and score (probability of 1) made elsewhere")
    add_data_flags(p)
    add_network_flags(p)
    p.add_argument("--bootstrap", type=number(int, 100, 10**6), default=10_000,
                   help="draws of the test images")
    p.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="of these draws")
    p.add_argument("--json", type=path, metavar="FILE", help="write all numbers there")
    p.add_argument("--save-logits", type=path, metavar="FILE",
                   help="write file, y, a, logit and score there (csv), of a single model")
    p.add_argument("--figure", type=path, metavar="FILE.png",
                   help="draw calibration and accuracy against the threshold, per group")
    return p


def add_network_flags(p: argparse.ArgumentParser) -> None:
    """What a file of train.py or models.export says itself."""
    p.add_argument("--backbone", help="as of train.py; what the file says if not given")
    p.add_argument("--image-size", type=number(int, 16, 2048), help="likewise")
    p.add_argument("--mean", nargs="+", type=SHARE, help="likewise")
    p.add_argument("--std", nargs="+", type=number(float, 0.0, 1.0, open_low=True),
                   help="likewise")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--batch-size", type=COUNT, default=256, help="changes speed only")
    p.add_argument("--workers", type=COUNT, default=1, help="threads that prepare batches")


def device_of(flag: str) -> str:
    check_device(flag)
    return pick(flag)


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def network_of(checkpoint: Path, args: argparse.Namespace, device: str):
    """The classifier of a checkpoint by the flags of `add_network_flags`."""
    from models.checkpoints import classifier

    given = classifier(
        checkpoint, device=device, say=to_stderr,
        backbone=args.backbone, image_size=args.image_size, mean=args.mean, std=args.std)
    to_stderr(f"{checkpoint}: {describe(device, given.precision)}")
    return given


def all_scores(args: argparse.Namespace) -> list:
    """Scores of every checkpoint and csv, of the same images in the same order."""
    from models import scores
    from models.checkpoints import say_other_labels

    every = []
    if args.checkpoints:
        device = device_of(args.device)
        networks = [network_of(checkpoint, args, device) for checkpoint in args.checkpoints]
        table = test_table(args)
        for network in networks:
            say_other_labels(network.name, network.about, vars(args), to_stderr)
        every += [scores.of_classifier(
            network, table, device=device, batch_size=args.batch_size, store_dir=args.store_dir,
            workers=args.workers) for network in networks]
    every += [scores.of_file(file) for file in args.predictions]
    for other in every[1:]:
        same = len(other.y) == len(every[0].y)
        if not same or (other.y != every[0].y).any() or (other.a != every[0].a).any():
            raise UserError(f"{other.name} and {every[0].name} do not speak of the same images in "
                            "the same order: give tables of one test set")
    return every


def calibration_error(score: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error of the probability of 1, BINS bins of equal width; NaN of none."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    if not len(y):
        return math.nan
    given = torch.from_numpy(np.asarray(score, np.float64)), torch.from_numpy(y.astype(np.int64))
    return float(binary_calibration_error(*given, n_bins=BINS, norm="l1"))


def measured(scores, intervals: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What --json holds of one model."""
    prediction, y, a = scores.prediction, scores.y, scores.a
    metrics = fairness_metrics(prediction, y, a)
    there = {group: value for group, value in metrics["group_acc"].items() if value == value}
    worst = min(there, key=there.get)
    confusion = {
        f"{value}": {name: int(((prediction == h) & (y == t) & (a == value)).sum())
                     for name, h, t in (("tp", 1, 1), ("fp", 1, 0), ("fn", 0, 1), ("tn", 0, 0))}
        for value in (0, 1)
    }
    parts = {"all": a >= 0, "a=0": a == 0, "a=1": a == 1}
    return {
        **to_json(metrics), "worst_group": f"{worst[0]}_{worst[1]}", "confusion": confusion,
        "calibration_error": {name: calibration_error(scores.score[here], y[here])
                              for name, here in parts.items()},
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }


def evaluated(every: Sequence, draws: int, seed: int) -> dict[str, Any]:
    """What --json holds: of one model its numbers, of several {"models", "differences"}."""
    from utils.bootstrap import intervals

    first = every[0]
    right = np.stack([scores.prediction == scores.y for scores in every])
    own, beside = intervals(right, first.y, first.a, draws, seed)
    models = {scores.name: measured(scores, of_one) for scores, of_one in zip(every, own)}
    if len(models) < len(every):
        raise UserError("a checkpoint is given twice: name each once")
    if len(every) == 1:
        return models[first.name]
    base = flat(models[first.name])
    differences = {
        scores.name: {metric: {"difference": flat(models[scores.name])[metric] - base[metric],
                               "interval": list(interval)} for metric, interval in of_one.items()}
        for scores, of_one in zip(every[1:], beside)
    }
    return {"models": models, "differences": differences}


def flat(result: dict[str, Any]) -> dict[str, float]:
    """{metric: value}, the group accuracies under the names of their intervals."""
    return {name: result[name] for name in METRICS} | {
        f"group_acc_{group}": value for group, value in result["group_acc"].items()}


def text_of(result: dict[str, Any], target: str, protected: str) -> str:
    """The numbers of one model as a table, in per cent."""
    lines = ["| metric | % | 95% interval |", "|---|---:|---:|"]
    values = flat(result)
    for name, value in values.items():
        if not name.startswith("group"):
            lines.append(f"| {name} | {percent(value)} | {spanned(result['intervals'][name])} |")
    for name, value in result["calibration_error"].items():
        lines.append(f"| calibration error, {name} | {percent(value)} | |")
    lines += ["", f"| group ({target}, {protected}) | images | accuracy | 95% interval |",
              "|---|---:|---:|---:|"]
    for y, a in GROUPS:
        key, mark = f"{y}_{a}", " (worst)" if f"{y}_{a}" == result["worst_group"] else ""
        lines.append(f"| ({y}, {a}){mark} | {result['group_count'][key]} "
                     f"| {percent(result['group_acc'][key])} "
                     f"| {spanned(result['intervals'][f'group_acc_{key}'])} |")
    lines += ["", f"| {protected} | TP | FP | FN | TN |", "|---|---:|---:|---:|---:|"]
    for value, counts in result["confusion"].items():
        lines.append(f"| {value} | {counts['tp']} | {counts['fp']} | {counts['fn']} "
                     f"| {counts['tn']} |")
    empty = [group for group, number in result["group_count"].items() if not number]
    few = [group for group, number in result["group_count"].items() if 0 < number < FEW]
    if empty:
        lines += ["", f"Without images: group {', '.join(empty)}; what needs it is nan."]
    if few:
        lines += ["", f"Under {FEW} images: group {', '.join(few)}; its intervals are too narrow."]
    return "\n".join(lines)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def spanned(interval: Sequence[float]) -> str:
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if not args.checkpoints and not args.predictions:
        raise UserError("nothing to evaluate: give a CHECKPOINT or --predictions FILE")
    if args.save_logits and len(args.checkpoints) + len(args.predictions) > 1:
        raise UserError("--save-logits is of one model: give a single one")
    if args.figure and args.figure.suffix != ".png":
        raise UserError(f"--figure {args.figure} must be a .png file")
    check_outputs(args)
    with heavy_imports():
        import models.scores  # torch, whose import may be interrupted
    every = all_scores(args)
    result = evaluated(every, args.bootstrap, args.seed)
    words = (args.target or "y", args.protected or "a")
    for name, of_one in result.get("models", {every[0].name: result}).items():
        print(f"## {name}\n\n{text_of(of_one, *words)}\n")
    for name, metrics in result.get("differences", {}).items():
        print(f"## {name} minus {every[0].name}, paired\n\n| metric | % | 95% interval |\n"
              "|---|---:|---:|")
        for metric, found in metrics.items():
            print(f"| {metric} | {percent(found['difference'])} | {spanned(found['interval'])} |")
        print()
    if args.json:
        write_json(args.json, result)
    if args.save_logits:
        models.scores.save(every[0], args.save_logits)
    if args.figure:
        from models.evaluate_figure import draw

        draw(every, args.figure, words)


if __name__ == "__main__":
    main()
