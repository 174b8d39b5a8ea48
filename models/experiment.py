"""What a command of train.py runs: its rows, options and data, checked before the first epoch."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from datasets import DATASETS, resident, root_of, shared_images
from datasets.base import ImageTable, Splits, save_list
from datasets.edits import load_edits
from datasets.image_store import open_store
from datasets.mixing import Data
from datasets.synthetic import load_synthetic
from models import CHOICES, METHODS, checkpoints
from models.backbones import check_shape, initial_weights, maker, tensor_names
from models.checks import (
    check_flags,
    check_labels,
    check_network,
    check_samples,
    check_setting,
)
from models.choices import Choice, candidates, read_search, row_of
from models.cost import cost
from models.method import Method
from utils import devices
from utils.config import Config
from utils.engine import accuracies, predictions, save_torch
from utils.errors import UserError
from utils.events import events_of
from utils.files import write_atomic, write_json
from utils.metrics import fairness_metrics, to_json
from utils.options import check_device, options_of
from utils.reporting.paper import own_row
from utils.run import Run


def choices_of(config: Config) -> dict[str, Choice]:
    """The rows asked for that are the best of several: of other rows, or by --search.

    Raises UserError for one that takes the choice of a row which is not asked for.
    """
    runs = {row: tuple(own) for row, own in candidates(config, METHODS).items()}
    leaders = read_search(config.search)[1] if config.search else {}
    for row in runs:
        if leaders.get(row, row) not in runs:
            raise UserError(f"{row} takes the choice of {leaders[row]} (--search {config.search}); "
                            f"give {leaders[row]} with --methods too")
    found = {row: Choice(own, METHODS[row].paper_row, runs.get(leaders.get(row), ()))
             for row, own in runs.items()}
    return found | {row: CHOICES[row] for row in config.methods if row in CHOICES}


def rows_of(config: Config) -> dict[str, type[Method]]:
    """What is to be run, by its folder below the setting's: a method by its name, in the place of a
    choice its candidates; each once."""
    searched, rows = candidates(config, METHODS), {}
    for name in config.methods:
        own = CHOICES[name].rows if name in CHOICES else (name,)
        rows |= searched.get(name) or {row: METHODS[row] for row in own}
    return rows


def options_given(config: Config, rows: Mapping[str, type[Method]]) -> dict[str, dict]:
    """{folder: hyper-parameters} of `rows_of`: --set of its row, and what --search gives it."""
    given = options_of(config.set, {row_of(name): METHODS[row_of(name)] for name in rows})
    for name, method in rows.items():
        if twice := given[row_of(name)].keys() & method.given.keys():
            raise UserError(f"--set {row_of(name)}.{min(twice)}: --search tries values of it; give "
                            "one of the two")
    return {name: {**given[row_of(name)], **method.given} for name, method in rows.items()}


def complete(config: Config) -> Config:
    """The configuration with everything decided that depends on the machine, the dataset or the
    backbone. Raises UserError for wrong flags."""
    for flag, given, known in (("--methods", config.methods, [*METHODS, *CHOICES]),
                               ("--dataset", [config.dataset], DATASETS)):
        for name in given:
            if name not in known:
                raise UserError(f"{flag} {name} is unknown; choose from {', '.join(known)}")
    config = checkpoints.completed(config, lambda line: print(line, file=sys.stderr))
    maker(config.backbone)  # is there such a network?
    # a job has its own device, and decides for itself what is the default
    check_device(config.device, here=config.launcher != "slurm")
    config = replace(config, device=devices.pick(config.device))
    dataset = DATASETS[config.dataset]
    if config.precision == "auto":
        precision = devices.training_precision(config.device, in_memory=dataset.in_memory)
        config = replace(config, precision=precision)
    target, protected = dataset.attributes or (None, None)
    config = replace(config, target=config.target or target,
                     protected=config.protected or protected,
                     size=dataset.size if config.size == "auto" else config.size,
                     data_root=root_of(config.dataset, config.data_root))
    for flag, attribute in (("--target", config.target), ("--protected", config.protected)):
        if attribute is None:
            raise UserError(f"{flag} is missing: --dataset {config.dataset} has no pair of its "
                            "own; give two columns of its metadata")
    config = replace(config, pretrained=initial_weights(config.backbone, config.pretrained))
    check_flags(config, rows_of(config), dataset, tensor_names(config.backbone))
    if not config.no_tables:
        choices_of(config)
    return config


@dataclass(frozen=True, eq=False)
class Experiment:
    """A command's configuration and methods, and their options.

    load: the real samples from a data seed, where they are not --dataset's.
    """

    config: Config
    methods: Mapping[str, type[Method]]
    options: Mapping[str, dict]
    load: Callable[[int], Splits] | None = None

    def splits(self, seed: int) -> Splits:
        """The real samples of a run; every seed's are the same without --data-seed run."""
        return self._splits(seed if self.config.data_seed == "run" else self.config.data_seed)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a command holds one experiment
    def _splits(self, seed: int) -> Splits:
        c = self.config
        if self.load:
            return self.load(seed)
        return DATASETS[c.dataset](
            c.data_root, c.target, c.protected, size=c.size, minority=c.minority, rule=c.rule,
            seed=seed, val=c.val, test_size=c.test_size, positive=c.positive,
            **({"blind": True} if c.blind else {}),
        )

    @functools.lru_cache(maxsize=1)  # noqa: B019 - as above
    def _edited(self, splits: Splits) -> ImageTable | None:
        if not any(method.needs_edits for method in self.methods.values()):
            return None
        if self.config.edits is None:
            raise UserError(
                "--edits is missing: edit the training images with python -m stable_diffusion.edit "
                "and give their folder, or leave out the method that needs them"
            )
        return load_edits(self.config.edits, splits.train)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - as above
    def _digests(self, splits: Splits) -> dict[str, str]:
        tables = {"real": splits.train, "val": splits.val, "test": splits.test,
                  "edited": self._edited(splits)}
        return {key: table.digest() for key, table in tables.items() if table is not None}

    @functools.cache  # noqa: B019 - as above
    def synthetic(self, prompt_set: str) -> tuple[ImageTable, str]:
        """The synthetic images of a prompt set, and their digest."""
        root = self.config.synthetic_root
        if root is None:
            raise UserError(
                "--synthetic-root is missing: generate images with "
                "stable_diffusion/generation.sh and give their folder"
            )
        table = load_synthetic(root, self.config.target, self.config.protected, prompt_set)
        return table, table.digest()

    def data(self, method: type[Method], seed: int) -> Data:
        """The data of one method and seed, with all labels; rows of the same flags share them."""
        return self._data(tuple(method.overrides.items()), method.needs_synthetic(), seed)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as above; the synthetic sets are drawn once
    def _data(self, overrides: tuple, with_synthetic: bool, seed: int) -> Data:
        splits, config, pool = self.splits(seed), replace(self.config, **dict(overrides)), None
        digests = self._digests(splits)
        if with_synthetic:
            pool, digest = self.synthetic(config.prompt_set)
            digests = {**digests, "synthetic": digest}
        return Data(splits, pool, config, seed, edited=self._edited(splits), digests=digests)

    def images_for(self, gpus: Sequence[str]) -> AbstractContextManager:
        """Inside, the images that every seed reads are held on each GPU of `gpus`, or on --device
        where it names one, for the processes of --jobs: shared_images.offered.

        None are where a GPU has one process, and on a CPU, whose processes share mapped files.
        """
        c = self.config
        devices = [torch.device("cuda", i) for i in range(len(gpus))] or [torch.device(c.device)]
        tables = []
        on_gpu = resident.free_memory(devices[0]) is not None
        if on_gpu and c.jobs > len(devices) and c.data_seed != "run":
            data = self.data(next(iter(self.methods.values())), c.seeds[0])
            tables = [table for table in (data.real, data.val, data.test)
                      if isinstance(table, ImageTable)]
        stores = [open_store(table, c.store_dir, pools=data.pools) for table in tables]
        number = 0 if gpus else devices[0].index or 0
        return shared_images.offered([resident.hold(stores, one) for one in devices], number)


def prepare(config: Config) -> Experiment:
    """The experiment, its data and their sizes checked before the first hour of training."""
    config = complete(config)
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
    methods = rows_of(config)
    experiment = Experiment(config, methods, options_given(config, methods))
    check_setting(config, methods)  # of saved runs: a mistake in the flags is said first
    for name, method in methods.items():  # of the first seed: the others' are as large
        data = experiment.data(method, config.seeds[0])
        check_shape(config.backbone, data.shape)
        check_samples(method.tables(data), config)
        check_labels(name, method, data, config.protected)
    check_network(config, data.shape)
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
    if config.data_seed == "run" and DATASETS[config.dataset].resplits:
        notes["test_to_train"] = len(data.test) / len(data.real)
    changed = [key for key, value in options.items() if value != method.defaults[key]]
    if changed:
        notes["defaults_changed"] = {key: method.defaults[key] for key in changed}
    identity = own.identity(finetune=method.finetunes())
    return Run(
        config.results / config.setting / (config.name or name) / f"seed{seed}", own,
        data.seen_by(method.uses_attributes), seed,
        # a setting's sub-settings share its pre-trained models
        config.results / config.setting.split("/")[0] / "shared", options,
        {**identity, **lists, **options, "method": row_of(name), "seed": seed}, notes,
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
            if isinstance(table, ImageTable):  # one that cannot be decoded stops here
                open_store(table, config.store_dir, pools=data.pools)
        for name, table in method.tables(data).items():
            save_list(table, folder / f"{name}.csv")
        trained = method.run(run)
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in run.log))
        validation = None
        if data.val is not None:
            measured = accuracies(trained, data.loader(data.val, train=False))
            validation = {"acc": measured["accuracy"], "class_acc": measured["class-accuracy"]}
            if method.uses_attributes != "none":  # its values may be chosen by group labels
                val = method.validation(run)
                said = predictions(trained, run.data.loader(val, train=False))
                validation["wst"] = to_json(fairness_metrics(said, val.y, val.a))["wst"]
        test = data.loader(data.test, train=False)  # read once, after everything was chosen
        metrics = fairness_metrics(predictions(trained, test), data.test.y, data.test.a)
        write_json(folder / "metrics.json", {
            "test": to_json(metrics), "validation": validation,
            "selected_epoch": run.log[-1]["kept"] if run.log else 0, "passes": run.passes,
            **cost(trained, data.shape or (3, config.image_size, config.image_size), run.passes),
        })
        save_torch(folder / "classifier.pt", {
            "model": trained.model.state_dict(), "backbone": config.backbone,
            "target": config.target, "protected": config.protected,
            "image_size": config.image_size, "mean": config.mean, "std": config.std,
        })
        run.finish()
        print(
            f"{folder}: ACC {metrics['acc']:.2%}  WST {metrics['wst']:.2%}  worst-case EO "
            f"{metrics['eo_worst']:.2%}  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
