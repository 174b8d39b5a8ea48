"""The contract of a training method, and empirical risk minimisation, which every other extends.

A method owns its networks and optimisers; the engine owns epochs, validation and checkpoints; the
run (utils.run.Run) owns the folder. To write one, override `loss`, or `update` where one loss is
not enough, and name what precedes the training in `stages` (see models/menu.py for the menu).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.base import Table
from datasets.mixing import Data
from models import backbones, checkpoints
from models.heads import logits_of
from models.weights import load_weights
from utils.engine import fit
from utils.recipe import Recipe
from utils.run import Run

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # index, x, y, a: the loader's contract


def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy of logits [B] and y int64 [B] in {0, 1}, each times its weight."""
    return F.binary_cross_entropy_with_logits(logits, y.to(logits), weight=weight)


def bce(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`cross_entropy` of a model on x float [B, ...]."""
    return cross_entropy(logits_of(model, x), y)


class Method:
    """ERM: the recipe's optimiser on the mean loss of a batch; METHODS are its subclasses.

    Class attributes
        stages: names of the class methods that `run` calls in turn, each with the run; the last
            one returns the trained method.
        uses_attributes: the protected labels of the real images that it may see, "none",
            "validation" or "train"; the loader delivers -1 for the others.
        training_set: the table of datasets.mixing.Data that it learns from; `sets`: further ones.
        needs_edits: it learns from edited training images (--edits).
        needs_validation: it chooses on validation images, without their group labels.
        blocks: blocks that the backbone must have.
        defaults, ranges: hyper-parameters that --set may change, hyper-parameter -> the paper's
            value, or ours where a comment beside it says so, and (lowest, highest).
        overrides, given: values of flags, and of hyper-parameters, that make the row another one's
            variant.
        paper_row: its name in the paper's tables.

    recipe: utils.recipe.Recipe. options: hyper-parameters, complete. frozen_batch_norm keeps
    running statistics as they are. compiled: `network`, which steps and predictions call, is the
    model through torch.compile; what needs torch.func or a gradient of a gradient calls the model.
    """

    stages: ClassVar[tuple[str, ...]] = ("train",)
    uses_attributes: ClassVar[str] = "none"
    training_set: ClassVar[str] = "real"
    sets: ClassVar[tuple[str, ...]] = ()
    needs_edits: ClassVar[bool] = False
    needs_validation: ClassVar[bool] = False
    blocks: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, int | float]] = {}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    overrides: ClassVar[Mapping[str, Any]] = {}
    given: ClassVar[Mapping[str, int | float | str]] = {}
    paper_row: ClassVar[str | None] = None

    def __init__(
        self, model: nn.Module, recipe, *, options: Mapping[str, Any] | None = None,
        autocast=None, frozen_batch_norm=False, compiled=False,
    ):
        self.model, self.recipe, self.options = model, recipe, options or {}
        self.network = model
        if compiled:
            torch.compiler.reset()  # a process trains more networks than it may hold compiled
            self.network = torch.compile(model, dynamic=False)
        self.evaluations = 1  # of the loss in a step: an L-BFGS round has many
        self.full_batch = 0  # images of the largest batch that was predicted
        self.autocast = autocast
        self.frozen_batch_norm = frozen_batch_norm
        self.setup()

    # --- one training ---------------------------------------------------------------------------

    def setup(self) -> None:
        """Make `optimizer` and `schedule`, and what else a step needs."""
        self.optimizer = self.recipe.make_optimizer(self.trained())
        self.schedule = self.recipe.schedule(self.optimizer)

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def train_mode(self) -> None:
        self.model.train()
        if self.frozen_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def loss(self, batch: Batch) -> Tensor:
        """The loss of (index, x, y, a), a scalar with its gradients' graph."""
        _, x, y, _ = batch
        with self.precision(x):
            return bce(self.network, x, y)

    def update(self, batch: Batch) -> Tensor:
        """One step on (index, x, y, a); returns the detached loss, on the device."""
        whole = isinstance(self.optimizer, torch.optim.LBFGS)

        def objective() -> Tensor:
            self.evaluations += 1
            loss = self.loss(batch)
            if whole:  # which has no weight decay of its own
                loss = loss + self.recipe.penalty(self.trained())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            return loss

        self.evaluations = 0
        if whole:
            self.optimizer.state.clear()  # a round starts anew: the loss may be another one
        return self.optimizer.step(objective).detach()

    def passes(self, batch: Batch) -> int:
        """Samples that `update` took forward and backward, counted as often as it did."""
        return len(batch[1]) * self.evaluations

    def end_epoch(self) -> None:
        self.schedule.step()

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        """Logits [B] in evaluation mode (`logits_of`)."""
        self.model.eval()
        self.full_batch = max(self.full_batch, len(x))
        # an evaluation's last, smaller batch is not worth a compilation
        network = self.network if len(x) == self.full_batch else self.model
        with self.precision(x):
            return logits_of(network, x)

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

    # --- a run ----------------------------------------------------------------------------------

    @classmethod
    def needs_synthetic(cls) -> bool:
        """Whether it learns from synthetic images."""
        return bool({cls.training_set, *cls.sets} - {"real"})

    @classmethod
    def finetunes(cls) -> bool:
        """Whether its results depend on the flags of the fine-tuning, synthetic images' included"""
        return cls.needs_synthetic() or "finetune" in cls.stages

    @classmethod
    def tables(cls, data: Data) -> dict[str, Table]:
        """The tables that it learns from, by the name of their saved list."""
        own = [name for name in (cls.training_set, *cls.sets) if name != "real"]
        edited = {"edited": data.edited} if cls.needs_edits else {}
        return {"train": data.real, **{name: getattr(data, name) for name in own}, **edited}

    @classmethod
    def run(cls, run: Run) -> Method:
        """Carry out the stages; the method with the best epoch's model, the epochs in run.log."""
        for stage in cls.stages:
            trained = getattr(cls, stage)(run)
        return trained

    @classmethod
    def arguments(cls, run: Run) -> dict[str, Any]:
        """Further arguments of __init__, from what the earlier stages left."""
        return {}

    @classmethod
    def batches(cls, run: Run):
        """The training's loader; protected labels for a method that declares "train"."""
        table = getattr(run.data, cls.training_set)
        return run.data.loader(table, train=True, attributes=cls.uses_attributes == "train")

    @classmethod
    def start(cls, run: Run) -> tuple[nn.Module, Recipe]:
        """The model that `train` starts from, torch's seed set, and the recipe."""
        return new_model(run), run.config.pretrain

    @classmethod
    def train(cls, run: Run) -> Method:
        """The stage of a training, from the backbone's initial weights or what `start` gives."""
        def make() -> Method:
            arguments = cls.arguments(run)  # first: torch's seed is the model's
            model, recipe = cls.start(run)
            return cls(model, recipe, options=run.options, autocast=run.config.autocast,
                       compiled=run.config.compile, **arguments)

        return fit_stage(run, cls.stages[-1], make, lambda: cls.batches(run), cls.validation(run))

    @classmethod
    def validation(cls, run: Run) -> Table | None:
        """The validation samples by which the best epoch is chosen."""
        return run.data.val


def new_model(run: Run, seed: int | None = None) -> nn.Module:
    """The run's backbone at its initial weights, on its device; sets torch's seed."""
    torch.manual_seed(run.seed if seed is None else seed)
    model = backbones.build(run.config.backbone, run.config.pretrained, run.data.shape)
    return model.to(run.config.device, memory_format=torch.channels_last)


def fit_in(folder: Path, run: Run, method: Method, loader, val: Table | None, name: str) -> None:
    """`utils.engine.fit` in a stage's folder, by the best epoch on `val` (None: the last one)."""
    held = None if val is None else run.data.loader(val, train=False)
    fit(method, loader, held, folder, name, run.observers, run.config.checkpoint_seconds)


def fit_stage(run: Run, name: str, method, loader, val: Table | None) -> Method:
    """Train in the run's stage `name`; the method with the model of the best epoch on `val`, which
    needs no group labels, of the last one where it is None. method, loader: called for the method
    and its batches, once each."""
    with run.stage(name, "model.pt", "log.jsonl") as stage:
        torch.manual_seed(run.seed)  # whatever this process did before: another stage, or nothing
        trained = method()
        if not stage.finished:
            fit_in(stage.folder, run, trained, loader(), val, name)
    weights = load_weights(stage.folder / "model.pt", "the best epoch")
    trained.model.load_state_dict(weights)
    run.add_log(stage.folder)
    return trained


def started(run: Run) -> nn.Module:
    """The model that --start gives, on the run's device; sets torch's seed."""
    torch.manual_seed(run.seed)
    config = run.config
    model = backbones.build(config.backbone, "none", run.data.shape)
    checkpoints.load_into(model, checkpoints.read(config.start), config.backbone, "--start")
    return model.to(config.device, memory_format=torch.channels_last)


def pretrained(run: Run) -> nn.Module:
    """The model that is repaired: --start's, else the ERM model of this setting and seed, trained
    once and shared; sets torch's seed."""
    if run.config.start is not None:
        return started(run)
    config = run.config.identity(finetune=False) | {
        key: run.data.digests.get(key) for key in ("real", "val")
    }
    with run.shared_stage("pretrain", config, "model.pt", "log.jsonl") as stage:
        model = new_model(run)
        if not stage.finished:
            method = Method(model, run.config.pretrain, autocast=run.config.autocast,
                            compiled=run.config.compile)
            real = run.data.loader(run.data.real, train=True)
            fit_in(stage.folder, run, method, real, run.data.val, "pretrain")
        model.load_state_dict(
            load_weights(stage.folder / "model.pt", "the pre-trained model")
        )
        run.add_log(stage.folder)
    torch.manual_seed(run.seed)  # whether or not the model was trained just now
    return model
