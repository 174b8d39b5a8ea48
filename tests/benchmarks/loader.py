"""Benchmark 1: an epoch of augmented 224-pixel batches, ours against torchvision per sample.

    python tests/benchmarks/loader.py [--images 4000] [--cores 1] [--repeats 5] [--device cpu]

Makes CelebA-shaped JPEGs (178x218) and times, in turn and on the same cores, the usual pipeline (a
Dataset that opens each file and applies RandomResizedCrop, flip, ToTensor and Normalize, in a
DataLoader with one worker process per core, on a single core none) and datasets/loader.py with one
thread per core. Both read the files from the page cache. With --device cuda both end there: the
usual batches by pinned memory, ours from images that live on it.
Prints medians over the repeats; each
ratio is the median of the paired ratios. About 2 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from paired import machine  # noqa: E402

from datasets.base import ImageTable  # noqa: E402
from datasets.image_store import open_store  # noqa: E402
from datasets.loader import Loader  # noqa: E402

HEIGHT, WIDTH, SIZE = 218, 178, 224


class PerSample(Dataset):
    """Opens, decodes and augments one file at a time."""

    def __init__(self, table: ImageTable, normalised: bool):
        steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        if normalised:
            steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        else:
            steps += [transforms.PILToTensor()]
        self.table, self.transform = table, transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int):
        with Image.open(self.table.paths[i]) as image:
            x = self.transform(image.convert("RGB"))
        return i, x, self.table.y[i], self.table.a[i]


def make_jpegs(folder: Path, count: int) -> ImageTable:
    """`count` JPEGs at quality 90: crops of scikit-learn's two photographs, enlarged at random."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    paths = []
    for i in range(count):
        width = random.uniform(60, 340)
        height = width * HEIGHT / WIDTH
        left, top = random.uniform(0, 640 - width), random.uniform(0, 427 - height)
        face = photos[i % 2].resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        paths.append(str(folder / f"{i:06d}.jpg"))
        face.save(paths[-1], quality=90)
    numbers = np.arange(count)
    return ImageTable("CelebA-shaped", paths, numbers % 2, numbers // 2 % 2)


def seconds(epoch: Callable, device: torch.device) -> float:
    """Wall time of going through all batches of `epoch()`, the first element of each touched."""
    start = time.perf_counter()
    for _, x, *_ in epoch():
        if isinstance(x, torch.Tensor):
            x = x.to(device, non_blocking=True)
        x[0, 0, 0, 0].item()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    flags = parser.parse_args()
    device = torch.device(flags.device)
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= flags.cores <= len(available):
        parser.error(f"--cores must be 1 to {len(available)} here")
    os.sched_setaffinity(0, available[: flags.cores])
    torch.set_num_threads(flags.cores)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = make_jpegs(folder, flags.images)
        start = time.perf_counter()
        open_store(table, folder / "store")
        building = time.perf_counter() - start
        ours = Loader(
            table,
            flags.batch_size,
            image_size=SIZE,
            train=True,
            device=device,
            store_dir=folder / "store",
            workers=flags.cores,
        )

        def theirs(normalised: bool) -> DataLoader:
            return DataLoader(
                PerSample(table, normalised),
                flags.batch_size,
                shuffle=True,
                # on one core a worker beside this process would only carry batches to it
                num_workers=flags.cores if flags.cores > 1 else 0,
                pin_memory=device.type == "cuda",
            )

        rows = {
            "torchvision, normalised": lambda k: theirs(True),
            "ours, normalised": lambda k: ours.epoch(k),
            "torchvision, uint8": lambda k: theirs(False),
            "ours, uint8": lambda k: ours.host_epoch(k, normalised=False),
        }
        times: dict[str, list[float]] = {row: [] for row in rows}
        for repeat in range(flags.repeats):
            for row, epoch in rows.items():
                times[row].append(seconds(lambda epoch=epoch, k=repeat: epoch(k), device))
    report(flags, times, building)


def report(flags: argparse.Namespace, times: dict[str, list[float]], building: float) -> None:
    """Print the table: images per second and core, and how many times torchvision's that is."""
    print(machine(torch.device(flags.device)))
    print(f"{flags.images} images, {flags.cores} core(s), median of {flags.repeats} paired runs\n")
    print(f"| {'batches':24} | epoch, s | images/s/core | times torchvision's |")
    print(f"|{'-' * 26}|---------:|--------------:|--------------------:|")
    for row, taken in times.items():
        baseline = times["torchvision, " + row.split(", ")[1]]
        ratio = statistics.median(b / t for b, t in zip(baseline, taken, strict=True))
        median = statistics.median(taken)
        rate = flags.images / median / flags.cores
        print(f"| {row:24} | {median:8.2f} | {rate:13.0f} | {ratio:19.2f} |")
    epoch = statistics.median(times["torchvision, normalised"])
    print(f"\nbuilding the store: {building:.2f} s, {building / epoch:.2f} torchvision epochs")


if __name__ == "__main__":
    main()
