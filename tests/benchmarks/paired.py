"""What the benchmarks share: runs taken in turn, their table, and the machine's own peak."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Times = dict[str, list[float]]  # seconds of each run, by what was run


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, everything it launched included."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> Times:
    """Time each once a round, `repeats` rounds, in changing order; every work should be warm."""
    times: Times = {name: [] for name in works}
    for repeat in range(repeats):
        order = list(works) if repeat % 2 == 0 else list(works)[::-1]
        for name in order:
            times[name].append(seconds(works[name], device))
    return times


def ratio(times: Times, name: str, baseline: str) -> float:
    """How many times faster `name` is: the median of the rounds' own ratios."""
    pairs = zip(times[baseline], times[name], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def machine(device: torch.device) -> str:
    """One line on what was measured: the processor or GPU, the cores in use, torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        if os.path.exists("/proc/cpuinfo"):
            with open("/proc/cpuinfo") as lines:
                models = [line.split(":")[1].strip() for line in lines if "model name" in line]
            name = models[0] if models else name
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name}, {cores}, torch {torch.__version__}"


def peak_flops(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of a large matrix multiplication, the best of five; float32 as convolutions round it,
    on a GPU TF32 by default."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        a @ b
        return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(5))
    finally:
        matmul.fp32_precision = before


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """An aligned markdown table: first column left, the others right; floats with 3 digits."""
    text = [[_digits(cell) if isinstance(cell, float) else str(cell) for cell in row]
            for row in (header, *rows)]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (text[0], rule, *text[1:]):
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    print(flush=True)
