"""The training loop of the demo model's three stages."""

from __future__ import annotations

import math
import time
from copy import deepcopy

import numpy as np
import torch

from utils.engine import load_state, save_torch
from utils.progress import progress


class Trainer:
    """AdamW with warm-up and cosine decay, an exponential average and checkpoints.

    loss(modules, rows, generator): mean loss of one batch of training rows. steps: length of the
    schedule. groups: int [N], each row's group; all are drawn equally often, else the model would
    hardly learn the few unsmiling women. Data order and noise depend on the step alone, so a
    resumed training sees what an unbroken one would have seen.
    """

    def __init__(self, folder, modules, loss, *, groups, batch, steps, lr, average, device):
        self.path = folder / "checkpoint.pt"
        self.modules, self.loss, self.device = modules.to(device), loss, device
        self.batch, self.steps, self.lr = batch, steps, lr
        self.groups = [torch.from_numpy(np.flatnonzero(groups == g)) for g in np.unique(groups)]
        self.decay = average
        self.average = deepcopy(modules).requires_grad_(False).to(device)
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.step = 0
        if self.path.exists():
            state = load_state(self.path)
            self.modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        state = {
            "modules": self.modules.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step,
        }
        save_torch(self.path, state)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Rows int64 [batch]: a group uniformly, then one of its rows."""
        groups = torch.randint(len(self.groups), (self.batch,), generator=generator).tolist()
        place = torch.rand(self.batch, generator=generator).tolist()
        drawn = [self.groups[g][int(u * len(self.groups[g]))] for g, u in zip(groups, place)]
        return torch.stack(drawn)

    def run(self, name: str, bf16: bool, after_checkpoint) -> None:
        bar = progress(total=self.steps, initial=self.step, desc=name, unit="step", mininterval=5)
        saved, running = time.monotonic(), None
        for step in range(self.step, self.steps):
            warm = min(1.0, (step + 1) / 200)
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            rate = self.lr * warm * (0.02 + 0.98 * cosine)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(step)
            rows = self.draw(generator)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss = self.loss(self.modules, rows, generator)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            decay = min(self.decay, (step + 1) / (step + 10))
            with torch.no_grad():
                mine = list(self.modules.parameters())
                torch._foreach_lerp_(list(self.average.parameters()), mine, 1 - decay)
            self.step = step + 1
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"{name}: the loss became {value} at step {step}")
            running = value if running is None else 0.98 * running + 0.02 * value
            bar.update(1)
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            if time.monotonic() - saved > 120 or self.step == self.steps:
                self.save()
                after_checkpoint(self.average)
                saved = time.monotonic()
        bar.close()
