"""`--launcher`: every method and seed of one command, or one experiment, as a job array (submitit).

A task is a command for one method and seed; it needs nothing from the other tasks, whose
pre-trained model it waits for or finds. On SLURM a last job, which starts when all tasks have ended
in whatever way, is the command without --launcher, or each of the experiment's in turn: it finds
the finished runs, makes those that are missing, and writes tables, figures and report. So a lost
job loses nothing, and the command may be given again at any time.

Before its time is up a job gets SIGUSR2: it saves, and submitit puts it back into the queue.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils import devices
from utils.errors import UserError, reason
from utils.preemption import PREEMPTED, PREEMPTION

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = ("none", "slurm", "local")
REQUEUES = 1000  # a run may take longer than one job; each has its progress behind it
LOCAL_MINUTES = 60 * 24 * 365


class Parameter(NamedTuple):
    """What --slurm NAME=VALUE becomes: a parameter of submitit's AutoExecutor, and its type."""

    submitit: str
    kind: type
    least: int = 0  # of a number


PARAMETERS = {
    "partition": Parameter("slurm_partition", str),
    "account": Parameter("slurm_account", str),
    "qos": Parameter("slurm_qos", str),
    "constraint": Parameter("slurm_constraint", str),
    "exclude": Parameter("slurm_exclude", str),
    "time": Parameter("timeout_min", int, 5),  # minutes
    "gpus": Parameter("gpus_per_node", int),
    "cpus": Parameter("cpus_per_task", int, 1),
    "mem": Parameter("mem_gb", int, 1),  # GB
    "parallel": Parameter("slurm_array_parallelism", int, 1),  # tasks at once
}
DEFAULTS = {"timeout_min": 720, "slurm_array_parallelism": 256}


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """submitit's parameters from "NAME=VALUE" texts. Raises UserError for what is not one."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not text:
            raise UserError(f"--slurm {pair}: write NAME=VALUE without blanks, such as time=720")
        if name not in PARAMETERS:
            raise UserError(f"--slurm {name} is unknown; it takes {', '.join(PARAMETERS)}")
        known = PARAMETERS[name]
        if known.submitit in values:
            raise UserError(f"--slurm {name} is given twice; give it once")
        if known.kind is int and not (text.isdecimal() and int(text) >= known.least):
            raise UserError(
                f"--slurm {pair}: {name} must be a whole number of at least {known.least}"
            )
        values[known.submitit] = known.kind(text)
    return values


def check(launcher: str, pairs: Sequence[str]) -> None:
    """Raise UserError where the jobs cannot be submitted from this machine with these flags."""
    parse_parameters(pairs)
    if launcher == "none":
        if pairs:
            raise UserError("--slurm speaks of jobs: give --launcher slurm too, or remove it")
        return
    try:
        import submitit  # noqa: F401 - only needed here
    except ImportError:
        raise UserError(
            f"--launcher {launcher} needs the package submitit: run pip install submitit, or leave "
            "the flag out"
        ) from None
    if launcher == "slurm":
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise UserError(
                    f"--launcher slurm: {command} is not on this machine; start the command where "
                    "SLURM's jobs are submitted, or use --launcher local or none"
                )


class Task:
    """One call of `module.function(arguments)`, a command's main, as submitit runs it."""

    def __init__(self, module: str, function: str, arguments: Sequence[str]):
        self.module, self.function, self.arguments = module, function, list(arguments)
        self.gpus: str | None = None  # CUDA_VISIBLE_DEVICES; None: what the scheduler says

    def __call__(self) -> None:
        if self.gpus is not None:  # submitit's local executor says 0 to every task
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        sys.argv = [f"{self.module}.py", *self.arguments]  # what the run folder's record names
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, which ends the process
        try:
            getattr(importlib.import_module(self.module), self.function)(self.arguments)
        except SystemExit as end:
            if end.code == PREEMPTED and PREEMPTION.signal == signal.SIGUSR2:
                requeue(signal.SIGUSR2, None)
            if end.code:
                # submitit would not notice an exit code
                raise RuntimeError(f"{self.module}.py ended with exit code {end.code}") from None

    def checkpoint(self):
        """What is to be run after a requeue: the same again, from what it has saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    launcher: str, pairs: Sequence[str], tasks: Sequence[Task], last: Callable[[], None],
    folder: Path, name: str, gpus: Sequence[str] = (), at_once: int = 1,
) -> list:
    """Submit the tasks as one array and, on SLURM, `last` to follow them; submitit's jobs.

    folder: for the jobs' logs. name: theirs in the queue. Of the local launcher: the GPUs, one a
    task, and how many tasks run at once, no fewer than there are GPUs; it returns when the last one
    has begun. Raises UserError where SLURM refuses.
    """
    import submitit

    # So a job finds this code wherever it was submitted from; jobs get this environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    given = parse_parameters(pairs)
    parameters = DEFAULTS | {"name": name} | given
    if launcher == "local":  # submitit's own default is two minutes
        parameters |= {"timeout_min": LOCAL_MINUTES} | given
    executor = submitit.AutoExecutor(
        folder / "%j", cluster=launcher, slurm_max_num_timeout=REQUEUES,
        local_max_num_timeout=REQUEUES,
    )
    executor.update_parameters(**parameters)
    if launcher == "local":
        at_once = given.get("slurm_array_parallelism", max(1, len(gpus), at_once))
        return _one_by_slot(executor.submit, tasks, at_once, gpus)
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
        array = jobs[0].job_id.split("_")[0]
        executor.update_parameters(slurm_dependency=f"afterany:{array}")
        jobs.append(executor.submit(last))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(
            f"SLURM refused the jobs ({_refusal(error)}): correct --slurm and start again"
        ) from None
    return jobs


def _one_by_slot(
    submit: Callable, tasks: Sequence[Task], at_once: int, gpus: Sequence[str]
) -> list:
    """Start each task when one of `at_once` slots is free, on the slot's GPU; the jobs."""
    jobs, slots = [], dict.fromkeys(range(at_once))
    for task in tasks:
        while not (free := [slot for slot, job in slots.items() if job is None or job.done()]):
            PREEMPTION.check()
            time.sleep(0.2)
        task.gpus = gpus[free[0] % len(gpus)] if gpus else os.environ.get("CUDA_VISIBLE_DEVICES")
        slots[free[0]] = submit(task)
        jobs.append(slots[free[0]])
    return jobs


def gpus_of(config) -> list[str]:
    """The GPUs over which the command's processes are spread: all that it sees, unless --device
    names one or the CPU."""
    return devices.gpus() if config.device == "cuda" else []


def _refusal(error: Exception) -> str:
    """sbatch's own words in submitit's error."""
    lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
    return lines[0].removeprefix("sbatch: ").removeprefix("error: ") if lines else reason(error)


def wait(jobs: Sequence) -> None:
    """Wait until all jobs have ended. Raises UserError with the first one's error where one failed.

    The jobs go on where this process is stopped.
    """
    while not all(job.done() for job in jobs):
        PREEMPTION.check()
        time.sleep(0.2)
    failed = [job for job in jobs if job.exception() is not None]
    if failed:
        log = failed[0].paths.stderr
        lines = (failed[0].stderr() or "").splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed, the first with '{(said or ['?'])[-1]}'; "
            f"look at {log}, mend that and start the same command again"
        )


def launch(config, tasks: Sequence[Task], last: Task) -> bool:
    """The runs of a command as jobs; whether `last` is SLURM's last job, and so not to be done
    here. With --launcher local it waits for the runs."""
    folder = config.results / config.setting / "submitit"
    jobs = submit(config.launcher, config.slurm, tasks, last, folder, config.setting,
                  gpus_of(config) if config.launcher == "local" else (), config.jobs)
    if config.launcher == "local":
        wait(jobs)
        return False
    print(f"{len(tasks)} runs submitted, tables to follow by job {jobs[-1].job_id}; logs "
          f"are in {folder}")
    return True


def in_parallel(
    commands: Sequence[Sequence[str]], jobs: int, gpus: Sequence[str] = (),
    more: Callable[[int], dict[str, str]] = lambda gpu: {},
) -> None:
    """Run the commands, at most `jobs` at once. How many threads each takes is its own flag.

    gpus: as CUDA_VISIBLE_DEVICES names them; slot s of the `jobs` sees GPU s modulo their number.
    more: what else a process on that GPU, by its place in `gpus`, finds in its environment.
    What they say on stderr is passed on when they end, each line once. So is a signal for this
    process. Raises UserError where one failed, with what it said.
    """
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    waiting, running = deque(commands), {}  # process -> (file of what it says on stderr, slot)
    failed: list[str] = []
    told: set[str] = set()
    try:
        while (waiting and not failed) or running:
            while waiting and not failed and len(running) < jobs:
                said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe would fill up
                slot = min(set(range(jobs)) - {slot for _, slot in running.values()})
                gpu = slot % max(1, len(gpus))
                own = {"CUDA_VISIBLE_DEVICES": gpus[gpu]} if gpus else {}
                process = subprocess.Popen(
                    waiting.popleft(), env=environment | own | more(gpu), stderr=said)
                running[process] = said, slot
            PREEMPTION.check()
            for process in [one for one in running if one.poll() is not None]:
                with running.pop(process)[0] as said:
                    said.seek(0)
                    lines = [line.strip() for line in said if line.strip()]
                if process.returncode:
                    failed.append((lines or [f"exit code {process.returncode}"])[-1])
                    continue
                for line in lines:  # "no room on the GPU", of every process alike
                    if line not in told:
                        print(line, file=sys.stderr)
                        told.add(line)
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        raise UserError(f"a run failed with '{failed[0]}'; mend that and rerun the same command")
