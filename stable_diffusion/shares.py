"""Which share of the work belongs to this process: from --shard, or from its launcher.

The work is shared through the file system: batch b belongs to the process with index b mod world,
and finished images are skipped. The shares cover the work if the processes have the indices 0 to
world - 1. Where a launcher does not say how many there are, or its array has gaps, this module asks
for --shard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from utils.devices import PROCESSES
from utils.errors import UserError

# Job arrays: the variables for this job's number, the first and the last, the step between them,
# and how many there are; "" where the scheduler has none.
SLURM = tuple(f"SLURM_ARRAY_TASK_{word}" for word in ("ID", "MIN", "MAX", "STEP", "COUNT"))
ARRAYS = (
    SLURM,
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE", ""),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "", "", "", "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("PBS_ARRAY_INDEX", "", "", "", ""),  # PBS Pro, OpenPBS
    ("PBS_ARRAYID", "", "", "", ""),  # Torque
    ("LSB_JOBINDEX", "", "", "", ""),  # LSF gives the last number, not the first or the gaps
    ("FLUX_JOB_CC", "", "", "", ""),
)
NO_ARRAY = {("SGE_TASK_ID", "undefined"), ("LSB_JOBINDEX", "0")}


def share(text: str | None, environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """(index, world) of this process, 0 <= index < world: `--shard i/n`, else its launcher's.

    Where each job of an array starts several processes, the two are multiplied. Raises UserError
    for values that are not a share, and where the launcher's do not say which share it is.
    """
    env = os.environ if environment is None else environment
    if text is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if not match or int(match[1]) >= int(match[2]):
            raise UserError(f"--shard {text} is not a share; give i/n with 0 <= i < n, such as 0/4")
        return int(match[1]), int(match[2])
    env = {name: value.strip() for name, value in env.items() if value.strip()}
    rank, ranks = _process(env)
    job, jobs = _job(env)
    return job * ranks + rank, jobs * ranks


def _process(env: Mapping[str, str]) -> tuple[int, int]:
    for rank, size, _ in PROCESSES:
        if rank in env and rank == "SLURM_PROCID" and size not in env:
            if env[rank] == "0":
                continue  # a batch script
            size = "SLURM_NTASKS"
        if rank in env:
            index, world = _number(env, rank), _number(env, size)
            if not 0 <= index < world:
                raise _refusal(env, (rank, size), "is not a share of the work")
            return index, world
    return 0, 1


def _job(env: Mapping[str, str]) -> tuple[int, int]:
    for names in ARRAYS:
        here, first, last, step, count = names
        if here not in env or (here, env[here]) in NO_ARRAY:
            continue
        if not (count or last):
            raise _refusal(env, names, "does not say how many jobs the array has")
        start = _number(env, first) if first in env else 0
        pace = _number(env, step) if step in env else 1
        if pace < 1:
            raise _refusal(env, names, "is not a share of the work")
        end = _number(env, last) if last in env else None
        world = _number(env, count) if count else (end - start) // pace + 1
        index, rest = divmod(_number(env, here) - start, pace)
        gaps = count and end not in (None, start + pace * (world - 1))
        if rest or gaps or not 0 <= index < world:
            raise _refusal(env, names, "belongs to an array with gaps, which has no equal shares")
        return index, world
    return 0, 1


def _number(env: Mapping[str, str], name: str) -> int:
    if name not in env:
        raise UserError(f"{name} is not set, unlike its launcher's others; give --shard i/n")
    if not re.fullmatch(r"-?\d+", env[name], re.ASCII):
        raise UserError(f"{name}={env[name]} is not a number; unset it or give --shard i/n")
    return int(env[name])


def _refusal(env: Mapping[str, str], names: tuple[str, ...], what: str) -> UserError:
    said = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    return UserError(
        f"{said} {what}; give --shard i/n, with i from 0 to n - 1 and the n of the first start"
    )
