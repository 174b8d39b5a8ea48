"""Images of one GPU for several processes; shared memory of the CPU plays CUDA's handles."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch.multiprocessing import get_sharing_strategy, set_sharing_strategy
from torch.multiprocessing.reductions import rebuild_cuda_tensor

import train
from datasets import resident, shared_images
from datasets.image_store import open_store
from models.experiment import prepare
from utils import launcher

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

# a process that writes into what it was given: who shares the memory sees it
WRITES = """
import json, sys
sys.path.insert(0, sys.argv[1])
from datasets import shared_images
given = shared_images.received()
for name, images in given.items():
    images[0] += 1
with open(sys.argv[2], "a") as file:
    print(json.dumps([len(images) for images in given.values()]), file=file)
"""


@pytest.fixture
def gpu(monkeypatch):
    """The CPU is a GPU with room, and this process was started by nobody."""
    monkeypatch.setattr(resident, "free_memory", lambda device: 2**40)
    monkeypatch.delenv(shared_images.VARIABLE, raising=False)
    strategy = get_sharing_strategy()
    set_sharing_strategy("file_system")  # by name: the processes are no children of multiprocessing
    resident.forget(CPU)
    shared_images.received.cache_clear()
    yield
    resident.forget(CPU)
    shared_images.received.cache_clear()
    set_sharing_strategy(strategy)


@pytest.fixture
def experiment(data, tmp_path):
    def made(*more):
        return prepare(train.parse(tiny.flags(
            data, tmp_path / "r", "--methods", "erm", "--seeds", 1, 2, "--store-dir",
            tmp_path / "store", *more)))
    return made


def stores_of(experiment) -> list:
    data = experiment.data(experiment.methods["erm"], 1)
    return [open_store(table, experiment.config.store_dir, pools=data.pools)
            for table in (data.real, data.val, data.test)]


def test_the_processes_of_one_gpu_read_the_same_memory(gpu, experiment, tmp_path):
    made = experiment("--jobs", 3)
    stores = stores_of(made)
    with made.images_for([]) as more:
        held = resident.held(CPU)
        assert held == sum(store.nbytes for store in stores) > 0
        before = [resident.upload(store, CPU)[0][0][0].clone() for store in stores]
        launcher.in_parallel(
            [[sys.executable, "-c", WRITES, str(ROOT), str(tmp_path / "said")]] * 3, 3, (), more)
    for store, first in zip(stores, before):
        assert torch.equal(resident.upload(store, CPU)[0][0][0], first + 3)
    assert resident.held(CPU) == held
    said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert said == [[len(images) for store in stores for images in resident.upload(store, CPU)[0]]
                    ] * 3


def test_a_process_sends_nothing_that_it_was_given(gpu, experiment, tmp_path, monkeypatch):
    store, other = stores_of(experiment())[:2]
    images = resident.hold([store], CPU)
    (tmp_path / "handles").write_bytes(shared_images.pack(images))
    monkeypatch.setenv(shared_images.VARIABLE, str(tmp_path / "handles"))
    shared_images.received.cache_clear()
    resident.forget(CPU)  # as another process, which has none of its own
    monkeypatch.setattr(resident, "_USED", {})
    monkeypatch.setattr(resident, "free_memory", lambda device: 0)  # and no room for more
    again, places = resident.upload(store, CPU)
    for one, sent in zip(again, images.values(), strict=True):
        assert torch.equal(one, sent)
    assert len(places) == len(store.row) and resident.held(CPU) == 0
    assert resident.upload(other, CPU) is None


def test_handles_that_cannot_be_opened_are_said_and_done_without(
        gpu, experiment, tmp_path, monkeypatch, capsys):
    store = stores_of(experiment())[0]
    (tmp_path / "handles").write_bytes(b"no handles")
    monkeypatch.setenv(shared_images.VARIABLE, str(tmp_path / "handles"))
    assert resident.upload(store, CPU) is not None
    assert resident.held(CPU) == store.nbytes
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be opened" in said and "keeps its own" in said


def test_what_cuda_does_not_share_each_process_keeps(gpu, experiment, monkeypatch, capsys):
    def refuse(tensor):
        raise RuntimeError("CUDA error: operation not supported")
    monkeypatch.setattr(shared_images, "reduce_tensor", refuse)
    with experiment("--jobs", 3).images_for([]) as more:
        assert more(0) == {}
    assert "cannot share images (CUDA error: operation not supported)" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "gpus", "why"), [
    (("--jobs", 2), ["0", "1"], "a GPU has one process"),
    (("--jobs", 3, "--data-seed", "run"), [], "every seed has other images"),
])
def test_nothing_is_held_that_nobody_shares(flags, gpus, why, gpu, experiment):
    with experiment(*flags).images_for(gpus) as more:
        assert more(0) == {} and resident.held(CPU) == 0, why


def test_a_processors_files_are_shared_by_the_system(experiment, tmp_path):
    with experiment("--jobs", 3).images_for([]) as more:
        assert more(0) == {}


def test_the_number_of_a_gpu_is_the_receivers(monkeypatch):
    """What torch writes down for a tensor on GPU 1, to be read where that GPU is the first."""
    wanted = inspect.signature(rebuild_cuda_tensor).parameters
    written = {name: 1 if name == "storage_device" else None for name in wanted}

    class OnGpu:
        device = torch.device("cuda", 1)

    monkeypatch.setattr(shared_images, "reduce_tensor",
                        lambda tensor: (rebuild_cuda_tensor, tuple(written.values())))
    monkeypatch.setattr(shared_images, "ForkingPickler", type("Kept", (), {
        "dumps": staticmethod(lambda packed: json.dumps(packed["name"][1]).encode())}))
    said = json.loads(shared_images.pack({"name": OnGpu()}, 0))
    assert dict(zip(wanted, said)) == written | {"storage_device": 0}
