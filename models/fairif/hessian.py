"""Products of the inverse curvature of the training loss with vectors (FairIF, appendix C).

The curvature is that of the mean binary cross entropy over the training samples at the model's
weights, batch norm in evaluation mode: the Hessian, or its Gauss-Newton part J^T S J, which is
positive semi-definite and for a logistic regression the same. `damping` adds a multiple of the
identity; with an L2 penalty l2 / 2 |theta|^2 in the training loss it must contain l2.

The appendix applies LiSSA to the summed training gradient, which is zero at the optimum, and
without a scale, which diverges. Here the inverse acts on the given vectors, and LiSSA is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.devices import ieee
from utils.errors import UserError

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # index, x, y, a: the loader's contract
METHODS = ("exact", "cg", "lissa")
PRODUCTS = ("gauss_newton", "hessian")
LARGEST_EXACT = 3000  # parameters; the matrix and its eigenvalues take seconds and 70 MB


class InverseProduct(NamedTuple):
    """(H + damping I)^-1 v: value float [K, P]; residual |(H + damping I) value - v| / |v|, [K];
    images: samples that the curvature's products went through, the residual's included; one counts
    once for all vectors of a product."""

    value: Tensor
    residual: Tensor
    images: int


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside, each back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def chosen_parameters(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Detached parameters by name, in the model's order; all trainable ones where names is None.

    names: parameters ("fc.weight") or modules ("fc", "layer4"). Raises UserError for a name that
    fits nothing.
    """
    if names is None:
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for wanted in names:
        if not any(name == wanted or name.startswith(f"{wanted}.") for name in parameters):
            raise UserError(
                f"the model has no parameter or module {wanted}; it has {', '.join(parameters)}"
            )
    return {
        name: p for name, p in parameters.items()
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in names)
    }


def flatten(parameters: dict[str, Tensor]) -> Tensor:
    """All entries in order, float [P]."""
    return torch.cat([p.reshape(-1) for p in parameters.values()])


def unflatten(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `flatten`, into the shapes of `like`."""
    pieces = vector.split([p.numel() for p in like.values()])
    return {name: piece.view(p.shape) for piece, (name, p) in zip(pieces, like.items())}


def logits_of(model: nn.Module, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Parameters -> logits [B] of the batch; parameters not given are the model's own."""

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        # A transformer's fused attention has no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, parameters, (x,)).squeeze(1)

    return logits


def curvature_product(
    model: nn.Module,
    batches: Sequence[Batch],
    vectors: Tensor,
    *,
    product: str = "gauss_newton",
    names: Sequence[str] | None = None,
) -> Tensor:
    """H v for each row of vectors, float [K, P]; H of the mean loss over the batches' samples.

    product: "gauss_newton" (a forward-mode, then a reverse-mode pass) or "hessian" (forward over
    reverse). The model is left as it was, and must be in evaluation mode (`evaluation`).
    """
    parameters = chosen_parameters(model, names)
    total, samples = torch.zeros_like(vectors), 0
    with torch.no_grad():  # no graph for the parameters that are not chosen
        for _, x, y, _ in batches:
            logits = logits_of(model, x)
            if product == "gauss_newton":
                out, pull = vjp(logits, parameters)
                spread = torch.sigmoid(out) * torch.sigmoid(-out)  # second derivative of the loss

                def one(vector, logits=logits, pull=pull, spread=spread):
                    push = jvp(logits, (parameters,), (unflatten(vector, parameters),))[1]
                    return flatten(pull(spread * push)[0])
            elif product == "hessian":
                def loss(p, logits=logits, y=y):
                    out = logits(p)
                    return F.binary_cross_entropy_with_logits(out, y.to(out), reduction="sum")

                def one(vector, loss=loss):
                    push = (unflatten(vector, parameters),)
                    return flatten(jvp(grad(loss), (parameters,), push)[1])
            else:
                raise ValueError(
                    f"curvature product {product} is unknown; choose gauss_newton or hessian"
                )
            total += vmap(one)(vectors)
            samples += len(y)
    return total / samples


@ieee()
def inverse_hvp(
    model: nn.Module,
    batches: Sequence[Batch],
    vectors: Tensor,
    *,
    method: str = "cg",
    damping: float = 0.0,
    product: str = "gauss_newton",
    names: Sequence[str] | None = None,
    steps: int = 30,
    tolerance: float = 1e-6,
    scale: float | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> InverseProduct:
    """(H + damping I)^-1 v for each row v of vectors, float [K, P], none of them zero.

    batches: training samples as (index, x, y, a), on the model's device; a is not read.
    names: only these parameters or modules (P counts their entries).
    method: "exact" (the matrix, at most 3,000 parameters), "cg" (conjugate gradients; stops below
    a relative residual of `tolerance` or after `steps` products over all batches) or "lissa"
    (`steps` products with one random batch each, averaged over `repeats` runs; batches of 32 or
    more). scale: LiSSA's divisor, above the norm of any batch's H + damping I; None takes twice
    the norm over all batches by power iteration.

    Raises UserError for a singular or indefinite matrix, one too large for "exact", a divergence,
    and a result that solves the system worse than zero does; ValueError for other words and for a
    negative damping.
    """
    if method not in METHODS:
        raise ValueError(f"inverse method {method} is unknown; choose from {', '.join(METHODS)}")
    if damping < 0:
        raise ValueError(f"damping {damping} is negative; it must be 0 or more")

    images = 0

    def apply(rows: Tensor, some: Sequence[Batch] = batches) -> Tensor:
        nonlocal images
        images += sum(len(batch[2]) for batch in some)
        return curvature_product(model, some, rows, product=product, names=names) + damping * rows

    with evaluation(model):
        if method == "exact":
            value, used = _exact(apply, vectors), 0
        elif method == "cg":
            value, used = _conjugate_gradients(apply, vectors, steps, tolerance)
        else:
            generator = torch.Generator().manual_seed(seed)
            scale = scale or 2 * _norm(apply, vectors, generator)
            value = _lissa(apply, batches, vectors, steps, scale, repeats, generator)
            used = steps * repeats
        residual = (apply(value) - vectors).norm(dim=1) / vectors.norm(dim=1)
    # conjugate gradients come nearer with every step in the norm of H, not in that of the residual
    limit = math.inf if method == "cg" else 1
    if not bool((residual < limit).all()):  # NaN included
        raise UserError(
            f"{method} left a relative residual of {residual.max():.3g} after {used} products, no "
            f"better than zero: raise the damping (now {damping:g}) or the number of steps"
        )
    return InverseProduct(value, residual, images)


def _exact(apply, vectors: Tensor) -> Tensor:
    size = vectors.shape[1]
    if size > LARGEST_EXACT:
        raise UserError(
            f"the exact inverse of {size} parameters is too large (at most {LARGEST_EXACT}): use "
            "cg, or name the layers to restrict it to"
        )
    identity = torch.eye(size, dtype=vectors.dtype, device=vectors.device)
    matrix = torch.cat([apply(rows) for rows in identity.split(64)])
    values, basis = torch.linalg.eigh((matrix + matrix.T) / 2)
    smallest, largest = values[0].item(), values[-1].item()
    if not smallest > size * torch.finfo(values.dtype).eps * largest:
        raise UserError(
            f"the Hessian is singular or indefinite (eigenvalues {smallest:.3g} to {largest:.3g} "
            f"over {size} parameters): add damping or an L2 penalty, or use gauss_newton"
        )
    return ((vectors @ basis) / values) @ basis.T


def _conjugate_gradients(apply, vectors: Tensor, steps: int, tolerance: float):
    """All rows at once, each with its own step length; a row that has converged stands still."""
    value = torch.zeros_like(vectors)
    rest, search = vectors.clone(), vectors.clone()
    square = (rest * rest).sum(dim=1, keepdim=True)  # [K, 1]
    target = tolerance**2 * square
    used = 0
    while used < steps and bool((square > target).any()):
        product = apply(search)
        used += 1
        bend = (search * product).sum(dim=1, keepdim=True)
        active = square > target
        if bool((active & ~(bend > 0)).any()):
            raise UserError(
                "the Hessian is singular or indefinite along a direction of conjugate gradients: "
                "add damping or an L2 penalty, or use gauss_newton"
            )
        length = torch.where(active, square / bend, 0.0)
        value += length * search
        rest -= length * product
        before, square = square, (rest * rest).sum(dim=1, keepdim=True)
        search = rest + torch.where(active, square / before, 0.0) * search
    return value, used


def _lissa(apply, batches, vectors, steps: int, scale: float, repeats: int, generator) -> Tensor:
    """x <- v + x - H_b x / scale from x = v; x / scale tends to the inverse (Agarwal 2017)."""
    sizes = torch.tensor([float(len(batch[2])) for batch in batches])
    norm = vectors.norm(dim=1)
    mean = torch.zeros_like(vectors)
    for _ in range(repeats):
        picks = torch.multinomial(sizes, steps, replacement=True, generator=generator).tolist()
        value = vectors.clone()
        for step, pick in enumerate(picks, start=1):
            value = vectors + value - apply(value, [batches[pick]]) / scale
            # where 0 <= H_b <= scale, |x| grows by at most |v| a step: beyond that it diverges
            if not bool((value.norm(dim=1) <= 1.001 * (step + 1) * norm).all()):
                raise UserError(
                    f"LiSSA diverges at step {step} with scale {scale:.3g}: give a scale above "
                    "the largest curvature of a batch, or larger batches"
                )
        mean += value / (scale * repeats)
    return mean


def _norm(apply, vectors: Tensor, generator: torch.Generator) -> float:
    """Largest eigenvalue by 20 power iterations."""
    start = torch.randn(vectors.shape[1], generator=generator, dtype=torch.float64)
    vector, norm = start.to(vectors)[None], math.nan
    for _ in range(20):
        vector = apply(vector / vector.norm())
        norm = vector.norm().item()
        if not 0 < norm < math.inf:
            raise UserError(f"the Hessian's norm is {norm}: add damping")
    return norm
