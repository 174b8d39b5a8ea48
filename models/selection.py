"""Which parameter tensors to update: the selective mask of AIM-Fair (section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from utils.errors import UserError

Gradients = Mapping[str, Tensor]


def absolute_difference(a: Tensor, b: Tensor) -> float:
    """Mean over a tensor's elements of |a - b| (Equation 4, one number a tensor)."""
    return float((a.double() - b.double()).abs().mean())


def cosine_difference(a: Tensor, b: Tensor) -> float:
    """1 - cos(a, b) over the flattened tensor; a tensor of zero norm counts as 0 (Table 4)."""
    a, b = a.double().flatten(), b.double().flatten()
    norm = float(a.norm() * b.norm())
    return 1.0 - float(a @ b) / norm if norm > 0 else 0.0


CRITERIA: dict[str, Callable[[Tensor, Tensor], float]] = {
    "absolute": absolute_difference,
    "cosine": cosine_difference,
}


def differences(a: Gradients, b: Gradients, criterion: str = "absolute") -> dict[str, float]:
    """One difference per tensor name. Raises ValueError for other names, shapes or NaN."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    if a.keys() != b.keys():
        raise ValueError("the gradients do not name the same tensors")
    result = {}
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(f"gradients of {name} differ in shape")
        result[name] = CRITERIA[criterion](a[name], b[name])
        if result[name] != result[name] or result[name] == float("inf"):
            raise ValueError(f"the gradient difference of {name} is not finite")
    return result


def top(values: Mapping[str, float], k: int, *, largest: bool) -> set[str]:
    """The k names of smallest or largest value; ties go to the name that sorts first.

    The name, not the position, breaks ties, so the result does not depend on parameter order.
    """
    sign = -1.0 if largest else 1.0
    return set(sorted(values, key=lambda name: (sign * values[name], name))[:k])


def select_tensors(
    g_real: Gradients,
    g_synthetic_biased: Gradients,
    g_synthetic_balanced: Gradients,
    k: int,
    criterion: str = "absolute",
) -> set[str]:
    """Tensors insensitive to the domain and sensitive to the bias (Equations 4-7).

    Arguments map tensor name -> mean gradient (any shape, the same in all three). Delta1, real
    against synthetic biased, is ranked ascending; Delta2, synthetic biased against balanced,
    descending; the result is the intersection of the two top-k sets, possibly empty.
    Raises ValueError for k below 1 or above the number of tensors, and as `differences` does.
    """
    if isinstance(k, bool) or not 1 <= k <= len(g_real) or k != int(k):
        raise ValueError(f"k must be a whole number from 1 to {len(g_real)}, not {k}")
    domain = differences(g_real, g_synthetic_biased, criterion)
    bias = differences(g_synthetic_biased, g_synthetic_balanced, criterion)
    return top(domain, int(k), largest=False) & top(bias, int(k), largest=True)


def resolve_k(k: float, tensors: int) -> int:
    """--top-k as a number of tensors: below 1 it is a share of them (0.887 is 55 of ResNet-18).

    Raises UserError outside 1 to `tensors` and for a number above 1 that is not whole.
    """
    number = round(k * tensors) if 0 < k < 1 else k
    if not 1 <= number <= tensors or number != int(number):
        raise UserError(
            f"--top-k {k} is no whole number from 1 to {tensors}, the tensors of the backbone, nor "
            "a share of them between 0 and 1 that makes at least one"
        )
    return int(number)


def random_tensors(names: list[str], size: int, seed: int) -> set[str]:
    """`size` names drawn without replacement, from a seed (Table 4's random selection)."""
    if not 1 <= size <= len(names):
        raise ValueError(f"size must be from 1 to {len(names)}, not {size}")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return {sorted(names)[i] for i in order[:size].tolist()}
