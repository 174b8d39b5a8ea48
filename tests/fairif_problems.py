"""Small problems that FairIF's tests share: biased samples, their model, a small network."""

from __future__ import annotations

import torch
from torch import nn

from datasets.base import ArrayTable, Splits
from datasets.mixing import Data
from models import METHODS, backbones
from models.fairif.hessian import evaluation
from models.fairif.relaxation import Relaxation
from utils.config import config_of
from utils.recipe import Recipe
from utils.run import Run

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


def as_batches(x, y, a, size=None):
    """Tensors as batches (index, x, y, a) of `size`, in order; None is one."""
    index, size = torch.arange(len(y)), size or len(y)
    return list(zip(index.split(size), x.split(size), y.split(size), a.split(size), strict=True))


def logistic(features=6):
    return backbones.build("logistic", "none", (features,))


def trained(x, y, weights=None, model=None, l2=L2):
    """The minimum of sum_i weights_i l_i + l2 / 2 |theta|^2, weights 1/n each where not given."""
    torch.manual_seed(0)
    model = model or logistic(x.shape[1])
    weights = torch.full((len(y),), 1 / len(y), dtype=torch.float64) if weights is None else weights
    recipe = Recipe(1, 1.0, weight_decay=l2, optimizer="lbfgs")
    optimizer = recipe.make_optimizer(model.parameters())

    def objective():
        optimizer.zero_grad()
        losses = nn.functional.binary_cross_entropy_with_logits(
            model(x).squeeze(1), y.to(x), reduction="none")
        loss = (weights.to(x) * losses).sum() + recipe.penalty(model.parameters())
        loss.backward()
        return loss

    optimizer.step(objective)
    return model


def table(n, name="real", **rest):
    x, y, a = biased(n, **rest)
    return ArrayTable(name, x.numpy(), y.numpy(), a.numpy())


def memory_run(name, folder, splits, *, backbone="logistic", seed=1, options=(), **flags):
    """(the trained method, its run) of a row of METHODS on tables in memory.

    A logistic regression is fitted by L-BFGS with the penalty L2, a network by Adam.
    """
    method = METHODS[name]
    fit = {"optimizer": "lbfgs", "batch_size": None, "pretrain_epochs": 2}
    if backbone != "logistic":
        fit = {"optimizer": "adam", "batch_size": 50, "pretrain_epochs": 20, "pretrain_lr": 0.01}
    config = config_of({
        "backbone": backbone, "pretrained": "none", "device": "cpu", "precision": "fp32",
        "weight_decay": L2, "pretrain_milestone": 100, "results": folder, **fit, **flags})
    data = Data(splits, None, config, seed, digests={"real": splits.train.digest()})
    run = Run(folder / name, config, data.seen_by(method.uses_attributes), seed,
              folder / "shared", {**method.defaults, **dict(options)})
    run.folder.mkdir(parents=True)
    return method.run(run), run


def splits_of(n=300, seed=1, bias=1.0):
    return Splits(table(n, seed=seed, bias=bias), table(n, "val", seed=99, bias=bias),
                  table(n, "test", seed=100, bias=bias))


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
