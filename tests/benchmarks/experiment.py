"""Benchmark 3: one seed of AIM-Fair by stage, ours against the release's way of doing it.

    python tests/benchmarks/experiment.py [--quick] [--data demo | celeba] [--repeats 5]

Ours is what train.py runs: images decoded once, batched augmentation, channels_last, on a GPU bf16.
The release's way is written from its description: a DataLoader that opens, crops and normalises
each file on the CPU, fp32, and the whole validation set after every epoch. `demo` is the demo's
faces at 64 pixels; `celeba` is made-up JPEGs of CelebA's size at 224 pixels. The generated images
are copies of training images: only the cost matters here. Each round runs both, from decoding to
the test set.

What is run is a part of the whole seed, the same for both (--size training images, validation and
test images in proportion, --epochs), because every stage's time is proportional to its images and
epochs; the last columns multiply it out to the whole. Nothing is compiled. About 4 minutes each on
2 CPU cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # no bars between the tables; torch reads it

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import loader as loader_benchmark  # noqa: E402
from paired import machine, print_table, synchronise  # noqa: E402

import train  # noqa: E402
from datasets.base import ImageTable, Splits  # noqa: E402
from datasets.demo import load  # noqa: E402
from datasets.image_store import open_store  # noqa: E402
from datasets.mixing import Data  # noqa: E402
from models import METHODS  # noqa: E402
from models.backbones import build  # noqa: E402
from models.experiment import complete  # noqa: E402
from utils.engine import predictions  # noqa: E402
from utils.run import Run  # noqa: E402

STAGES = ("decode once", "pretrain", "three gradients", "finetune", "test")
SEED = 100
# One seed as runner.sh has it: images of training, validation and test; epochs; pixels and batch.
WHOLE = {
    "demo": {"images": (1500, 1200, 2400), "epochs": (8, 2), "image_size": 64, "batch_size": 32},
    "celeba": {
        "images": (20000, 19867, 19962), "epochs": (15, 10), "image_size": 224, "batch_size": 128,
    },
}  # fmt: skip
# What is run of it by default: training images, epochs, batch.
PART = {"demo": (256, (2, 1), 32), "celeba": (24, (1, 1), 8)}
PART_ON_GPU = {"demo": (1500, (8, 2), 32), "celeba": (4000, (2, 1), 128)}


class Stopwatch:
    """Seconds by stage."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(STAGES, 0.0)

    def time(self, stage: str, work: Callable):
        began = time.perf_counter()
        result = work()
        synchronise(self.device)
        self.seconds[stage] += time.perf_counter() - began
        return result


def our_way(data: Data, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """METHODS["aim_fair"] in an empty folder and with an empty store."""
    watch, method = Stopwatch(torch.device(args.device)), METHODS["aim_fair"]
    config = replace(args, store_dir=folder / "store")
    data = Data(Splits(data.real, data.val, data.test), data.pool, config, SEED,
                digests=data.digests)
    run = Run(folder / "run", config, data, SEED, folder / "shared")
    run.folder.mkdir(parents=True)

    def decode() -> None:
        for table in (data.val, data.test, *method.tables(data).values()):
            open_store(table, config.store_dir, pools=data.pools)

    watch.time("decode once", decode)
    began = time.perf_counter()
    trained, log = method.run(run), run.log
    training = time.perf_counter() - began
    for row in log:
        watch.seconds[row["stage"]] += row["seconds"]
    # the gradients are the rest, together with writing and reading the models between the stages
    watch.seconds["three gradients"] = training - sum(row["seconds"] for row in log)
    watch.time("test", lambda: predictions(trained, data.loader(data.test, train=False)))
    return watch.seconds


class ReleasesWay:
    """One file at a time through torchvision, plain fp32, validation after every epoch."""

    def __init__(self, data: Data, args: argparse.Namespace):
        self.data, self.args, self.device = data, args, torch.device(args.device)

    def batches(self, table: ImageTable, training: bool) -> DataLoader:
        size = self.args.image_size
        if training:
            change = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            change = [transforms.Resize((size, size))]
        change += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        images = loader_benchmark.PerSample(table, True)
        images.transform = transforms.Compose(change)
        return DataLoader(images, self.args.batch_size, shuffle=training, drop_last=training,
                          num_workers=self.args.workers)  # fmt: skip

    def loss(self, model, x, y) -> torch.Tensor:
        logits = model(x.to(self.device)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, y.float().to(self.device))

    @torch.no_grad()
    def accuracy(self, model, table: ImageTable) -> float:
        model.eval()
        right = sum(
            ((model(x.to(self.device)).squeeze(1) > 0).cpu() == y).sum().item()
            for _, x, y, _ in self.batches(table, False)
        )
        return right / len(table)

    def fit(self, model, table: ImageTable, epochs: int, lr: float) -> None:
        args = self.args
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr, args.momentum,
            weight_decay=args.weight_decay,
        )  # fmt: skip
        best = -1.0
        for _ in range(epochs):
            model.train()
            for _, x, y, _ in self.batches(table, True):
                loss = self.loss(model, x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            accuracy = self.accuracy(model, self.data.val)
            if accuracy > best:
                best, kept = accuracy, deepcopy(model.state_dict())
        model.load_state_dict(kept)

    def gradients(self, model) -> None:
        """Three passes; what is selected makes no difference to the cost."""
        data, model = self.data, deepcopy(model).train()
        for table in (data.real, data.synthetic_biased, data.synthetic_balanced):
            model.zero_grad()
            for _, x, y, _ in self.batches(table, True):
                self.loss(model, x, y).backward()

    def run(self) -> dict[str, float]:
        watch, args, data = Stopwatch(self.device), self.args, self.data
        torch.manual_seed(SEED)
        model = build(args.backbone, args.pretrained).to(self.device)
        watch.time(
            "pretrain", lambda: self.fit(model, data.real, args.pretrain_epochs, args.pretrain_lr)
        )
        watch.time("three gradients", lambda: self.gradients(model))
        balanced = data.synthetic_balanced
        watch.time(
            "finetune", lambda: self.fit(model, balanced, args.finetune_epochs, args.finetune_lr)
        )
        watch.time("test", lambda: self.accuracy(model, data.test))
        return watch.seconds


def make_data(flags: argparse.Namespace, folder: Path) -> tuple[Data, argparse.Namespace]:
    """The tables of one seed, and train.py's settings for them."""
    whole = WHOLE[flags.data]
    counts = [max(1, round(n * flags.size / whole["images"][0])) for n in whole["images"]]
    if flags.data == "demo":
        splits = load(folder / "demo", "Smiling", "Male", size=flags.size)
        parts = [splits.train, splits.val, splits.test]
        splits = Splits(*(part.take(range(n)) for part, n in zip(parts, counts, strict=True)))
    else:
        faces = loader_benchmark.make_jpegs(folder, sum(counts))
        ends = [sum(counts[: i + 1]) for i in range(3)]
        splits = Splits(*(faces.take(range(end - n, end)) for n, end in zip(counts, ends)))
    given = ["--methods", "aim_fair", "--pretrained", "none", "--size", flags.size]
    given += ["--image-size", whole["image_size"], "--batch-size", flags.batch_size]
    given += ["--pretrain-epochs", flags.epochs[0], "--finetune-epochs", flags.epochs[1]]
    given += ["--device", flags.device, "--workers", flags.cores]
    config = complete(train.parse([str(value) for value in given]))
    pool, digests = copied_pool(splits.train, folder / "pool"), {"real": splits.train.digest()}
    return Data(splits, pool, config, SEED, digests=digests), config


def copied_pool(table: ImageTable, folder: Path) -> ImageTable:
    """As many other files with the same pictures, each four times, so that no cell lacks any."""
    folder.mkdir()
    copies = [shutil.copy(path, folder / f"{i}.jpg") for i, path in enumerate(table.paths)]
    number = torch.arange(4 * len(copies))
    return ImageTable("pool", 4 * [str(path) for path in copies], number % 2, number // 2 % 2)


def whole_over_part(flags: argparse.Namespace) -> dict[str, float]:
    """How many times longer each stage takes in the whole seed."""
    whole = WHOLE[flags.data]
    images = whole["images"][0] / flags.size
    pretrain, finetune = (n / m for n, m in zip(whole["epochs"], flags.epochs, strict=True))
    return dict.fromkeys(STAGES, images) | {
        "pretrain": images * pretrain, "finetune": images * finetune,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="demo", choices=("demo", "celeba"))
    parser.add_argument("--size", type=int, help="training images; CPU: demo 256, celeba 24")
    parser.add_argument(
        "--epochs", type=int, nargs=2, metavar=("PRETRAIN", "FINETUNE"),
        help="CPU: demo 2 1, celeba 1 1",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="CPU: demo 32, celeba 8")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    part = (PART_ON_GPU if flags.device.startswith("cuda") else PART)[flags.data]
    if flags.quick:
        part, flags.repeats = (32, (1, 1), 8), 1
    flags.size, flags.epochs = flags.size or part[0], flags.epochs or part[1]
    flags.batch_size = flags.batch_size or part[2]
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= flags.cores <= len(available):
        parser.error(f"--cores must be 1 to {len(available)} here")
    os.sched_setaffinity(0, available[: flags.cores])
    torch.set_num_threads(flags.cores)
    times: dict[str, list[dict[str, float]]] = {"the release's way": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        data, args = make_data(flags, Path(name))
        for repeat in range(flags.repeats):
            ways = {
                "the release's way": lambda: ReleasesWay(data, args).run(),
                "ours": lambda k=repeat: our_way(data, args, Path(name) / f"ours{k}"),
            }
            for way in list(ways) if repeat % 2 == 0 else list(ways)[::-1]:
                times[way].append(ways[way]())
    print(machine(torch.device(args.device)))
    print(
        f"{flags.data}, {len(data.real)} training, {len(data.val)} validation and {len(data.test)} "
        f"test images, {args.image_size} px, {args.pretrain_epochs} + {args.finetune_epochs} "
        f"epochs, batches of {args.batch_size}, {args.device}, {args.precision}, medians of "
        f"{flags.repeats} paired runs; the whole: {WHOLE[flags.data]['images'][0]} training "
        f"images, {' + '.join(map(str, WHOLE[flags.data]['epochs']))} epochs\n"
    )
    report(flags, times)


def report(flags: argparse.Namespace, times: dict[str, list[dict[str, float]]]) -> None:
    """Print each stage's medians as run and multiplied out, and the medians of paired ratios."""
    factors, rows = whole_over_part(flags), []
    whole = {way: [{s: run[s] * factors[s] for s in STAGES} for run in runs]
             for way, runs in times.items()}  # fmt: skip
    for stage in (*STAGES, "all"):
        cells: list[object] = [stage]
        for ways in (times, whole):
            theirs, ours = (
                [sum(run.values()) if stage == "all" else run[stage] for run in runs]
                for runs in ways.values()
            )
            cells += [statistics.median(theirs), statistics.median(ours)]
        ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
        rows.append(["-" if cell == 0 else cell for cell in (*cells, ratio)])
    print_table(
        ["stage", "release's way, s", "ours, s", "its whole, s", "our whole, s", "times faster"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
