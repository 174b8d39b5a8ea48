"""What differentiates a network works for every backbone: masks, influence, hypergradients."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from models import backbones
from models.backbones import BACKBONES, parameter_names
from models.debiasing.base import losses_of
from models.debiasing.maple import environment_risk, hypergradient
from models.experiment import prepare
from models.fairif.hessian import curvature_product, evaluation, flatten
from models.fairif.influence import gap_gradients, loss_derivatives
from models.fairif.relaxation import Relaxation
from models.selection import SENSITIVE_TO_BIAS
from utils.errors import UserError

# of the others' blocks, or of a third convolution in each
LARGER = ("resnet18", "resnet34", "resnet50", "resnet34_h128", "resnet50_h128")
SIDE = 28  # the digits' networks take no other


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LARGER))
                        for name in BACKBONES])
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[request.param](None)


def batch(seed: int, size: int = 4, dtype: torch.dtype = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, SIDE, SIDE, generator=generator).to(dtype)
    return torch.arange(size), x, torch.arange(size) % 2, torch.arange(size) // 2 % 2


class OneBatch:
    def __init__(self, given: tuple):
        self.given = given

    def __len__(self) -> int:
        return 1

    def epoch(self, k: int) -> list[tuple]:
        return [self.given]


def test_the_mask_ranks_every_tensor(model):
    data = SimpleNamespace(
        real=0, synthetic_biased=1, synthetic_balanced=2,
        loader=lambda table, train: OneBatch(batch(table)),
    )  # fmt: skip
    names = parameter_names(model)
    config = SimpleNamespace(top_k=len(names), criterion="absolute", autocast=None)
    run = SimpleNamespace(data=data, config=config, seed=1)
    mask = SENSITIVE_TO_BIAS.mask(model, run)
    assert list(mask["tensors"]) == names and all(mask["tensors"].values())
    for difference in (mask["delta1"], mask["delta2"]):
        assert set(difference) == set(names)
        # a key's bias moves no attention, so that of the whole q, k, v is what has a gradient
        assert all(value > 0 for value in difference.values())


def test_influence_agrees_with_gradients_of_single_samples(model):
    model.double()
    given = batch(1, 4, torch.float64)
    index, x, y, a = (part[:2] for part in given)
    parameters = dict(model.named_parameters())
    size = sum(p.numel() for p in parameters.values())
    vector = torch.randn(1, size, dtype=torch.float64)
    expected = torch.empty(1, 2, dtype=torch.float64)
    with evaluation(model):
        for i in range(2):
            loss = F.binary_cross_entropy_with_logits(model(x[i : i + 1])[:, 0], y[i : i + 1] * 1.0)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            expected[0, i] = flatten(dict(enumerate(gradients))) @ vector[0]
    measured = loss_derivatives(model, [(index, x, y, a)], vector)
    torch.testing.assert_close(measured, expected, rtol=1e-6, atol=1e-9)
    _, gradients = gap_gradients(model, [given], Relaxation("sigmoid", 1.0))
    with evaluation(model):
        bend = (gradients[:1] * curvature_product(model, [(index, x, y, a)], gradients[:1])).sum()
    assert gradients.shape == (2, size) and bend > 0


def test_the_quarter_network_is_resnet18_with_a_quarter_of_the_channels():
    """Every tensor of ResNet-18, in its order: channels / 4, kernels and the image's three as they
    are."""
    whole, narrow = (dict(backbones.build(name).state_dict()) for name in
                     ("resnet18", "resnet18_quarter"))
    assert list(narrow) == list(whole)
    for name, tensor in whole.items():
        expected = [side // 4 if side >= 64 else side for side in tensor.shape]
        assert list(narrow[name].shape) == expected, name
    assert len(parameter_names(backbones.build("resnet18_quarter"))) == 62
    stem = narrow["conv1.weight"]  # initialised as torchvision does: fan-out of 16 channels of 7x7
    assert float(stem.std()) == pytest.approx((2 / (16 * 49)) ** 0.5, rel=0.05)


def test_the_quarter_network_has_no_published_weights(tmp_path):
    with pytest.raises(UserError, match="^--pretrained imagenet: resnet18_quarter starts from ran"):
        backbones.build("resnet18_quarter", "imagenet")
    with pytest.raises(UserError, match="give none"):  # before any data is read
        prepare(train.parse(["--methods", "erm", "--backbone", "resnet18_quarter", "--pretrained",
                             "imagenet", "--data-root", str(tmp_path / "nothing")]))


@pytest.mark.parametrize("model", ["vit_small_patch32"], indirect=True)
def test_maple_differentiates_through_a_step(model):
    model.double()
    _, x, y, a = batch(2, 4, torch.float64)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def outer(losses):
        return environment_risk(losses, a)

    def risk_after_a_step(mask):  # of SGD on a copy, nothing differentiated through it
        copy = deepcopy(model)
        optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
        ((mask * losses_of(copy, x, y)).sum() / divisor).backward()
        optimizer.step()
        return float(outer(losses_of(copy, x, y)).detach())

    lr, divisor = 1e-3, float(mask.sum())  # a constant
    gradient, _, _ = hypergradient(model, (x, y), mask, lr, outer)
    step = 1e-2 * torch.eye(4, dtype=torch.float64)[0]
    # the losses are float32: a smaller step drowns in their rounding
    expected = (risk_after_a_step(mask + step) - risk_after_a_step(mask - step)) / 2e-2
    assert float(gradient[0]) == pytest.approx(expected, rel=5e-3)
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
