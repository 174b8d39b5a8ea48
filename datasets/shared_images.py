"""Images on a GPU that several processes read.

A command that starts processes sends what all of them read to each GPU once, and hands every
process CUDA's handles of it (torch.multiprocessing's) in a file that the environment names. The
memory stays the command's, which outlives them. A process that cannot open the handles says so and
keeps its own images.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
from torch.multiprocessing.reductions import reduce_tensor

from utils.errors import reason

VARIABLE = "IMAGES_ON_GPU"  # a process's file of handles

Name = tuple[Path, tuple[int, ...], bytes]  # of images: store file, array's shape, rows


def pack(images: Mapping[Name, torch.Tensor], number: int = 0) -> bytes:
    """Handles of the images for one process, whose GPU `number` is the one on which they are.

    Raises RuntimeError where CUDA cannot hand memory to another process.
    """
    packed = {}
    for name, tensor in images.items():
        rebuild, arguments = reduce_tensor(tensor)
        if tensor.device.type == "cuda":  # torch writes down this process's number
            bound = inspect.signature(rebuild).bind(*arguments)
            bound.arguments["storage_device"] = number
            arguments = bound.args
        packed[name] = rebuild, arguments
    return bytes(ForkingPickler.dumps(packed))


@functools.cache
def received() -> dict[Name, torch.Tensor]:
    """The images that the process which started this one holds for it: none where there are none.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return {}
    try:
        packed = pickle.loads(Path(path).read_bytes())  # noqa: S301 - of our own parent
        return {name: rebuild(*arguments) for name, (rebuild, arguments) in packed.items()}
    except Exception as error:  # noqa: BLE001 - torch and the driver raise many types
        print(f"the images that the processes of one GPU share cannot be opened ({reason(error)}); "
              "this process keeps its own", file=sys.stderr)
        return {}


@contextmanager
def offered(
    images: Sequence[Mapping[Name, torch.Tensor]], number: int
) -> Iterator[Callable[[int], dict[str, str]]]:
    """Inside, what a process must find in its environment to read `images[k]`, which are on its GPU
    `number`; to be asked for every process anew, with its k."""
    with tempfile.TemporaryDirectory() as folder:  # which only this user can read
        def environment(k: int) -> dict[str, str]:
            if not images[k]:
                return {}
            try:
                packed = pack(images[k], number)
            except RuntimeError as error:
                print(f"the processes of a GPU cannot share images ({reason(error)}); each keeps "
                      "its own", file=sys.stderr)
                return {}
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(packed)
            return {VARIABLE: file.name}

        yield environment
