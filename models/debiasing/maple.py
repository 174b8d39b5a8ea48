"""MAPLE (Zhou et al., ICML 2022, Model Agnostic Sample Reweighting for OOD Learning)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from datasets.loader import send
from models.debiasing.base import losses_of
from models.debiasing.eiil import EIIL, InferredEnvironments, group_means
from models.method import Batch

EDGE = 1e-3  # the logit of a keep-probability is taken at least this far from 0 and 1


def project(s: Tensor, total: float) -> Tensor:
    """The nearest point to s, N floats, with entries in [0, 1] and a sum of at most `total` > 0.

    It is clamp(s - v, 0, 1) for one v >= 0 (Zhou 2022), found by bisection where v = 0 leaves too
    much; no host synchronisation.
    """
    low, high = torch.zeros_like(s.max()), s.max().clamp_min(0)
    for _ in range(50):
        v = (low + high) / 2
        above = (s - v).clamp(0, 1).sum() > total
        low, high = torch.where(above, v, low), torch.where(above, high, v)
    fits = s.clamp(0, 1).sum() <= total
    return (s - torch.where(fits, 0, (low + high) / 2)).clamp(0, 1)


def sample_mask(s: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Straight-through Gumbel-sigmoid: 0/1 in the forward pass with P(1) = s, soft backward.

    s float [B] in [0, 1]; noise float [B] uniform in (0, 1).
    """
    inside = s + (s.clamp(EDGE, 1 - EDGE) - s).detach()  # a clamp would stop the gradient at 0, 1
    soft = torch.sigmoid((torch.logit(inside) + torch.logit(noise)) / temperature)
    hard = (soft > 0.5).to(soft.dtype)
    return hard + soft - soft.detach()


def environment_risk(losses: Tensor, environments: Tensor) -> Tensor:
    """REx as in the reference: the variance over 2 environments of their mean losses, alone.

    losses float [B], environments int64 [B] in {0, 1}. One without samples in the batch has no
    risk; the variance is 0 then.
    """
    first, second = group_means(losses, environments, 2)
    both = F.one_hot(environments, 2).amax(0).prod()
    return both * (first - second) ** 2 / 4


def annealed(progress: float) -> float:
    """The Gumbel-sigmoid's temperature after a share of the training: from 1 to 0.03 (reference).
    """
    return 0.97 * (1 - progress) + 0.03


def hypergradient(
    model: nn.Module, batch: tuple[Tensor, Tensor], mask: Tensor, lr: float, outer
) -> tuple[Tensor, list[Tensor], Tensor]:
    """d outer(losses after one unrolled step) / d mask, the inner gradient and the inner loss.

    Inner loss: sum(mask * loss) / max(1, sum(mask)) over the batch (x, y), the divisor a constant
    as in the reference, differentiated at the model's parameters; one step of plain gradient
    descent with rate lr; `outer` maps the losses float [B] of the same batch at the new parameters
    to a scalar. mask float [B], any real numbers.
    Returns (float [B], one tensor a parameter, scalar); the parameters are left as they are.
    """
    x, y = batch
    mask = mask.detach().requires_grad_(True)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = (mask * losses_of(model, x, y)).sum() / mask.detach().sum().clamp_min(1)
    inner = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    stepped = {name: p - lr * g for (name, p), g in zip(named.items(), inner, strict=True)}
    # Copies: the second pass must not move the batch norm's running statistics once more.
    stepped |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    risk = outer(losses_of(lambda x: functional_call(model, stepped, (x,)), x, y))
    (gradient,) = torch.autograd.grad(risk, mask)
    return gradient, [g.detach() for g in inner], loss.detach()


class MAPLE(InferredEnvironments):
    """Keep-probabilities s for which ERM on the kept samples has a low out-of-distribution risk.

    min over s of R_out(theta*(m)), theta*(m) = argmin of the mean loss of the samples with
    m_i ~ Bernoulli(s_i) = 1, subject to sum(s) <= K, 0 <= s <= 1 (Zhou 2022). Each step draws the
    batch's mask, moves s along the hypergradient through one unrolled step, projects it, and then
    trains the model on the kept samples of the batch. s has an Adam of its own, whose steps move
    the batch's entries alone.
    The outer risk is REx over EIIL's two inferred environments: the reference reads the true
    environment labels there, which no method of this table may see.
    Further departures: mini-batches (the reference is full-batch), inner and outer problem
    advance together instead of ERM to convergence between outer steps, the risk is taken on the
    batch at hand, SGD with the setting's recipe for the model, on request a warm start
    (base.FromERM), and the reported epoch is not the best on test.
    A step costs about three times ERM's.
    """

    paper_row = "MAPLE"
    defaults = EIIL.defaults | {
        "kept_share": 0.3,  # K / N; 15,000 of 50,000 in the reference's Colored MNIST command
        "clip": 3.0,  # norm of the gradient of s, reference (there of all samples at once)
        "outer_lr": 1.5,  # of s's Adam, reference's command line; its default is 0.05
    }
    del defaults["group_step"]
    ranges = {name: EIIL.ranges[name] for name in defaults if name in EIIL.ranges} | {
        "kept_share": (1e-4, 0.9999), "clip": (1e-9, 1e9), "outer_lr": (1e-9, 1e9),
    }

    def setup(self) -> None:
        super().setup()
        count = len(self.environments)
        self.total = self.options["kept_share"] * count
        self.keep = torch.full((count, 1), self.total / count, device=self.environments.device)
        self.outer = torch.optim.SparseAdam([self.keep], lr=self.options["outer_lr"])
        self.epochs_done = 0

    def update(self, batch: Batch) -> Tensor:
        index, x, y, _ = batch
        environments = self.environments[index]
        # Drawn on the CPU, whose generator the engine's checkpoints hold.
        noise = send(torch.rand(len(index)).clamp(1e-6, 1 - 1e-6), x.device)
        s = self.keep[index, 0].requires_grad_(True)
        mask = sample_mask(s, noise, annealed(self.epochs_done / self.recipe.epochs))
        with self.precision(x):
            by_mask, inner, loss = hypergradient(
                self.model, (x, y), mask, self.optimizer.param_groups[0]["lr"],
                lambda losses: environment_risk(losses, environments),
            )
        (gradient,) = torch.autograd.grad(mask, s, by_mask)
        self.move(index, gradient)
        for p, g in zip(self.parameters, inner, strict=True):
            p.grad = g
        self.optimizer.step()
        return loss

    def passes(self, batch: Batch) -> int:
        return 3 * len(batch[1])  # the step, the risk after it, and back through both

    def move(self, index: Tensor, gradient: Tensor) -> None:
        """One projected step of Adam on the batch's keep-probabilities."""
        # The reference's bound is on all N entries at once; a batch has B of them.
        bound = self.options["clip"] * (len(index) / len(self.keep)) ** 0.5
        gradient = gradient * (bound / gradient.norm().clamp_min(1e-12)).clamp(max=1)
        self.keep.grad = torch.sparse_coo_tensor(
            index[None], gradient[:, None], self.keep.shape, check_invariants=False,
            is_coalesced=True)  # a batch has each sample once; to sort them waits for the GPU
        self.outer.step()
        self.keep.copy_(project(self.keep, self.total))

    def end_epoch(self) -> None:
        super().end_epoch()
        self.epochs_done += 1

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "keep": self.keep, "outer": self.outer.state_dict(), "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.keep.copy_(state["keep"])
        self.outer.load_state_dict(state["outer"])
        self.epochs_done = state["epochs_done"]
