"""Epochs, validation, checkpoints: the same loop for every method, resumable at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError, reason
from utils.files import atomic_path, write_atomic
from utils.preemption import PREEMPTION


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


def save_torch(path: Path, value) -> None:
    """torch.save, atomically. The same tensors give the same bytes, whatever the file's name."""
    # An open file, not its path: torch would store the temporary file's name.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # what torch makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _load_state(path: Path, device) -> dict:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({reason(error)}); delete it: training restarts")


def fit(
    method, loader, val_loader, folder: Path, name: str,
    observers: Sequence[Callable[[list[dict]], None]] = (),
) -> list[dict]:
    """Train to the recipe's last epoch; folder/model.pt then is the best epoch's model.

    The best epoch is the most accurate on val_loader by the recipe's `best_by` (no group labels),
    or the last one where val_loader is None. folder/state.pt is written after every epoch and on
    SIGTERM: a start with the same arguments resumes there and ends in the same bits (on CPU). It
    holds the best weights too, so that a kill never parts them from the log. Returns the log, one
    dict an epoch; its `passes` are the images that went forward and backward.
    observers: called after every epoch with the log so far; they change nothing. Raises UserError
    where the loss is not finite.
    """
    recipe, state_path = method.recipe, folder / "state.pt"
    log: list[dict] = []
    start_epoch = start_step = 0
    best, best_epoch, total, kept, passes = -math.inf, -1, None, None, 0
    if state_path.exists():
        state = _load_state(state_path, loader.device)
        try:
            method.load_state_dict(state["method"])
            torch.set_rng_state(state["rng"].cpu())
            start_epoch, start_step, total = state["epoch"], state["step"], state["total"]
            log, best, best_epoch = json.loads(state["log"]), state["best"], state["best_epoch"]
            kept, passes = state["kept"], state["passes"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # of another network
            raise _damaged(state_path, error) from None

    def save(epoch: int, step: int) -> None:
        save_torch(state_path, {
            "method": method.state_dict(), "rng": torch.get_rng_state(), "epoch": epoch,
            "step": step, "total": total, "log": json.dumps(log), "best": best,
            "best_epoch": best_epoch, "kept": kept, "passes": passes,
        })

    bar = tqdm(total=recipe.epochs, initial=start_epoch, desc=name, unit="epoch", leave=False)
    for epoch in range(start_epoch, recipe.epochs):
        began, steps = time.monotonic(), len(loader)
        method.train_mode()
        first = start_step if epoch == start_epoch else 0
        if not first:
            total, passes = None, 0  # over the epoch's steps: the loss, on the device, and images
        for step, batch in enumerate(islice(loader.epoch(epoch), first, None), first):
            loss = method.update(batch)
            total = loss if total is None else total + loss
            passes += method.passes(batch)
            if PREEMPTION.requested:
                save(epoch, step + 1)
                print(f"{name}: saved in epoch {epoch + 1} after step {step + 1}")
                PREEMPTION.check()
        rate = method.optimizer.param_groups[0]["lr"]
        method.end_epoch()
        mean = float(total) / steps if total is not None else math.nan
        if not math.isfinite(mean):
            raise UserError(
                f"{name}: the loss became {mean} in epoch {epoch + 1}; lower the learning rate "
                f"(now {recipe.lr}) or look at the input images"
            )
        row = {"stage": name, "epoch": epoch + 1, "loss": mean, "lr": rate, "passes": passes}
        if val_loader is None:
            better = True
        else:
            measured = accuracies(method, val_loader)
            row["val_acc"], row["val_class_acc"] = measured.values()
            value = measured[recipe.best_by]
            better = value > best or (recipe.ties == "later" and value == best)
            best = max(best, value)
        if better:
            best_epoch = epoch + 1
            kept = {key: value.clone() for key, value in method.model.state_dict().items()}
        row["kept"] = best_epoch
        row["seconds"] = round(time.monotonic() - began, 3)
        log.append(row)
        total = None
        save(epoch + 1, 0)
        write_atomic(folder / "log.jsonl", "".join(json.dumps(r) + "\n" for r in log))
        for observe in observers:
            observe(log)
        bar.update(1)
        bar.set_postfix(loss=f"{mean:.4f}", val_acc=row.get("val_acc"))
    bar.close()
    save_torch(folder / "model.pt", kept)
    write_atomic(folder / "log.jsonl", "".join(json.dumps(r) + "\n" for r in log))
    return log
