"""The shares of processes started together cover the work, or are refused; see shares.py."""

import pytest

from stable_diffusion.shares import share
from utils.devices import local_rank
from utils.errors import UserError


def slurm(ids, step=1):
    """The environments of `sbatch --array=<ids>`."""
    return [{"SLURM_ARRAY_TASK_ID": i, "SLURM_ARRAY_TASK_MIN": min(ids),
             "SLURM_ARRAY_TASK_MAX": max(ids), "SLURM_ARRAY_TASK_STEP": step,
             "SLURM_ARRAY_TASK_COUNT": len(ids), "SLURM_PROCID": 0, "SLURM_NTASKS": 1}
            for i in ids]


def processes(rank, size, **other):
    return [{rank: i, size: 4, **other} for i in range(4)]


def grid_engine(first, last, step=1):
    return [{"SGE_TASK_ID": i, "SGE_TASK_FIRST": first, "SGE_TASK_LAST": last,
             "SGE_TASK_STEPSIZE": step} for i in range(first, last + 1, step)]


def shares(environments):
    return [share(None, {name: str(value) for name, value in environment.items()})
            for environment in environments]


STARTS = {
    "alone": [{}],
    "torchrun": processes("RANK", "WORLD_SIZE"),
    "torchrun on the nodes of srun": [
        {"RANK": 2 * node + i, "WORLD_SIZE": 4, "SLURM_PROCID": node, "SLURM_STEP_NUM_TASKS": 2}
        for node in range(2) for i in range(2)],
    "srun": processes("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", SLURM_NTASKS=4),
    "srun of a step smaller than its job": processes("SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
                                                     SLURM_NTASKS=16),
    "Open MPI": processes("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": processes("PMI_RANK", "PMI_SIZE"),
    "Flux": processes("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "a batch script of four tasks that starts one process": [
        {"SLURM_PROCID": 0, "SLURM_NTASKS": 4}],
    "SLURM 0-7": slurm(range(8)),
    "SLURM 1-4": slurm(range(1, 5)),
    "SLURM 0-14:2": slurm(range(0, 15, 2), step=2),
    "SLURM 3,7, of which SLURM says the step 4": slurm([3, 7], step=4),
    "one lost task again": slurm([3]),
    "Grid Engine 1-4": grid_engine(1, 4),
    "Grid Engine 1-8:2": grid_engine(1, 8, 2),
    "Grid Engine, no array": [{"SGE_TASK_ID": "undefined", "SGE_TASK_FIRST": "undefined"}],
    "LSF, no array": [{"LSB_JOBINDEX": 0}],
    "AWS": [{"AWS_BATCH_JOB_ARRAY_INDEX": i, "AWS_BATCH_JOB_ARRAY_SIZE": 3} for i in range(3)],
    "a SLURM array of torchruns": [
        {**task, "RANK": i, "WORLD_SIZE": 2} for task in slurm(range(3)) for i in range(2)],
    "a SLURM array of sruns": [
        {**task, "SLURM_PROCID": i, "SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS": 2}
        for task in slurm(range(3)) for i in range(2)],
    "empty variables": [{"RANK": "", "WORLD_SIZE": " ", "PBS_ARRAY_INDEX": ""}],
}


@pytest.mark.parametrize("start", STARTS)
def test_the_shares_of_a_start_cover_the_work_once(start):
    found = shares(STARTS[start])
    assert {world for _, world in found} == {len(found)}
    assert sorted(index for index, _ in found) == list(range(len(found)))


@pytest.mark.parametrize(("environments", "words"), [
    (slurm([3, 7]), "SLURM_ARRAY_TASK_ID=3.*array with gaps"),
    (slurm([0, 1, 5]), "array with gaps"),
    (slurm([2, 3, 4, 6]), "array with gaps"),
    (slurm([1, 3, 6], step=2), "array with gaps"),
    ([{"PBS_ARRAY_INDEX": 3}], "PBS_ARRAY_INDEX=3 does not say how many jobs"),
    ([{"PBS_ARRAYID": 3}], "PBS_ARRAYID=3 does not say"),
    ([{"LSB_JOBINDEX": 3, "LSB_JOBINDEX_END": 8}], "LSB_JOBINDEX=3 does not say"),
    ([{"FLUX_JOB_CC": 3}], "FLUX_JOB_CC=3 does not say"),
    ([{"RANK": 2, "WORLD_SIZE": 2}], "RANK=2, WORLD_SIZE=2 is not a share"),
    ([{"RANK": 0}], "WORLD_SIZE is not set"),
    ([{"RANK": "x", "WORLD_SIZE": 2}], "RANK=x is not a number"),
    (slurm([0, 1], step=0), "is not a share"),
])
def test_a_share_that_cannot_be_told_is_refused(environments, words):
    for environment in environments[:1]:
        with pytest.raises(UserError, match=words) as refusal:
            shares([environment])
        assert "--shard i/n" in str(refusal.value)
    for environment in environments:  # the remedy is one everywhere
        assert share("1/3", {name: str(value) for name, value in environment.items()}) == (1, 3)


@pytest.mark.parametrize("text", ["3/3", "1/0", "-1/2", "one", "1/٣"])
def test_a_shard_that_is_none(text):
    with pytest.raises(UserError, match=f"--shard {text}"):
        share(text, {})


@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, 0), ({"LOCAL_RANK": "1"}, 1), ({"RANK": "5", "LOCAL_RANK": "x"}, 0),
    ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, 1),
    ({"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "2", "SLURM_LOCALID": "0"}, 2),
])
def test_each_process_of_a_machine_takes_its_own_gpu(environment, wanted):
    assert local_rank(environment) == wanted
