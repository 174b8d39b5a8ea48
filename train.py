"""Train methods on a setting and write run folders, tables and figures.

    python train.py --setting celeba --dataset celeba --data-root /data/celeba \
        --synthetic-root data/synthetic --methods erm full_finetuning aim_fair --seeds 100 200 300

Every seed of every method is one folder results/<setting>/<method>/seed<k>/; a finished one is
not run again, an interrupted one goes on, one with other settings is refused by name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from datasets import DATASETS
from datasets.base import save_list
from datasets.image_store import open_store
from datasets.mixing import Data
from datasets.synthetic import load_synthetic
from models import METHODS
from models.backbones import BACKBONES, parameter_names
from models.debiasing.edits import load_edits
from models.selection import CRITERIA, resolve_k
from utils import flags, launcher
from utils.blocks import require_block
from utils.engine import PREEMPTION, Recipe, accuracy, predictions, save_torch
from utils.errors import UserError, exit_cleanly
from utils.events import events_of, require_tensorboard
from utils.files import is_plain_name, remove_leftovers, write_atomic, write_json
from utils.flags import FINETUNE_ONLY, NOT_RESULTS
from utils.launcher import Task
from utils.metrics import fairness_metrics, to_json
from utils.options import ArgumentParser, check_compiler, check_device, parse_options
from utils.reporting import plots, report, tables
from utils.reporting.paper import own_row
from utils.runs import adopt, claim, exclusive, finish, list_digest, weights_digest

RESULTS = ("metrics.json", "log.jsonl", "classifier.pt")  # what a finished run folder holds
DROPPED = ("state.pt", "model.pt")  # what only an unfinished one needs


def parser() -> ArgumentParser:
    return flags.parser(
        __doc__.split("\n")[0], methods=METHODS, datasets=DATASETS, backbones=BACKBONES,
        criteria=CRITERIA,
    )


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
    if args.name in ("", "shared", "figures", "contact_sheets", "tensorboard", "submitit"):
        raise UserError(f"--name '{args.name}' is taken or empty; choose another")
    biased = {key: parser().get_default(key) for key in ("minority", "rule")}
    if args.size is None and any(getattr(args, key) != value for key, value in biased.items()):
        raise UserError("--size all takes the images as they are: leave out --minority and --rule")
    launcher.check(args.launcher, args.slurm)
    # a job has its own device, and decides for itself what is the default
    check_device(args.device, here=args.launcher != "slurm")
    if args.compile:
        check_compiler()
    with torch.device("meta"):  # the names without the numbers
        names = parameter_names(BACKBONES[args.backbone](None))
    resolve_k(args.top_k, len(names))
    for name in args.methods:
        for block in getattr(METHODS[name], "blocks", ()):
            require_block(block, names, f"--methods {name}: {args.backbone}")
        if METHODS[name].uses_attributes == "validation" and args.val == "none":
            raise UserError(
                f"--val none: {name} needs validation images with group labels; use --val official"
            )
    if args.tensorboard:
        require_tensorboard()
    if args.paper_table is not None:
        own = [own_row(args.paper_table, getattr(METHODS[m], "paper_row", None))
               for m in args.methods]
        for row in filter(None, [args.paper_row] if args.paper_row else own):
            try:
                tables.paper_row(args.paper_table, row, args.dataset, args.target, args.protected)
            except UserError as error:
                raise UserError(f"--paper-table {args.paper_table}: {error}") from None


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Derive from the flags: recipes, precision and the configuration a stage is known by."""
    check_flags(args)
    if args.precision == "auto":
        args.precision = "bf16" if args.device.startswith("cuda") else "fp32"
    config = {k: v for k, v in sorted(vars(args).items()) if k not in NOT_RESULTS}
    config["device"] = args.device.split(":")[0]
    if args.compile:  # rounds otherwise; not named where it is off: older runs are still known
        config["compile"] = True
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
                "and give their folder, or leave out the method that needs them"
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
    board = args.results / args.setting / "tensorboard" / folder.parent.name / folder.name
    with (
        exclusive(folder, PREEMPTION.check),
        events_of(folder, board if args.tensorboard else None),
    ):
        row = args.paper_row or own_row(args.paper_table, getattr(method, "paper_row", None))
        notes = {"uses_attributes": method.uses_attributes}
        if args.paper_table:
            notes |= {"paper_table": args.paper_table, "paper_row": row}
        changed = [key for key, value in args.options.items() if value != method.defaults[key]]
        if changed:
            notes["defaults_changed"] = {key: method.defaults[key] for key in changed}
        done = claim(folder, config, notes)
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
            # an image that cannot be decoded stops here
            open_store(table, args.store_dir, pools=data.pools)
        for list_name, table in tables_used.items():
            save_list(table, folder / f"{list_name}.csv")
        seen = data.seen_by(method.uses_attributes)
        trained, log, _ = method.run(seen, args, seed, folder, top / "shared")
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


def tasks(args: argparse.Namespace, argv: list[str]) -> tuple[list[Task], Task]:
    """Every method and seed as a task of its own, and the task that then writes the tables."""
    plain = [*argv, "--launcher", "none", "--slurm"]  # of two values of a flag the later one holds
    # one method's seeds first: each pre-trains a model, for which the other methods would wait
    return [
        Task("train", "train_only", [*plain, "--methods", name, "--seeds", str(seed)])
        for name in args.methods for seed in args.seeds
    ], Task("train", "main", plain)


def launch(args: argparse.Namespace, runs: list[Task], last: Callable[[], None]) -> None:
    """Runs as jobs, with --launcher local until they have ended; `last` is SLURM's last job."""
    folder = args.results / args.setting / "submitit"
    jobs = launcher.submit(args.launcher, args.slurm, runs, last, folder, args.setting)
    if args.launcher == "local":
        launcher.wait(jobs)
    else:
        print(f"{len(runs)} runs submitted, tables to follow by job {jobs[-1].job_id}; logs "
              f"are in {folder}")


def prepare(argv: list[str]) -> tuple:
    """(flags, real splits, generated images or None, the data of each seed), all of it checked."""
    args = complete(parser().parse_args(argv))
    PREEMPTION.install()
    splits, synthetic = load_data(args)
    datas = [Data(splits, synthetic, args, seed) for seed in args.seeds]
    check_sizes(datas, args)
    return args, splits, synthetic, datas


def train_all(args: argparse.Namespace, datas: list[Data]) -> None:
    for data in datas:
        for name in args.methods:
            PREEMPTION.check()
            run(name, data, args, data.seed)


@exit_cleanly
def train_only(argv: list[str]) -> None:
    """The command without its tables: what a job does."""
    args, _, _, datas = prepare(argv)
    train_all(args, datas)


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args, splits, synthetic, datas = prepare(argv)
    if args.launcher != "none":
        launch(args, *tasks(args, argv))
        if args.launcher == "slurm":
            return  # its last job does what follows
    train_all(args, datas)
    setting = args.results / args.setting
    with exclusive(setting, PREEMPTION.check):
        for pictures in ("figures", "contact_sheets"):
            remove_leftovers(setting / pictures)
        print(tables.write_summary(setting))
        plots.draw_all(setting, (), splits.train)
        report.write_contact_sheets(setting, {"real": splits.train, "generated": synthetic})
        print(report.write_report(setting))


if __name__ == "__main__":
    main()
