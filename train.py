"""Train methods on a setting and write run folders, tables and figures.

    python train.py --setting celeba --dataset celeba --data-root /data/celeba \
        --synthetic-root data/synthetic --methods erm full_finetuning aim_fair --seeds 100 200 300

Every seed of every method is one folder results/<setting>/<method>/seed<k>/; a finished one is
not run again, an interrupted one is resumed, one with other settings is refused by name.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from datasets import DATASETS
from datasets.base import ImageTable, Splits, save_list
from datasets.edits import load_edits
from datasets.image_store import open_store
from datasets.mixing import Data
from datasets.synthetic import load_synthetic
from models import CHOICES, METHODS
from models.backbones import BACKBONES, check_start, parameter_names
from models.method import Method
from models.selection import CRITERIA, resolve_k
from utils import config as configuration
from utils import launcher
from utils.blocks import require_block
from utils.config import Config
from utils.engine import accuracies, predictions, save_torch
from utils.errors import UserError, exit_cleanly
from utils.events import events_of, require_tensorboard
from utils.files import is_plain_name, remove_leftovers, write_atomic, write_json
from utils.launcher import Task
from utils.metrics import fairness_metrics, to_json
from utils.options import ArgumentParser, check_compiler, check_device, options_of
from utils.preemption import PREEMPTION
from utils.records import list_digest
from utils.reporting import best, plots, report, tables
from utils.reporting.paper import own_row
from utils.run import Run, exclusive

TAKEN = ("", "shared", "figures", "contact_sheets", "tensorboard", "submitit")


def parser() -> ArgumentParser:
    return configuration.parser(
        __doc__.split("\n")[0], methods=[*METHODS, *CHOICES], datasets=DATASETS,
        backbones=BACKBONES, criteria=CRITERIA,
    )


def rows_of(config: Config) -> dict[str, type[Method]]:
    """The methods to be run by name, a choice's candidates in its place, each once."""
    names = [row for name in config.methods
             for row in (CHOICES[name].rows if name in CHOICES else (name,))]
    return {name: METHODS[name] for name in dict.fromkeys(names)}


def check_flags(config: Config) -> None:
    """What argparse cannot see, before any data is read. Raises UserError."""
    for flag, value, what in (("--name", config.name, "names one run"),
                              ("--paper-row", config.paper_row, "is one method's row")):
        if value is not None and (len(config.methods) > 1 or config.methods[0] in CHOICES):
            raise UserError(f"{flag} {what}: give a single method with --methods")
    for flag, parts in (("--setting", config.setting.split("/")),
                        ("--name", [config.name or "run"])):
        if not all(is_plain_name(part) for part in parts):
            raise UserError(f"{flag} must be a plain folder name, without '..' or a leading '/'")
    if config.name in TAKEN:
        raise UserError(f"--name '{config.name}' is taken or empty; choose another")
    if config.size is None and any(
        getattr(config, key) != getattr(Config, key) for key in ("minority", "rule")
    ):
        raise UserError("--size all takes the images as they are: leave out --minority and --rule")
    launcher.check(config.launcher, config.slurm)
    # a job has its own device, and decides for itself what is the default
    check_device(config.device, here=config.launcher != "slurm")
    if config.compile:
        check_compiler()
    check_start(config.backbone, config.pretrained)
    with torch.device("meta"):  # the names without the numbers
        names = parameter_names(BACKBONES[config.backbone](None))
    for name, method in rows_of(config).items():
        resolve_k(replace(config, **method.overrides).top_k, len(names))
        for block in method.blocks:
            require_block(block, names, f"--methods {name}: {config.backbone}")
        if method.uses_attributes == "validation" and config.val == "none":
            raise UserError(
                f"--val none: {name} needs validation images with group labels; use --val official"
            )
    known = {*rows_of(config), *config.methods, config.name}
    setting = config.results / config.setting
    row = None if config.no_tables else config.baseline  # of one job, the table's rows are unknown
    if row and row not in known and not (setting / row).exists():
        raise UserError(f"--baseline {row} is no row of this table: name one of "
                        f"{', '.join(sorted(filter(None, known)))}")
    if config.tensorboard:
        require_tensorboard()
    if config.paper_table is not None:
        where = (config.dataset, config.target, config.protected)
        try:  # an unknown table; a row that the paper does not have is none of ours alone
            tables.paper_row(config.paper_table, config.paper_row or "", *where)
        except UserError as error:
            raise UserError(f"--paper-table {config.paper_table}: {error}") from None


def complete(config: Config) -> Config:
    """The configuration with device and precision decided. Raises UserError for wrong flags."""
    if config.device == "auto":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    check_flags(config)
    if config.precision == "auto":
        on_gpu = config.device.startswith("cuda")
        config = replace(config, precision="bf16" if on_gpu else "fp32")
    return config


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a command runs: its configuration and methods, their options and the images."""

    config: Config
    methods: Mapping[str, type[Method]]
    options: Mapping[str, dict]
    splits: Splits
    edited: ImageTable | None
    digests: Mapping[str, str]

    @functools.cache  # noqa: B019 - a command holds one experiment
    def synthetic(self, prompt_set: str) -> tuple[ImageTable, str]:
        """The synthetic images of a prompt set, and their digest."""
        root = self.config.synthetic_root
        if root is None:
            raise UserError(
                "--synthetic-root is missing: generate images with "
                "stable_diffusion/generation.sh and give their folder"
            )
        table = load_synthetic(root, self.config.target, self.config.protected, prompt_set)
        return table, list_digest(table)

    def data(self, method: type[Method], seed: int) -> Data:
        """The images of one method and seed, with all labels; rows of the same flags share them."""
        return self._data(tuple(method.overrides.items()), method.needs_synthetic(), seed)

    @functools.cache  # noqa: B019 - as above; the synthetic sets are drawn once
    def _data(self, overrides: tuple, with_synthetic: bool, seed: int) -> Data:
        config, pool, digests = replace(self.config, **dict(overrides)), None, self.digests
        if with_synthetic:
            pool, digest = self.synthetic(config.prompt_set)
            digests = {**digests, "synthetic": digest}
        return Data(self.splits, pool, config, seed, edited=self.edited, digests=digests)


def prepare(argv: list[str]) -> Experiment:
    """Flags, images and their sizes, all of it checked before the first hour of training."""
    config = complete(configuration.config_of(vars(parser().parse_args(argv))))
    PREEMPTION.install()
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
    methods = rows_of(config)
    options = options_of(config.set, methods)
    splits = DATASETS[config.dataset](
        config.data_root, config.target, config.protected, size=config.size,
        minority=config.minority, rule=config.rule, seed=config.data_seed, val=config.val,
        test_size=config.test_size,
    )
    edited = None
    if any(method.needs_edits for method in methods.values()):
        if config.edits is None:
            raise UserError(
                "--edits is missing: edit the training images with python -m stable_diffusion.edit "
                "and give their folder, or leave out the method that needs them"
            )
        edited = load_edits(config.edits, splits.train)
    tables_ = {"real": splits.train, "val": splits.val, "test": splits.test, "edited": edited}
    digests = {key: list_digest(table) for key, table in tables_.items() if table is not None}
    experiment = Experiment(config, methods, options, splits, edited, digests)
    for seed in config.seeds:
        for method in methods.values():
            for table in method.tables(experiment.data(method, seed)).values():
                if len(table) < config.batch_size:
                    raise UserError(
                        f"{table.name} gives {len(table)} images, fewer than a batch: lower "
                        f"--batch-size {config.batch_size} or raise --size or --synthetic-ratio"
                    )
    return experiment


def make_run(experiment: Experiment, name: str, seed: int) -> Run:
    """One method and seed, with the labels that the method may see."""
    config, method = experiment.config, experiment.methods[name]
    data = experiment.data(method, seed)
    own, options = data.config, {**method.defaults, **experiment.options[name]}
    lists = {f"{key}_list": data.digests.get(key) for key in ("real", "val", "test")}
    if method.needs_synthetic():
        lists["synthetic_list"] = data.digests["synthetic"]
    if method.needs_edits:
        lists["edited_list"] = data.digests["edited"]
    row = config.paper_row or own_row(config.paper_table, method.paper_row)
    notes = {"uses_attributes": method.uses_attributes}
    if config.paper_table:
        notes |= {"paper_table": config.paper_table, "paper_row": row}
    changed = [key for key, value in options.items() if value != method.defaults[key]]
    if changed:
        notes["defaults_changed"] = {key: method.defaults[key] for key in changed}
    identity = own.identity(finetune=method.finetunes())
    return Run(
        config.results / config.setting / (config.name or name) / f"seed{seed}", own,
        data.seen_by(method.uses_attributes), seed,
        # a setting's sub-settings share its pre-trained models
        config.results / config.setting.split("/")[0] / "shared", options,
        {**identity, **lists, **options, "method": name, "seed": seed}, notes,
    )


def execute(run: Run, method: type[Method], data: Data) -> None:
    """One run, from its configuration to `done`. data: with all labels, for the test."""
    config, folder = run.config, run.folder
    board = config.results / config.setting / "tensorboard" / folder.parent.name / folder.name
    with run.open() as finished, events_of(run, board if config.tensorboard else None):
        if finished:
            run.finish()
            print(f"{folder}: finished, reused", flush=True)
            return
        if twin := run.adopt(run.shared.parent):
            print(f"{folder}: the same as {twin}, copied", flush=True)
            return
        began = time.monotonic()
        used = method.tables(run.data)
        for table in filter(None, (data.val, data.test, *used.values())):
            # an image that cannot be decoded stops here
            open_store(table, config.store_dir, pools=data.pools)
        for name, table in method.tables(data).items():
            save_list(table, folder / f"{name}.csv")
        trained = method.run(run)
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in run.log))
        validation = None
        if data.val is not None:
            measured = accuracies(trained, data.loader(data.val, train=False))
            validation = {"acc": measured["accuracy"], "class_acc": measured["class-accuracy"]}
        test = data.loader(data.test, train=False)  # read once, after everything was chosen
        metrics = fairness_metrics(predictions(trained, test), data.test.y, data.test.a)
        write_json(folder / "metrics.json", {
            "test": to_json(metrics), "validation": validation,
            "selected_epoch": run.log[-1]["kept"], "passes": run.passes,
        })
        save_torch(folder / "classifier.pt", {
            "model": trained.model.state_dict(), "backbone": config.backbone,
            "target": config.target, "image_size": config.image_size,
        })
        run.finish()
        print(
            f"{folder}: ACC {metrics['acc']:.2%}  WST {metrics['wst']:.2%}  worst-case EO "
            f"{metrics['eo_worst']:.2%}  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )


def write_tables(experiment: Experiment) -> None:
    """Choices, table, figures, contact sheets and report of the setting's saved runs."""
    config = experiment.config
    setting = config.results / config.setting
    with exclusive(setting, PREEMPTION.check):
        for pictures in ("figures", "contact_sheets"):
            remove_leftovers(setting / pictures)
        for name in config.methods:
            if name in CHOICES:
                choice = CHOICES[name]
                best.write_best(setting, list(choice.rows), name,
                                own_row(config.paper_table, choice.paper_row))
        print(tables.write_summary(setting, baseline=config.baseline, latex=True))
        plots.draw_all(setting, (), experiment.splits.train)
        pool = None
        if any(method.needs_synthetic() for method in experiment.methods.values()):
            pool, _ = experiment.synthetic(config.prompt_set)
        report.write_contact_sheets(setting, {"real": experiment.splits.train, "generated": pool})
        print(report.write_report(setting))


def in_jobs(
    config: Config, methods: Mapping[str, type[Method]], argv: list[str], *, merged: bool = False
) -> list[list[str]]:
    """The command lines of its runs: every method and seed, one method's seeds first, as each
    pre-trains a model for which the other methods would wait. merged: a seed's other methods are
    one command, so that a process starts once for all of them."""
    plain = [*argv, "--launcher", "none", "--slurm", "--jobs", "1", "--no-tables"]
    names = list(methods)
    groups = [names[:1], names[1:]] if merged else [[name] for name in names]
    return [[*plain, "--methods", *group, "--seeds", str(seed), *_own(config, group)]
            for group in groups if group for seed in config.seeds]


def _own(config: Config, names: list[str]) -> list[str]:
    """--set of these methods alone."""
    if not config.set:
        return []
    single, own = len(rows_of(config)) == 1, tuple(f"{name}." for name in names)
    return ["--set", *(pair for pair in config.set if single or pair.startswith(own))]


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    experiment = prepare(argv)
    config = experiment.config
    few = config.launcher == "none" and len(config.seeds) >= config.jobs  # processes are enough
    runs = in_jobs(config, experiment.methods, argv, merged=few)
    if config.launcher != "none":
        last = Task("train", "main", [*argv, "--launcher", "none", "--slurm"])
        tasks = [Task("train", "main", run) for run in runs]
        if launcher.launch(config, tasks, last):
            return  # SLURM's last job does what follows
    elif config.jobs > 1:
        launcher.in_parallel([[sys.executable, __file__, *run] for run in runs], config.jobs)
    for seed in config.seeds:
        for name, method in experiment.methods.items():
            PREEMPTION.check()
            execute(make_run(experiment, name, seed), method, experiment.data(method, seed))
    if not config.no_tables:
        write_tables(experiment)


if __name__ == "__main__":
    main()
