"""torch, diffusers and their like take seconds to import."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around a command's first import of torch: no garbage is looked for among the million objects
    that it makes, neither in between, which took a sixth of the time, nor later."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
