"""Several processes on one machine's GPUs: all end, and each computes where it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from datasets import shared_images

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"0_0": ["a face"], "0_1": ["his face"], "1_0": ["her smile"], "1_1": ["a smile"]}
SMALL = ["--backbone", "resnet18_quarter", "--methods", "erm", "--pretrain-epochs", 1,
         "--no-tables", "--seeds", 1, 2]


def finished(command: list, **environment: str) -> str:
    """What the command prints; it must end well."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, text=True, capture_output=True, check=False,
        timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def trained(data: Path, results: Path, device: torch.device, *more, **environment) -> str:
    flags = tiny.flags(data, results, *SMALL, "--device", device.type, *more)
    printed = finished([sys.executable, "train.py", *flags], **environment)
    for seed in (1, 2):
        assert (results / "tiny" / "erm" / f"seed{seed}" / "done").exists()
    return printed


def test_two_seeds_at_once_on_one_gpu(data, device, tmp_path):
    printed = trained(data, tmp_path, device, "--jobs", 2)
    assert printed.count(f"device: {device.type}") == 3  # the command and its two processes


READS = """
import json, sys, torch
from datasets import shared_images
given = list(shared_images.received().values())
own = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
print(json.dumps([[int(images.long().sum()), images.device.type] for images in given] + [own]))
"""


def test_the_processes_of_a_gpu_read_images_that_their_parent_holds(device, small):
    images = {("store", (4, 2, 2, 3), b"rows"):
              torch.arange(48, dtype=torch.uint8, device=device).view(4, 2, 2, 3)}
    if small:  # by name: the process is no child of multiprocessing
        torch.multiprocessing.set_sharing_strategy("file_system")
    with shared_images.offered([images], device.index or 0) as more:
        for _ in range(2):
            printed = finished([sys.executable, "-c", READS], **more(0))
            assert json.loads(printed.splitlines()[0]) == [[48 * 47 // 2, device.type], 0]


def test_torchruns_processes_share_the_images(device, tmp_path, tiny_pipeline_dir):
    prompts = tmp_path / "p.json"
    prompts.write_text(json.dumps({"dataset": "celeba", "set": "plain", "target": "Smiling",
                                   "protected": "Male", "cells": GROUPS}))
    printed = finished([
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        "stable_diffusion/generate.py", "--model", tiny_pipeline_dir, "--prompts", prompts,
        "--out", tmp_path / "out", "--images-per-cell", 4, "--steps", 2, "--batch-size", 2,
        "--device", device.type,
    ])
    assert "share 0 of 2, 8 of 8 images" in printed and "share 1 of 2, 8 of 8 images" in printed
    assert len(list((tmp_path / "out").rglob("*.png"))) == 16


def test_local_jobs_take_the_gpus_in_turn(data, device, small, tmp_path):
    if not small and torch.cuda.device_count() < 2:
        pytest.skip("one GPU here: this case is about two")
    visible = {} if small else {"CUDA_VISIBLE_DEVICES": "1"}
    trained(data, tmp_path, device, "--launcher", "local", **visible)
    found = [json.loads(path.read_text())["environment"]["gpu"]
             for path in tmp_path.glob("tiny/erm/seed*/config.json")]
    names = {None} if small else {torch.cuda.get_device_name(1)}
    assert {gpu and gpu["name"] for gpu in found} == names
