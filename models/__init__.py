"""The menu of methods: name -> an object with `uses_attributes`, `needs_synthetic` and `run`.

To add a comparison strategy, add a row to STRATEGIES in models/strategies.py; to add a method of
its own, write one file with a Method and add one line here.
"""

from __future__ import annotations

from models.strategies import STRATEGIES

METHODS = {**STRATEGIES}
