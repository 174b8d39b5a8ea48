"""Benchmark 5: how time and memory grow with images, seeds and parameters.

    python tests/benchmarks/growth.py [--quick] [--what images seeds parameters] [--repeats 5]

images      decoding the store once, an epoch of training batches, an epoch of ERM on them
seeds       ERM with 1, 2, 4 seeds through train.py, the store decoded once for all
parameters  a training step of ResNet-18, -34, -50
Every row is measured in a process of its own and is the median of its repeats; memory is the
process's peak (on a GPU what torch allocated at its peak). The last column is the exponent b of
cost ~ size^b from row to row: 1 is proportional, below 1 a fixed part is shared. Nothing is
compiled. About 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # no bars between the tables; torch reads it

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import loader as loader_benchmark  # noqa: E402
from paired import machine, print_table, seconds  # noqa: E402

import train  # noqa: E402
from datasets.base import Splits  # noqa: E402
from datasets.image_store import open_store  # noqa: E402
from datasets.loader import Loader  # noqa: E402
from models import METHODS  # noqa: E402
from models.backbones import build  # noqa: E402
from models.experiment import Experiment, complete, execute, make_run  # noqa: E402
from models.method import Method  # noqa: E402
from utils.recipe import Recipe  # noqa: E402

SIZES = {"images": (150, 300, 600), "seeds": (1, 2, 4), "parameters": (18, 34, 50)}
ON_GPU = SIZES | {"images": (5000, 10000, 20000)}
QUICK = {"images": (32, 64), "seeds": (1, 2), "parameters": (18, 34)}


def new_method(name: str, flags: argparse.Namespace) -> Method:
    model = build(name).to(flags.device, memory_format=torch.channels_last)
    autocast = torch.bfloat16 if flags.device.startswith("cuda") else None
    method = Method(model, Recipe(epochs=1, lr=0.01), autocast=autocast)
    method.train_mode()
    return method


def images(count: int, flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of the store, of an epoch of batches and of an epoch of training; bytes on disk."""
    device = torch.device(flags.device)
    table = loader_benchmark.make_jpegs(folder, count)
    measured = {"store, s": seconds(lambda: open_store(table, folder / "store"), device)}
    loader = Loader(
        table, flags.batch_size, image_size=flags.image_size, train=True, device=device,
        drop_last=True, store_dir=folder / "store", workers=flags.cores,
    )  # fmt: skip
    method = new_method("resnet18", flags)

    def train_epoch() -> None:
        for batch in loader.epoch(1):
            method.update(batch)

    measured["batches, s"] = seconds(lambda: [None for _ in loader.epoch(0)], device)
    measured["ERM epoch, s"] = seconds(train_epoch, device)
    stored = [path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()]
    return measured | {"store, MB": sum(stored) / 1e6}


def seeds(count: int, flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of `count` seeds of ERM, one epoch each, from decoding to the run folders."""
    size = sizes_of("images", flags)[0]
    faces = loader_benchmark.make_jpegs(folder, 3 * size)
    splits = Splits(*(faces.take(range(i * size, (i + 1) * size)) for i in range(3)))
    given = ["--methods", "erm", "--pretrained", "none", "--pretrain-epochs", 1, "--device"]
    given += [flags.device, "--image-size", flags.image_size, "--batch-size", flags.batch_size]
    given += ["--workers", flags.cores, "--results", folder, "--store-dir", folder / "store"]
    config = complete(train.parse([str(value) for value in given]))
    erm = {"erm": METHODS["erm"]}
    experiment = Experiment(config, erm, {"erm": {}}, lambda _: splits)
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        for seed in range(count):
            data = experiment.data(erm["erm"], seed)
            execute(make_run(experiment, "erm", seed), erm["erm"], data)
    return {"all seeds, s": time.perf_counter() - began}


def parameters(depth: int, flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of a training step of a ResNet, warm, and its millions of parameters."""
    device = torch.device(flags.device)
    method = new_method(f"resnet{depth}", flags)
    shape = (flags.batch_size, 3, flags.image_size, flags.image_size)
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 2, (flags.batch_size,), device=device)
    method.update((None, x, y, None))
    millions = sum(p.numel() for p in method.model.parameters()) / 1e6
    step = seconds(lambda: method.update((None, x, y, None)), device)
    return {"millions of parameters": millions, "step, s": step}


WORK = {"images": images, "seeds": seeds, "parameters": parameters}


def sizes_of(what: str, flags: argparse.Namespace) -> tuple[int, ...]:
    if flags.quick:
        return QUICK[what]
    return (ON_GPU if flags.device.startswith("cuda") else SIZES)[what]


def measure(what: str, size: int, flags: argparse.Namespace) -> dict[str, float]:
    """One row's medians in this process, its peak memory among them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    torch.set_num_threads(flags.cores)
    runs = []
    for _ in range(flags.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(WORK[what](size, flags, Path(folder)))
    measured = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    if flags.device.startswith("cuda"):
        return measured | {"peak, MB": torch.cuda.max_memory_allocated() / 1e6}
    return measured | {"peak, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def rows_of(what: str, flags: argparse.Namespace) -> list[list[object]]:
    """The table's rows: size, medians, exponents of the columns in seconds."""
    alone = {"max_workers": 1, "max_tasks_per_child": 1}
    spawn = multiprocessing.get_context("spawn")
    rows: list[list[object]] = []
    before: dict[str, float] | None = None
    with ProcessPoolExecutor(**alone, mp_context=spawn) as pool:
        for size in sizes_of(what, flags):
            measured = pool.submit(measure, what, size, flags).result()
            # a network's size is its number of parameters, not of layers
            row = measured | {"size": measured.get("millions of parameters", size)}
            rows.append([size, *measured.values(), _exponents(before, row)])
            before = row
    return [["size", *measured, "exponents"], *rows]


def _exponents(before: dict[str, float] | None, row: dict[str, float]) -> str:
    if before is None:
        return ""
    growth = math.log(row["size"] / before["size"])
    timed = [name for name in row if name.endswith(", s")]
    return " ".join(f"{math.log(row[name] / before[name]) / growth:.2f}" for name in timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    if flags.quick:
        flags.image_size, flags.batch_size, flags.repeats = 32, 16, 1
    torch.set_num_threads(flags.cores)
    print(machine(torch.device(flags.device)))
    print(
        f"{flags.image_size} px, batches of {flags.batch_size}, medians of {flags.repeats} runs; "
        "exponents of the seconds from row to row\n"
    )
    for what in flags.what:
        print(f"growth with {what}\n")
        header, *rows = rows_of(what, flags)
        print_table(header, rows)


if __name__ == "__main__":
    main()
