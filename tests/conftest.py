"""Fixtures shared by the tests; the repository root is put on sys.path, as `python -m` does."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are the processes'
gc.disable()  # until all is imported, of which nothing is garbage: to look took half of that time


LONGEST = ("test_training", "test_kills", "test_launcher", "test_generation", "test_backbones")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def on_gpu(config) -> bool:
    """Whether the GPU's suite was asked for: pytest -m gpu."""
    return "gpu" in (config.option.markexpr or "").replace("not gpu", "")


def pytest_configure(config) -> None:
    """The ordinary tests compute on the CPU, whatever the machine has; tests/gpu are for the GPU.

    SIGTERM stays pytest's where a test calls train.main, and nobody waits for the disk: no test
    cuts the power.
    """
    from utils.preemption import PREEMPTION

    PREEMPTION.install = lambda: None
    os.fsync = lambda file: None
    if not on_gpu(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers(config) -> int:
    """A process a core, of a node's eight; one GPU serves one process, or its timings mean nothing.
    """
    return 0 if on_gpu(config) else min(os.cpu_count() or 1, 8)


def pytest_collection_modifyitems(items: list) -> None:
    """The longest files begin first, so that no process is left alone with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def folder(tmp_path_factory) -> None:
    """Tells the golden sentences which part of a path is a test's folder."""
    import refusals

    refusals.FOLDER = str(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory) -> Path:
    """A StableDiffusionPipeline of random weights, 16x16 pixels, saved in diffusers' format."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.models.clip.tokenization_clip import VOCAB_FILES_NAMES

    folder = tmp_path_factory.mktemp("tiny_pipeline")
    letters = [chr(c) for c in range(33, 127)]
    merges = ["s m", "sm i", "f a", "fa c", "fac e</w>"]
    tokens = [*letters, *[letter + "</w>" for letter in letters], "sm", "smi", "fa", "fac"]
    tokens += ["face</w>", "<|startoftext|>", "<|endoftext|>"]
    words = folder / "words"
    words.mkdir()
    vocab = {token: i for i, token in enumerate(tokens)}
    (words / VOCAB_FILES_NAMES["vocab_file"]).write_text(json.dumps(vocab))
    (words / VOCAB_FILES_NAMES["merges_file"]).write_text("#version: 0.2\n" + "\n".join(merges))
    tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=77)

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def no_pauses(monkeypatch) -> None:
    """Clients of a server try again at once, without their pause."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A module's copy of the small data (tiny.make), its runs included."""
    import tiny

    root = tiny.make(tmp_path_factory.mktemp("tiny"))
    yield root
    shutil.rmtree(root)
