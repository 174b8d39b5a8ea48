"""The debiasing baselines, none of which sees protected labels: one file and one line each."""

from __future__ import annotations

from models.debiasing.cvar_dro import CVaRDRO
from models.debiasing.diga import DiGA
from models.debiasing.eiil import EIIL
from models.debiasing.jtt import JTT
from models.debiasing.lff import LfF
from models.debiasing.maple import MAPLE

DEBIASING = {
    "cvar_dro": CVaRDRO, "eiil": EIIL, "lff": LfF, "jtt": JTT, "maple": MAPLE, "diga": DiGA,
}
