"""Train methods on a setting and write run folders, tables and figures.

    python train.py --setting demo --dataset demo --synthetic-root data/synthetic \
        --methods erm full_finetuning aim_fair --seeds 100 200 300

Every seed of every method is one folder results/<setting>/<method>/seed<k>/; a finished one is
not run again, an interrupted one goes on, one with other settings is refused by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from pathlib import Path

import torch

from datasets import DATASETS
from datasets.base import is_plain_name, save_list
from datasets.image_store import open_store
from datasets.mixing import Data
from datasets.synthetic import load_synthetic
from models import METHODS
from models.backbones import BACKBONES, parameter_names
from models.debiasing.edits import load_edits
from models.selection import CRITERIA, resolve_k
from utils import plots, report, tables
from utils.engine import PREEMPTION, Recipe, accuracy, predictions, save_torch
from utils.errors import UserError, exit_cleanly
from utils.files import remove_leftovers, write_atomic, write_json
from utils.metrics import fairness_metrics, to_json
from utils.options import ArgumentParser, parse_options
from utils.runs import adopt, claim, exclusive, finish, list_digest


def number(kind, low, high, *, open_low=False):
    """An argparse type: a number of a kind within [low, high], with the range in the message."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            kinds = {int: "whole number", float: "number"}
            raise argparse.ArgumentTypeError(f"'{text}' is not a {kinds[kind]}") from None
        if not (low < value if open_low else low <= value) or not value <= high:
            bracket = "above" if open_low else "at least"
            raise argparse.ArgumentTypeError(f"{value} must be {bracket} {low} and at most {high}")
        return value

    return parse


def parser() -> ArgumentParser:
    p = ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count, share = number(int, 1, 10**9), number(float, 0, 1)
    rate = number(float, 0, 100, open_low=True)

    g = p.add_argument_group("what is run")
    g.add_argument("--methods", nargs="+", required=True, choices=list(METHODS), metavar="METHOD",
                   help=f"run in this order, each with every seed; of {', '.join(METHODS)}")
    g.add_argument("--seeds", nargs="+", type=number(int, 0, 2**31), default=[100],
                   help="the paper: 100 200 ... 1000")
    g.add_argument("--setting", default="demo", help="folder under --results")
    g.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                   help="hyper-parameters of a single method, as in its file under models/")
    g.add_argument("--name", default=None,
                   help="folder of a single method, its own name where not given")
    g.add_argument("--paper-table", default=None,
                   help="print the rows of this table of the paper beside ours, such as 3")
    g.add_argument("--paper-row", default=None,
                   help="row of that table a single method stands for, where not its own name")
    g.add_argument("--results", type=Path, default=Path("results"), help="root of all results")

    g = p.add_argument_group("data")
    g.add_argument("--dataset", default="demo", choices=list(DATASETS), help="real photographs")
    g.add_argument("--data-root", type=Path, default=Path("data/demo"), help="their folder")
    g.add_argument("--target", default="Smiling", help="attribute that is learned (y)")
    g.add_argument("--protected", default="Male", help="attribute to be fair about (a)")
    g.add_argument("--size", type=count, default=20000, help="biased training images")
    g.add_argument("--minority", type=share, default=0.1, help="share of cells (0,0) and (1,1)")
    g.add_argument("--rule", default="first", choices=("first", "random"),
                   help="'first' gives the released CelebA lists")
    g.add_argument("--data-seed", type=number(int, 0, 2**31), default=0,
                   help="of random subsets and test draws")
    g.add_argument("--val", default="official", choices=("official", "none"),
                   help="the epoch kept: best validation accuracy (no group labels), or the last")
    g.add_argument("--test-size", type=count, default=None,
                   help="draw a balanced test set of this size, a multiple of 4")
    g.add_argument("--synthetic-root", type=Path, default=None, help="folder of generated images")
    g.add_argument("--edits", type=Path, default=None,
                   help="folder of edited training images, for diga: see stable_diffusion/edit.py")
    g.add_argument("--prompt-set", default="contextual_head_poses_50",
                   help="folder under --synthetic-root")
    g.add_argument("--synthetic-ratio", type=rate, default=1.0,
                   help="balanced synthetic images a real one")
    g.add_argument("--synthetic-biased-ratio", type=number(float, 0.0, 1000, open_low=True),
                   default=1.0, help="images of the mask's biased synthetic set a real one")
    g.add_argument("--synthetic-minority", type=share, default=0.1,
                   help="share of cells (0,0) and (1,1) in the mask's biased synthetic set")

    g = p.add_argument_group("model and training (defaults: the released code)")
    g.add_argument("--backbone", default="resnet18", choices=list(BACKBONES), help="the network")
    g.add_argument("--pretrained", default="imagenet",
                   help="initial weights: imagenet (downloaded once), none (random) or a file with "
                   "the state dict of torchvision's network")
    g.add_argument("--image-size", type=number(int, 16, 2048), default=224, help="side in pixels")
    g.add_argument("--min-crop", type=number(float, 0.0, 1.0, open_low=True), default=0.08,
                   help="smallest share of an image that a training crop holds, torchvision's")
    g.add_argument("--batch-size", type=number(int, 2, 2**20), default=128, help="in training")
    g.add_argument("--eval-batch-size", type=count, default=512, help="changes speed only")
    g.add_argument("--pretrain-epochs", type=count, default=15, help="on the real images")
    g.add_argument("--pretrain-lr", type=rate, default=0.01, help="learning rate")
    g.add_argument("--finetune-epochs", type=count, default=10, help="on the synthetic images")
    g.add_argument("--finetune-lr", type=rate, default=0.06,
                   help="the paper prints 0.4-0.6, the release runs 0.06")
    g.add_argument("--milestone", type=count, default=10,
                   help="epochs after which the rate is multiplied by --gamma")
    g.add_argument("--gamma", type=rate, default=0.1, help="the paper prints 0.01")
    g.add_argument("--momentum", type=share, default=0.9, help="of SGD")
    g.add_argument("--weight-decay", type=number(float, 0, 10), default=1e-4, help="of SGD")
    g.add_argument("--top-k", type=number(float, 0, 10**6, open_low=True), default=0.887,
                   help="tensors, or a share below 1; 0.887 is 55 of ResNet-18's 62")
    g.add_argument("--criterion", default="absolute", choices=list(CRITERIA),
                   help="difference of two gradients of a tensor")
    g.add_argument("--batch-norm", default="update", choices=("update", "freeze"),
                   help="running statistics while fine-tuning")

    g = p.add_argument_group("machine")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                   help="cpu, cuda or cuda:N")
    g.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                   help="auto: bf16 on cuda, fp32 on cpu")
    g.add_argument("--workers", type=count, default=1, help="threads that prepare batches")
    g.add_argument("--store-dir", type=Path, default=None,
                   help="folder of decoded images; data/store where not given")
    return p


# Flags that change no number: where things lie and on how much they run.
NOT_RESULTS = {
    "methods", "seeds", "setting", "name", "results", "data_root", "synthetic_root", "workers",
    "store_dir", "eval_batch_size", "paper_table", "paper_row", "set", "edits",
}
RESULTS = ("metrics.json", "log.jsonl", "classifier.pt")  # what a finished run folder holds
DROPPED = ("state.pt", "model.pt")  # what only an unfinished one needs
FINETUNE_ONLY = {
    "finetune_epochs", "finetune_lr", "top_k", "criterion", "batch_norm", "prompt_set",
    "synthetic_ratio", "synthetic_biased_ratio", "synthetic_minority",
}


def check_flags(args: argparse.Namespace) -> None:
    """What argparse cannot see, before any data is read. Raises UserError."""
    if args.name is not None and len(args.methods) > 1:
        raise UserError("--name names one run: give a single method with --methods")
    if args.paper_row is not None and len(args.methods) > 1:
        raise UserError("--paper-row is one method's row: give a single one with --methods")
    if args.set and len(args.methods) > 1:
        raise UserError("--set speaks of one method's settings: give a single one with --methods")
    for flag, parts in (("--setting", args.setting.split("/")), ("--name", [args.name or "run"])):
        if not all(is_plain_name(part) for part in parts):
            raise UserError(f"{flag} must be a plain folder name, without '..' or a leading '/'")
    if args.name in ("", "shared", "figures"):
        raise UserError(f"--name '{args.name}' is taken or empty; choose another")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise UserError(f"--device {args.device} is none of cpu, cuda and cuda:N")
    if args.device != "cpu" and int(args.device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {args.device} is not on this machine; use --device cpu")
    with torch.device("meta"):  # the names without the numbers
        names = parameter_names(BACKBONES[args.backbone](None))
    resolve_k(args.top_k, len(names))
    if args.paper_table is not None:
        own = [getattr(METHODS[m], "paper_row", None) for m in args.methods]
        for row in filter(None, [args.paper_row] if args.paper_row else own):
            try:
                tables.paper_row(args.paper_table, row, args.dataset, args.target, args.protected)
            except UserError as error:
                raise UserError(f"--paper-table {args.paper_table}: {error}") from None


def weights_digest(path: Path) -> str:
    """Content of a weights file, so that another file of the same name is another setting."""
    try:
        with open(path, "rb") as file:
            return "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(
            f"--pretrained {path} cannot be read ({error.strerror}); give a weights file, imagenet "
            "or none"
        ) from None


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Derive from the flags: recipes, precision and the configuration a stage is known by."""
    check_flags(args)
    if args.precision == "auto":
        args.precision = "bf16" if args.device.startswith("cuda") else "fp32"
    config = {k: v for k, v in sorted(vars(args).items()) if k not in NOT_RESULTS}
    config["device"] = args.device.split(":")[0]
    if args.pretrained not in ("none", "imagenet"):
        config["pretrained"] = weights_digest(Path(args.pretrained))
    args.config = config
    first = METHODS[args.methods[0]]
    args.options = parse_options(args.set, args.methods[0], first.defaults, first.ranges)
    args.pretrain_config = {k: v for k, v in config.items() if k not in FINETUNE_ONLY}
    args.autocast = torch.bfloat16 if args.precision == "bf16" else None
    common = {
        "milestone": args.milestone, "gamma": args.gamma, "momentum": args.momentum,
        "weight_decay": args.weight_decay,
    }
    args.pretrain = Recipe(args.pretrain_epochs, args.pretrain_lr, **common, ties="later")
    args.finetune = Recipe(args.finetune_epochs, args.finetune_lr, **common, ties="earlier")
    return args


def load_data(args: argparse.Namespace):
    """Real splits and, where a method asks for it, the pool of generated images."""
    splits = DATASETS[args.dataset](
        args.data_root, args.target, args.protected, size=args.size, minority=args.minority,
        rule=args.rule, seed=args.data_seed, val=args.val, test_size=args.test_size,
    )
    synthetic = None
    if any(METHODS[name].needs_synthetic for name in args.methods):
        if args.synthetic_root is None:
            raise UserError(
                "--synthetic-root is missing: generate images with "
                "stable_diffusion/generation.sh and give their folder"
            )
        synthetic = load_synthetic(
            args.synthetic_root, args.target, args.protected, args.prompt_set
        )
    args.edited = None
    if any(getattr(METHODS[name], "needs_edits", False) for name in args.methods):
        if args.edits is None:
            raise UserError(
                "--edits is missing: edit the training images with python -m stable_diffusion.edit "
                "and give their folder, or leave diga out of --methods"
            )
        args.edited = load_edits(args.edits, splits.train)
    args.digests = {
        key: list_digest(table)
        for key, table in (
            ("real", splits.train), ("val", splits.val), ("test", splits.test),
            ("synthetic", synthetic), ("edited", args.edited),
        )
        if table is not None
    }
    args.pretrain_config["val_list"] = args.digests.get("val")
    return splits, synthetic


def check_sizes(datas: list[Data], args: argparse.Namespace) -> None:
    """Too few images, for a cell or for a batch, is said before the first hour of training."""
    for data in datas:
        used = [METHODS[name].tables(data).values() for name in args.methods]
        for table in (table for tables_used in used for table in tables_used):
            if len(table) < args.batch_size:
                raise UserError(
                    f"{table.name} gives {len(table)} images, fewer than a batch: lower "
                    f"--batch-size {args.batch_size} or raise --size or --synthetic-ratio"
                )


def run(name: str, data: Data, args: argparse.Namespace, seed: int) -> None:
    """One method and seed, from its configuration to `done`."""
    method = METHODS[name]
    top = args.results / args.setting.split("/")[0]  # its sub-settings share pre-trained models
    folder = args.results / args.setting / (args.name or name) / f"seed{seed}"
    keys = args.config if method.needs_synthetic else args.pretrain_config
    lists = {f"{key}_list": args.digests.get(key) for key in ("real", "val", "test")}
    if method.needs_synthetic:
        lists["synthetic_list"] = args.digests["synthetic"]
    if getattr(method, "needs_edits", False):
        lists["edited_list"] = args.digests["edited"]
    config = {**keys, **lists, **method.defaults, **args.options, "method": name, "seed": seed}
    with exclusive(folder, PREEMPTION.check):
        row = args.paper_row or getattr(method, "paper_row", None)
        notes = {"paper_table": args.paper_table, "paper_row": row}
        done = claim(folder, config, notes if args.paper_table else None)
        if done and all((folder / file).exists() for file in RESULTS):
            finish(folder, DROPPED)
            print(f"{folder}: finished, reused", flush=True)
            return
        if twin := adopt(folder, top, DROPPED, RESULTS):
            print(f"{folder}: the same as {twin}, copied", flush=True)
            return
        began = time.monotonic()
        tables_used = method.tables(data)
        for table in filter(None, (data.val, data.test, *tables_used.values())):
            open_store(table, args.store_dir)  # an image that cannot be decoded stops here
        for list_name, table in tables_used.items():
            save_list(table, folder / f"{list_name}.csv")
        trained, log, _ = method.run(data, args, seed, folder, top / "shared")
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
        validation = None
        if data.val is not None:
            validation = {"acc": accuracy(trained, data.loader(data.val, train=False))}
        test = data.loader(data.test, train=False)  # read once, after everything was chosen
        metrics = fairness_metrics(predictions(trained, test), data.test.y, data.test.a)
        write_json(folder / "metrics.json", {
            "test": to_json(metrics),
            "validation": validation,
            "selected_epoch": log[-1]["kept"],
        })
        save_torch(folder / "classifier.pt", {
            "model": trained.model.state_dict(), "backbone": args.backbone,
            "target": args.target, "image_size": args.image_size,
        })
        finish(folder, DROPPED)
        print(
            f"{folder}: ACC {metrics['acc']:.2%}  WST {metrics['wst']:.2%}  worst-case EO "
            f"{metrics['eo_worst']:.2%}  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    args = complete(parser().parse_args(argv))
    PREEMPTION.install()
    splits, synthetic = load_data(args)
    datas = [Data(splits, synthetic, args, seed) for seed in args.seeds]
    check_sizes(datas, args)
    for data in datas:
        for name in args.methods:
            PREEMPTION.check()
            run(name, data, args, data.seed)
    setting = args.results / args.setting
    with exclusive(setting, PREEMPTION.check):
        for pictures in ("figures", "contact_sheets"):
            remove_leftovers(setting / pictures)
        print(tables.write_summary(setting))
        plots.draw_all(setting)
        report.write_contact_sheets(setting, {"real": splits.train, "generated": synthetic})
        print(report.write_report(setting))


if __name__ == "__main__":
    main()
