"""Train methods on a setting and write run folders, tables and figures.

    python train.py --setting celeba --dataset celeba --data-root /data/celeba \
        --synthetic-root data/synthetic --methods erm full_finetuning aim_fair --seeds 100 200 300

Every seed of every method is one folder results/<setting>/<method>/seed<k>/; a finished one is
not run again, an interrupted one is resumed, one with other settings is refused by name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from utils import config as configuration
from utils.config import Config
from utils.errors import exit_cleanly
from utils.imports import heavy_imports
from utils.options import ArgumentParser

# torch takes seconds to import: the flags are parsed first


class ListNames(argparse.Action):
    """--list: print the names that --methods, --dataset and --backbone take, and exit."""

    def __call__(self, *_):
        from datasets import DATASETS
        from models import CHOICES, METHODS
        from models.backbones import BACKBONES

        for flag, names in (("--methods", [*METHODS, *CHOICES]), ("--dataset", DATASETS),
                            ("--backbone", [*BACKBONES, "timm:NAME", "torchvision:NAME"])):
            print(flag, *names)
        sys.exit(0)


def parser() -> ArgumentParser:
    p = configuration.parser(__doc__.split("\n")[0])
    p.add_argument("--list", nargs=0, action=ListNames, dest=argparse.SUPPRESS,
                   help="print the names of methods, datasets and backbones")
    return p


def parse(argv: list[str]) -> Config:
    return configuration.config_of(vars(parser().parse_args(argv)))


def write_tables(experiment) -> None:
    """Choices, table, figures, contact sheets and report of the setting's saved runs."""
    from datasets.base import ImageTable
    from models.experiment import choices_of
    from utils.files import remove_leftovers
    from utils.preemption import PREEMPTION
    from utils.reporting import best, plots, report, tables
    from utils.reporting.paper import own_row
    from utils.run import exclusive

    config = experiment.config
    setting = config.results / config.setting
    with exclusive(setting, PREEMPTION.check):
        for pictures in ("figures", "contact_sheets"):
            remove_leftovers(setting / pictures)
        for name, choice in choices_of(config).items():
            best.write_best(setting, choice.rows, name,
                            own_row(config.paper_table, choice.paper_row), choice.by)
        print(tables.write_summary(setting, config.baseline))
        real = experiment.splits(config.seeds[0]).train
        real, pool = real if isinstance(real, ImageTable) else None, None
        plots.draw_all(setting, (), real)
        if any(method.needs_synthetic() for method in experiment.methods.values()):
            pool, _ = experiment.synthetic(config.prompt_set)
        report.write_contact_sheets(setting, {"real": real, "synthetic": pool})
        print(report.write_report(setting))


def in_jobs(
    config: Config, methods: Iterable[str], argv: list[str], *, merged: bool = False,
    dealt: bool = False,
) -> list[list[str]]:
    """The command lines of its runs: every method and seed, one method's seeds first, as each
    pre-trains a model for which the other methods would wait. merged: a seed's other methods are
    one command, so that a process starts once for all of them. A row's candidates always are.
    dealt: of runs shorter than a process's start, as many commands as --jobs, all methods in each.
    """
    from models.choices import row_of

    plain = [*argv, "--launcher", "none", "--slurm", "--jobs", "1", "--no-tables"]
    names = list(dict.fromkeys(map(row_of, methods)))

    def own(group: list[str]) -> list[str]:
        """--set of these methods alone."""
        given = [pair for pair in config.set
                 if len(names) == 1 or pair.startswith(tuple(f"{name}." for name in group))]
        return ["--set", *given] if config.set else []

    groups = [names[:1], names[1:]] if merged else [[name] for name in names]
    seeds = [(seed,) for seed in config.seeds]
    if dealt:
        groups, seeds = [names], [config.seeds[i :: config.jobs] for i in range(config.jobs)]
    return [[*plain, "--methods", *group, "--seeds", *map(str, own_seeds), *own(group)]
            for group in groups if group for own_seeds in seeds]


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    config = parse(argv)
    with heavy_imports():
        from datasets import DATASETS
        from models.experiment import execute, make_run, prepare
    from utils import devices, launcher
    from utils.preemption import PREEMPTION

    PREEMPTION.install()
    experiment = prepare(config)
    config = experiment.config
    print(devices.describe(config.device, config.precision), flush=True)
    few = config.launcher == "none" and len(config.seeds) >= config.jobs  # processes are enough
    runs = in_jobs(config, experiment.methods, argv, merged=few,
                   dealt=few and DATASETS[config.dataset].in_memory)
    if config.launcher != "none":
        last = launcher.Task("train", "main", [*argv, "--launcher", "none", "--slurm"])
        tasks = [launcher.Task("train", "main", run) for run in runs]
        if launcher.launch(config, tasks, last):
            return  # SLURM's last job does what follows
    elif config.jobs > 1:
        gpus = launcher.gpus_of(config)
        with experiment.images_for(gpus) as more:
            launcher.in_parallel([[sys.executable, __file__, *run] for run in runs], config.jobs,
                                 gpus, more)
    for seed in config.seeds:
        for name, method in experiment.methods.items():
            PREEMPTION.check()
            execute(make_run(experiment, name, seed), method, experiment.data(method, seed))
    if not config.no_tables:
        write_tables(experiment)


if __name__ == "__main__":
    main()
