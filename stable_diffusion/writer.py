"""Write PNG files in threads, so that the device never waits for an encoder or a disk."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Self

import torch
from PIL import Image

from stable_diffusion.manifest import Row
from utils.errors import UserError
from utils.files import write_atomic
from utils.progress import Bar


class ImageWriter:
    """Encodes and writes finished batches in threads, at most two batches behind the device."""

    def __init__(self, folder: Path, size: int, threads: int, bar: Bar):
        self.folder, self.size, self.bar = folder, size, bar
        self.pool = ThreadPoolExecutor(threads)
        self.pending: deque[list[Future]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        """Wait for pending writes; after an error, drop those that have not begun."""
        try:
            if kind is None:
                self.wait(0)
        finally:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def add(self, rows: Sequence[Row], pixels: torch.Tensor) -> None:
        """Queue `pixels`, uint8 [>= len(rows), H, W, 3] on any device; the copy is asynchronous."""
        arrived = None
        if pixels.is_cuda:
            host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            host.copy_(pixels, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)
            arrived.record()
            pixels = host
        self.wait(1)
        self.pending.append(
            [self.pool.submit(self._write, row, pixels[i], arrived) for i, row in enumerate(rows)]
        )

    def wait(self, batches: int) -> None:
        """Wait until at most `batches` are pending; raises what writing them raised."""
        while len(self.pending) > batches:
            for future in self.pending.popleft():
                future.result()
                self.bar.update()

    def _write(self, row: Row, pixels: torch.Tensor, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        image = Image.fromarray(pixels.numpy())
        if all(low == high for low, high in image.getextrema()):
            # NaN becomes 0: without this a folder of black images would look finished
            raise UserError(
                f"the image {row.path} came out in one colour, as after an overflow; use another "
                "--precision (fp32 or bf16) or check --model, and rerun the command"
            )
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomic(self.folder / row.path, buffer.getvalue())


def write_batches(
    draw: Callable[[Sequence[Row]], torch.Tensor],
    device: torch.device,
    batches: Sequence[Sequence[Row]],
    folder: Path,
    size: int,
    batch_size: int,
    bar: Bar,
) -> None:
    """Generate each batch with `draw` (rows -> uint8 [B, H, W, 3]) and write its images.

    A short batch is filled up to `batch_size` and its surplus thrown away: with one shape there is
    one compilation, and an image has the same bits in a short batch. Raises UserError where the
    device runs out of memory.
    """
    threads = 2 if device.type == "cpu" else min(8, os.cpu_count() or 2)
    try:
        with ImageWriter(folder, size, threads, bar) as writer:
            for rows in batches:
                writer.add(rows, draw([*rows, *[rows[-1]] * (batch_size - len(rows))]))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        ):
            raise
        raise UserError(
            f"the device is out of memory with --batch-size {batch_size}; lower it or give "
            "--decode-batch, and rerun the command: finished images are kept"
        ) from None


def remove_leftovers(folder: Path, batches: Sequence[Sequence[Row]]) -> None:
    """Remove half-written files of these batches that a killed process left behind."""
    own = {row.path for rows in batches for row in rows}
    for parent in {PurePosixPath(path).parent for path in own}:
        for file in (folder / parent).glob(".*.png.*.tmp"):
            name, process = file.name[1:].removesuffix(".tmp").rsplit(".", 1)
            if str(parent / name) in own and not is_running(process):
                file.unlink(missing_ok=True)


def is_running(process: str) -> bool:
    """Whether a process with that number is alive; True on Windows, where asking would kill it."""
    if os.name == "nt":
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
