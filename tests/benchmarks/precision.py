"""Benchmark 2b: is a model trained under bf16 autocast as accurate as in fp32?

    python tests/benchmarks/precision.py [--quick] [--seeds 1 2 3] [--size 640] [--epochs 6]

ResNet-18 by ERM on the demo's biased faces, as train.py trains it, from the same start and with
the same batches in both precisions. The target is Male: at a processor's size it is learned within
these epochs, which Smiling is not. Prints every seed's accuracy and worst group on test faces, the
mean difference of the two precisions and the standard deviation over seeds to compare it with.
Then the mask: AIM-Fair's three gradients at the fp32 model's weights in both precisions (other
faces of the demo in the place of generated ones), the overlap of the two masks (Jaccard), and the
overlap of the seeds' fp32 masks. No time is measured: a processor without bf16 instructions is
several times slower at it. About 20 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TQDM_DISABLE", "1")  # no bars between the tables; torch reads it

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from paired import machine, print_table  # noqa: E402

import train  # noqa: E402
from datasets.base import ImageTable, Splits  # noqa: E402
from datasets.demo import load  # noqa: E402
from datasets.mixing import Data  # noqa: E402
from models import METHODS  # noqa: E402
from models.experiment import complete  # noqa: E402
from models.selection import SENSITIVE_TO_BIAS  # noqa: E402
from utils.engine import predictions  # noqa: E402
from utils.metrics import fairness_metrics  # noqa: E402
from utils.run import Run  # noqa: E402

PRECISIONS = ("fp32", "bf16")
TARGET, PROTECTED = "Male", "Smiling"


def settings(flags: argparse.Namespace, splits: Splits, folder: Path, precision: str):
    """train.py's settings in one precision."""
    given = ["--methods", "erm", "--pretrained", "none", "--device", flags.device]
    given += ["--target", TARGET, "--protected", PROTECTED]
    given += ["--image-size", flags.image_size, "--batch-size", flags.batch_size]
    given += ["--pretrain-epochs", flags.epochs, "--pretrain-milestone", max(1, flags.epochs - 2)]
    given += ["--pretrain-lr", 0.02, "--min-crop", 0.4, "--size", flags.size]  # the demo's
    given += ["--synthetic-ratio", 0.8, "--synthetic-biased-ratio", 0.44]
    given += ["--precision", precision, "--store-dir", folder / "store"]
    return complete(train.parse([str(value) for value in given]))


def one_seed(
    flags: argparse.Namespace, splits: Splits, pool: ImageTable, folder: Path, seed: int
) -> dict:
    """{precision: accuracy, worst group's accuracy and mask at the fp32 model's weights}."""
    models, figures = {}, {}
    for precision in PRECISIONS:
        config = settings(flags, splits, folder, precision)
        digests = {"real": splits.train.digest()}
        data = Data(splits, pool, config, seed, digests=digests)
        place = folder / f"{precision}{seed}"
        place.mkdir()
        run = Run(place, config, data, seed, place / "shared")
        method = METHODS["erm"].run(run)
        models[precision] = method.model
        predicted = predictions(method, data.loader(splits.test, train=False))
        metrics = fairness_metrics(predicted, splits.test.y, splits.test.a)
        tensors = SENSITIVE_TO_BIAS.mask(models["fp32"], run)["tensors"]
        mask = {name for name, chosen in tensors.items() if chosen}
        figures[precision] = SimpleNamespace(acc=metrics["acc"], wst=metrics["wst"], mask=mask)
    return figures


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--size", type=int, help="training images; CPU: 640, GPU: 1500")
    parser.add_argument("--epochs", type=int, help="CPU: 6, GPU: 8")
    parser.add_argument("--image-size", type=int, help="CPU: 32, GPU: 64")
    parser.add_argument("--batch-size", type=int, help="CPU: 16, GPU: 32")
    parser.add_argument("--test", type=int, help="test images; CPU: 600, GPU: 2400")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    on_gpu = flags.device.startswith("cuda")
    defaults = (1500, 8, 64, 2400, 32) if on_gpu else (640, 6, 32, 600, 16)
    if flags.quick:
        defaults, flags.seeds = (32, 1, 32, 48, 8), flags.seeds[:2]
    names = ("size", "epochs", "image_size", "test", "batch_size")
    for name, value in zip(names, defaults, strict=True):
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = load(folder / "demo", TARGET, PROTECTED, size=flags.size)
        val = splits.val.take(range(min(len(splits.val), max(48, flags.size))))
        splits = Splits(splits.train, val, splits.test.take(range(flags.test)))
        pool = load(
            folder / "demo", TARGET, PROTECTED, size=1200, minority=0.5, rule="random", seed=1
        ).train
        seeds = [one_seed(flags, splits, pool, folder, seed) for seed in flags.seeds]
    print(machine(torch.device(flags.device)))
    print(
        f"resnet18, {flags.image_size} px, {flags.size} training images, {flags.epochs} epochs, "
        f"{flags.test} test images, {len(seeds)} seeds\n"
    )
    report(flags.seeds, seeds)


def report(numbers: list[int], seeds: list[dict]) -> None:
    """Print both tables and the overlaps of the masks."""
    rows: list[list[object]] = []
    for figure in ("acc", "wst"):
        values = {p: [100 * float(getattr(s[p], figure)) for s in seeds] for p in PRECISIONS}
        apart = [b - a for a, b in zip(*values.values(), strict=True)]
        for precision in PRECISIONS:
            shown = [f"{value:.2f}" for value in values[precision]]
            rows.append([f"{figure.upper()}, {precision}", *shown, *spread(values[precision])])
        rows.append(["bf16 - fp32", *(f"{value:+.2f}" for value in apart), *spread(apart)])
    print_table(["in %", *(f"seed {number}" for number in numbers), "mean", "std"], rows)
    own = [jaccard(s["fp32"].mask, s["bf16"].mask) for s in seeds]
    across = [jaccard(a["fp32"].mask, b["fp32"].mask) for a, b in itertools.combinations(seeds, 2)]
    print(f"masks in both precisions at the same weights: Jaccard {shown_each(own)}")
    print(f"masks of two seeds, both fp32: Jaccard {shown_each(across)}")


def spread(values: list[float]) -> list[str]:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return [f"{statistics.mean(values):.2f}", f"{deviation:.2f}"]


def shown_each(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) or "-"


if __name__ == "__main__":
    main()
