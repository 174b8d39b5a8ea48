"""The networks of FairIF's tables (appendix F), one logit each; the last module is a Linear.

The paper gives the MLP's hidden width, the size and number of the CNN's filters' layers (two, 5x5)
and LeNet's (three). The rest is textbook: the CNN has the widths of the MNIST example of PyTorch
(10 and 20 channels, then 50), without its dropout; LeNet is LeNet-5 (6, 16 and 120 channels of 5x5,
then 84) with rectified linear units and max pooling.
"""

from __future__ import annotations

from torch import Tensor, nn

COLOURED = (3, 28, 28)
PIXELS = 3 * 28 * 28


class Pixels(nn.Module):
    """uint8 [B, 2352] -> float32 [B, 3, 28, 28] in [0, 1]: digits are held as bytes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mul_(1 / 255).unflatten(1, COLOURED)


def logistic_regression(features: int) -> nn.Sequential:
    """Float [B, ...] with `features` entries a sample -> logit [B, 1]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 1))


def mlp(features: int, hidden: int = 64) -> nn.Sequential:
    """One hidden layer of rectified linear units; float [B, ...] -> logit [B, 1]."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )


def digit_mlp() -> nn.Sequential:
    """The MLP on coloured digits, uint8 [B, 2352] -> logit [B, 1]; 150,657 parameters."""
    return nn.Sequential(Pixels(), *mlp(PIXELS))


def digit_cnn() -> nn.Sequential:
    """Two 5x5 convolutions, uint8 [B, 2352] -> logit [B, 1]; 21,881 parameters."""
    return nn.Sequential(
        Pixels(),
        nn.Conv2d(3, 10, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 10, 12, 12]
        nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 20, 4, 4]
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 1),
    )  # fmt: skip


def digit_lenet() -> nn.Sequential:
    """LeNet-5, uint8 [B, 2352] -> logit [B, 1]; 61,241 parameters."""
    return nn.Sequential(
        Pixels(),
        nn.Conv2d(3, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),  # [B, 6, 14, 14]
        nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(),  # [B, 16, 5, 5]
        nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),  # [B, 120]
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 1),
    )  # fmt: skip
