"""FairIF's influence scores and its two stages, against retraining and per-sample gradients."""

import json

import numpy as np
import pytest
import torch
from fairif_problems import (
    L2,
    SOFT,
    as_batches,
    biased,
    memory_run,
    per_sample_gradients,
    small_network,
    small_problem,
    splits_of,
    table,
    trained,
)
from sklearn.linear_model import LogisticRegression

from datasets.base import Splits
from models import METHODS
from models.fairif import influence as influence_module
from models.fairif.influence import gap_gradients, influence, loss_derivatives, predict
from models.fairif.relaxation import Relaxation, relaxed_gaps


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


def read(run):
    return json.loads((run.folder / "influence.json").read_text())


def test_predicted_gaps_come_true_after_retraining(tmp_path):
    train, val = table(3000, seed=5, bias=0.8), table(1500, "val", seed=6, bias=0.8)
    splits = Splits(train, val, val)
    options = {"strength": 1e-4, "temperature": 0.5, "damping": 1e-3, "curvature_samples": 3000}
    _, run = memory_run("fairif", tmp_path, splits, options=options, weight_decay=1e-3)
    _, shuffled = memory_run("fairif_shuffled", tmp_path, splits, options=options,
                             weight_decay=1e-3)
    found, control = read(run), read(shuffled)
    before, predicted, after = (np.array(found[key])
                                for key in ("gaps", "predicted", "gaps_after"))
    assert np.abs(before).min() > 0.03
    assert np.abs(predicted).max() < 1e-3 * np.abs(before).min()
    assert np.linalg.norm(after - predicted) < 0.1 * np.linalg.norm(before)
    assert np.linalg.norm(np.array(control["gaps_after"]) - before) < 0.15 * np.linalg.norm(before)
    assert found["gradient_norm"] < 1e-7  # ERM is at its minimum

    # a step of a tenth is in the linear range: predicted and real change agree to some percent
    x, y = torch.from_numpy(splits.train.x), torch.from_numpy(splits.train.y)
    val = as_batches(*(torch.from_numpy(part) for part in
                       (splits.val.x, splits.val.y, splits.val.a)))
    weights = np.load(run.folder / "weights.npy")
    assert weights.min() > 0  # none is clipped
    small = trained(x, y, torch.from_numpy(1 + (weights - 1) / 10) / 3000, l2=1e-3)
    change = relaxed_gaps(predict(small, val), val[0][2], val[0][3], SOFT).numpy() - before
    assert np.allclose(change, (predicted - before) / 10, rtol=0.05)


@pytest.mark.parametrize("backbone", ["logistic", "mlp"])
def test_no_reweighting_is_erm_bit_for_bit(backbone, tmp_path):
    options = {"strength": 1e6, "damping": 0.1}
    models = [memory_run(name, tmp_path, splits_of(), backbone=backbone,
                         options=options if "fairif" in name else {})[0].model
              for name in ("erm", "fairif", "fairif_shuffled")]
    changed, _ = memory_run("fairif", tmp_path / "other", splits_of(), backbone=backbone,
                            options={"strength": 1e-3, "damping": 0.1})
    for model in models[1:]:
        assert all(map(torch.equal, model.parameters(), models[0].parameters()))
    assert not all(map(torch.equal, changed.model.parameters(), models[0].parameters()))


def test_both_stages_on_a_network_trained_by_adam_in_float32(tmp_path):
    options = {"strength": 1e-3, "damping": 1e-2, "temperature": 0.5}
    gaps = {}
    for name in ("fairif", "fairif_shuffled"):
        method, run = memory_run(name, tmp_path, splits_of(400, bias=0.8), backbone="mlp",
                                 options=options)
        assert next(method.model.parameters()).dtype == torch.float32
        gaps[name] = np.abs(read(run)["gaps_after"]).sum()
    before = np.abs(read(run)["gaps"]).sum()
    assert gaps["fairif"] < 0.5 * before < 0.8 * gaps["fairif_shuffled"]


def test_lbfgs_comes_to_rest_at_sklearns_minimum():
    x, y, _ = biased(300, seed=9)
    ones = np.hstack([x.numpy(), np.ones((300, 1))])  # the bias is penalised too
    exact = LogisticRegression(C=1 / (L2 * 300), fit_intercept=False, tol=1e-12, max_iter=10_000)
    exact.fit(ones, y.numpy())
    ours = torch.cat([p.reshape(-1) for p in trained(x, y).parameters()]).detach().numpy()
    assert np.allclose(ours, exact.coef_[0], atol=1e-4)


@pytest.mark.parametrize(("options", "given"), [
    ({}, ("exact", "gauss_newton")),
    ({"inverse": "cg"}, ("cg", "gauss_newton")),
    ({"inverse": "lissa", "steps": 300}, ("lissa", "gauss_newton")),
    ({"product": "hessian"}, ("exact", "hessian")),
    ({"relaxation": "gumbel"}, ("exact", "gauss_newton")),
])
def test_options_reach_the_computation(options, given, tmp_path, monkeypatch):
    calls, inverse_hvp = [], influence_module.inverse_hvp

    def recorded(*arguments, **settings):
        calls.append((settings["method"], settings["product"]))
        return inverse_hvp(*arguments, **settings)

    monkeypatch.setattr(influence_module, "inverse_hvp", recorded)
    _, run = memory_run("fairif", tmp_path, splits_of(), options={"damping": 0.1, **options})
    _, plain = memory_run("fairif", tmp_path / "plain", splits_of(), options={"damping": 0.1})
    assert calls == [given, ("exact", "gauss_newton")]
    assert options == {} or read(run)["predicted"] != read(plain)["predicted"]
    _, other = memory_run("fairif", tmp_path / "mlp", splits_of(), backbone="mlp",
                          options={"damping": 0.1})
    assert calls[-1] == ("cg", "gauss_newton")  # too many parameters for the exact inverse


@pytest.mark.parametrize("name", ["fairif_shuffled_within_groups", "group_weights"])
def test_the_controls_within_groups_take_fairifs_own_eps(name, tmp_path):
    splits, options = splits_of(), {"strength": 1e-3, "damping": 0.1}
    _, run = memory_run("fairif", tmp_path, splits, options=options)
    _, other = memory_run(name, tmp_path, splits, options=options)
    assert len(list((tmp_path / "shared").glob("influence_*"))) == 1
    ours, theirs = (np.load(r.folder / "weights.npy") for r in (run, other))
    group = 2 * splits.train.y + splits.train.a
    for g in range(4):
        assert np.isclose(ours[group == g].mean(), theirs[group == g].mean(), rtol=1e-3)
    assert not np.array_equal(ours, theirs)
    assert (name == "group_weights") == (len(np.unique(theirs.round(9))) == 4)
    assert METHODS[name].uses_attributes == "train"


def test_the_epoch_is_chosen_on_the_granted_share(tmp_path):
    splits, whole = splits_of(200), {}
    granted = sum(round(0.25 * count) for count in splits.val.counts().values())
    for share in (0.25, 1.0):
        _, run = memory_run("fairif", tmp_path / str(share), splits, backbone="mlp", options={
            "validation_share": share, "damping": 0.1})
        log = (run.folder / "reweighted" / "log.jsonl").read_text().splitlines()
        right = [granted * json.loads(line)["val_acc"] for line in log]
        whole[share] = all(abs(number - round(number)) < 1e-6 for number in right)
    assert whole == {0.25: True, 1.0: False}
