"""Devices: which one a process takes, what it computes natively, and how it rounds."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, reason

# torch takes seconds to import, and some of what imports this file does without it

# Processes of one job, what starts them innermost first (a torchrun may itself be srun's): number
# of this one, how many there are, its number on this machine. Slurm sets SLURM_PROCID=0 and
# SLURM_NTASKS in a batch script, too, which is one process: srun alone says the step's tasks.
PROCESSES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun
)


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This process's number on its machine, 0 where none is said: which GPU it takes."""
    env = os.environ if environment is None else environment
    for rank, _, local in PROCESSES:
        if rank in env or local in env:
            number = env.get(local, "0")
            return int(number) if re.fullmatch(r"\d+", number, re.ASCII) else 0
    return 0


def cores() -> int:
    """Cores this process may use: of a SLURM job, not of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def gpu_files() -> list[str]:
    """What an NVIDIA driver shows of its GPUs, whether or not torch can use them."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))


def automatic() -> str:
    """"cuda" where torch can use a GPU, else "cpu".

    Raises UserError where there is an NVIDIA GPU that torch cannot use (a driver older than its
    CUDA): days on the CPU would look like a slow start. CUDA_VISIBLE_DEVICES="" hides the GPUs.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    found = gpu_files()
    if not found or os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "cpu"
    try:
        torch.cuda.init()
        cause = f"it sees {torch.cuda.device_count()} GPUs"
    except Exception as error:  # noqa: BLE001 - torch and the driver raise many types
        cause = reason(error)[:200]
    raise UserError(
        f"{found[0]} is here but torch {torch.__version__} cannot use it ({cause}): install a "
        "torch for this driver, or start with --device cpu"
    )


def pick(name: str) -> str:
    """cpu, cuda or cuda:N of --device: auto replaced, and under torchrun, srun or mpirun each
    process's own GPU. A GPU with a number becomes the process's current one: on another one's
    stream an event says nothing of it. Raises UserError as `automatic`."""
    device = automatic() if name == "auto" else name
    if device == "cpu":
        return device
    import torch

    if device == "cuda" and (rank := local_rank()):
        device = f"cuda:{rank % max(1, torch.cuda.device_count())}"
    # A GPU that is for SLURM's jobs need not be here.
    if device.startswith("cuda:") and int(device[5:]) < torch.cuda.device_count():
        torch.cuda.set_device(device)
    return device


def gpus() -> list[str]:
    """The GPUs that this process sees, named as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given is not None else map(str, range(count))
    return [name.strip() for name in names][:count]


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 itself: NVIDIA from Ampere on (a T4 or V100 only
    emulates it), processors with AMX or AVX512-BF16 (on one with AMX a step took 0.4 to 0.6 of its
    time in fp32)."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def training_precision(device: str, *, in_memory: bool) -> str:
    """--precision auto: bf16 where the device has it, for images. Rows of features and digits are
    little to multiply, and logistic regressions and L-BFGS need every digit: fp32."""
    return "bf16" if not in_memory and native_bf16(device) else "fp32"


def generation_precision(device: str) -> str:
    """generate.py's default: on a GPU bf16 where it has it, else fp16, in which the weights are
    published; on a CPU fp32, whose images are the same on every kind of processor up to rounding.
    """
    if not device.startswith("cuda"):
        return "fp32"
    return "bf16" if native_bf16(device) else "fp16"


def tf32(device: str) -> bool:
    """Whether float32 convolutions round their input to TF32 there: cuDNN's default from Ampere on.
    """
    import torch

    if not device.startswith("cuda") or torch.version.hip or not torch.cuda.is_available():
        return False
    return (torch.backends.cudnn.conv.fp32_precision == "tf32"
            and torch.cuda.get_device_capability(device) >= (8, 0))


def numerics(device: str, precision: str) -> str:
    """How a training rounds, in words."""
    return "fp32 with TF32 convolutions" if precision == "fp32" and tf32(device) else precision


@contextmanager
def ieee() -> Iterator[None]:
    """Inside, float32 is IEEE's: no TF32 in convolutions and matrix products. A decorator too.

    Sums of differences (influences, residuals of conjugate gradients) need these 13 bits.
    """
    import torch

    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def describe(device: str, precision: str) -> str:
    """One line: what computes, and how it rounds."""
    import torch

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    name = f" ({torch.cuda.get_device_name(device)})" if on_gpu else ""
    return f"device: {device}{name}, {numerics(device, precision)}"


def record() -> dict | None:
    """The GPU of this process for config.json; None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
            "tf32": tf32("cuda")}
