"""Progress bars: redrawn on a terminal, a line a minute in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm as Bar

EVERY = 60.0  # seconds between two lines of a log


class Lines(Bar):
    """A bar for stderr that is no terminal: it prints whole lines, one every EVERY seconds.

    What is over sooner prints nothing; what printed once ends with a line of its own.
    """

    monitor_interval = 0  # no thread that redraws

    def __init__(self, *args, **kwargs):
        self.began = self.printed = time.monotonic()
        super().__init__(*args, **kwargs)

    def display(self, msg=None, pos=None) -> bool:
        if time.monotonic() - self.printed >= EVERY:
            self._line()
        return True

    def clear(self, nolock=False) -> None:
        """A line that was printed stays."""

    def close(self) -> None:
        if self.disable:
            return
        self.delay = math.inf  # nothing is there to be wiped out
        super().close()
        if self.printed != self.began:
            self._line()

    def _line(self) -> None:
        self.printed = time.monotonic()
        print(str(self), file=sys.stderr, flush=True)


def progress(iterable: Iterable | None = None, **settings) -> Bar:
    """tqdm's bar over `iterable`, or one that is updated by hand; settings: tqdm's own."""
    kind = Bar if sys.stderr.isatty() else Lines
    return kind(iterable, **settings)
