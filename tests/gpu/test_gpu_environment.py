"""Whether there is what the suite is about: it fails, and does not skip, where there is not."""

from __future__ import annotations

import subprocess

import pytest
import torch

from utils import devices

pytestmark = pytest.mark.gpu


def test_there_is_a_gpu_from_ampere_on(capsys):
    assert torch.cuda.is_available(), "no CUDA device: nothing of the GPU suite was shown"
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True, text=True, check=True).stdout.strip()
    with capsys.disabled():
        print(f"\n{driver}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
              f"{torch.backends.cudnn.version()}; TF32 in convolutions: {devices.tf32('cuda')}")
    assert torch.cuda.get_device_capability() >= (8, 0)
    assert devices.native_bf16("cuda")
    assert devices.record()["name"] == torch.cuda.get_device_name()
    assert devices.automatic() == "cuda"
