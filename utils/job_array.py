"""The lines of one experiment as one job array: `bash runner.sh table4 --launcher slurm`.

    python -m utils.job_array < lines

A line is what follows `python`, quoted as a shell reads it: `train.py ...` with its --launcher, or
`-m module ...`, a command on finished runs. Every method and seed of every line is one task. The
job after the array (see utils/launcher.py) carries the lines out one after another: the first kind
finds its runs and writes their tables, the second has then what it needs.
"""

from __future__ import annotations

import shlex
import sys

import train
from utils import launcher
from utils.errors import UserError, exit_cleanly


class InTurn:
    """Tasks one after another; a failed one ends it, a requeue begins again with the first."""

    def __init__(self, tasks: list[launcher.Task]):
        self.tasks = tasks

    def __call__(self) -> None:
        for task in self.tasks:
            task()

    checkpoint = launcher.Task.checkpoint


@exit_cleanly
def main() -> None:
    """Submit the lines of stdin. Raises UserError for what one of them alone would refuse."""
    tasks, after, first = [], [], None
    for words in filter(None, map(shlex.split, sys.stdin)):
        if words[0] == "-m":
            after.append(launcher.Task(words[1], "main", words[2:]))
            continue
        args, *_ = train.prepare(words[1:])
        first = first or args
        runs, tables = train.tasks(args, words[1:])
        tasks += runs
        after.append(tables)
    if first is None or first.launcher != "slurm":
        raise UserError("no line trains with --launcher slurm: start them without utils.job_array")
    train.launch(first, tasks, InTurn(after))


if __name__ == "__main__":
    main()
