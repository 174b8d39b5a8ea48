"""Train methods on a setting and write run folders, tables and figures.

    python train.py --setting demo --dataset demo --synthetic-root data/synthetic \
        --methods erm full_finetuning aim_fair --seeds 100 200 300

Every seed of every method is one folder results/<setting>/<method>/seed<k>/; a finished one is
not run again, an interrupted one goes on, one with other settings is refused by name.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from datasets import DATASETS
from datasets.base import save_list
from datasets.mixing import Data
from datasets.synthetic import load_synthetic
from models import METHODS
from models.backbones import BACKBONES
from models.selection import CRITERIA
from utils import plots, tables
from utils.engine import PREEMPTION, Recipe, accuracy, predictions
from utils.errors import UserError, exit_cleanly
from utils.files import atomic_path, write_atomic, write_json
from utils.metrics import fairness_metrics, to_json
from utils.runs import claim, exclusive, finish, list_digest


def number(kind, low, high, *, open_low=False):
    """An argparse type: a number of a kind within [low, high], with the range in the message."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not (low < value if open_low else low <= value) or not value <= high:
            bracket = "above" if open_low else "at least"
            raise argparse.ArgumentTypeError(f"{value} must be {bracket} {low} and at most {high}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    count, share = number(int, 1, 10**9), number(float, 0, 1)
    rate = number(float, 0, 100, open_low=True)

    g = p.add_argument_group("what is run")
    g.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    g.add_argument("--seeds", nargs="+", type=number(int, 0, 2**31), default=[100],
                   help="the paper: 100 200 ... 1000")
    g.add_argument("--setting", default="demo", help="folder under --results")
    g.add_argument("--name", default=None, help="folder of a single method, default its name")
    g.add_argument("--paper-table", default=None, help="print this table's row beside ours")
    g.add_argument("--results", type=Path, default=Path("results"))

    g = p.add_argument_group("data")
    g.add_argument("--dataset", default="demo", choices=list(DATASETS))
    g.add_argument("--data-root", type=Path, default=Path("data/demo"))
    g.add_argument("--target", default="Smiling")
    g.add_argument("--protected", default="Male")
    g.add_argument("--size", type=count, default=20000, help="biased training images")
    g.add_argument("--minority", type=share, default=0.1, help="share of cells (0,0) and (1,1)")
    g.add_argument("--rule", default="first", choices=("first", "random"),
                   help="'first' gives the released CelebA lists")
    g.add_argument("--data-seed", type=int, default=0, help="of random subsets and test draws")
    g.add_argument("--val", default="official", choices=("official", "none"))
    g.add_argument("--test-size", type=count, default=None, help="balanced test set of this size")
    g.add_argument("--synthetic-root", type=Path, default=None)
    g.add_argument("--prompt-set", default="contextual_head_poses_50")
    g.add_argument("--synthetic-ratio", type=rate, default=1.0, help="to the real images")
    g.add_argument("--synthetic-minority", type=share, default=0.1)

    g = p.add_argument_group("model and training (defaults: the released code)")
    g.add_argument("--backbone", default="resnet18", choices=list(BACKBONES))
    g.add_argument("--pretrained", default="imagenet", help="imagenet, none or a file")
    g.add_argument("--image-size", type=number(int, 16, 2048), default=224)
    g.add_argument("--batch-size", type=number(int, 2, 2**20), default=128)
    g.add_argument("--eval-batch-size", type=count, default=512)
    g.add_argument("--pretrain-epochs", type=count, default=15)
    g.add_argument("--pretrain-lr", type=rate, default=0.01)
    g.add_argument("--finetune-epochs", type=count, default=10)
    g.add_argument("--finetune-lr", type=rate, default=0.06,
                   help="the paper prints 0.4-0.6, the release runs 0.06")
    g.add_argument("--milestone", type=count, default=10)
    g.add_argument("--gamma", type=rate, default=0.1, help="the paper prints 0.01")
    g.add_argument("--momentum", type=share, default=0.9)
    g.add_argument("--weight-decay", type=number(float, 0, 10), default=1e-4)
    g.add_argument("--top-k", type=number(float, 0, 10**6, open_low=True), default=0.887,
                   help="tensors, or a share below 1; 0.887 is 55 of ResNet-18's 62")
    g.add_argument("--criterion", default="absolute", choices=list(CRITERIA))
    g.add_argument("--batch-norm", default="update", choices=("update", "freeze"),
                   help="running statistics while fine-tuning")

    g = p.add_argument_group("machine")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    g.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                   help="auto: bf16 on cuda, fp32 on cpu")
    g.add_argument("--workers", type=count, default=1, help="threads that prepare batches")
    g.add_argument("--store-dir", type=Path, default=None, help="decoded images")
    return p


# Flags that change no number: where things lie and on how much they run.
NOT_RESULTS = {
    "methods", "seeds", "setting", "name", "results", "data_root", "synthetic_root", "workers",
    "store_dir", "eval_batch_size", "paper_table",
}
FINETUNE_ONLY = {
    "finetune_epochs", "finetune_lr", "top_k", "criterion", "batch_norm", "prompt_set",
    "synthetic_ratio", "synthetic_minority",
}


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Derive from the flags: recipes, precision and the configuration a stage is known by."""
    if args.name and len(args.methods) > 1:
        raise UserError("--name names one run: give a single method with --methods")
    if args.precision == "auto":
        args.precision = "bf16" if args.device.startswith("cuda") else "fp32"
    config = {k: v for k, v in sorted(vars(args).items()) if k not in NOT_RESULTS}
    config["device"] = args.device.split(":")[0]
    args.config = config
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
    args.digests = {
        key: list_digest(table)
        for key, table in (
            ("real", splits.train), ("val", splits.val), ("test", splits.test),
            ("synthetic", synthetic),
        )
        if table is not None
    }
    args.pretrain_config["val_list"] = args.digests.get("val")
    return splits, synthetic


def run(name: str, data: Data, args: argparse.Namespace, seed: int) -> None:
    """One method and seed, from its configuration to `done`."""
    method = METHODS[name]
    setting = args.results / args.setting
    folder = setting / (args.name or name) / f"seed{seed}"
    keys = args.config if method.needs_synthetic else args.pretrain_config
    lists = {key: args.digests[key] for key in ("real", "val", "test") if key in args.digests}
    if method.needs_synthetic:
        lists["synthetic"] = args.digests["synthetic"]
    config = {**keys, "method": name, "seed": seed, "lists": lists}
    with exclusive(folder):
        notes = {"paper_table": args.paper_table, "paper_row": getattr(method, "paper_row", None)}
        if claim(folder, config, notes if args.paper_table else None):
            print(f"{folder}: finished, reused")
            return
        began = time.monotonic()
        save_list(data.real, folder / "train.csv")
        if method.needs_synthetic:
            save_list(data.synthetic_balanced, folder / "synthetic_balanced.csv")
            save_list(data.synthetic_biased, folder / "synthetic_biased.csv")
        trained, log, _ = method.run(data, args, seed, folder, setting / "shared")
        with atomic_path(folder / "model.pt") as temporary:
            torch.save(trained.model.state_dict(), temporary)
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
        with atomic_path(folder / "classifier.pt") as temporary:
            torch.save({"model": trained.model.state_dict(), "backbone": args.backbone,
                        "target": args.target, "image_size": args.image_size}, temporary)
        finish(folder, drop=("state.pt", "model.pt"))
        print(
            f"{folder}: ACC {metrics['acc']:.2%}  WST {metrics['wst']:.2%}  worst-case EO "
            f"{metrics['eo_worst']:.2%}  ({time.monotonic() - began:.0f} s)"
        )


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    args = complete(parser().parse_args(argv))
    PREEMPTION.install()
    splits, synthetic = load_data(args)
    for seed in args.seeds:
        data = Data(splits, synthetic, args, seed)
        for name in args.methods:
            run(name, data, args, seed)
    setting = args.results / args.setting
    print(tables.write_summary(setting))
    plots.draw_all(setting)


if __name__ == "__main__":
    main()
