"""FairIF's baselines on samples in memory: each against something computed another way."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from fairif_problems import L2, as_batches, memory_run, splits_of, trained
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from torch import nn

from datasets import ci_mnist
from datasets.base import ArrayTable
from models import METHODS
from models.fairif.baselines import BASELINES, arl, cfair, influence, smote
from models.fairif.relaxation import Relaxation, relaxed_gaps
from utils.errors import UserError
from utils.metrics import group_index

QUICK = {"arl": {"warm_up": 1}, "influence": {"damping": 0.1}}
IN_MEMORY = [name for name, method in METHODS.items()
             if name == "erm" or name.startswith("fairif") or name in BASELINES]


def predicted(method, table):
    return (method.predict(torch.from_numpy(table.x)) > 0).numpy()


def oracle(table, weights, a=None):
    """sklearn's logistic regression on the same objective; coefficients with the bias last."""
    rows = np.arange(len(table)) if a is None else np.flatnonzero(table.a == a)
    ones = np.hstack([table.x[rows], np.ones((len(rows), 1))])  # the bias is penalised too
    model = LogisticRegression(C=1 / L2, fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(ones, table.y[rows], sample_weight=weights[rows]).coef_[0]


def coefficients(layer, row=0):
    return torch.cat([layer.weight[row], layer.bias[row : row + 1]]).detach().numpy()


@pytest.mark.parametrize("name", IN_MEMORY)
@pytest.mark.parametrize("backbone", ["logistic", "mlp"])
def test_every_row_learns_and_reads_no_more_labels_than_it_declares(name, backbone, tmp_path):
    splits, sees = splits_of(150), METHODS[name].uses_attributes
    settings = {"backbone": backbone, "options": QUICK.get(name, {})}
    method, _ = memory_run(name, tmp_path, splits, **settings)
    assert (predicted(method, splits.test) == splits.test.y).mean() > 0.65
    turned = splits  # labels that say the opposite would change what reads them
    if sees != "train":
        turned = replace(turned, train=replace(splits.train, a=1 - splits.train.a))
    if sees == "none":
        turned = replace(turned, val=replace(splits.val, a=1 - splits.val.a))
    other, _ = memory_run(name, tmp_path / "turned", turned, **settings)
    one, other = method.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- ARL -----------------------------------------------------------------------------------------


def test_adversarial_weights_by_hand():
    assert arl.adversarial_weights(torch.zeros(5)).tolist() == [2.0] * 5
    scores = torch.tensor([np.log(3), 0.0]).float()  # sigmoid: 3/4 and 1/2
    assert arl.adversarial_weights(scores).tolist() == pytest.approx([1 + 2 * 0.6, 1 + 2 * 0.4])


def test_arl_is_gradient_descent_against_adagrad_written_out(tmp_path):
    splits = splits_of(120)
    settings = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "pretrain_lr": 0.3,
                "pretrain_epochs": 12, "val": "none"}
    method, run = memory_run("arl", tmp_path, replace(splits, val=None), **settings, options={
        "warm_up": 3, "adversary_lr": 0.5, "adversary_steps": 2})
    x, y = np.hstack([splits.train.x, np.ones((120, 1))]), splits.train.y
    start, _ = memory_run("erm", tmp_path, replace(splits, val=None),
                          **settings | {"pretrain_lr": 1e-12})
    learner, adversary, squares = coefficients(start.model[-1]), np.zeros(8), np.zeros(8)
    seen = np.column_stack([splits.train.x, y, np.ones(120)])
    for step in range(12):
        positive = 1 / (1 + np.exp(-x @ learner))
        loss = -np.log(np.where(y == 1, positive, 1 - positive))
        share = 1 / (1 + np.exp(-seen @ adversary))
        weight = (1 + 120 * share / share.sum()) / 2 if step >= 3 else np.ones(120)
        learner = learner - 0.3 * (weight * (positive - y)) @ x / 120
        for _ in range(2 if step >= 3 else 0):  # uphill: the derivative by the scores
            share = 1 / (1 + np.exp(-seen @ adversary))
            by_score = share * (1 - share) / share.sum() * (loss - loss @ share / share.sum())
            gradient = -by_score @ seen
            squares += gradient**2
            adversary -= 0.5 * gradient / (np.sqrt(squares) + 1e-10)
    assert np.abs(adversary).max() > 0.1
    assert np.allclose(coefficients(method.model[-1]), learner, atol=1e-9)


# --- CFair ---------------------------------------------------------------------------------------


def test_cfair_on_logistic_regression_is_sklearns_balanced_fit(tmp_path):
    splits = splits_of()
    balanced = LogisticRegression(
        C=1 / (L2 * 300), fit_intercept=False, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(np.hstack([splits.train.x, np.ones((300, 1))]), splits.train.y)
    method, _ = memory_run("cfair", tmp_path, splits)
    # the adversaries, whose loss is not convex, cost L-BFGS a digit
    assert np.allclose(coefficients(method.model[-1]), balanced.coef_[0], atol=1e-3)


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


def test_domind_on_logistic_regression_is_one_fit_per_domain(tmp_path):
    splits = splits_of()
    method, _ = memory_run("domind", tmp_path, splits)
    probabilities = []
    for domain in (0, 1):
        expected = oracle(splits.train, np.full(300, 1 / 300), domain)
        assert np.allclose(coefficients(method.heads, domain), expected, atol=1e-4)
        score = splits.test.x @ expected[:-1] + expected[-1]
        probabilities.append(1 / (1 + np.exp(-score)))
    # the heads' mean logit decides as the mean of their probabilities
    assert np.array_equal(predicted(method, splits.test), np.mean(probabilities, axis=0) > 0.5)


def test_domind_needs_both_domains(tmp_path):
    splits = splits_of(60)
    one = replace(splits, train=splits.train.take(np.flatnonzero(splits.train.a == 0)))
    with pytest.raises(UserError, match="one protected group only"):
        memory_run("domind", tmp_path, one)


# --- FairSMOTE -----------------------------------------------------------------------------------


def test_fairsmote_fills_every_group_and_keeps_the_samples():
    train = splits_of(100).train
    made = smote.oversampled(train, 1)
    assert len(set(made.counts().values())) == 1
    assert max(train.counts().values()) == made.counts()[0, 0]
    assert np.array_equal(made.x[:100], train.x) and np.array_equal(made.y[:100], train.y)
    assert np.array_equal(made.a[:100], train.a) and made.x.dtype == np.float64
    assert np.array_equal(made.x, smote.oversampled(train, 1).x)
    assert not np.array_equal(made.x, smote.oversampled(train, 2).x)


def test_nearest_is_sklearns():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([3, 40, 59])
    expected = NearestNeighbors(n_neighbors=6).fit(x.numpy()).kneighbors(x[rows].numpy())[1][:, 1:]
    assert np.array_equal(smote.nearest(x, rows, 5).numpy(), expected)


def test_offspring_is_made_of_a_parent_and_two_of_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    numeric = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    categorical = nn.functional.one_hot(torch.randint(3, (30,), generator=generator), 3).double()
    x = torch.cat([numeric, categorical], dim=1)
    new = smote.offspring(x, 200, [(2, 3, 4)], generator)
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


def test_fairsmote_needs_three_samples_a_group():
    train = splits_of(100).train
    few = train.take(np.flatnonzero(group_index(train.y, train.a) != 1))
    with pytest.raises(UserError, match="0 samples with y = 0 and a = 1"):
        smote.oversampled(few, 0)


def test_fairsmote_of_bytes_is_made_of_pixels_of_three_images():
    train = ci_mnist.read(Path(__file__).parent / "mnist", "size").train
    made = smote.oversampled(train, 0)
    counts = list(made.counts().values())
    assert made.x.dtype == np.uint8 and set(counts) == {counts[0]} and len(made) > len(train)
    new, group = made.x[len(train):], group_index(made.y, made.a)[len(train):]
    image = new[group == 1][0].astype(int)  # y = 0, a = 1: red
    assert (image[0] == 255).all() and (new[group == 2][0][2] == 255).all()
    own = torch.from_numpy(train.x[(train.y == 0) & (train.a == 1)]).flatten(1).int()
    image = torch.from_numpy(image).flatten()
    near = (own[:, None] - own[None]).double().square().sum(dim=2).argsort(dim=1)[:, 1:6]
    shares = []
    for i, others in enumerate(near):  # some parent and two of its neighbours explain every byte
        for j in others:
            for k in others[others != j]:
                moved = (own[i] + 0.8 * (own[j] - own[k])).round().clamp(0, 255)
                shares.append(((image == own[i]) | (image == moved)).double().mean().item())
    assert max(shares) == 1.0 and sorted(shares)[len(shares) // 2] < 0.95


# --- Influence -----------------------------------------------------------------------------------


def test_the_linear_programme_is_the_fractional_knapsack_where_utility_is_free():
    rng = np.random.default_rng(0)
    fair = rng.normal(size=50) / 50
    found = influence.removal(fair, np.zeros(50), gap=0.2, beta=0.5, gamma=0.2)
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
    found = influence.removal(fair, utility, gap=0.1, beta=0.9, gamma=0.3)
    assert fair @ found.x <= -0.09 + 1e-8
    assert utility @ found.x <= 0.3 * utility[utility < 0].sum() + 1e-8
    assert found.x.min() >= 0 and found.x.max() <= 1
    most = -fair[fair < 0].sum()  # reached only by removing all that helps, whatever it costs
    eager = influence.removal(fair, utility, gap=most, beta=0.99, gamma=0.9)
    assert eager.beta < 0.99 and eager.gamma / 0.9 == pytest.approx(eager.beta / 0.99)
    assert fair @ eager.x <= -eager.beta * most + 1e-8
    with pytest.raises(UserError, match="no solution"):  # what helps one harms the other
        influence.removal(fair, -fair, gap=0.1, beta=0.5, gamma=0.5)


def tensors(table: ArrayTable):
    return tuple(torch.from_numpy(part) for part in (table.x, table.y, table.a))


def test_influences_are_the_derivatives_by_retraining():
    splits = splits_of(80)
    (x, y, a), val = tensors(splits.train), tensors(splits.val)
    train, held = as_batches(x, y, a), as_batches(*val)
    relaxation = Relaxation("sigmoid", 1.0)
    fair, utility, gap, *_ = influence.influences(
        trained(x, y), train, held, relaxation, train, method="exact", damping=L2)

    def figures(weights):
        logits = trained(x, y, weights)(val[0]).squeeze(1).detach()
        tpr = relaxed_gaps(logits, val[1], val[2], relaxation)[0].abs().item()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, val[1].double()).item()
        return np.array([tpr, loss])

    uniform = torch.full((80,), 1 / 80, dtype=torch.float64)
    assert gap == pytest.approx(figures(uniform)[0])
    real, removed = [], 0.05  # a twentieth of a sample, and as much more of it
    for i in range(0, 80, 2):
        less, more = uniform.clone(), uniform.clone()
        less[i] *= 1 - removed
        more[i] *= 1 + removed
        real.append((figures(less) - figures(more)) / (2 * removed))
    for ours, exact in zip((fair[::2], utility[::2]), np.array(real).T):
        assert np.corrcoef(ours, exact)[0, 1] > 0.999
        assert np.polyfit(ours, exact, 1)[0] == pytest.approx(1, abs=0.01)


def test_influence_closes_the_share_of_the_gap_it_is_asked_for(tmp_path):
    splits, gaps = splits_of(2000, bias=0.6), {}
    _, y, a = tensors(splits.val)
    for name, options in (("erm", {}), ("influence", {
            "gap_share": 0.5, "loss_share": 0.0, "damping": L2, "curvature_samples": 2000})):
        method, _ = memory_run(name, tmp_path, splits, options=options)
        logits = method.predict(torch.from_numpy(splits.val.x))
        gaps[name] = relaxed_gaps(logits, y, a, Relaxation()).abs()[0].item()
    assert 0.35 < gaps["influence"] / gaps["erm"] < 0.65
