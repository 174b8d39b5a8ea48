"""The methods FairIF is compared with in its Table 5, on images: one file and one line each.

Their mathematics is that of models/fairif/baselines, where they train on data in memory. Here they
are methods of train.py on any backbone: its penultimate features, the inputs of its output layer,
are the features that CFair's adversaries, DOMIND's heads and ARL's adversary share. All are trained
by the setting's recipe (SGD, rate, epochs, the epoch kept by validation accuracy), as ERM is, so
that rows differ in the algorithm alone; the papers' optimisers differ from each other.
"""

from __future__ import annotations

from models.fairif.images.arl import ARL
from models.fairif.images.cfair import CFair
from models.fairif.images.domind import DOMIND
from models.fairif.images.fairsmote import FairSMOTE
from models.fairif.images.influence import Influence

IMAGE_BASELINES = {
    "cfair": CFair, "domind": DOMIND, "arl": ARL, "fairsmote": FairSMOTE, "influence": Influence,
}
