"""Benchmark 4: images per second of generate.py against the plain StableDiffusionPipeline call.

    python tests/benchmarks/generation.py [--quick] [--model demo | sd21] [--compile] [--repeats 5]

Same weights, prompts, noise, scheduler, steps, guidance, batch and precision, in one process; both
end in PNG files. Plain is the pipeline's call on a batch of prompts, then PIL's resize and save.
`sd21` is Stable Diffusion 2.1's architecture with random weights, made from its configuration, at
512 pixels, saved at 224 (a GPU is needed in practice). Loading and the first, warming batch of
each are not timed; with --compile what ours takes is printed by itself. Prints medians, the median
of the paired ratios and how far the two sets of images differ. About 4 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from paired import in_turn, machine, peak_flops, print_table, ratio, seconds  # noqa: E402
from sd21 import sd21  # noqa: E402

from stable_diffusion import generate, model_files, pipeline  # noqa: E402
from stable_diffusion.compilation import compile_networks  # noqa: E402
from stable_diffusion.manifest import Row  # noqa: E402

PROMPTS = ROOT / "prompts" / "Smiling_Male_contextual_50.json"


def load_plain(model: str, scheduler: str, dtype: torch.dtype, device: torch.device):
    """diffusers' pipeline as its documentation loads it, with the same sampler."""
    pipe = StableDiffusionPipeline.from_pretrained(
        model_files.DEMO_MODEL if model == "demo" else model, dtype=dtype, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(device)  # fmt: skip
    pipe.scheduler = pipeline.make_scheduler(scheduler, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plan(batches: int, size: int) -> list[list[Row]]:
    """Rows of the first group's prompts, in turn."""
    prompts = json.loads(PROMPTS.read_text())["cells"]["0_0"]
    rows = [Row(f"{i:05d}.png", 0, 0, i, prompts[i % len(prompts)], 1000 + i)
            for i in range(batches * size)]  # fmt: skip
    return [rows[i * size : (i + 1) * size] for i in range(batches)]


def main() -> None:
    flags = parse()
    device = pipeline.pick_device(flags.device)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(flags.threads)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    base = pipeline.DEMO_DEFAULTS if flags.model == "demo" else pipeline.PAPER_DEFAULTS
    steps = flags.steps or base["steps"]
    size = flags.batch_size or base["batch_size"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "demo"
        if flags.model != "demo":
            model = str(folder / "model")
            sd21(dtype, device).save_pretrained(model)
        pipe = pipeline.load_pipeline(
            model, scheduler=base["scheduler"], precision="bf16" if on_gpu else "fp32",
            device=str(device),
        )  # fmt: skip
        if flags.compile:
            compile_networks(pipe)
        plain = load_plain(model, base["scheduler"], dtype, device)
        shutil.rmtree(folder / "model", ignore_errors=True)
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        saved = min(side, 224)
        sampler = pipeline.Sampler(
            pipe, steps=steps, guidance=base["guidance"], height=side, width=side
        )

        def ours(rows: list[list[Row]], out: Path = folder / "ours") -> None:
            with tqdm(disable=True) as bar:
                generate.make_images(sampler, rows, out, saved, size, bar)

        def theirs(rows: list[list[Row]], out: Path = folder / "plain") -> None:
            for batch in rows:
                images = plain(
                    [row.prompt for row in batch], num_inference_steps=steps, eta=0.0,
                    guidance_scale=base["guidance"],
                    latents=sampler.noise([row.seed for row in batch]).to(dtype),
                ).images  # fmt: skip
                for row, image in zip(batch, images, strict=True):
                    if image.width != saved:
                        image = image.resize((saved, saved), Image.Resampling.LANCZOS)
                    image.save(out / row.path)

        for out in ("ours", "plain"):
            (folder / out).mkdir()
        rows = plan(flags.batches, size)
        first = seconds(lambda: ours(rows[:1]), device)
        with FlopCounterMode(display=False) as counter:
            theirs(rows[:1])
        work = counter.get_total_flops() / size
        works = {"plain pipeline": lambda: theirs(rows), "ours": lambda: ours(rows)}
        times = in_turn(works, flags.repeats, device)
        apart = [
            np.abs(np.subtract(*(np.asarray(Image.open(folder / out / row.path), np.int16)
                                 for out in ("ours", "plain"))))
            for batch in rows for row in batch
        ]  # fmt: skip
    count = size * flags.batches
    print(machine(device))
    print(
        f"{flags.model}, {side} px, {base['scheduler']} {steps} steps, batch {size}, {device}, "
        f"{str(dtype)[6:]}; plain does "
        f"{work / 1e9:.4g} GFLOP an image; medians of {flags.repeats} paired runs of {count} "
        "images; peak: a large matrix multiplication\n"
    )
    peak = peak_flops(device, dtype)
    table = []
    for which, taken in times.items():
        rate = count / statistics.median(taken)
        # the plain work per second: what ours leaves out counts as speed
        share = f"{rate * work / peak:.0%}"
        table.append([which, rate, share, ratio(times, which, "plain pipeline")])
    print_table(["generation", "images/s", "plain's work, of the peak", "times plain"], table)
    if flags.compile:
        print(f"compiling: ours' first batch took {first:.1f} s, not counted above")
    else:
        print("nothing was compiled")
    print(f"pixels differ by {np.mean(apart):.3f} of 255 on average, at most {np.max(apart)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", choices=("demo", "sd21"))
    parser.add_argument("--batch-size", type=int, help="default: generate.py's for the model")
    parser.add_argument("--steps", type=int, help="default: generate.py's for the model")
    parser.add_argument("--batches", type=int, default=1, help="in a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    if flags.quick:
        flags.batch_size, flags.steps, flags.batches, flags.repeats = 2, 2, 1, 1
    return flags


if __name__ == "__main__":
    main()
