"""Benchmark 2: a ResNet training step, ours against plain fp32 eager, in images per second.

    python tests/benchmarks/step.py [--quick] [--backbone resnet18] [--compile] [--repeats 5]

Ours is models/method.py as train.py runs it: channels_last, fused SGD, on a GPU bf16 autocast;
with --compile the same through torch.compile, too. Plain is the same loss, network and SGD in
contiguous fp32. Batches lie ready on the device. All are warm, so compiling does not count (its
time is printed by itself); each round runs them in turn. Prints medians, the median of the paired
ratios, and the FLOP/s (counted over forward and backward) as a share of a large matrix
multiplication's. About 2 minutes on 2 CPU cores, without --compile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from paired import in_turn, machine, peak_flops, print_table, ratio, seconds  # noqa: E402

from models.backbones import BACKBONES, build  # noqa: E402
from models.method import Method  # noqa: E402
from utils.recipe import Recipe  # noqa: E402

Step = Callable[[torch.Tensor, torch.Tensor], object]


def plain_step(model: torch.nn.Module, recipe: Recipe) -> Step:
    """fp32, contiguous, eager: forward, loss, backward, SGD."""
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x).squeeze(1), y.float()).backward()
        optimizer.step()

    model.train()
    return step


def our_step(model: torch.nn.Module, recipe: Recipe, autocast: torch.dtype | None, **how) -> Step:
    """One update of ERM on a batch as the loader delivers it."""
    method = Method(model, recipe, autocast=autocast, **how)
    method.train_mode()
    return lambda x, y: method.update((None, x, y, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", choices=list(BACKBONES))
    parser.add_argument("--batch-size", type=int, help="default: 128 on a GPU, else 32")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, help="in a run; default 20 on a GPU, else 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile beside it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    if flags.quick:
        flags.batch_size, flags.image_size, flags.steps, flags.repeats = 4, 32, 1, 1
    device = torch.device(flags.device)
    on_gpu = device.type == "cuda"
    steps = flags.steps or (20 if on_gpu else 1)
    flags.batch_size = flags.batch_size or (128 if on_gpu else 32)
    torch.set_num_threads(flags.threads)
    autocast = torch.bfloat16 if on_gpu else None
    recipe = Recipe(epochs=1, lr=0.01)
    shape = (flags.batch_size, 3, flags.image_size, flags.image_size)
    x = torch.randn(shape, device=device)
    y = torch.randint(0, 2, (flags.batch_size,), device=device)
    last = torch.channels_last

    def network() -> torch.nn.Module:
        return build(flags.backbone).to(device, memory_format=last)

    plain = plain_step(build(flags.backbone).to(device), recipe)
    batches = {"plain fp32": (plain, x)}
    for name, compiled in {"ours": False, "ours, compiled": True}.items():
        if flags.compile or not compiled:
            step = our_step(network(), recipe, autocast, compiled=compiled)
            batches[name] = (step, x.contiguous(memory_format=last))

    works, first = {}, {}
    for name, (step, images) in batches.items():

        def run(step=step, images=images) -> None:
            for _ in range(steps):
                step(images, y)

        # warm: kernels are chosen, memory is taken
        first[name] = seconds(lambda step=step, images=images: step(images, y), device)
        works[name] = run
    counter = FlopCounterMode(display=False)
    with counter:
        plain(x, y)
    work = counter.get_total_flops() / flags.batch_size

    times = in_turn(works, flags.repeats, device)
    peaks = dict.fromkeys(works, peak_flops(device, autocast or torch.float32))
    peaks["plain fp32"] = peak_flops(device, torch.float32)
    print(machine(device))
    print(
        f"{flags.backbone}, {flags.image_size} px, batch {flags.batch_size}, {device}, "
        f"{'bf16' if on_gpu else 'fp32'}, {work / 1e9:.2f} GFLOP an image, "
        f"medians of {flags.repeats} paired runs of {steps} step(s)\n"
    )
    rows = []
    for name, taken in times.items():
        rate = flags.batch_size * steps / statistics.median(taken)
        share = f"{rate * work / peaks[name]:.0%}"
        rows.append([name, rate, rate * work / 1e9, share, ratio(times, name, "plain fp32")])
    print_table(["step", "images/s", "GFLOP/s", "of the peak", "times plain"], rows)
    if flags.compile:
        print(f"compiling: the first step took {first['ours, compiled']:.1f} s, not counted above")


if __name__ == "__main__":
    main()
