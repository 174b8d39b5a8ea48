"""Stable Diffusion 2.1-base's networks with random weights: its speed and memory without its file,
and gpu.py's figures of it."""

from __future__ import annotations

import statistics

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from paired import in_turn, ratio
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stable_diffusion import model_files, pipeline
from stable_diffusion.compilation import compile_networks

TFLOP = 82.94  # an image: 50 guided steps and its decoding
SIDE, STEPS = 512, 50  # of the paper's images and sampler
SYNTHETIC = 42_000  # its images
ROUNDS = 3  # of one and of two batches, in turn


def sd21(dtype: torch.dtype, device: torch.device) -> StableDiffusionPipeline:
    """Made on the device from the configuration; the tokenizer is the demo model's."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(model_files.DEMO_MODEL / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23,
        vocab_size=49408, projection_dim=512, hidden_act="gelu",
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=SIDE // 8, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
        ).to(dtype)  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            sample_size=SIDE, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).to(dtype)  # fmt: skip
        encoder = CLIPTextModel(text).to(dtype)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def generation(bench) -> None:
    """SD 2.1 at the paper's batch: eager, compiled, and diffusers' own call. bench: gpu.Bench."""
    dtype = bench.autocast or torch.float16
    for name in ("eager", "compiled"):
        if bench.quick:
            pipe = pipeline.load_pipeline("demo", device="cpu")
        else:
            pipe = pipeline.ready(sd21(dtype, bench.device), "ddim", bench.device)
        if name == "compiled":
            compile_networks(pipe)
        drawn(bench, name, pipe)


def drawn(bench, name: str, pipe) -> None:
    """The figures of one pipeline."""
    size, steps = (2, 2) if bench.quick else (28, 10)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor if bench.quick else SIDE
    prompts, seeds = ["a face"] * size, range(size)

    def sampler(steps: int) -> pipeline.Sampler:
        made = pipeline.Sampler(pipe, steps=steps, guidance=9.0, height=side, width=side)
        made.embed_all(prompts)
        return made

    one_step = sampler(1)
    least = bench.time(lambda: one_step.sample(prompts, seeds))
    made = sampler(steps)
    made.sample(prompts, seeds)  # warm
    # in turn: a GPU that grows warm slows down by more than the one per cent that is asked for
    times = in_turn({
        "one": lambda: made.sample(prompts, seeds),
        "two": lambda: [made.sample(prompts, seeds) for _ in range(2)],
    }, ROUNDS, bench.device)
    one = statistics.median(times["one"])
    idle = 100 * (ratio(times, "one", "two") / 2 - 1)
    rate = size / (least + (STEPS - 1) * (one - least) / (steps - 1))
    share = 100 * rate * TFLOP * 1e12 / bench.peaks["bf16"]
    bench.add("generation", f"{name}, images/s at {STEPS} steps", rate)
    bench.add("generation", f"{name}, hours for {SYNTHETIC:,}", SYNTHETIC / rate / 3600)
    bench.add("generation", f"{name}, % of the peak", share, least=40 if name == "eager" else 50)
    bench.add("generation", f"{name}, % idle between batches", idle, most=1)
    if name == "eager":
        # its UNet's kernels are the same ones, and 3% more arithmetic: 1.5 times is out of reach
        bench.add("generation", "times diffusers' call",
                  plain(bench, made, prompts, steps) / one, least=1)


def plain(bench, sampler: pipeline.Sampler, prompts: list[str], steps: int) -> float:
    """Seconds of StableDiffusionPipeline's own call on the same batch."""
    pipe = sampler.pipe
    height, width = (pipe.vae_scale_factor * side for side in sampler.latent_shape[1:])
    pipe.set_progress_bar_config(disable=True)
    return bench.time(lambda: pipe(
        prompts, num_inference_steps=steps, guidance_scale=sampler.guidance, height=height,
        width=width, output_type="np"))
