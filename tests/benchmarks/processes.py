"""Benchmark 6: two processes on the same cores against one, for images and for seeds.

    python tests/benchmarks/processes.py [--quick] [--what images seeds] [--repeats 5]

images  `python -m stable_diffusion.generate` with the demo model, all cores in one process against
        torchrun with one process a core
seeds   train.py with one seed after the other, all cores in one process, against JOBS of runner.sh:
        one process a seed, each with its share of the cores
Whole commands are timed, from their start to the last file, in turn, with the images decoded and
the faces unpacked beforehand; starting Python and reading the libraries is in every process's time
and printed by itself. Nothing is compiled. On a GPU the processes share it. About 5 minutes on 2
CPU cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from paired import in_turn, machine, print_table, ratio, seconds  # noqa: E402

CORES = len(os.sched_getaffinity(0))


def together(commands: list[list[str]], threads: int) -> None:
    """Run commands at once with that many threads each; raises where one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    ends = [process.communicate()[1] for process in started]
    for process, said in zip(started, ends, strict=True):
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args)}\nended with {process.returncode}:\n{said}")


def image_works(flags: argparse.Namespace, folder: Path) -> dict:
    """Commands that make the same images with one process and with several."""
    made = folder / "images"
    module = ["-m", "stable_diffusion.generate"]
    given = ["--model", "demo", "--prompts", "prompts/Smiling_Male_contextual_50.json"]
    given += ["--out", str(made), "--images-per-group", str(flags.images), "--device", flags.device]
    given += ["--batch-size", str(max(1, flags.images // 2))]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(flags.processes)]

    def fresh(command: list[str], threads: int) -> None:
        shutil.rmtree(made, ignore_errors=True)
        together([command], threads)

    return {
        "one process": lambda: fresh([*module, *given], CORES),
        f"{flags.processes} processes": lambda: fresh(
            [*many, *module, *given], max(1, CORES // flags.processes)
        ),
    }


def seed_works(flags: argparse.Namespace, folder: Path) -> dict:
    """Commands that train the same seeds of ERM with one process and with one process each."""
    results = folder / "results"
    given = ["train.py", "--methods", "erm", "--pretrained", "none", "--image-size", "64"]
    given += ["--batch-size", "32", "--size", str(flags.size), "--pretrain-epochs", "1"]
    given += ["--val", "none", "--test-size", "400"]
    given += ["--data-root", str(folder / "demo"), "--store-dir", str(folder / "store")]
    given += ["--results", str(results), "--device", flags.device, "--seeds"]
    seeds = [str(seed) for seed in range(flags.processes)]

    def fresh(commands: list[list[str]], threads: int) -> None:
        shutil.rmtree(results, ignore_errors=True)
        together(commands, threads)

    def one() -> None:
        fresh([[*given, *seeds]], CORES)

    one()  # unpacks the faces and decodes them
    return {
        "one process": one,
        f"{flags.processes} processes": lambda: fresh(
            [[*given, seed] for seed in seeds], max(1, CORES // flags.processes)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", default=["images", "seeds"],
                        choices=("images", "seeds"))  # fmt: skip
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=16, help="of each of 4 groups")
    parser.add_argument("--size", type=int, default=400, help="training images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    if flags.quick:
        flags.images, flags.size, flags.repeats = 2, 40, 1
    device, host = torch.device(flags.device), torch.device("cpu")
    print(machine(device))
    starts = [seconds(lambda: together([["-c", "import train"]], 1), host) for _ in range(2)]
    print(f"medians of {flags.repeats} paired runs; starting a process takes {min(starts):.1f} s\n")
    with tempfile.TemporaryDirectory() as name:
        for what in flags.what:
            works = (image_works if what == "images" else seed_works)(flags, Path(name))
            times = in_turn(works, flags.repeats, host)
            count = 4 * flags.images if what == "images" else flags.processes
            rows = [
                [way, statistics.median(taken), count / statistics.median(taken),
                 ratio(times, way, "one process")]
                for way, taken in times.items()
            ]  # fmt: skip
            print_table([f"{count} {what}", "s", "a second", "times one"], rows)


if __name__ == "__main__":
    main()
