"""The methods FairIF is compared with in its Tables 1 to 5: one file and one line each.

All are trained by the setting's recipe and the best epoch is kept by validation accuracy, as with
ERM, so that rows differ in the algorithm alone; the papers' optimisers differ from each other. The
features that CFair's adversaries, DOMIND's heads and ARL's adversary share are the inputs of the
backbone's output layer.
"""

from __future__ import annotations

from models.fairif.baselines.arl import ARL
from models.fairif.baselines.cfair import CFair
from models.fairif.baselines.domind import DOMIND
from models.fairif.baselines.fairsmote import FairSMOTE
from models.fairif.baselines.influence import Influence

BASELINES = {
    "cfair": CFair, "domind": DOMIND, "arl": ARL, "fairsmote": FairSMOTE, "influence": Influence,
}
