"""FairIF's baselines: each against something that was computed another way."""

from itertools import islice, permutations

import numpy as np
import pytest
import torch
from fairif_problems import biased
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from torch import nn

from models.fairif.baselines import BASELINES, arl, cfair, domind, fairsmote
from models.fairif.baselines import influence as linear_programme
from models.fairif.networks import logistic_regression, mlp
from models.fairif.problem import Problem, Samples
from models.fairif.relaxation import Relaxation, relaxed_gaps
from utils.errors import UserError
from utils.metrics import group_index

L2 = 1e-2


def problem(n=300, seed=1, network=logistic_regression, bias=1.0):
    train, val = (Samples(*biased(size, seed=s, bias=bias)) for size, s in ((n, seed), (n, 99)))

    def build():
        torch.manual_seed(seed)
        return network(6).double()

    convex = network is logistic_regression
    return Problem(train, val, build, convex, L2, 1e-8 if convex else 1.0, seed)


def oracle(x, y, weights):
    """sklearn's logistic regression on the same objective; coefficients with the bias last."""
    ones = np.hstack([x.numpy(), np.ones((len(x), 1))])  # the bias is penalised too
    model = LogisticRegression(C=1 / L2, fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(ones, y.numpy(), sample_weight=weights.numpy()).coef_[0]


def coefficients(model):
    return torch.cat([p.reshape(-1) for p in model[-1].parameters()]).detach().numpy()


@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("network", [logistic_regression, mlp])
def test_every_baseline_trains_with_the_labels_it_declares(name, network):
    entry, p = BASELINES[name], problem(120, network=network)
    seen = p.seen_by(entry.uses_attributes)
    assert (seen.train.a >= 0).all() == (entry.uses_attributes == "train")
    assert (seen.val.a >= 0).all() == (entry.uses_attributes != "none")
    logits = entry.train(seen)(p.val.x)
    assert logits.shape == (120, 1) and bool(logits.isfinite().all())
    assert ((logits.squeeze(1) > 0) == (p.val.y == 1)).double().mean() > 0.7


# --- ARL -----------------------------------------------------------------------------------------


def test_adversarial_weights_by_hand():
    assert arl.adversarial_weights(torch.zeros(5)).tolist() == [2.0] * 5
    scores = torch.tensor([np.log(3), 0.0]).float()  # sigmoid: 3/4 and 1/2
    assert arl.adversarial_weights(scores).tolist() == pytest.approx([1 + 2 * 0.6, 1 + 2 * 0.4])


def test_arl_is_the_alternating_adagrad_written_out():
    p = problem(120)
    ours = coefficients(arl.train(p, steps=40, warm_up=10, batch=50, adversary_lr=0.5))
    x = np.hstack([p.train.x.numpy(), np.ones((120, 1))])
    y = p.train.y.numpy()
    learner, adversary = coefficients(p.build()).astype(float), np.zeros(8)
    sums = [np.zeros(7), np.zeros(8)]

    def adagrad(parameters, gradient, squares, rate):
        squares += gradient**2
        parameters -= rate * gradient / (np.sqrt(squares) + 1e-10)

    for step, rows in enumerate(islice(p.batches(50, 14), 40)):
        some, label = x[rows.numpy()], y[rows.numpy()]
        positive = 1 / (1 + np.exp(-some @ learner))
        loss = -np.log(np.where(label == 1, positive, 1 - positive))
        seen = np.column_stack([some[:, :-1], label, np.ones(len(label))])
        share = 1 / (1 + np.exp(-seen @ adversary))
        weight = 1 + len(label) * share / share.sum() if step >= 10 else np.ones(len(label))
        adagrad(learner, (weight * (positive - label)) @ some / len(label), sums[0], 0.01)
        if step >= 10:  # uphill: the derivative of the mean of weight * loss by the scores
            by_score = share * (1 - share) / share.sum() * (loss - loss @ share / share.sum())
            adagrad(adversary, -by_score @ seen, sums[1], 0.5)
    assert np.abs(adversary).max() > 0.1
    assert np.allclose(ours, learner, atol=1e-9)


# --- CFair ---------------------------------------------------------------------------------------


def test_cfair_on_logistic_regression_is_sklearns_balanced_fit():
    p = problem()
    balanced = LogisticRegression(
        C=1 / (L2 * 300), fit_intercept=False, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(np.hstack([p.train.x.numpy(), np.ones((300, 1))]), p.train.y.numpy())
    assert np.allclose(coefficients(cfair.train(p)), balanced.coef_[0], atol=1e-4)


def test_cfairs_adversaries_by_hand():
    y, a = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[0.3, 9.0], [-1.0, 9.0], [2.0, 9.0], [9.0, -0.5]], dtype=torch.float64)
    weights = torch.tensor([0.75, 0.75, 1.5, 1.0], dtype=torch.float64)
    assert cfair.balanced_weights(a[y == 0]).tolist() == [0.75, 0.75, 1.5]
    nll = lambda logit, label: np.log1p(np.exp(-logit if label else logit))  # noqa: E731
    first = (0.75 * nll(0.3, 0) + 0.75 * nll(-1.0, 0) + 1.5 * nll(2.0, 1)) / 3
    expected = (first + nll(-0.5, 1)) / 2
    assert cfair.adversary_loss(logits, y, a, weights).item() == pytest.approx(expected)
    only = cfair.adversary_loss(logits[:3], y[:3], a[:3], weights[:3])  # no NaN without class 1
    assert only.item() == pytest.approx(first)
    x = torch.ones(3, requires_grad=True)
    (cfair.Reverse.apply(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [-1.0, -2.0, -3.0]
    with pytest.raises(UserError, match="missing from the training set"):
        cfair.balanced_weights(torch.tensor([1, 1]))


# --- DOMIND --------------------------------------------------------------------------------------


def test_domind_on_logistic_regression_is_one_fit_per_domain():
    p = problem()
    model = domind.train(p)
    probabilities = []
    for domain in (0, 1):
        rows = p.train.a == domain
        weights = torch.full((int(rows.sum()),), 1 / 300, dtype=torch.float64)
        expected = oracle(p.train.x[rows], p.train.y[rows], weights)
        ours = torch.cat([model.heads.weight[domain], model.heads.bias[domain : domain + 1]])
        assert np.allclose(ours.detach().numpy(), expected, atol=1e-4)
        score = p.val.x.numpy() @ expected[:-1] + expected[-1]
        probabilities.append(1 / (1 + np.exp(-score)))
    mean = torch.sigmoid(model(p.val.x)).squeeze(1).detach().numpy()
    assert np.allclose(mean, np.mean(probabilities, axis=0), atol=1e-5)


# --- FairSMOTE -----------------------------------------------------------------------------------


def test_fairsmote_fills_every_cell_and_keeps_the_samples():
    p = problem(100)
    x, y, a = fairsmote.oversampled(p)
    counts = torch.bincount(group_index(y, a), minlength=4)
    largest = torch.bincount(group_index(p.train.y, p.train.a), minlength=4).max()
    assert (counts == largest).all()
    assert torch.equal(x[:100], p.train.x) and torch.equal(y[:100], p.train.y)


def test_nearest_is_sklearns():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([3, 40, 59])
    expected = NearestNeighbors(n_neighbors=6).fit(x.numpy()).kneighbors(x[rows].numpy())[1][:, 1:]
    assert np.array_equal(fairsmote.nearest(x, rows, 5).numpy(), expected)


def test_offspring_is_made_of_a_parent_and_two_of_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    numeric = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    categorical = nn.functional.one_hot(torch.randint(3, (30,), generator=generator), 3).double()
    x = torch.cat([numeric, categorical], dim=1)
    new = fairsmote.offspring(x, 200, [(2, 3, 4)], generator)
    assert (new[:, 2:].sum(dim=1) == 1).all() and set(new[:, 2:].unique().tolist()) == {0.0, 1.0}
    x, new = x.numpy(), new.numpy()
    near = NearestNeighbors(n_neighbors=6).fit(x).kneighbors(x)[1]  # the sample itself comes first
    trios = np.array([(row[0], i, j) for row in near for i, j in permutations(row[1:], 2)])
    parent, first, second = (x[trios[:, i]] for i in range(3))
    moved = parent + 0.8 * (first - second)
    changed = 0
    for row in new:  # some trio explains every attribute
        numeric = np.isclose(row[:2], parent[:, :2]) | np.isclose(row[:2], moved[:, :2])
        block = np.logical_or.reduce([(row[2:] == m[:, 2:]).all(axis=1)
                                      for m in (parent, first, second)])
        assert (numeric.all(axis=1) & block).any()
        changed += not (np.isclose(row[:2], x[:, :2]).all(axis=1)).any()
    assert 0.9 < changed / 200 <= 1  # 1 - 0.2 squared is 0.96


def test_fairsmote_needs_three_samples_a_cell():
    p = problem(100)
    rows = torch.nonzero(group_index(p.train.y, p.train.a) != 1).squeeze(1)
    few = Samples(p.train.x[rows], p.train.y[rows], p.train.a[rows])
    with pytest.raises(UserError, match="0 samples with y = 0 and a = 1"):
        fairsmote.oversampled(Problem(few, p.val, p.build, True, L2, 1e-8, 0))


# --- Influence -----------------------------------------------------------------------------------


def test_the_linear_programme_is_the_fractional_knapsack_where_utility_is_free():
    rng = np.random.default_rng(0)
    fair = rng.normal(size=50) / 50
    found = linear_programme.removal(fair, np.zeros(50), gap=0.2, beta=0.5, gamma=0.2)
    left, expected = 0.1, np.zeros(50)
    for i in np.argsort(fair):  # the most useful sample first, the last one in part
        expected[i] = min(1, left / -fair[i])
        left -= expected[i] * -fair[i]
        if left <= 1e-15:
            break
    assert np.allclose(found.x, expected, atol=1e-6) and found.beta == 0.5


def test_the_linear_programme_keeps_both_constraints_or_asks_for_less():
    rng = np.random.default_rng(1)
    fair, utility = rng.normal(size=(2, 80)) / 80
    found = linear_programme.removal(fair, utility, gap=0.1, beta=0.9, gamma=0.3)
    assert fair @ found.x <= -0.09 + 1e-8
    assert utility @ found.x <= 0.3 * utility[utility < 0].sum() + 1e-8
    assert found.x.min() >= 0 and found.x.max() <= 1
    most = -fair[fair < 0].sum()  # reached only by removing all that helps, whatever it costs
    eager = linear_programme.removal(fair, utility, gap=most, beta=0.99, gamma=0.9)
    assert eager.beta < 0.99 and eager.gamma / 0.9 == pytest.approx(eager.beta / 0.99)
    assert fair @ eager.x <= -eager.beta * most + 1e-8
    with pytest.raises(UserError, match="no solution"):  # what helps one harms the other
        linear_programme.removal(fair, -fair, gap=0.1, beta=0.5, gamma=0.5)


def test_influences_are_the_derivatives_by_retraining():
    p = problem(80)
    erm = p.fit(p.build(), p.train.x, p.train.y, p.uniform())
    fair, utility, gap, _ = linear_programme.influences(erm, p)

    def figures(weights):
        model = p.fit(p.build(), p.train.x, p.train.y, weights)
        logits = model(p.val.x).squeeze(1).detach()
        tpr = relaxed_gaps(logits, p.val.y, p.val.a, Relaxation("sigmoid", 1.0))[0].abs().item()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, p.val.y.double()).item()
        return np.array([tpr, loss])

    assert gap == pytest.approx(figures(p.uniform())[0])
    real, removed = [], 0.05  # a twentieth of a sample, and as much more of it
    for i in range(0, 80, 2):
        less, more = p.uniform(), p.uniform()
        less[i] *= 1 - removed
        more[i] *= 1 + removed
        real.append((figures(less) - figures(more)) / (2 * removed))
    for ours, exact in zip((fair[::2], utility[::2]), np.array(real).T):
        assert np.corrcoef(ours, exact)[0, 1] > 0.999
        assert np.polyfit(ours, exact, 1)[0] == pytest.approx(1, abs=0.01)


def test_influence_closes_the_share_of_the_gap_it_is_asked_for():
    p = problem(2000, bias=0.6).seen_by("validation")
    gaps = {}
    for name, model in (("erm", p.fit(p.build(), p.train.x, p.train.y, p.uniform())),
                        ("influence", linear_programme.train(p, beta=0.5, gamma=0.0))):
        logits = model(p.val.x).squeeze(1).detach()
        gaps[name] = relaxed_gaps(logits, p.val.y, p.val.a, Relaxation()).abs()[0].item()
    assert 0.35 < gaps["influence"] / gaps["erm"] < 0.65
