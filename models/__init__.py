"""The menu of methods: name -> a subclass of models.method.Method.

To add a comparison strategy or a variant, add a row to STRATEGIES in models/strategies.py
(to OWN in models/own_strategies.py, if no paper has it); to add a method of its own, write one file
with a subclass of Method and add one line to models/menu.py or to its package's list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.choices import CHOICES
    from models.menu import METHODS

__all__ = ["CHOICES", "METHODS"]


def __getattr__(name: str):
    """METHODS and CHOICES where they are asked for: they import torch, which takes seconds, and a
    command of this package is to read its flags first."""
    if name not in __all__:
        raise AttributeError(f"module 'models' has no attribute '{name}'")
    from models.menu import CHOICES, METHODS

    return {"CHOICES": CHOICES, "METHODS": METHODS}[name]
