"""Flags that contradict each other, the dataset or the network: what argparse cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from datasets import Dataset
from datasets.base import Table
from datasets.mixing import Data
from models.backbones import Shape, build
from models.checkpoints import load_into, network, read
from models.libraries import is_library
from models.masks import GIVEN, chosen_by
from models.method import Method
from models.selection import CRITERIA, resolve_k
from models.strategies import FineTuning
from utils import devices, launcher
from utils.blocks import require_block
from utils.config import Config
from utils.errors import UserError
from utils.events import require_tensorboard
from utils.files import is_plain_name
from utils.options import check_compiler
from utils.records import read_record
from utils.reporting.paper import paper_row

TAKEN = ("", "shared", "figures", "contact_sheets", "tensorboard", "submitit")
DRAWN = ("size", "minority", "rule", "test_size")  # flags of how image sets are drawn


def check_flags(
    config: Config, methods: Mapping[str, type[Method]], dataset: Dataset, names: list[str]
) -> None:
    """Raise UserError for flags that cannot be meant, before any data is read.

    config: complete. names: of the backbone's parameter tensors.
    """
    _check_folders(config, methods)
    _check_data(config, methods, dataset)
    _check_table(config, methods)
    launcher.check(config.launcher, config.slurm)
    if config.compile:
        check_compiler()
    if config.tensorboard:
        require_tensorboard()
    if config.criterion not in CRITERIA:
        raise UserError(f"--criterion {config.criterion} is unknown; choose from "
                        f"{', '.join(CRITERIA)}")
    if config.optimizer == "lbfgs" and config.batch_size is not None:
        raise UserError("--optimizer lbfgs needs the whole training set at once: give "
                        "--batch-size all")
    _check_mask(config, methods, names)
    for name, method in methods.items():
        resolve_k(replace(config, **method.overrides).top_k, len(names))
        for block in method.blocks:
            require_block(block, names, f"--methods {name}: {config.backbone}")


def _check_mask(config: Config, methods: Mapping[str, type[Method]], names: list[str]) -> None:
    rows = [name for name, method in methods.items()
            if issubclass(method, FineTuning) and method.tensors is GIVEN]
    if rows and config.mask is None:
        raise UserError(f"--methods {rows[0]} needs --mask: give a run's mask.json or a list of "
                        "tensors")
    if config.mask is not None:
        if not rows:
            raise UserError("--mask is for --methods given_mask: name that row or leave out --mask")
        chosen_by(config.mask, names)


def check_samples(tables_: Mapping[str, Table], config: Config) -> None:
    """Raise UserError where a training table has fewer samples than a batch."""
    for table in tables_.values():
        if config.batch_size is not None and len(table) < config.batch_size:
            raise UserError(
                f"{table.name} gives {len(table)} images, fewer than a batch: lower "
                f"--batch-size {config.batch_size} or raise --size or --synthetic-ratio"
            )


def check_network(config: Config, shape: Shape | None) -> None:
    """Raise UserError where the backbone takes no such images, or --start is another network's."""
    if not is_library(config.backbone) and config.start is None:
        return
    if is_library(config.backbone):
        model = network(config.backbone, config.image_size)
    else:
        model = build(config.backbone, "none", shape)
    if config.start is not None:
        load_into(model, read(config.start), config.backbone, "--start")


def check_labels(name: str, method: type[Method], data: Data, protected: str) -> None:
    """Raise UserError where real images have no group label that the method learns from."""
    granted = {"none": (), "validation": ("val",), "train": ("real", "val")}
    for part in granted[method.uses_attributes]:
        table = getattr(data, part)
        if table is not None and (missing := int((table.a < 0).sum())):
            raise UserError(
                f"--methods {name} learns from group labels, and {missing} of {len(table)} images "
                f"of {table.name} have no {protected}: label them or leave out that row"
            )


def _check_folders(config: Config, methods: Iterable[str]) -> None:
    single = len(config.methods) == 1 and config.methods[0] in methods  # no choice, no --search
    for flag, value, what in (("--name", config.name, "names one run"),
                              ("--paper-row", config.paper_row, "is one method's row")):
        if value is not None and not single:
            raise UserError(f"{flag} {what}: give a single method with --methods, and no "
                            "--search")
    for flag, parts in (("--setting", config.setting.split("/")),
                        ("--name", [config.name or "run"])):
        if not all(is_plain_name(part) for part in parts):
            raise UserError(f"{flag} must be a plain folder name, without '..' or a leading '/'")
    if config.name in TAKEN:
        raise UserError(f"--name '{config.name}' is taken or empty; choose another")


def _check_data(config: Config, methods: Mapping[str, type[Method]], dataset: Dataset) -> None:
    defaults = {key: getattr(Config, key) for key in DRAWN} | {"size": dataset.size}
    given = [key for key in DRAWN if getattr(config, key) != defaults[key]]
    if config.positive and not dataset.own_labels:
        raise UserError(f"--positive is for labels of your own, and {config.dataset} has known "
                        "ones: leave out that flag")
    if config.blind and not dataset.resplits:
        raise UserError(f"--blind is for tabular data, not for {config.dataset}: leave out that "
                        "flag")
    if dataset.in_memory:
        if set(config.mean) | set(config.std) != {0.5}:
            raise UserError(f"--mean and --std normalise photographs, and --dataset "
                            f"{config.dataset} has none: leave out these flags")
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} draws photographs, and "
                            f"--dataset {config.dataset} is taken whole: leave out that flag")
        for name, method in methods.items():
            if method.needs_synthetic() or method.needs_edits:
                raise UserError(f"--methods {name} learns from synthetic images, and --dataset "
                                f"{config.dataset} has none: leave out that row")
    else:
        if config.batch_size is None:
            raise UserError(f"--batch-size all is for samples in memory, not for the images of "
                            f"{config.dataset}: give a number")
        if config.size is None and {"minority", "rule"} & set(given):
            raise UserError("--size all takes the images as they are: leave out --minority and "
                            "--rule")
    if config.search is not None and config.val == "none":
        raise UserError("--val none leaves --search nothing to choose by; use --val official")
    for name, method in methods.items():
        if method.uses_attributes == "validation" and config.val == "none":
            raise UserError(
                f"--val none: {name} needs validation images with group labels; use --val official"
            )
        if method.needs_validation and config.val == "none":
            raise UserError(f"--val none: {name} chooses on validation images; use --val official")


def _check_table(config: Config, methods: Iterable[str]) -> None:
    known = {*methods, *config.methods, config.name}
    setting = config.results / config.setting
    for row in () if config.no_tables else config.baseline:  # one job does not know all rows
        if row not in known and not (setting / row).exists():
            raise UserError(f"--baseline {row} is no row of this table: name one of "
                            f"{', '.join(sorted(filter(None, known)))}")
    if config.paper_table is not None:
        where = (config.dataset, config.target, config.protected)
        try:  # an unknown table; a row that the paper does not have is none of ours alone
            paper_row(config.paper_table, config.paper_row or "", *where)
        except UserError as error:
            raise UserError(f"--paper-table {config.paper_table}: {error}") from None


def check_setting(config: Config, methods: Iterable[str]) -> None:
    """Raise UserError where the setting's saved rows are of another task than this command's would
    be, or round otherwise.

    Of this command's own rows `claim` says what differs.
    """
    setting, names = config.results / config.setting, [config.name] if config.name else methods
    own = {(name, f"seed{seed}") for name in names for seed in config.seeds}
    if any((setting / row / seed / "done").exists() for row, seed in own):
        return
    # a job of SLURM has another device than this machine
    rounds = (None if config.launcher == "slurm"
              else devices.numerics(config.device, config.precision))
    for path in sorted(setting.glob("*/seed*/config.json")):
        if path.parts[-3:-1] in own or not (path.parent / "done").exists():
            continue
        held = read_record(path)
        for key in ("dataset", "target", "protected"):
            if held.get(key) not in (None, getattr(config, key)):
                raise UserError(
                    f"{path.parent} has {key} {held[key]}, this command {getattr(config, key)}: "
                    "rows of a table must not differ in it; choose another --setting"
                )
        gpu = (held.get("environment") or {}).get("gpu") or {}
        theirs = held.get("precision")
        if theirs == "fp32" and gpu.get("tf32") and held.get("device") == "cuda":
            theirs = "fp32 with TF32 convolutions"
        if rounds and theirs not in (None, rounds):
            raise UserError(
                f"{path.parent} was trained in {theirs}, this command trains in {rounds}: rows of "
                "a table must not differ in it; give that --precision and --device, or choose "
                "another --setting"
            )
