"""Generation on the GPU against the CPU, and at the size of Stable Diffusion 2.1."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import no_waiting
from PIL import Image

from stable_diffusion import edit, pipeline
from stable_diffusion.compilation import compile_networks
from utils.devices import ieee

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from sd21 import SIDE, sd21  # noqa: E402

pytestmark = pytest.mark.gpu
PROMPTS = ["a photo of a smiling man", "a photo of a woman", "a face in the rain", "an old man"]
LIMIT = 24 * 2**30  # bytes


def demo(device: str, precision: str, **how) -> pipeline.Sampler:
    pipe = pipeline.load_pipeline("demo", scheduler="dpmsolver++", precision=precision,
                                  device=device, **how)
    return pipeline.Sampler(pipe, steps=4, guidance=3.0, height=64, width=64)


def images(sampler: pipeline.Sampler, seeds=range(4)) -> torch.Tensor:
    return sampler.sample(PROMPTS, list(seeds)).cpu().float()


@pytest.mark.parametrize(("precision", "most", "mean"), [
    ("fp32", 2, 0.1),  # ~
    ("bf16", 255, 3),  # ~
])
def test_demo_images_are_the_cpus(precision, most, mean, device):
    expected = images(demo("cpu", "fp32"))
    with ieee():
        found = images(demo(device.type, precision))
    assert (found - expected).abs().max() <= most
    assert (found - expected).abs().mean() <= mean


def test_guided_images_are_those_of_the_plain_pipeline(device):
    sampler = demo(device.type, "fp32")
    with ieee():
        found = images(sampler)
        plain = pipeline.load_pipeline("demo", scheduler="dpmsolver++", device=device.type)
        plain.set_progress_bar_config(disable=True)
        expected = plain(PROMPTS, num_inference_steps=4, guidance_scale=3.0, output_type="np",
                         latents=sampler.noise(range(4))).images
    assert np.abs(found.numpy() - expected * 255).max() <= 2


def test_an_edit_keeps_the_precision(device, tmp_path):
    sampler = demo(device.type, "bf16")
    editor = edit.Editor(sampler, 4, 64, 64)
    Image.new("RGB", (64, 64), (200, 100, 50)).save(tmp_path / "a.png")
    pixels = editor.edit([edit.Edit("", "a.png", 1, PROMPTS[0], 1, 2)], tmp_path)
    assert pixels.shape == (1, 64, 64, 3)
    parts = (sampler.pipe.unet, sampler.pipe.vae, sampler.pipe.text_encoder)
    assert {part.dtype for part in parts} == {torch.bfloat16}


def test_the_papers_model_fits_and_does_not_wait(device, small, tiny_pipeline_dir):
    if small:
        pipe, batch, side = pipeline.load_pipeline(
            str(tiny_pipeline_dir), precision="bf16", device="cpu"), 4, 16
    else:
        torch.cuda.reset_peak_memory_stats()
        pipe = pipeline.ready(sd21(torch.bfloat16, device), "ddim", device)
        batch, side = 28, SIDE
    sampler = pipeline.Sampler(pipe, steps=2, guidance=9.0, height=side, width=side)
    prompts = (PROMPTS * 7)[:batch]
    sampler.embed_all(prompts)
    sampler.sample(prompts, range(batch))  # kernels are chosen
    with no_waiting(device):
        pixels = sampler.sample(prompts, range(batch))
    assert pixels.shape == (batch, side, side, 3)
    assert all(int(image.max()) > int(image.min()) for image in pixels)
    if not small:
        assert torch.cuda.max_memory_allocated() <= LIMIT


def test_compiled_networks_are_the_eager_ones(device, compiling):
    from torch._dynamo.utils import counters

    eager = images(demo(device.type, "fp32"))
    sampler = demo(device.type, "fp32")
    compile_networks(sampler.pipe)
    counters.clear()
    images(sampler)
    compiling(True)
    found = images(sampler)
    assert not counters["graph_break"]
    assert (found - eager).abs().mean() <= 2e-2 * 255  # ~
