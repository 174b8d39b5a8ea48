"""FairIF's relaxed rates by hand, and its weights against a numerical optimiser."""

import numpy as np
import pytest
import scipy.optimize
import torch
from fairif_problems import L2, SOFT, as_batches, small_problem

from models.fairif.influence import influence
from models.fairif.relaxation import Relaxation, hard_gaps, relaxed_gaps
from models.fairif.reweight import (
    closed_form,
    group_means,
    sample_weights,
    shuffled,
    shuffled_within,
)
from utils.errors import UserError


@pytest.fixture(scope="module")
def small():
    return small_problem()


# --- relaxation -----------------------------------------------------------------------------------


def test_relaxed_gaps_by_hand_and_in_the_limit():
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0, 4.0, -2.0, -0.2], dtype=torch.float64)
    y = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
    a = torch.tensor([0, 0, 1, 0, 0, 1, 1, 1])
    # hard: TPR 1/2 against 1/2; TNR 1/2 (-3 right, 1 wrong) against 1/2
    assert hard_gaps(logits, y, a).tolist() == [0.0, 0.0]
    s = torch.sigmoid(logits)
    tpr, tnr = (s[0] + s[1] - s[2] - s[7]) / 2, (s[5] + s[6] - s[3] - s[4]) / 2
    assert torch.allclose(relaxed_gaps(logits, y, a, Relaxation()), torch.stack([tpr, tnr]))
    y[7] = 0  # TPR 1/2 against 1; TNR 1/2 against 2/3
    hard = hard_gaps(logits, y, a)
    assert hard.tolist() == pytest.approx([-0.5, 1 / 2 - 2 / 3])
    distance = [
        (relaxed_gaps(logits, y, a, Relaxation("sigmoid", t)) - hard).abs().max().item()
        for t in (1.0, 0.1, 0.01, 0.001)
    ]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-12


def test_gumbel_softmax_is_seeded_and_tends_to_random_predictions():
    logits = torch.linspace(-2, 2, 5, dtype=torch.float64)
    cold = Relaxation("gumbel", 1e-3, draws=1)
    assert torch.allclose(cold.probability(logits).round(), cold.probability(logits), atol=1e-3)
    many = Relaxation("gumbel", 1e-3, draws=40_000)
    assert torch.allclose(many.probability(logits), torch.sigmoid(logits), atol=0.01)
    assert torch.equal(cold.probability(logits), cold.probability(logits))
    other = Relaxation("gumbel", 1.0, seed=1)
    assert not torch.equal(other.probability(logits), Relaxation("gumbel").probability(logits))
    # the printed definition, softmax over both classes with Gumbel noise, has the same mean
    generator = torch.Generator().manual_seed(9)
    noise = torch.empty(40_000, 5, 2, dtype=torch.float64).exponential_(generator=generator)
    both = torch.stack([torch.zeros(5, dtype=torch.float64), logits], dim=1) - noise.log()
    printed = torch.softmax(both / 0.5, dim=2)[..., 1].mean(dim=0)
    ours = Relaxation("gumbel", 0.5, draws=40_000).probability(logits)
    assert torch.allclose(ours, printed, atol=0.01)


def test_missing_groups_and_withheld_labels_stop(small):
    (x, y, a), train, _, erm = small
    keep = (y == 0) | (a == 0)
    with pytest.raises(UserError, match="no sample with y = 1 and a = 1"):
        influence(erm, train, as_batches(x[keep], y[keep], a[keep]), SOFT, damping=L2)
    with pytest.raises(UserError, match="withheld"):
        influence(erm, train, as_batches(x, y, torch.full_like(a, -1)), SOFT, damping=L2)
    with pytest.raises(UserError, match="raise the temperature"):
        influence(erm, train, as_batches(1e6 * x, y, a), Relaxation("sigmoid", 1e-4), damping=L2)
    for wrong in ({"kind": "step"}, {"temperature": 0.0}, {"draws": 0}):
        with pytest.raises(ValueError):
            Relaxation(**wrong)


# --- weights --------------------------------------------------------------------------------------


def random_problem(seed, n=12):
    numbers = torch.from_numpy(np.random.default_rng(seed).normal(size=2 * n + 2))
    return numbers[: 2 * n].view(2, n), numbers[2 * n :]


@pytest.mark.parametrize("strength", [0.1, 2.0, 6.0])
@pytest.mark.parametrize("norm", ["norm", "squared"])
def test_closed_form_equals_a_numerical_optimiser(norm, strength):
    scores, gaps = random_problem(1)
    A, d = scores.numpy(), gaps.numpy()
    power = 1 if norm == "norm" else 2

    def objective(eps):
        return np.sum((d + A @ eps) ** 2) + strength * np.linalg.norm(eps) ** power

    found = scipy.optimize.minimize(objective, np.full(12, 0.01), tol=1e-12)
    ours = closed_form(scores, gaps, strength, norm).numpy()
    assert objective(ours) <= found.fun + 1e-9
    assert np.abs(ours - found.x).max() < 1e-4


def test_closed_form_is_zero_exactly_from_the_stated_lambda_on():
    scores, gaps = random_problem(2)
    limit = 2 * (scores.T @ gaps).norm().item()
    assert closed_form(scores, gaps, limit * 1.000001).abs().max() == 0
    assert closed_form(scores, gaps, limit * 0.99).abs().max() > 0


def test_closed_form_without_penalty_and_with_a_dependent_gap():
    scores, gaps = random_problem(3)
    least = closed_form(scores, gaps, 0.0)
    assert torch.allclose(scores @ least, -gaps)
    assert torch.allclose(least, -torch.linalg.pinv(scores) @ gaps)
    assert torch.allclose(closed_form(scores, gaps, 1e-300), least)
    one = torch.stack([scores[0], 2 * scores[0]])  # no eps moves the gaps independently
    eps = closed_form(one, gaps, 0.0)
    assert eps.isfinite().all() and torch.allclose(eps, -torch.linalg.pinv(one) @ gaps)
    assert closed_form(torch.zeros_like(scores), gaps, 0.0).abs().max() == 0


def test_weights_are_clipped_and_the_control_is_a_permutation():
    eps = torch.tensor([0.1, -0.5, 0.0, 0.2], dtype=torch.float64)
    weights, clipped = sample_weights(eps)
    assert weights.tolist() == pytest.approx([0.35, 0, 0.25, 0.45]) and clipped == 1
    assert torch.equal(shuffled(eps, 3).sort().values, eps.sort().values)
    assert torch.equal(shuffled(eps, 3), shuffled(eps, 3))
    with pytest.raises(UserError, match="raise lambda"):
        sample_weights(eps - 1)
    for wrong in ({"strength": -1.0}, {"strength": 1.0, "norm": "l1"}, {"strength": float("nan")}):
        with pytest.raises(ValueError):
            closed_form(*random_problem(1), **wrong)
    with pytest.raises(ValueError, match="finite"):
        closed_form(random_problem(1)[0] * float("inf"), random_problem(1)[1], 0.1)


def test_controls_keep_each_groups_mass():
    groups = torch.tensor([0, 1, 1, 3, 3, 3, 1, 0, 3, 1])
    eps = torch.arange(10, dtype=torch.float64)
    dealt, means = shuffled_within(eps, groups, 1), group_means(eps, groups)
    for group in (0, 1, 3):
        own = eps[groups == group]
        assert torch.equal(dealt[groups == group].sort().values, own.sort().values)
        assert torch.allclose(means[groups == group], own.mean())
    assert not torch.equal(dealt, eps) and not torch.equal(dealt, shuffled_within(eps, groups, 2))
