"""The GPU's benchmark: everything that a target is set for, in about 5 minutes on one GPU.

    python tests/benchmarks/gpu.py [--quick] [--only peak loader step rest generation]

Prints each part's figures beside their targets and its peak memory. Exit code 1 where a target is
missed or a part fails, and always without CUDA: --quick carries the same code out at tiny sizes on
the CPU, where nothing is judged. Images/s of generation are of 50 steps and the decoding, from the
time of the steps that were run; shares of the peak are of a large matrix product in the same
precision.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from paired import machine, print_table, seconds, synchronise  # noqa: E402
from sd21 import generation  # noqa: E402

from datasets import resident  # noqa: E402
from datasets.base import ImageTable  # noqa: E402
from datasets.image_store import ImageStore  # noqa: E402
from datasets.loader import Loader  # noqa: E402
from models.backbones import build  # noqa: E402
from models.method import Method  # noqa: E402
from utils.devices import describe, ieee, native_bf16  # noqa: E402
from utils.engine import Progress, predictions  # noqa: E402
from utils.recipe import Recipe  # noqa: E402

VALIDATION = 19_867  # images of CelebA's


@dataclass(frozen=True)
class Figure:
    """A measured value; `least` or `most` is its target, None where it is only shown."""

    part: str
    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most)

    def row(self, judged: bool) -> list:
        target = "" if self.least is None else f">= {self.least:g}"
        target = target if self.most is None else f"<= {self.most:g}"
        said = {None: "", True: "met", False: "MISSED"}[self.met if judged else None]
        return [f"{self.part}: {self.name}", float(self.value), target, said]


class Bench:
    """Sizes, the device and what was found so far."""

    def __init__(self, quick: bool, device: torch.device, folder: Path):
        self.quick, self.device, self.folder = quick, device, folder
        self.figures: list[Figure] = []
        self.peaks: dict[str, float] = {}
        self.side, self.batch, self.images = (32, 8, 24) if quick else (224, 128, 2560)
        self.autocast = torch.bfloat16 if native_bf16(str(device)) else None

    def add(self, part: str, name: str, value: float, **target: float) -> None:
        self.figures.append(Figure(part, name, value, **target))

    def time(self, work: Callable, times: int = 1) -> float:
        """Seconds of one call, the mean of `times` back to back, warm."""
        work()
        return seconds(lambda: [work() for _ in range(times)], self.device) / times

    def method(self, **how) -> Method:
        model = build("resnet18_quarter" if self.quick else "resnet18")
        model = model.to(self.device, memory_format=torch.channels_last)
        method = Method(model, Recipe(1, 0.01), autocast=self.autocast, **how)
        method.train_mode()
        return method

    def given(self) -> tuple:
        """A batch that lies ready."""
        x = torch.randn(self.batch, 3, self.side, self.side, device=self.device)
        y = torch.randint(0, 2, (self.batch,), device=self.device)
        return None, x.contiguous(memory_format=torch.channels_last), y, None


def peak(bench: Bench) -> None:
    """FLOP/s of a large matrix product in each precision, 20 back to back."""
    side, times = (256, 2) if bench.quick else (8192, 20)
    for name, dtype in (("bf16", torch.bfloat16), ("TF32", torch.float32), ("IEEE", torch.float32)):
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        with ieee():
            if name == "TF32" and bench.device.type == "cuda":
                torch.backends.cuda.matmul.fp32_precision = "tf32"
            bench.peaks[name] = 2 * side**3 / bench.time(lambda a=a, b=b: a @ b, times)
        bench.add("peak", f"{name}, TFLOP/s", bench.peaks[name] / 1e12)


def faces(bench: Bench, count: int, name: str) -> tuple[ImageTable, ImageStore]:
    """Images of CelebA's size that are decoded already; name: of the file they would be in."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 218, 178, 3), dtype=np.uint8)
    numbers = np.arange(count)
    table = ImageTable("faces", [f"/{i}.jpg" for i in range(count)], numbers % 2, numbers // 2 % 2)
    return table, ImageStore([Path(name)], [pixels], np.zeros_like(numbers), numbers)


def loader(bench: Bench, count: int, *, train: bool = True, room: bool = True, workers: int = 1,
           size: int | None = None) -> Loader:
    """A loader of these; room=False: threads feed the device."""
    from datasets import loader as module

    # names of their own: images that are on the device already need no room there
    table, store = faces(bench, count, f"faces {count} {room}")
    opened, free = module.open_store, resident.free_memory
    module.open_store = lambda *_, **__: store
    if not room:
        resident.free_memory = lambda device: None if free(device) is None else 0
    try:
        made = Loader(table, size or bench.batch, image_size=bench.side, train=train,
                      device=bench.device, drop_last=train, workers=workers)
    finally:
        module.open_store, resident.free_memory = opened, free
    made.workers = workers
    return made


def loading(bench: Bench) -> None:
    """The loader alone, beside the step, and by threads."""
    method, batch = bench.method(), bench.given()
    steps = bench.images // bench.batch
    fixed = bench.time(lambda: [method.update(batch) for _ in range(steps)])
    made = loader(bench, bench.images)

    def through(made: Loader) -> None:
        for _ in made.epoch(0):
            pass

    alone = bench.time(lambda: through(made))
    whole = bench.time(lambda: [method.update(given) for given in made.epoch(0)])
    bench.add("loader", "images/s alone", bench.images / alone)
    bench.add("loader", "times the step's", fixed / alone, least=5)
    bench.add("loader", "an epoch, of one on a fixed batch", whole / fixed, most=1.10)
    for workers in (1, 4, 8):
        threads = loader(bench, bench.images, room=False, workers=workers)
        rate = bench.images / bench.time(lambda made=threads: through(made))
        bench.add("loader", f"images/s, {workers} threads feed", rate)


def busy(bench: Bench, work: Callable) -> float:
    """Share of the time in which a kernel runs on the GPU; NaN on a CPU."""
    if bench.device.type == "cpu":
        return math.nan
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        taken = seconds(work, bench.device)
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events()
                   if e.device_type == torch.autograd.DeviceType.CUDA)
    total, until = 0.0, 0.0
    for start, end in spans:  # kernels may overlap
        total, until = total + max(0.0, end - max(start, until)), max(until, end)
    return total / 1e6 / taken


def step(bench: Bench) -> None:
    """ResNet-18's training step, and several seeds of it at once."""
    batch, times = bench.given(), 2 if bench.quick else 30
    with FlopCounterMode(display=False) as counter:
        bench.method().update(batch)
    work = counter.get_total_flops()  # of a batch
    top = bench.peaks.get("bf16" if bench.autocast else "IEEE", math.nan)
    best = 0.0
    for name, how in (("eager", {}), ("cudnn.benchmark", {}), ("compiled", {"compiled": True})):
        torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
        method = bench.method(**how)
        run = bench.time(lambda method=method: method.update(batch), times)
        torch.backends.cudnn.benchmark = False
        best = max(best, bench.batch / run)
        bench.add("step", f"{name}, images/s", bench.batch / run)
        bench.add("step", f"{name}, % of the peak", 100 * work / run / top)
        if name == "eager":
            share = busy(bench, lambda method=method: [method.update(batch) for _ in range(times)])
            bench.add("step", "eager, % of the time in kernels", 100 * share, least=90)
    bench.add("step", "best, images/s (target: an H200's)", best, least=15_000)
    for seeds in (2, 4):
        methods = [bench.method() for _ in range(seeds)]
        lanes = [torch.cuda.Stream() for _ in methods] if bench.device.type == "cuda" else None

        def together(methods=methods, lanes=lanes) -> None:
            for number, method in enumerate(methods):
                with torch.cuda.stream(lanes[number] if lanes else None):
                    method.update(batch)

        run = bench.time(together, times)
        bench.add("step", f"{seeds} seeds in streams, images/s in all", seeds * bench.batch / run)


def rest(bench: Bench) -> None:
    """Validation, upload and a checkpoint, as shares of an epoch of 20,000 images."""
    method, batch = bench.method(), bench.given()
    epoch = bench.time(lambda: method.update(batch), 3) * 20_000 / bench.batch
    count = 48 if bench.quick else VALIDATION
    began = time.perf_counter()
    made = loader(bench, count, train=False, size=16 if bench.quick else 512)
    synchronise(bench.device)
    bench.add("rest", "upload (and making images), s", time.perf_counter() - began)
    taken = bench.time(lambda: predictions(method, made)) * VALIDATION / count
    bench.add("rest", f"validation of {VALIDATION}, s", taken)
    bench.add("rest", "validation, % of an epoch", 100 * taken / epoch)
    taken = bench.time(
        lambda: Progress().save(bench.folder / "state.pt", method, bench.device))
    bench.add("rest", "a checkpoint, % of an epoch", 100 * taken / epoch)


PARTS = {"peak": peak, "loader": loading, "step": step, "rest": rest, "generation": generation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU: does it run?")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    flags = parser.parse_args()
    if not flags.quick and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured; --quick runs the code at tiny sizes")
        return 1
    device = torch.device("cpu" if flags.quick else "cuda")
    if flags.quick:  # making faster code takes minutes on a CPU: graphs are run as they are
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(flags.quick, device, Path(folder))
        print(machine(device), describe(str(device), "bf16" if bench.autocast else "fp32"),
              sep="; ", end="\n\n")
        for name in dict.fromkeys(["peak", *flags.only]):
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                PARTS[name](bench)
            except Exception:  # noqa: BLE001 - the other parts' figures are worth their minutes
                traceback.print_exc()
                failed.append(name)
            if device.type == "cuda":
                bench.add(name, "peak memory, GiB", torch.cuda.max_memory_allocated() / 2**30)
    judged = device.type == "cuda"
    print_table(["figure", "measured", "target", ""],
                [figure.row(judged) for figure in bench.figures])
    missed = [figure.name for figure in bench.figures if figure.met is False]
    print(*(f"{name} failed, see above" for name in failed),
          f"{len(missed)} targets missed" if judged else "a CPU: no target was judged", sep="\n")
    return 1 if missed or failed or not judged else 0


if __name__ == "__main__":
    sys.exit(main())
