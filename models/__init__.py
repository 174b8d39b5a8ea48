"""The menu of methods: name -> an object with `uses_attributes`, `needs_synthetic`, `tables` and
`run`, and with `defaults` and `ranges` of the hyper-parameters that `--set` may change.

To add a comparison strategy, add a row to STRATEGIES in models/strategies.py; to add a method of
its own, write one file with a subclass of Debiasing (models/debiasing/base.py) and add one line
here or in its package's list.
"""

from __future__ import annotations

from models.debiasing import DEBIASING
from models.fairif.images import IMAGE_BASELINES
from models.fairif.method import FairIF, FairIFShuffled
from models.ltgc import LTGC
from models.strategies import STRATEGIES

METHODS = {**STRATEGIES, "ltgc": LTGC, **DEBIASING, "fairif": FairIF,
           "fairif_shuffled": FairIFShuffled, **IMAGE_BASELINES}
