"""The GPU's benchmark at tiny sizes on the CPU: its parts run, and measure what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from datasets import resident

BENCHMARKS = Path(__file__).parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """The module tests/benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def bench(gpu, tmp_path):
    return gpu.Bench(True, CPU, tmp_path)


def test_validation_upload_and_checkpoint_are_measured(gpu, bench):
    gpu.rest(bench)
    assert [figure.name for figure in bench.figures][-1] == "a checkpoint, % of an epoch"
    assert all(figure.value > 0 for figure in bench.figures)
    assert (bench.folder / "state.pt").exists()


def test_threads_feed_a_device_on_which_the_images_lie_for_another_loader(gpu, bench, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 10**9)  # the CPU plays the GPU
    there = gpu.loader(bench, 16)
    fed = gpu.loader(bench, 16, room=False)
    resident.forget(CPU)
    assert there._resident is not None and fed._resident is None


def test_a_part_that_fails_takes_no_other_figures_with_it(gpu, monkeypatch, capsys):
    def fails(bench):
        raise RuntimeError("out of order")

    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--only", "loader", "peak"])
    monkeypatch.setitem(gpu.PARTS, "loader", fails)
    monkeypatch.setattr(torch, "compile", torch.compile)  # --quick replaces it
    assert gpu.main() == 1
    said = capsys.readouterr()
    assert "RuntimeError: out of order" in said.err
    assert "peak: IEEE, TFLOP/s" in said.out and "loader failed" in said.out
