"""FairIF's products with the curvature and its inverse, against dense matrices."""

import pytest
import torch
from fairif_problems import SOFT, as_batches, small_network, small_problem, trained
from torch import nn

from models.fairif.hessian import (
    chosen_parameters,
    curvature_product,
    evaluation,
    flatten,
    inverse_hvp,
)
from models.fairif.influence import influence
from utils.errors import UserError


@pytest.fixture(scope="module")
def small():
    return small_problem()


@pytest.fixture(scope="module")
def network():
    return small_network()


def two_layers(hidden):
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def dense_hessian(model, x, y):
    """By torch.autograd.functional, as a check of forward mode; [P, P]."""
    parameters = chosen_parameters(model)
    names, shapes = list(parameters), [p.shape for p in parameters.values()]
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        pieces = {n: v.view(s) for n, v, s in zip(names, flat.split(sizes), shapes)}
        logits = torch.func.functional_call(model, pieces, (x,)).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, y.to(x))

    return torch.autograd.functional.hessian(loss, flatten(parameters))


def test_curvature_products_against_the_dense_matrix(small):
    (x, y, a), train, _, erm = small
    matrix = dense_hessian(erm, x, y)
    rows = torch.eye(len(matrix), dtype=torch.float64)
    for product in ("gauss_newton", "hessian"):  # equal for a logistic regression
        assert torch.allclose(curvature_product(erm, train, rows, product=product), matrix)

    torch.manual_seed(4)
    model = two_layers(3).double()
    matrix = dense_hessian(model, x, y)
    rows = torch.eye(len(matrix), dtype=torch.float64)
    exact = curvature_product(model, train, rows, product="hessian")
    assert torch.allclose(exact, matrix, atol=1e-12)
    gauss_newton = curvature_product(model, train, rows)
    assert torch.linalg.eigvalsh(gauss_newton)[0] > -1e-12
    assert torch.linalg.eigvalsh(matrix)[0] < -1e-4  # why Gauss-Newton is the default


@pytest.mark.parametrize("product", ["gauss_newton", "hessian"])
def test_conjugate_gradients_and_lissa_equal_the_exact_inverse(small, product):
    (x, y, a), train, _, erm = small
    vectors = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    damping = 0.1
    options = {"damping": damping, "product": product}
    exact = inverse_hvp(erm, train, vectors, method="exact", **options)
    expected = torch.linalg.solve(
        dense_hessian(erm, x, y) + damping * torch.eye(7, dtype=torch.float64), vectors.T
    ).T
    assert torch.allclose(exact.value, expected) and exact.residual.max() < 1e-10
    cg = inverse_hvp(erm, train, vectors, method="cg", tolerance=1e-9, **options)
    assert torch.allclose(cg.value, exact.value, rtol=1e-6) and cg.residual.max() < 1e-8
    full = as_batches(x, y, a)  # one batch: no sampling noise
    lissa = inverse_hvp(erm, full, vectors, method="lissa", steps=200, **options)
    assert torch.allclose(lissa.value, exact.value, rtol=1e-4)
    assert lissa.residual.max() < 1e-4
    assert lissa.images == len(y) * (20 + 200 + 1)  # norm, steps, residual


def test_lissa_on_random_batches_comes_near_and_is_seeded(small):
    (x, y, a), _, _, erm = small
    batches = as_batches(x, y, a, size=34)
    vectors = torch.randn(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = inverse_hvp(erm, batches, vectors, method="exact", damping=0.1)
    options = {"method": "lissa", "damping": 0.1, "steps": 150, "repeats": 4}
    ours = inverse_hvp(erm, batches, vectors, **options)
    assert torch.nn.functional.cosine_similarity(ours.value, exact.value).item() > 0.99
    assert torch.equal(ours.value, inverse_hvp(erm, batches, vectors, **options).value)
    other = inverse_hvp(erm, batches, vectors, seed=1, **options)
    assert not torch.equal(ours.value, other.value)


def test_restriction_to_a_layer_is_a_block_of_the_whole(network):
    model, batches = network
    names = list(chosen_parameters(model, ["conv2", "fc.bias"]))
    assert names == ["conv2.weight", "conv2.bias", "fc.bias"]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    rows = torch.cat([torch.full((size,), name in names) for name, size in sizes.items()])
    inside = torch.randn(2, int(rows.sum()))
    whole = torch.zeros(2, len(rows))
    whole[:, rows] = inside
    with evaluation(model):
        ours = curvature_product(model, batches, inside, names=["conv2", "fc.bias"])
        expected = curvature_product(model, batches, whole)[:, rows]
    assert torch.allclose(ours, expected, atol=1e-6)
    found = influence(model, batches, batches, SOFT, names=["fc"], damping=0.1)
    assert found.scores.shape == (2, 23) and found.residual.max() < 1e-4
    with pytest.raises(UserError, match="no parameter or module layer9"):
        chosen_parameters(model, ["layer9"])


def test_singular_indefinite_and_diverging_curvature_stop(small):
    (x, y, a), train, _, erm = small
    doubled = torch.cat([x, x], dim=1)  # two equal copies of every feature
    model = trained(doubled, y)
    vectors = torch.randn(2, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = as_batches(doubled, y, a)
    for method in ("exact", "cg"):
        with pytest.raises(UserError, match="damping"):
            inverse_hvp(model, batches, vectors, method=method, steps=200)
    with pytest.raises(UserError, match="LiSSA diverges at step"):
        inverse_hvp(erm, train, vectors[:, :7], method="lissa", scale=0.05, steps=100)
    torch.manual_seed(4)
    network = two_layers(3).double()
    size = sum(p.numel() for p in network.parameters())
    rows = torch.randn(1, size, dtype=torch.float64)
    with pytest.raises(UserError, match="singular or indefinite"):
        inverse_hvp(network, train, rows, method="exact", product="hessian")
    with pytest.raises(UserError, match="too large"):
        inverse_hvp(two_layers(500), train, torch.ones(1, 4001), method="exact")
    with pytest.raises(ValueError, match="inverse method newton is unknown"):
        inverse_hvp(erm, train, vectors[:, :7], method="newton")
