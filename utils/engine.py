"""Epochs, validation, checkpoints: the same loop for every method, resumable at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, reason
from utils.files import atomic_path, write_atomic
from utils.preemption import PREEMPTION
from utils.progress import progress


def logits_of(method, loader) -> np.ndarray:
    """Logits float32 [N] in table order; one host synchronisation at the end.

    Raises UserError where the model's output is not finite: NaN > 0 would count as class 0.
    """
    logits = torch.cat([method.predict(x) for _, x, _, _ in loader.epoch(0)]).cpu().numpy()
    if not np.isfinite(logits).all():
        raise UserError("the model's output is not finite (NaN); lower the learning rate")
    return logits


def predictions(method, loader) -> np.ndarray:
    """0/1 predictions int64 [N] in table order. Raises UserError as `logits_of`."""
    return (logits_of(method, loader) > 0).astype(np.int64)


def accuracies(method, loader) -> dict[str, float]:
    """`accuracy`: share of right predictions; `class-accuracy`: its mean over the classes of y that
    there are, each counting alike. No group labels are involved."""
    y = loader.table.y
    right = predictions(method, loader) == y
    by_class = [right[y == label].mean() for label in np.unique(y)]
    return {"accuracy": float(right.mean()), "class-accuracy": float(np.mean(by_class))}


def moved(value, device, *, optimisers: bool = True):
    """A checkpoint with its tensors on the device; itself where they are there already.

    Without `optimisers` their state dicts stay: torch moves what they hold when it is loaded, and
    leaves Adam's step on the CPU, where reading it is no wait for the GPU.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        if not optimisers and value.keys() == {"state", "param_groups"}:
            return value
        parts = {key: moved(part, device, optimisers=optimisers) for key, part in value.items()}
        return parts if any(parts[key] is not value[key] for key in parts) else value
    if isinstance(value, list | tuple):
        parts = type(value)(moved(part, device, optimisers=optimisers) for part in value)
        return parts if any(new is not old for new, old in zip(parts, value)) else value
    return value


def save_torch(path: Path, value) -> None:
    """torch.save, atomically, of tensors on the CPU: a file loads where there is no GPU, too. The
    same tensors give the same bytes, whatever the file's name."""
    value = moved(value, "cpu")
    # An open file, not its path: torch would store the temporary file's name.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # what torch makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict:
    """What `save_torch` wrote, on the CPU: an optimiser that is given it moves what it needs, but
    not Adam's step. Raises UserError for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({reason(error)}); delete it: training restarts")


@dataclass
class Progress:
    """What state.pt holds beside the method: where the training stands, and the best epoch so far.

    epoch, step: the next ones. total, passes: of the epoch's steps, the summed loss, on the device,
    and the images that went forward and backward. log: one dict an epoch. best, best_epoch, kept:
    value on validation, number and weights of the best epoch.
    """

    epoch: int = 0
    step: int = 0
    total: torch.Tensor | None = None
    passes: int = 0
    log: list[dict] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1
    kept: dict | None = None

    @classmethod
    def resumed(cls, path: Path, method, device) -> Progress:
        """From state.pt, where there is one; the method and torch's generator go on from there.
        Raises UserError where it is damaged or of another network."""
        if not path.exists():
            return cls()
        state = load_state(path)
        try:
            torch.set_rng_state(state.pop("rng"))
            if (on_gpu := state.pop("gpu_rng", None)) is not None:  # of dropout
                torch.cuda.set_rng_state(on_gpu, device)
            state = moved(state, device, optimisers=False)
            method.load_state_dict(state["method"])
            return cls(**{**{f.name: state[f.name] for f in fields(cls)},
                          "log": json.loads(state["log"])})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _damaged(path, error) from None

    def save(self, path: Path, method, device: str | torch.device) -> None:
        on_gpu = torch.cuda.get_rng_state(device) if torch.device(device).type == "cuda" else None
        save_torch(path, {
            **{f.name: getattr(self, f.name) for f in fields(self)}, "log": json.dumps(self.log),
            "method": method.state_dict(), "rng": torch.get_rng_state(),
            "gpu_rng": on_gpu,
        })

    def begin_epoch(self) -> None:
        if not self.step:
            self.total, self.passes = None, 0

    def end_epoch(self, value: float | None, method) -> None:
        """Keep the weights where `value`, on validation, is the best; the last ones where None."""
        self.epoch, self.step = self.epoch + 1, 0
        tie = method.recipe.ties == "later" and value == self.best
        if value is None or value > self.best or tie:
            self.best_epoch = self.epoch
            self.kept = {key: part.clone() for key, part in method.model.state_dict().items()}
        self.best = self.best if value is None else max(self.best, value)


def fit(
    method, loader, val_loader, folder: Path, name: str,
    observers: Sequence[Callable[[list[dict]], None]] = (), every: float = 0.0,
) -> list[dict]:
    """Train to the recipe's last epoch; folder/model.pt then is the best epoch's model.

    The best epoch is the most accurate on val_loader by the recipe's `best_by` (no group labels),
    or the last one where val_loader is None. folder/state.pt is written on SIGTERM, and after an
    epoch unless that was done less than `every` seconds ago: a start with the same arguments
    resumes there and ends in the same bits on a CPU; on a GPU, whose sums have no
    fixed order here, up to rounding. It holds the best weights too, so that a kill
    never parts them from the log. Returns the log, one dict an epoch; its `passes` are the samples
    that went forward and backward.
    observers: called after every epoch with the log so far; they change nothing. Raises UserError
    where the loss is not finite.
    """
    recipe, state = method.recipe, folder / "state.pt"
    at = Progress.resumed(state, method, loader.device)
    saved = time.monotonic()
    bar = progress(total=recipe.epochs, initial=at.epoch, desc=name, unit="epoch", leave=False)
    while at.epoch < recipe.epochs:
        began = time.monotonic()
        _steps(method, loader, at, state, name)
        rate = method.optimizer.param_groups[0]["lr"]
        method.end_epoch()
        mean = float(at.total) / len(loader) if at.total is not None else math.nan
        if not math.isfinite(mean):
            raise UserError(
                f"{name}: the loss became {mean} in epoch {at.epoch + 1}; lower the learning rate "
                f"(now {recipe.lr}) or look at the input images"
            )
        row = {"stage": name, "epoch": at.epoch + 1, "loss": mean, "lr": rate, "passes": at.passes}
        value = None
        if val_loader is not None:
            measured = accuracies(method, val_loader)
            row["val_acc"], row["val_class_acc"] = measured.values()
            value = measured[recipe.best_by]
        at.end_epoch(value, method)
        row["kept"] = at.best_epoch
        row["seconds"] = round(time.monotonic() - began, 3)
        at.log.append(row)
        if time.monotonic() - saved >= every:
            at.save(state, method, loader.device)
            _write_log(folder, at.log)
            saved = time.monotonic()
        for observe in observers:
            observe(at.log)
        bar.update(1)
        bar.set_postfix(loss=f"{mean:.4f}", val_acc=row.get("val_acc"))
    bar.close()
    save_torch(folder / "model.pt", at.kept)
    _write_log(folder, at.log)
    return at.log


def _steps(method, loader, at: Progress, state: Path, name: str) -> None:
    """The epoch's steps from at.step on; on SIGTERM it saves and exits."""
    method.train_mode()
    at.begin_epoch()
    for batch in islice(loader.epoch(at.epoch), at.step, None):
        loss = method.update(batch)
        at.total = loss if at.total is None else at.total + loss
        at.passes += method.passes(batch)
        at.step += 1
        if PREEMPTION.requested:
            at.save(state, method, loader.device)
            print(f"{name}: saved in epoch {at.epoch + 1} after step {at.step}")
            PREEMPTION.check()


def _write_log(folder: Path, log: list[dict]) -> None:
    write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
