"""Of models.evaluate: which test images it measures on, and which files it may replace."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.config import COUNT, number
from utils.errors import UserError
from utils.files import check_replaceable, has_header, read_json
from utils.options import path

LOGITS = ("file", "y", "a", "logit", "score")  # header of --save-logits
SIGNATURE = "calibration and thresholds of models.evaluate"  # a PNG's Title


def add_data_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--dataset", help="of train.py --list; that of the first CHECKPOINT's run if "
                   "not given, and so all of these")
    p.add_argument("--data-root", type=path, help="its folder; of the demo not needed")
    p.add_argument("--target", help="attribute that is predicted (y)")
    p.add_argument("--protected", help="attribute to be fair about (a)")
    p.add_argument("--positive", nargs="+", metavar="[COLUMN=]VALUE",
                   help="of --dataset folder: values that mean 1")
    p.add_argument("--test-size", type=COUNT, help="draw a balanced test set, as train.py does")
    p.add_argument("--data-seed", type=number(int, 0, 2**31), help="of that draw, and of the split "
                   "of a folder that says none")
    p.add_argument("--store-dir", type=path, help="folder of decoded images")


def complete_data(args: argparse.Namespace) -> None:
    """Fill in the flags of `add_data_flags` that are not given: from what the first checkpoint's
    run or export recorded of its dataset, else the dataset's own pair. Raises UserError where
    nothing says which images they are."""
    from models.checkpoints import recorded

    said = recorded(args.checkpoints[0])
    if args.dataset is None and "dataset" not in said:
        raise UserError(f"--dataset is missing: {args.checkpoints[0]} does not say on which images "
                        "it was tested; give --dataset and --data-root")
    if args.dataset in (None, said.get("dataset")):
        other = [given for given in args.checkpoints
                 if recorded(given).get("dataset", said["dataset"]) != said["dataset"]]
        if args.dataset is None and other:
            raise UserError(f"--dataset is missing: {other[0]} is not of {said['dataset']}, as "
                            f"{args.checkpoints[0]} is; give the one to test on")
        for key in ("dataset", "target", "protected", "positive", "test_size", "data_seed"):
            if getattr(args, key) is None:
                setattr(args, key, said.get(key))
        if args.data_seed == "run":  # each run's own
            args.data_seed = said.get("seed")


def test_table(args: argparse.Namespace):
    """The data set's test images with both labels. Raises UserError where it has none of these."""
    from datasets import DATASETS, root_of
    from datasets.base import ImageTable
    from models.checkpoints import recorded

    complete_data(args)
    if args.dataset not in DATASETS:
        raise UserError(f"--dataset {args.dataset} is unknown; choose from {', '.join(DATASETS)}")
    data = DATASETS[args.dataset]
    if data.in_memory:
        raise UserError(f"--dataset {args.dataset} holds no images: choose another")
    own = data.attributes or [recorded(args.checkpoints[0]).get(key)
                              for key in ("target", "protected")]
    target, protected = (given or own[i]
                         for i, given in enumerate((args.target, args.protected)))
    if target is None or protected is None:
        raise UserError(f"--dataset {args.dataset} needs --target and --protected: name its two "
                        "columns")
    args.target, args.protected = target, protected  # as the tables name them
    more = {"positive": tuple(args.positive)} if args.positive else {}
    table = data(root_of(args.dataset, args.data_root), target, protected, size=None,
                 seed=args.data_seed or 0, val="none", test_size=args.test_size, **more).test
    if not isinstance(table, ImageTable):
        raise UserError(f"--dataset {args.dataset} holds no images: choose another")
    if (table.a < 0).any():
        raise UserError(f"--protected {protected}: {int((table.a < 0).sum())} test images have no "
                        "such label: give them one, or leave them out of the test part")
    return table


def is_result(file: Path) -> bool:
    """Whether a file is what --json wrote: of one model, or of several."""
    said = read_json(file)
    return isinstance(said, dict) and ({"acc", "confusion", "intervals"} <= said.keys()
                                       or {"models", "differences"} == said.keys())


def is_figure(file: Path) -> bool:
    """Whether a PNG is of `evaluate_figure.draw`, which signs it among its first bytes."""
    try:
        with open(file, "rb") as png:
            return SIGNATURE.encode() in png.read(1000)
    except OSError:
        return False


def check_outputs(args: argparse.Namespace) -> None:
    """Raise UserError where an output would replace a file of the user's."""
    check_replaceable("--json", args.json, is_result)
    check_replaceable("--save-logits", args.save_logits, has_header(",".join(LOGITS)))
    check_replaceable("--figure", args.figure, is_figure)
