"""The contract of a training method, and empirical risk minimisation, which every other extends.

A method owns its networks and optimisers; the engine owns epochs, validation and checkpoints.
To write one, override `setup` and `update` (see models/__init__.py for the menu).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bce(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean binary cross entropy with logits: x float [B, 3, H, W], y int64 [B] in {0, 1}."""
    return F.binary_cross_entropy_with_logits(model(x).squeeze(1).float(), y.float())


class Method:
    """ERM: SGD on the mean loss of a batch.

    uses_attributes says which protected labels the method may see: "none", "validation" or
    "train"; the loader delivers -1 for the others. recipe: lr, momentum, weight_decay, milestone,
    gamma, epochs (utils.engine.Recipe). frozen_batch_norm keeps running statistics as they are.
    compiled: `network`, which steps and predictions call, is the model through torch.compile; what
    needs torch.func or a gradient of a gradient calls the model itself.
    """

    uses_attributes = "none"

    def __init__(
        self, model: nn.Module, recipe, *, autocast=None, frozen_batch_norm=False, compiled=False
    ):
        self.model, self.recipe = model, recipe
        self.network = model
        if compiled:
            torch.compiler.reset()  # a process trains more networks than it may hold compiled
            self.network = torch.compile(model, dynamic=False)
        self.full_batch = 0  # images of the largest batch that was predicted
        self.autocast = autocast
        self.frozen_batch_norm = frozen_batch_norm
        self.setup()

    @classmethod
    def tables(cls, data) -> dict:
        """Its image tables (datasets.mixing.Data), by the name of their saved list."""
        return {"train": data.real}

    def setup(self) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            parameters, lr=self.recipe.lr, momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay, fused=True,  # on a CPU, too: 13% of a step
        )
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, [self.recipe.milestone], gamma=self.recipe.gamma
        )

    def train_mode(self) -> None:
        self.model.train()
        if self.frozen_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def update(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """One step on (index, x, y, a); returns the detached loss, on the device."""
        _, x, y, _ = batch
        with self.precision(x):
            loss = bce(self.network, x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def end_epoch(self) -> None:
        self.schedule.step()

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        """Logits float32 [B] in evaluation mode."""
        self.model.eval()
        self.full_batch = max(self.full_batch, len(x))
        # an evaluation's last, smaller batch is not worth a compilation
        network = self.network if len(x) == self.full_batch else self.model
        with self.precision(x):
            return network(x).squeeze(1).float()

    def precision(self, x: Tensor):
        return torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
