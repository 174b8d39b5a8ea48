"""PNG files written by threads, so that the device never waits for an encoder or a disk."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from tqdm import tqdm

from stable_diffusion.manifest import CELLS, Row
from utils.errors import UserError
from utils.files import write_atomic


class ImageWriter:
    """Encodes and writes finished batches in threads, at most two batches behind the device."""

    def __init__(self, folder: Path, size: int, threads: int, bar: tqdm):
        self.folder, self.size, self.bar = folder, size, bar
        self.pool = ThreadPoolExecutor(threads)
        self.pending: deque[list[Future]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        """Wait for what is being written; after an error drop what has not begun."""
        if kind is None:
            self.wait(0)
        self.pool.shutdown(wait=True, cancel_futures=True)

    def add(self, rows: Sequence[Row], pixels: torch.Tensor) -> None:
        """`pixels` uint8 [>= len(rows), H, W, 3] on any device; the copy is not waited for here."""
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
        """Wait until at most `batches` are being written; raises what writing them raised."""
        while len(self.pending) > batches:
            for future in self.pending.popleft():
                future.result()
                self.bar.update()

    def _write(self, row: Row, pixels: torch.Tensor, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        image = Image.fromarray(pixels.numpy())
        if all(low == high for low, high in image.getextrema()):
            # NaN becomes 0: a whole folder of black images would look like a finished one
            raise UserError(
                f"the image {row.path} came out in one colour, as after an overflow; use another "
                "--precision (fp32 or bf16) or check the --model, and start again"
            )
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomic(self.folder / row.path, buffer.getvalue())


def remove_leftovers(folder: Path, batches: Sequence[Sequence[Row]]) -> None:
    """Remove half-written files that a killed process left beside images of these batches."""
    own = {row.path for rows in batches for row in rows}
    for y, a in CELLS:
        for file in (folder / f"{y}_{a}").glob(".*.png.*.tmp"):
            name, process = file.name[1:].removesuffix(".tmp").rsplit(".", 1)
            if f"{y}_{a}/{name}" in own and not is_running(process):
                file.unlink(missing_ok=True)


def is_running(process: str) -> bool:
    """Whether a process of that number is alive."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
