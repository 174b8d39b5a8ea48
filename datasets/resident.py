"""Decoded images on a GPU: sent there once, shared by all loaders and stages of the process, and
by the processes that one command starts there (shared_images.py)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch

from datasets import shared_images
from datasets.image_store import ImageStore
from utils.files import lock
from utils.preemption import PREEMPTION

ROOM = 0.4  # share of the memory left by other processes that images take; the rest is the step's
PIECE = 64 * 2**20  # bytes sent to the device at once

Key = tuple[shared_images.Name, torch.device]
_USED: WeakValueDictionary[Key, torch.Tensor] = WeakValueDictionary()  # by a loader, or kept
_KEPT: dict[Key, torch.Tensor] = {}  # for the next stage: validation and test images, the next run


def upload(
    store: ImageStore, device: torch.device
) -> tuple[list[torch.Tensor], np.ndarray] | None:
    """A table's images on the device, uint8 [n, H, W, 3] per array of the store, and each table
    row's place in its tensor, int64 [N]. None on a CPU and where they have no room.

    What is there already is used again. Processes on one GPU ask and send one after the other, so
    that each counts the others' images.
    """
    if free_memory(device) is None:
        return None
    keys, places = [(name, device) for name in names(store)], np.empty_like(store.row)
    for number in range(len(keys)):
        here = store.group == number
        places[here] = np.searchsorted(store.used(number), store.row[here])
    with _alone(device):
        if not _make_room(keys, store, device):
            return None
        try:
            tensors = [_there(key, array, store.used(number))
                       for number, (key, array) in enumerate(zip(keys, store.arrays))]
        except torch.OutOfMemoryError:  # somebody else was faster
            forget(device)
            return None
    return tensors, places


def names(store: ImageStore) -> list[shared_images.Name]:
    """What the store's images are called, array by array."""
    return [(file, array.shape, store.used(number).tobytes())
            for number, (file, array) in enumerate(zip(store.files, store.arrays, strict=True))]


def hold(stores: Sequence[ImageStore], device: torch.device) -> dict[shared_images.Name,
                                                                   torch.Tensor]:
    """The stores' images on the device, sent there as far as they have room."""
    held = {}
    for store in stores:
        if sent := upload(store, device):
            held |= dict(zip(names(store), sent[0], strict=True))
    return held


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could still have there: what the driver has left and what torch
    holds in reserve; None of a device that is no GPU."""
    if device.type != "cuda":
        return None
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + own


def forget(device: torch.device) -> None:
    """Give back the images that no loader uses."""
    for key in [key for key in _KEPT if key[1] == device]:
        del _KEPT[key]
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held(device: torch.device) -> int:
    """Bytes of images there."""
    return sum(tensor.nbytes for key, tensor in _USED.items() if key[1] == device)


def _make_room(keys: list[Key], store: ImageStore, device: torch.device) -> bool:
    for again in (True, False):
        missing = sum(len(store.used(number)) * array[0].nbytes
                      for number, (key, array) in enumerate(zip(keys, store.arrays))
                      if key not in _USED and key[0] not in shared_images.received())
        there = held(device)
        if not missing or missing + there <= ROOM * (free_memory(device) + there):
            return True
        if again:
            forget(device)
    return False


def _there(key: Key, array: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    if (given := shared_images.received().get(key[0])) is not None:
        return given  # the memory of the process that started this one
    tensor = _USED.get(key)
    if tensor is None:
        shape = (len(rows), *array.shape[1:])
        tensor = torch.empty(shape, dtype=torch.uint8, device=key[1])
        step = max(1, PIECE // array[0].nbytes)
        for i in range(0, len(rows), step):
            tensor[i : i + step] = torch.from_numpy(array[rows[i : i + step]])
        _USED[key] = tensor
    _KEPT[key] = tensor
    return tensor


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """No other process of this user sends images to that GPU inside."""
    name = str(device)
    if device.type == "cuda":
        name = str(torch.cuda.get_device_properties(device).uuid)
    user = os.getuid() if hasattr(os, "getuid") else ""
    path = Path(tempfile.gettempdir()) / f"images_on_{name.replace(':', '_')}_{user}.lock"
    with open(path, "a") as file:
        lock(file, f"waiting for another run that sends images to {device}", PREEMPTION.check)
        yield
