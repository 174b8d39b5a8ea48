"""EIIL (Creager et al., ICML 2021, Environment Inference for Invariant Learning) with GroupDRO."""

from __future__ import annotations

import shutil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.debiasing.base import FromERM, losses_of, refuse_empty, train_reference
from models.method import Batch
from utils.files import read_array, write_array
from utils.run import Run


def scale_gradients(logits: Tensor, y: Tensor) -> Tensor:
    """d loss_i / d s of the binary cross entropy of s * logits at s = 1; float [N]."""
    return logits * (torch.sigmoid(logits) - y)


def penalty_gradient(q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(mean squared gradient of the two environments' losses, its derivative by q float [N]).

    g float [N]: `scale_gradients` of the reference, constants here. The first is
    1/2 [(1/N sum q_i g_i)^2 + (1/N sum (1 - q_i) g_i)^2].
    """
    first, second = (q * g).mean(), ((1 - q) * g).mean()
    return (first**2 + second**2) / 2, (first - second) / len(g) * g


def soft_environments(
    logits: Tensor, y: Tensor, *, steps: int, lr: float, generator: torch.Generator
) -> Tensor:
    """Probability q float [N] of each example to belong to the second of two environments.

    Maximises (Creager 2021, by gradient ascent) the mean over both environments of
    the squared IRMv1 penalty | d/ds 1/N sum_i q_i loss_i(s * f) |^2 at s = 1, the other one with
    1 - q. logits float [N] of the frozen reference, y in {0, 1} [N]; q = sigmoid(w), w ~ N(0, 1).
    """
    # At fixed logits each example's derivative is a constant, so no graph of losses is needed.
    g = scale_gradients(logits.double(), y.double())
    w = torch.randn(len(g), generator=generator, dtype=torch.float64).to(g.device)
    optimizer = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        q = torch.sigmoid(w)
        w.grad = -penalty_gradient(q, g)[1] * q * (1 - q)
        optimizer.step()
    return torch.sigmoid(w).float()


def group_means(losses: Tensor, groups: Tensor, count: int) -> Tensor:
    """Mean loss of every group float [count], 0 for one without samples; groups int64 [B]."""
    member = F.one_hot(groups, count).to(losses.dtype)
    # no matrix product, which autocast would round to bf16
    return (losses[:, None] * member).sum(0) / member.sum(0).clamp_min(1)


class InferredEnvironments(FromERM):
    """A method over the two environments that EIIL infers before it: `self.environments`.

    The reference is ERM for options["reference_epochs"] epochs; the split is at q = 0.5.
    """

    stages = ("reference", "inference", "train")

    def __init__(self, model, recipe, *, environments: np.ndarray, **rest):
        device = next(model.parameters()).device
        self.environments = torch.from_numpy(environments).to(device)  # int64 [N]
        super().__init__(model, recipe, **rest)

    @classmethod
    def reference(cls, run: Run) -> None:
        train_reference(run, run.options["reference_epochs"])

    @classmethod
    def inference(cls, run: Run) -> None:
        """environments.npy: 0 or 1 of each training row, int64 [N]."""
        options = run.options
        with run.stage("inference", "environments.npy") as stage:
            path = stage.folder / "environments.npy"
            if not stage.finished:
                logits = read_array(run.folder / "reference" / "logits.npy", (None,), np.float32)
                q = soft_environments(
                    torch.from_numpy(logits), torch.from_numpy(run.data.real.y),
                    steps=options["inference_steps"], lr=options["inference_lr"],
                    generator=torch.Generator().manual_seed(run.seed),
                )
                write_array(path, (q > 0.5).long().numpy())
        sizes = np.bincount(read_array(path, (len(run.data.real),), np.int64), minlength=2)
        if sizes.min() == 0:
            shutil.rmtree(stage.folder)
        refuse_empty(int(sizes.min()), run, cls.paper_row, "reference_epochs",
                     options["reference_epochs"])
        run.add_log(run.folder / "reference", environments=sizes.tolist())

    @classmethod
    def arguments(cls, run: Run) -> dict:
        path = run.folder / "inference" / "environments.npy"
        return {"environments": read_array(path, (len(run.data.real),), np.int64)}


class EIIL(InferredEnvironments):
    """GroupDRO over the two environments that EIIL infers from an early ERM model.

    GroupDRO (Sagawa 2020, algorithm 1): p_e <- p_e exp(step * loss_e), normalised, and a step on
    sum_e p_e loss_e. The groups are the 2 inferred environments, not class x environment: with
    one logit and fixed predictions the optimum separates the examples the reference gets right
    from those it gets wrong, whatever their class. A batch holds as many of each, the smaller one's
    drawn again and again, as in SpuCo's implementation; an epoch has as many steps as ERM's.
    Departures: SGD with the setting's recipe and weight decay (SpuCo's is 1.0), on request a warm
    start (base.FromERM); nothing is tuned on group labels. The paper uses
    IRM on Colored MNIST and GroupDRO on Waterbirds and CivilComments; here it is always GroupDRO.
    """

    paper_row = "EIIL"
    defaults = FromERM.defaults | {
        "reference_epochs": 1,  # short and underfit, about 1 epoch on CelebA; decides the split
        "inference_steps": 10_000,  # reference implementation
        "inference_lr": 1e-3,  # Adam, reference implementation
        "group_step": 0.01,  # eta of GroupDRO, Sagawa 2020
    }
    ranges = FromERM.ranges | {
        "reference_epochs": (1, 10**6), "inference_steps": (1, 10**7),
        "inference_lr": (1e-8, 1e3), "group_step": (0.0, 1e3),
    }

    @classmethod
    def batches(cls, run: Run):
        return run.data.loader(run.data.real, train=True, groups=cls.arguments(run)["environments"])

    def setup(self) -> None:
        super().setup()
        self.weights = torch.full((2,), 0.5, device=self.environments.device)

    def loss(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        with self.precision(x):
            losses = losses_of(self.network, x, y)
        means = group_means(losses, self.environments[index], 2)
        raised = self.weights * torch.exp(self.options["group_step"] * means.detach())
        self.weights = raised / raised.sum()
        return (self.weights * means).sum()

    def state_dict(self) -> dict:
        return super().state_dict() | {"weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.weights = state["weights"]
