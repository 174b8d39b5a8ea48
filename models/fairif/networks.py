"""The two networks of FairIF's tabular and MLP tables, one logit each (appendix F)."""

from __future__ import annotations

from torch import nn


def logistic_regression(features: int) -> nn.Module:
    """Float [B, ...] with `features` entries a sample -> logit [B, 1]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 1))


def mlp(features: int, hidden: int = 64) -> nn.Module:
    """One hidden layer of rectified linear units; float [B, ...] -> logit [B, 1]."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )
