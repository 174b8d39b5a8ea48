"""train.py that knows the small network, for jobs in processes of their own."""

from __future__ import annotations

import tiny

import train
from models import backbones

backbones.BACKBONES["tiny"] = tiny.Network
main = train.main
