"""The GPU suite: `pytest -m gpu`, about 4 minutes on one GPU; never passes without CUDA.

REHEARSE=1 carries the same cases out on the CPU at tiny sizes, so that the code is known to run;
the case of the environment fails there all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch

from datasets.loader import Loader
from utils.preemption import PREEMPTION

REHEARSE = os.environ.get("REHEARSE") == "1"


@pytest.fixture
def device() -> torch.device:
    """The GPU; in a rehearsal the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if REHEARSE:
        return torch.device("cpu")
    return pytest.skip("no CUDA device (REHEARSE=1 runs the case on the CPU)")


@pytest.fixture
def small(device) -> bool:
    """Whether sizes are those of a rehearsal."""
    return device.type == "cpu"


@pytest.fixture
def compiling(small, monkeypatch) -> Iterator[Callable[[bool], None]]:
    """Called with True it makes another compilation an error. In a rehearsal nothing is made
    faster, which takes minutes on a CPU: graphs are captured and run as they are."""
    if small:
        compile_ = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda *a, **k: compile_(*a, **(k | {"backend": "aot_eager"})))
    yield lambda done: torch.compiler.set_stance("fail_on_recompile" if done else "default")
    torch.compiler.set_stance("default")


@pytest.fixture(autouse=True)
def waiting_allowed() -> Iterator[None]:
    """Afterwards the host may wait again: the frames of a case that failed hold `no_waiting`."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Inside, the host must not wait for the GPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def here(monkeypatch) -> None:
    """train.main runs in this process with the small network, and draws nothing."""
    tiny.with_network(monkeypatch)
    monkeypatch.setattr(PREEMPTION, "requested", False)
    tiny.without_pictures(monkeypatch)


@pytest.fixture
def watched(device, monkeypatch) -> Callable[[Callable[[int, int], None]], None]:
    """Training steps from the second of an epoch on must not wait; `at` is told epoch and step."""
    epoch = Loader.epoch

    def install(at: Callable[[int, int], None] = lambda k, step: None) -> None:
        def batches(self, k: int):
            if not self.train:
                yield from epoch(self, k)
                return
            given = epoch(self, k)
            first = next(given, None)
            if first is None:
                return
            at(k, 0)
            yield first
            with no_waiting(device):
                for step, batch in enumerate(given, 1):
                    at(k, step)
                    if PREEMPTION.requested and device.type == "cuda":
                        # after this step the training saves, and waits for what it saves
                        torch.cuda.set_sync_debug_mode("default")
                    yield batch

        monkeypatch.setattr(Loader, "epoch", batches)

    return install
