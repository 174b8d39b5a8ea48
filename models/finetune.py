"""Freezing: only the selected tensors are trained, the others stay bit-identical."""

from __future__ import annotations

from torch import nn

from utils.errors import UserError


def freeze_all_but(model: nn.Module, selected: set[str]) -> None:
    """requires_grad for the selected tensors only (Algorithm 1, step 4).

    No gradient is computed for the others and the optimiser never sees them: zeroed gradients
    (Equation 8 read literally) would let weight decay and momentum move them.
    Raises UserError for an empty selection, ValueError for names the model lacks.
    """
    names = {name for name, _ in model.named_parameters()}
    if selected - names:
        raise ValueError(f"no such tensors: {', '.join(sorted(selected - names))}")
    if not selected:
        raise UserError("the mask selects no tensor: raise --top-k")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selected)
