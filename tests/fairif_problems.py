"""Small problems that FairIF's tests share: biased samples, their model, a small network."""

from __future__ import annotations

import torch
from torch import nn

from models.fairif.fairif import as_batches
from models.fairif.hessian import evaluation
from models.fairif.networks import logistic_regression
from models.fairif.relaxation import Relaxation
from models.fairif.training import fit_to_convergence

L2 = 1e-2
SOFT = Relaxation("sigmoid", 0.5)


def biased(n, features=6, seed=0, bias=1.0):
    """x, y, a whose groups differ in their share of y = 1 and in a feature; x float64."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    a = (torch.rand(n, generator=generator) < 0.5 + 0.2 * bias * (2 * y - 1)).long()
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    x[:, 0] += 2 * y - 1
    x[:, 1] += 1.5 * bias * a
    return x, y, a


def trained(x, y, weights=None, model=None, l2=L2, tolerance=1e-8):
    torch.manual_seed(0)
    model = model or logistic_regression(x.shape[1]).double()
    if weights is None:
        weights = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
    fit_to_convergence(model, x, y, weights, l2=l2, tolerance=tolerance)
    return model


def small_problem():
    """100 training and 80 validation samples as batches of uneven size, and the ERM model."""
    train, val = biased(100, seed=1), biased(80, seed=2)
    return train, as_batches(*train, size=33), as_batches(*val, size=30), trained(*train[:2])


class ConvNet(nn.Module):
    """Batch norm, an in-place activation and a residual sum, as ResNets have them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        x = self.pool(self.relu(self.bn(self.conv1(x))))
        x = x + self.conv2(x)
        return self.fc(x.mean(dim=(2, 3)))


def small_network():
    """A small convolutional network in training mode with moved statistics, and 23 images."""
    torch.manual_seed(3)
    model, x = ConvNet(), torch.randn(23, 3, 8, 8)
    with torch.no_grad():
        model(x)
    y, a = torch.arange(23) % 2, torch.arange(23) // 2 % 2
    return model, as_batches(x, y, a, size=10)


def per_sample_gradients(model, batches):
    """[n, P], one backward pass a sample."""
    rows = []
    with evaluation(model):
        for _, x, y, _ in batches:
            for i in range(len(y)):
                model.zero_grad()
                logit = model(x[i : i + 1]).squeeze(1)
                nn.functional.binary_cross_entropy_with_logits(logit, y[i : i + 1].to(x)).backward()
                rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows)
