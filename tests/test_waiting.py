"""What a training does on every batch must not wait for the GPU; `meta` plays it, and its values,
which nobody can read, are not needed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datasets import resident
from datasets.base import ImageTable
from datasets.edits import EditLoader
from models.own_strategies import reestimate_statistics

META = torch.device("meta")
CHECKED = ("aten::_linalg_check_errors",)  # the host reads whether it went well


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the GPU: at a copy to or from it, and a check."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        devices = {part.device for part in tree_leaves(args) if isinstance(part, torch.Tensor)}
        if name == "aten::_to_copy" and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        copied = name in ("aten::_to_copy", "aten::copy_") and len(devices) > 1
        assert not copied and name not in CHECKED, f"{name} waits for the GPU"
        return function(*args, **kwargs)


@pytest.fixture
def edits(tmp_path, monkeypatch) -> EditLoader:
    """Pairs of edits of eight images, two pairs a batch, whose images lie on the GPU."""
    monkeypatch.setattr(resident, "free_memory", lambda device: 10**9)
    rng, paths = np.random.default_rng(0), []
    for number in range(16):
        paths.append(str(tmp_path / f"{number}.png"))
        tiny.face(rng, number // 2 % 2, number % 2).save(paths[-1])
    numbers = np.arange(16)
    table = ImageTable("edits", paths, numbers // 2 % 2, numbers % 2)
    yield EditLoader(table, np.repeat([[0], [1]], 8, axis=1), 2, jitter=True, image_size=32,
                     device=META, store_dir=tmp_path)
    resident.forget(META)


def test_colours_are_changed_without_waiting(edits):
    batches = edits.epoch(0)
    shapes = [tuple(next(batches)[1].shape)]  # the epoch's draws are sent
    with NoWaiting():
        shapes += [tuple(x.shape) for _, x, _, _ in batches]
    assert shapes == [(4, 3, 32, 32)] * 4


def test_statistics_are_estimated_without_waiting():
    """torch's own cumulative mean (momentum None) reads the counter of batches on the device."""
    network = tiny.Network().to(META)
    x = torch.empty(4, 3, 32, 32, device=META)
    with NoWaiting():
        reestimate_statistics(network, [(None, x)] * 3)
    assert network.bn1.momentum == 0.1
