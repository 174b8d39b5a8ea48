"""FairIF's influence scores and its two stages, against retraining and per-sample gradients."""

import numpy as np
import pytest
import torch
from fairif_problems import (
    L2,
    SOFT,
    biased,
    per_sample_gradients,
    small_network,
    small_problem,
    trained,
)
from torch import nn

from models.fairif.fairif import Settings, as_batches, fairif, reweight
from models.fairif.influence import gap_gradients, influence, loss_derivatives, predict
from models.fairif.networks import logistic_regression, mlp
from models.fairif.relaxation import Relaxation, relaxed_gaps
from models.fairif.training import fit_by_adam, fit_to_convergence
from utils.errors import UserError


@pytest.fixture(scope="module")
def small():
    return small_problem()


@pytest.fixture(scope="module")
def network():
    return small_network()


# --- influence ------------------------------------------------------------------------------------


def test_scores_predict_leave_one_out_retraining(small):
    (x, y, _), train, val, erm = small
    found = influence(erm, train, val, SOFT, method="exact", damping=L2)
    val_y, val_a = (torch.cat([batch[i] for batch in val]) for i in (2, 3))
    n = len(y)
    real = []
    for left_out in range(n):
        weights = torch.full((n,), 1 / n, dtype=torch.float64)
        weights[left_out] = 0
        model = trained(x, y, weights)
        real.append(relaxed_gaps(predict(model, val), val_y, val_a, SOFT) - found.gaps)
    real = torch.stack(real, dim=1).detach()  # [2, n]
    predicted = -found.scores / n
    for gap in (0, 1):
        assert np.corrcoef(predicted[gap], real[gap])[0, 1] > 0.99
        assert np.polyfit(predicted[gap], real[gap], 1)[0] == pytest.approx(1, abs=0.15)


def test_forward_mode_equals_per_sample_gradients(network):
    model, batches = network
    vectors = torch.randn(2, sum(p.numel() for p in model.parameters()))
    expected = vectors @ per_sample_gradients(model, batches).T
    assert model.training
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    ours = loss_derivatives(model, batches, vectors)
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5
    assert model.training and model.bn.training  # left as it was
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_scores_follow_the_index_not_the_order_of_batches(network):
    model, batches = network
    vectors = torch.randn(1, sum(p.numel() for p in model.parameters()))
    index, x, y, a = (torch.cat(parts) for parts in zip(*batches))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    mixed = [(index[order], x[order], y[order], a[order])]
    expected = loss_derivatives(model, batches, vectors)
    assert torch.allclose(loss_derivatives(model, mixed, vectors), expected, atol=1e-6)
    with pytest.raises(ValueError, match="exactly once"):
        loss_derivatives(model, batches[:1] * 2, vectors)


def test_gap_gradients_are_the_derivatives_of_the_gaps(small):
    _, _, val, erm = small
    for relaxation in (SOFT, Relaxation("gumbel", 0.7, draws=3, seed=5)):
        gaps, gradients = gap_gradients(erm, val, relaxation)
        x, y, a = (torch.cat([batch[i] for batch in val]) for i in (1, 2, 3))
        expected_gaps = relaxed_gaps(erm(x).squeeze(1), y, a, relaxation)
        assert torch.allclose(gaps, expected_gaps)
        for gap, gradient in zip(expected_gaps, gradients):
            expected = torch.autograd.grad(gap, list(erm.parameters()), retain_graph=True)
            assert torch.allclose(gradient, torch.cat([g.reshape(-1) for g in expected]))


def test_training_groups_are_never_read(small):
    (x, y, a), train, val, erm = small
    hidden = as_batches(x, y, torch.full_like(a, -1), size=33)
    one, other = (influence(erm, t, val, SOFT, damping=L2) for t in (train, hidden))
    assert torch.equal(one.scores, other.scores)


# --- both stages ----------------------------------------------------------------------------------


def test_predicted_gaps_come_true_after_retraining():
    x, y, a = biased(3000, seed=5, bias=0.8)
    vx, vy, va = biased(1500, seed=6, bias=0.8)
    result = fairif(
        lambda weights: trained(x, y, weights, l2=1e-3, tolerance=1e-8),
        as_batches(x, y, a), as_batches(vx, vy, va), Settings(SOFT, 1e-4, damping=1e-3),
    )
    found = result.reweighting
    before = found.influence.gaps
    after = relaxed_gaps(predict(result.fair, as_batches(vx, vy, va)), vy, va, SOFT)
    control = relaxed_gaps(predict(result.control, as_batches(vx, vy, va)), vy, va, SOFT)
    assert before.abs().min() > 0.03
    assert found.predicted.abs().max() < 1e-3 * before.abs().min()
    assert (after - found.predicted).norm() < 0.1 * before.norm()
    assert (control - before).norm() < 0.15 * before.norm()
    # a step of a tenth is in the linear range: predicted and real change agree to some percent
    small = trained(x, y, 1 / len(y) + found.eps / 10, l2=1e-3, tolerance=1e-8)
    change = relaxed_gaps(predict(small, as_batches(vx, vy, va)), vy, va, SOFT) - before
    predicted = found.influence.scores @ found.eps / 10
    assert torch.allclose(change.detach(), predicted, rtol=0.05)


def test_no_reweighting_is_erm_bit_for_bit(small):
    (x, y, a), train, val, erm = small
    result = fairif(lambda w: trained(x, y, w), train, val, Settings(SOFT, 1e6, damping=L2))
    assert result.reweighting.eps.abs().max() == 0
    for model in (result.fair, result.control):
        for ours, reference in zip(model.parameters(), erm.parameters()):
            assert torch.equal(ours, reference)


def test_both_stages_on_a_network_trained_by_adam_in_float32():
    x, y, a = biased(400, seed=7)
    vx, vy, va = biased(400, seed=8)
    x, vx = x.float(), vx.float()

    def train_model(weights):
        torch.manual_seed(1)
        model = mlp(6, 8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-2)
        for _ in range(150):
            losses = nn.functional.binary_cross_entropy_with_logits(
                model(x).squeeze(1), y.float(), reduction="none"
            )
            optimizer.zero_grad()
            (weights.float() * losses).sum().backward()
            optimizer.step()
        return model

    train, val = as_batches(x, y, a, 128), as_batches(vx, vy, va, 128)
    settings = Settings(SOFT, 1e-3, damping=1e-2)
    result = fairif(train_model, train, val, settings)
    before = result.reweighting.influence.gaps.abs().sum()
    gaps = [relaxed_gaps(predict(model, val), vy, va, SOFT).abs().sum()
            for model in (result.fair, result.control)]
    assert gaps[0] < 0.5 * before < 0.8 * gaps[1]
    again = reweight(result.erm, train, val, settings)
    assert torch.equal(result.reweighting.weights, again.weights)


def test_a_fit_that_has_not_converged_names_its_gradient_norm():
    x, y, _ = biased(50)
    weights = torch.full((50,), 0.02, dtype=torch.float64)
    model = logistic_regression(6).double()
    with pytest.raises(UserError, match=r"gradient norm is 0\.\d+ after \d evaluations"):
        fit_to_convergence(model, x, y, weights, l2=L2, evaluations=2)
    separable = torch.where(y == 1, 1.0, -1.0).double()[:, None]
    with pytest.raises(UserError, match="has not converged"):  # no minimum without a penalty
        fit_to_convergence(
            logistic_regression(1).double(), separable, y, weights, l2=0.0, tolerance=1e-30
        )


def test_adam_comes_to_rest_where_lbfgs_does_and_weights_of_one_change_no_bit():
    x, y, _ = biased(300, seed=9)
    reference = trained(x, y)
    uniform = torch.full((300,), 1 / 300, dtype=torch.float64)

    def fitted(weights, **options):
        torch.manual_seed(0)
        model = logistic_regression(6).double()
        fit = fit_by_adam(model, x, y, weights, l2=L2, seed=1, rate=0.05, batch=300, **options)
        return model, fit

    model, fit = fitted(uniform, tolerance=1e-4, steps=600)
    assert fit.gradient_norm <= 1e-4
    for ours, exact in zip(model.parameters(), reference.parameters()):
        assert torch.allclose(ours, exact, atol=1e-3)
    again, _ = fitted(uniform.clone(), tolerance=1e-4, steps=600)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    with pytest.raises(UserError, match=r"gradient norm is 0\.\d+ after 5 steps of Adam"):
        fitted(uniform, tolerance=1e-4, steps=5)
