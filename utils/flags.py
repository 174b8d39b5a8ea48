"""train.py's flags: what may be given, within which range, and what each one changes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from utils.launcher import LAUNCHERS, PARAMETERS
from utils.options import ArgumentParser


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


def parser(
    description: str, *, methods: Iterable[str], datasets: Iterable[str], backbones: Iterable[str],
    criteria: Iterable[str],
) -> ArgumentParser:
    """All flags; the names that may be chosen are the caller's."""
    methods = list(methods)
    p = ArgumentParser(
        description=description, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count, share = number(int, 1, 10**9), number(float, 0, 1)
    rate = number(float, 0, 100, open_low=True)

    g = p.add_argument_group("what is run")
    g.add_argument("--methods", nargs="+", required=True, choices=methods, metavar="METHOD",
                   help=f"run in this order, each with every seed; of {', '.join(methods)}")
    g.add_argument("--seeds", nargs="+", type=number(int, 0, 2**31), default=[100],
                   help="the paper: 100 200 ... 1000")
    g.add_argument("--setting", default="demo", help="folder under --results")
    g.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                   help="hyper-parameters of a single method, as in its file under models/")
    g.add_argument("--name", default=None,
                   help="folder of a single method, its own name where not given")
    g.add_argument("--paper-table", default=None,
                   help="print the rows of this table of the paper beside ours, such as 3, or "
                   "fairif-5 of FairIF's paper")
    g.add_argument("--paper-row", default=None,
                   help="row of that table a single method stands for, where not its own name")
    g.add_argument("--results", type=Path, default=Path("results"), help="root of all results")

    g = p.add_argument_group("data")
    g.add_argument("--dataset", default="demo", choices=list(datasets), help="real photographs")
    g.add_argument("--data-root", type=Path, default=Path("data/demo"), help="their folder")
    g.add_argument("--target", default="Smiling", help="attribute that is learned (y)")
    g.add_argument("--protected", default="Male", help="attribute to be fair about (a)")
    g.add_argument("--size", type=lambda text: None if text == "all" else count(text),
                   default=20000, help="biased training images, or all: every one that there is, "
                   "without --minority and --rule")
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
    g.add_argument("--backbone", default="resnet18", choices=list(backbones), help="the network")
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
    g.add_argument("--criterion", default="absolute", choices=list(criteria),
                   help="difference of two gradients of a tensor")
    g.add_argument("--batch-norm", default="update", choices=("update", "freeze"),
                   help="running statistics while fine-tuning")

    g = p.add_argument_group("machine")
    g.add_argument("--launcher", default="none", choices=LAUNCHERS,
                   help="slurm: submit every method and seed as one job array, and a job after "
                   "them that makes what is missing and writes tables, figures and report, and "
                   "end; nothing is lost by giving the same command again, with or without it. "
                   "local: the same as processes of this machine, all at once, and wait for them")
    g.add_argument("--slurm", nargs="*", default=[], metavar="NAME=VALUE",
                   help=f"of each job: {', '.join(PARAMETERS)}; time in minutes (720 if not given, "
                   "then the job queues again and goes on), mem in GB, parallel jobs at once")
    g.add_argument("--tensorboard", action="store_true",
                   help="also log to tensorboard/ in the setting's folder, by epoch")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                   help="cpu, cuda or cuda:N")
    g.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                   help="auto: bf16 on cuda, fp32 on cpu")
    g.add_argument("--compile", action="store_true",
                   help="torch.compile steps and validation: up to minutes at the start of each "
                   "training, for long ones on a GPU (the steps of MAPLE, FairIF, Influence, "
                   "CFair, DOMIND, ARL and DiGA's BYOL stay as they are)")
    g.add_argument("--workers", type=count, default=1, help="threads that prepare batches")
    g.add_argument("--store-dir", type=Path, default=None,
                   help="folder of decoded images; data/store where not given")
    return p


# Flags that change no number: where things lie and on how much they run.
NOT_RESULTS = {
    "methods", "seeds", "setting", "name", "results", "data_root", "synthetic_root", "workers",
    "store_dir", "eval_batch_size", "paper_table", "paper_row", "set", "edits", "compile",
    "launcher", "slurm", "tensorboard",
}
FINETUNE_ONLY = {
    "finetune_epochs", "finetune_lr", "top_k", "criterion", "batch_norm", "prompt_set",
    "synthetic_ratio", "synthetic_biased_ratio", "synthetic_minority",
}
