"""train.py's flags: each is one field of a frozen dataclass, and argparse ends in this file.

A field's metadata is its argparse keywords, and says whether results depend on it (`result`) and
whether only the fine-tuning does (`finetune`). A new flag is one line here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.launcher import LAUNCHERS, PARAMETERS
from utils.options import ArgumentParser, path
from utils.recipe import BEST_BY, OPTIMIZERS, Recipe
from utils.records import weights_digest


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


COUNT, SHARE = number(int, 1, 10**9), number(float, 0, 1)
RATE, SEED = number(float, 0, 100, open_low=True), number(int, 0, 2**31)


def or_all(count, *words: str):
    """An argparse type: what `count` takes, None for "all", and `words` as they are."""
    return lambda text: None if text == "all" else text if text in words else count(text)


def data_seed(text: str) -> int | str:
    """A seed, or "run": each run's own."""
    return text if text == "run" else SEED(text)


def flag(default: Any, help: str, *, result: bool = True, finetune: bool = False, **argparse_):
    """A field that is a flag. `default` may be a list's value as a tuple."""
    return field(default=default, metadata={
        "help": help, "result": result, "finetune": finetune, "argparse": argparse_,
    })


@dataclass(frozen=True)
class WhatConfig:
    """What is run."""

    methods: tuple[str, ...] = flag((), "run in this order, each with every seed: see --list",
                                    result=False, nargs="+", required=True, metavar="METHOD")
    seeds: tuple[int, ...] = flag((100,), "the paper: 100 200 ... 1000", result=False, nargs="+",
                                  type=SEED)
    setting: str = flag("demo", "folder under --results", result=False)
    set: tuple[str, ...] = flag(
        (), "hyper-parameters, as in the method's file under models/: NAME=VALUE of a single "
        "method, METHOD.NAME=VALUE of one of several", result=False, nargs="*",
        metavar="[METHOD.]NAME=VALUE")
    search: Path | None = flag(
        None, "TOML file with as many values for every row, such as models/search/demo.toml: each "
        "row stands for the best of its own on the validation images", result=False, type=path)
    name: str | None = flag(None, "folder of a single method, its own name where not given",
                            result=False)
    paper_table: str | None = flag(
        None, "print the rows of this table of the paper beside ours, such as 3, or fairif-5 of "
        "FairIF's paper; a row that the paper does not have stands alone", result=False)
    paper_row: str | None = flag(
        None, "row of that table a single method stands for, where not its own name", result=False)
    baseline: tuple[str, ...] = flag(
        (), "rows to which the table's paired differences are; none where not given", result=False,
        nargs="+", metavar="ROW")
    results: Path = flag(Path("results"), "root of all results", result=False, type=path)
    no_tables: bool = flag(False, "train only: leave tables, figures and report to a later call",
                           result=False, action="store_true")


@dataclass(frozen=True)
class DataConfig:
    """Which images are learned from and tested on."""

    dataset: str = flag("demo", "real photographs, rows of features or digits: see --list")
    data_root: Path | None = flag(None, "their folder; the demo's is data/demo if not given, and "
                                  "the tabular data need none", result=False, type=path)
    target: str | None = flag(None, "attribute that is learned (y); if not given the dataset's, "
                              "such as Smiling")
    protected: str | None = flag(None, "attribute to be fair about (a); if not given the "
                                 "dataset's, such as Male")
    positive: tuple[str, ...] = flag(
        (), "of --dataset folder: values of the two columns that mean 1, where these hold others "
        "than 0/1, -1/1 and yes/no", result=False, nargs="+", metavar="[COLUMN=]VALUE")
    size: int | str | None = flag(
        "auto", "biased training images, or all: every one that there is, without --minority and "
        "--rule; auto: 20000, of your own folder all", type=or_all(COUNT, "auto"))
    minority: float = flag(0.1, "share of each of the groups (0,0) and (1,1) in its class",
                           type=SHARE)
    rule: str = flag("first", "'first' gives the released CelebA lists",
                     choices=("first", "random"))
    data_seed: int | str = flag(0, "of random subsets and test draws; run: each run's own seed, as "
                                "in tables over random splits", type=data_seed)
    val: str = flag("official", "the best epoch is that of the best validation accuracy (no group "
                    "labels), or the last", choices=("official", "none"))
    best_epoch: str = flag(
        "accuracy", "measure on the validation images by which an epoch is the best: accuracy, as "
        "in the release, or the accuracy averaged over the two classes of y", choices=BEST_BY)
    blind: bool = flag(False, "leave the protected attribute out of the features of tabular data",
                       action="store_true")
    test_size: int | None = flag(None, "draw a balanced test set of this size, a multiple of 4",
                                 type=COUNT)
    synthetic_root: Path | None = flag(None, "folder of synthetic images", result=False, type=path)
    edits: Path | None = flag(None, "folder of edited training images, for diga: see "
                              "stable_diffusion/edit.py", result=False, type=path)
    prompt_set: str = flag("contextual_head_poses_50", "folder under --synthetic-root",
                           finetune=True)
    synthetic_ratio: float = flag(1.0, "balanced synthetic images per real training image",
                                  finetune=True, type=RATE)
    synthetic_biased_ratio: float = flag(
        1.0, "images of the mask's biased synthetic set per real training image", finetune=True,
        type=number(float, 0.0, 1000, open_low=True))
    synthetic_minority: float = flag(
        0.1, "share of each of the groups (0,0) and (1,1) in its class, in the mask's biased "
        "synthetic set", finetune=True, type=SHARE)


@dataclass(frozen=True)
class TrainConfig:
    """Model and training (defaults: the released code)."""

    start: Path | None = flag(
        None, "the biased model that is to be repaired, in place of pre-training: a classifier.pt, "
        "a state dict or safetensors of the backbone, with one logit or two", type=path)
    backbone: str | None = flag(
        None, "the network: see --list, or timm:NAME, torchvision:NAME; if not given that of "
        "--start's file, or resnet18")
    pretrained: str = flag("auto", "initial weights: imagenet (downloaded once), none (random), a "
                           "file with the state dict of torchvision's network, or auto: imagenet "
                           "for a network that has such weights")
    image_size: int | None = flag(None, "side in pixels; if not given that of --start's file, or "
                                  "224", type=number(int, 16, 2048))
    mean: tuple[float, ...] | None = flag(
        None, "by which images in [0, 1] are normalised, one number or three; if not given that "
        "of --start's file, or 0.5", type=SHARE, nargs="+")
    std: tuple[float, ...] | None = flag(None, "as --mean", type=number(float, 0.0, 1.0,
                                         open_low=True), nargs="+")
    min_crop: float = flag(0.08, "smallest share of an image that a training crop holds, "
                           "torchvision's", type=number(float, 0.0, 1.0, open_low=True))
    batch_size: int | None = flag(128, "in training; all: of samples in memory, one batch",
                                  type=or_all(number(int, 2, 2**20)))
    eval_batch_size: int = flag(512, "changes speed only", result=False, type=COUNT)
    optimizer: str = flag("sgd", "sgd, the release's; adam; lbfgs: with --batch-size all, an epoch "
                          "is one round of L-BFGS until the gradient vanishes",
                          choices=OPTIMIZERS)
    pretrain_epochs: int = flag(15, "on the real images", type=COUNT)
    pretrain_lr: float = flag(0.01, "learning rate", type=RATE)
    pretrain_milestone: int = flag(10, "epochs of pre-training after which its rate is multiplied "
                                   "by --gamma", type=COUNT)
    finetune_epochs: int = flag(10, "on the synthetic images", finetune=True, type=COUNT)
    finetune_lr: float = flag(0.06, "the paper prints 0.4-0.6, the release runs 0.06",
                              finetune=True, type=RATE)
    finetune_milestone: int = flag(10, "as --pretrain-milestone, of the fine-tuning: with 10 of 10 "
                                   "epochs the rate is constant, as in the release", finetune=True,
                                   type=COUNT)
    gamma: float = flag(0.1, "factor of the rate at a milestone; the paper prints 0.01", type=RATE)
    momentum: float = flag(0.9, "of SGD", type=SHARE)
    weight_decay: float = flag(1e-4, "L2 penalty", type=number(float, 0, 10))
    top_k: float = flag(0.887, "tensors, or a share below 1; 0.887 is 55 of ResNet-18's 62",
                        finetune=True, type=number(float, 0, 10**6, open_low=True))
    criterion: str = flag("absolute", "absolute or cosine: difference of two gradients of a tensor",
                          finetune=True)
    mask: Path | None = flag(
        None, "tensors that --methods given_mask updates: a run's mask.json, or names and globs, "
        "one a line", finetune=True, type=path)
    batch_norm: str = flag("update", "running statistics while fine-tuning", finetune=True,
                           choices=("update", "freeze"))
    precision: str = flag("auto", "auto: bf16 for images where the device has it (a GPU from "
                          "Ampere on, a processor with AMX or AVX512-BF16), else fp32",
                          choices=("auto", "fp32", "bf16"))

    @property
    def autocast(self):
        """torch's dtype of the forward pass, None for the weights' own."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else None

    def _recipe(self, stage: str, ties: str) -> Recipe:
        own = {key: getattr(self, f"{stage}_{key}") for key in ("epochs", "lr", "milestone")}
        return Recipe(**own, gamma=self.gamma, momentum=self.momentum,
                      weight_decay=self.weight_decay, best_by=self.best_epoch, ties=ties,
                      optimizer=self.optimizer)

    @property
    def pretrain(self) -> Recipe:
        """The recipe of every training that starts from the backbone's initial weights."""
        return self._recipe("pretrain", "later")

    @property
    def finetune(self) -> Recipe:
        """The recipe of every training that starts from the pre-trained model."""
        return self._recipe("finetune", "earlier")


@dataclass(frozen=True)
class MachineConfig:
    """Where it runs."""

    jobs: int = flag(1, "seeds trained at once, each by a process of its own; spread over the GPUs "
                     "that there are", result=False, type=COUNT)
    launcher: str = flag(
        "none", "slurm: submit every method and seed as one job array, and a job after them that "
        "makes what is missing and writes tables, figures and report, and end; nothing is lost by "
        "giving the same command again, with or without it. local: the same as processes of this "
        "machine, one a GPU or --jobs at once, and wait for them", result=False, choices=LAUNCHERS)
    slurm: tuple[str, ...] = flag(
        (), f"of each job: {', '.join(PARAMETERS)}; time in minutes (720 if not given, then the "
        "job queues again and resumes), mem in GB, parallel jobs at once", result=False, nargs="*",
        metavar="NAME=VALUE")
    tensorboard: bool = flag(False, "also log to tensorboard/ in the setting's folder, by epoch",
                             result=False, action="store_true")
    device: str = flag("auto", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    compile: bool = flag(
        False, "torch.compile steps and validation: up to minutes at the start of each training, "
        "for long ones on a GPU (steps that take their own derivatives stay as they are)",
        result=False, action="store_true")
    threads: int = flag(
        1, "threads of a process that computes on a CPU: more crawl where anything else runs, and "
        "two seeds at once (--jobs 2) use two cores better than one seed with two threads; another "
        "number rounds otherwise", result=False, type=COUNT)
    workers: int = flag(1, "threads that prepare batches", result=False, type=COUNT)
    store_dir: Path | None = flag(None, "folder of decoded images; data/store where not given",
                                  result=False, type=path)
    checkpoint_seconds: float = flag(60.0, "an epoch's end is saved if the last save is older; a "
                                     "SIGTERM always saves", result=False,
                                     type=number(float, 0, 10**6))


@dataclass(frozen=True)
class Config(MachineConfig, TrainConfig, DataConfig, WhatConfig):
    """Everything a command was asked for. A function takes the part it needs."""

    def identity(self, *, finetune: bool = True) -> dict[str, Any]:
        """The values on which results depend; without `finetune` those of the pre-trained model."""
        values = {
            f.name: getattr(self, f.name) for f in sorted(fields(self), key=lambda f: f.name)
            if f.metadata["result"] and (finetune or not f.metadata["finetune"])
        }
        values["device"] = self.device.split(":")[0]
        if self.pretrained not in ("auto", "none", "imagenet"):
            values["pretrained"] = weights_digest(Path(self.pretrained))
        for key in ("mean", "std"):  # where they are the usual ones, older runs stay what they are
            value = values.pop(key)
            if value is not None and set(value) != {0.5}:
                values[key] = list(value)
        if values.pop("mask", None) is not None:
            values["mask"] = weights_digest(self.mask, "--mask")
        if values.pop("start") is not None:
            values["start"] = weights_digest(self.start, "--start")
        if self.positive:
            values["positive"] = list(self.positive)
        if self.compile:  # rounds differently
            values["compile"] = True
        return values


def parser(description: str) -> ArgumentParser:
    """All flags. Names of methods, datasets, backbones and criteria are checked where they are
    known: to import these takes seconds."""
    p = ArgumentParser(
        description=description, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for part in (WhatConfig, DataConfig, TrainConfig, MachineConfig):
        group = p.add_argument_group(part.__doc__.rstrip("."))
        for f in fields(part):
            given = dict(f.metadata["argparse"])
            default = None if f.default is MISSING or given.get("required") else f.default
            group.add_argument(f"--{f.name.replace('_', '-')}", default=default,
                               help=f.metadata["help"], **given)
    return p


def config_of(values: Mapping[str, Any]) -> Config:
    """The configuration of parsed flags; lists become tuples."""
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
