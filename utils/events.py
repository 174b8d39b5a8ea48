"""TensorBoard logs of a run, written from its log: nothing is ever read back from them.

    tensorboard --logdir results/<setting>/tensorboard

One TensorBoard run per stage holds loss, validation accuracy and learning rate by epoch, and one
per run its settings and test metrics (the HPARAMS page). While a run trains its epochs are added
one by one, and when it is finished everything is written again from the saved run, so that no
epoch is there twice or lacks, however often it was killed.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.records import RECORD, read_log, read_record
from utils.run import Run

SCALARS = ("loss", "val_acc", "lr")  # of a row of the log


def require_tensorboard() -> None:
    """Raise UserError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - seconds to import, and only needed here
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard: run pip install tensorboard, or leave "
            "the flag out"
        ) from None


class Events:
    """The TensorBoard folders of one run, under `folder`; only one process may write there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.writers: dict = {}  # stage -> SummaryWriter

    def epoch(self, log: list[dict]) -> None:
        """Add the last row of a stage's log, or all of them where this process has not yet.

        What an earlier process wrote of the stage is removed first: the log holds that too.
        """
        stage = log[-1]["stage"]
        new = stage not in self.writers
        if new:
            shutil.rmtree(self.folder / stage, ignore_errors=True)
            self.writers[stage] = _writer(self.folder / stage)
        for row in log if new else log[-1:]:
            for name in SCALARS:
                if row.get(name) is not None:  # no accuracy without validation images
                    self.writers[stage].add_scalar(name, row[name], row["epoch"])
        self.writers[stage].flush()

    def whole(self, run: Path) -> None:
        """Write a finished run folder's log, settings and test metrics in place of all that is."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        stages: dict[str, list[dict]] = {}
        for row in read_log(run / "log.jsonl"):
            stages.setdefault(row["stage"], []).append(row)
        for rows in stages.values():
            self.epoch(rows)
        config = read_record(run / "config.json")
        metrics = read_record(run / "metrics.json", "test")
        writer = self.writers["test"] = _writer(self.folder)
        settings = {k: v if isinstance(v, int | float | str) else str(v)
                    for k, v in config.items() if k not in RECORD}
        writer.add_hparams(settings, dict(_figures(metrics["test"], "test")), run_name=".")
        self.close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}


def _writer(folder: Path):
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard says on every start that TensorFlow is not installed, which it does not need.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    return SummaryWriter(str(folder))


def _figures(metrics: dict, name: str) -> Iterator[tuple[str, float]]:
    """("test/acc", 0.9), ("test/group_acc/0_1", 0.8), ...: what is a number, NaN left out."""
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from _figures(value, f"{name}/{key}")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{name}/{key}", value


@contextmanager
def events_of(run: Run, folder: Path | None) -> Iterator[None]:
    """Follow a run within this context, and write all of it at the end; nothing without a folder.

    Raises UserError where the folder cannot be written.
    """
    if folder is None:
        yield
        return
    events = Events(folder)
    run.observers.append(events.epoch)
    try:
        yield
        events.whole(run.folder)
    except OSError as error:
        if str(folder) not in str(error.filename):
            raise
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); mend that or leave out --tensorboard"
        ) from None
    finally:
        run.observers.remove(events.epoch)
        events.close()
