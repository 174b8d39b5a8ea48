"""DiGA (Zhang et al., CVPR 2024, Distributionally Generative Augmentation for fair attributes)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.edits import edit_loader
from models.heads import head_of, output_layer
from models.method import Batch, Method, fit_stage, new_model, pretrained
from models.weights import load_weights
from utils.engine import logits_of
from utils.files import write_json
from utils.records import read_record
from utils.run import Run


def encoder_of(model: nn.Module) -> tuple[nn.Module, int]:
    """(the network without its output layer, a copy; number D of its features [B, D])."""
    encoder, name = deepcopy(model), output_layer(model)
    features = head_of(encoder).in_features
    encoder.set_submodule(name, nn.Identity())
    return encoder, features


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Batch mean of 2 - 2 cos(predicted, target), both float [B, P] (Grill 2020, equation 2)."""
    wide = torch.promote_types(predicted.dtype, torch.float32)  # autocast's bf16 is too coarse
    return (2 - 2 * F.cosine_similarity(predicted.to(wide), target.to(wide), dim=1)).mean()


def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, every parameter tensor, in place."""
    with torch.no_grad():
        for old, new in zip(average.parameters(), model.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def side_of_class_1(erm: nn.Module, run: Run) -> int:
    """The side, 0 or 1, of whose edits the ERM model more likely says that y is 1: a sign of the
    spurious correlation that needs no image's group."""
    edits = run.data.edited
    asked = Method(erm, run.config.pretrain, autocast=run.config.autocast)
    logits = logits_of(asked, run.data.loader(edits, train=False))
    return int(logits[edits.a == 1].mean() > logits[edits.a == 0].mean())


class BYOL(Method):
    """Bootstrap your own latent (Grill 2020) on pairs of edits: no labels, no negatives.

    The online network (encoder, projector, predictor) predicts from one edit what the target
    network (encoder and projector, a moving average of the online one) says of the other, both
    ways round. Batches are pairs of EditLoader. `model` is the online encoder. As in DiGA's
    reference the target's decay is constant, and nothing is blurred or solarised.
    """

    def __init__(self, encoder: nn.Module, features: int, recipe, *, options: dict, autocast=None):
        hidden, size = options["hidden"], options["projection"]
        device = next(encoder.parameters()).device
        self.online = nn.Sequential(encoder, _mlp(features, hidden, size)).to(device)
        self.predictor = _mlp(size, hidden, size).to(device)
        self.target = deepcopy(self.online).requires_grad_(False)
        super().__init__(encoder, recipe, options=options, autocast=autocast)

    def setup(self) -> None:
        self.optimizer = torch.optim.Adam(
            [*self.online.parameters(), *self.predictor.parameters()], lr=self.options["byol_lr"]
        )

    def train_mode(self) -> None:
        for part in (self.online, self.predictor, self.target):
            part.train()  # the target takes batch statistics too

    def pair_loss(self, x: Tensor) -> Tensor:
        """Both directions' loss of pairs x [2B, ...]: rows i and B + i belong together."""
        views = x.chunk(2)
        predicted = [self.predictor(self.online(view)) for view in views]
        with torch.no_grad():
            target = [self.target(view) for view in views]
        return byol_loss(predicted[0], target[1]) + byol_loss(predicted[1], target[0])

    def loss(self, batch: Batch) -> Tensor:
        _, x, _, _ = batch
        with self.precision(x):
            return self.pair_loss(x)

    def update(self, batch: Batch) -> Tensor:
        loss = super().update(batch)
        move_average(self.target, self.online, self.options["target_decay"])
        return loss

    def end_epoch(self) -> None:
        pass  # the rate is constant

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict()
                for name in ("online", "predictor", "target", "optimizer")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)


class DiGA(Method):
    """An encoder for which edits of the spurious attribute change nothing; then a linear probe.

    (1) Edits of every training image that move the spurious attribute to either side, by a random
    degree, and keep the target; (2) BYOL on pairs of opposite edits, redrawn every epoch, cropped
    to at least 0.8 of an image, their colours jittered; (3) a linear layer on the frozen encoder,
    on edits moved to the side that contradicts their class (Zhang 2024 and its implementation), or
    with `contrary` 0 on the training images: an encoder that still shows the side makes the probe
    learn the opposite correlation from the edits.
    The edits come ready-made (--edits, datasets/edits.py). The paper makes them with a
    StyleGAN2 trained on the biased set, inverted by e4e, and finds the spurious direction itself,
    without group labels, from two logistic boundaries of the target of different regularisation;
    stable_diffusion/edit.py uses the text-to-image model at hand instead, and its prompts name the
    spurious attribute, which the paper does not need to know. Which side goes with which class,
    the sign of that direction, is read off the setting's ERM model: on edits of which side its mean
    logit is higher. No image's own group is used.
    Further departures: the probe's batch, epochs and milestone are the setting's, and its epoch is
    kept on validation. The encoder starts from the backbone's initial weights as in the paper, or
    with `warm_start` 1 from the ERM model's; an epoch of BYOL costs about 2.7 times one of ERM's.
    """

    stages = ("byol", "probe")
    paper_row = "DiGA"
    needs_edits = True
    defaults = {
        "warm_start": 0,  # the encoder's start, 0 or 1
        "byol_epochs": 150,  # the paper
        "byol_lr": 3e-4,  # Adam, the paper
        "byol_batch": 32,  # pairs, reference implementation
        "target_decay": 0.99,  # of the target network, reference implementation
        "hidden": 512,  # units of the projector and the predictor, reference; Grill 2020: 4096
        "projection": 128,  # reference; Grill 2020: 256
        "contrary": 1,  # the probe learns from contrary edits (reference), or 0
        "probe_lr": 1e-3,  # Adam, the paper
    }
    ranges = {
        "warm_start": (0, 1), "byol_epochs": (1, 10**6), "byol_lr": (1e-9, 100.0),
        "byol_batch": (2, 2**20), "target_decay": (0.0, 1.0), "hidden": (1, 10**6),
        "projection": (1, 10**6), "contrary": (0, 1), "probe_lr": (1e-9, 100.0),
    }

    def __init__(self, model: nn.Module, recipe, *, encoder: dict[str, Tensor], **rest):
        """encoder: state dict of `encoder_of(model)`."""
        self.head = output_layer(model)
        missing, unknown = model.load_state_dict(encoder, strict=False)
        if unknown or not all(name.startswith(f"{self.head}.") for name in missing):
            raise ValueError("the encoder is not that of this network")
        super().__init__(model, recipe, **rest)

    @classmethod
    def byol(cls, run: Run) -> None:
        """The encoder, trained on pairs of edits of either side."""
        erm, images = pretrained(run), len(run.data.real)
        if not (run.folder / "side.json").exists():
            write_json(run.folder / "side.json", {"of_class_1": side_of_class_1(erm, run)})

        def make() -> BYOL:
            model = new_model(run)  # sets torch's seed
            network, features = encoder_of(erm if run.options["warm_start"] else model)
            recipe = replace(run.config.pretrain, epochs=run.options["byol_epochs"])
            return BYOL(network, features, recipe, options=run.options,
                        autocast=run.config.autocast)

        sides = np.repeat([[0], [1]], images, axis=1)
        fit_stage(run, "byol", make, lambda: edit_loader(
            run, sides, min(run.options["byol_batch"], images), pairs=True), None)

    @classmethod
    def probe(cls, run: Run) -> Method:
        """The linear layer on the frozen encoder."""
        return super().train(run)

    @classmethod
    def batches(cls, run: Run):
        if not run.options["contrary"]:
            return super().batches(run)
        side = read_record(run.folder / "side.json", "of_class_1")["of_class_1"]
        contrary = np.where(run.data.real.y == 1, 1 - side, side)
        return edit_loader(run, contrary[None], run.config.batch_size, pairs=False)

    @classmethod
    def arguments(cls, run: Run) -> dict:
        return {"encoder": load_weights(run.folder / "byol" / "model.pt", "the BYOL encoder")}

    def setup(self) -> None:
        self.frozen_batch_norm = True  # the encoder is frozen as it is, running statistics too
        self.model.requires_grad_(False)
        head = self.model.get_submodule(self.head).requires_grad_(True)
        self.optimizer = torch.optim.Adam(head.parameters(), lr=self.options["probe_lr"])
        self.schedule = self.recipe.schedule(self.optimizer)
