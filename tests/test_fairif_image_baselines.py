"""FairIF's image baselines as methods of train.py, on vectors with a planted correlation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import test_debiasing as toys
import tiny
import torch
import torch.nn.functional as F

import train
from datasets.base import ImageTable, Splits, concat
from datasets.mixing import Data
from models import METHODS, backbones
from models.experiment import Experiment, make_run
from models.fairif.baselines import BASELINES, fairsmote
from models.fairif.baselines.smote import pairs
from models.heads import features_and_logits, head_of
from models.method import Method, pretrained
from utils.config import config_of
from utils.errors import UserError
from utils.metrics import fairness_metrics
from utils.options import parse_options
from utils.recipe import Recipe

PartnerLoader = fairsmote.PartnerLoader  # the fixture below replaces it

# What differs from the defaults fits 10 batches of 60 vectors an epoch and 12 epochs.
OPTIONS = {
    "cfair": {"mu": 0.3}, "domind": {}, "arl": {"adversary_lr": 0.5, "warm_up": 10},
    "fairsmote": {}, "influence": {"damping": 0.1, "curvature_samples": 200},
}
IMPROVES = {"cfair": "aod", "domind": "aod", "arl": "aod", "fairsmote": "aod", "influence": "eod"}


class ToyLoader(toys.ToyLoader):
    """As there, with the table's protected labels where they are asked for."""

    attributes = False

    def epoch(self, k):
        for index, x, y, hidden in super().epoch(k):
            a = torch.from_numpy(self.table.a)[index] if self.attributes else hidden
            yield index, x, y, a


class ToyPartners(toys.ToyLoader):
    """The interface of PartnerLoader; `vectors_of` are the run's."""

    vectors_of = None

    def __init__(self, both, images, _size, *, seed, **_):
        super().__init__(both.take(range(images)), self.vectors_of, 60, True, seed)
        self.partners = np.array([int(path) for path in both.paths[images:]])

    def epoch(self, k):
        for index, x, y, a in super().epoch(k):
            more = self.vectors(torch.from_numpy(self.partners)[index])
            both = (torch.cat([part, part]) for part in (y, a))
            yield torch.cat([index, index + len(self.table)]), torch.cat([x, more]), *both


class ToyData(toys.ToyData):
    """The planted correlation, with validation vectors of which a is independent of y."""

    def __init__(self, seed, count=600, uses_attributes="train"):
        super().__init__(seed, count)
        val, x = toys.toy_table("val", 400, 0.5, seed + 500)
        self.x = torch.cat([self.x, x])
        paths = [str(count + row) for row in range(len(val))]
        self.val = ImageTable("val", paths, val.y, val.a)
        seen = Data(Splits(self.real, self.val, self.val), None, None, seed)
        seen = seen.seen_by(uses_attributes)
        self.real, self.val, self.digests = seen.real, seen.val, {"real": "toy"}

    def loader(self, table, *, train, attributes=False):
        loader = ToyLoader(table, self.x, 60, train, self.seed)
        loader.attributes = attributes
        return loader


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "mlp", toys.build_mlp)
    monkeypatch.setattr(fairsmote, "PartnerLoader", ToyPartners)


def run_toy(name, seed, folder, epochs=12, count=600, **options):
    method = METHODS[name]
    data = ToyData(seed, count, method.uses_attributes)
    ToyPartners.vectors_of = data.x
    run = toys.toy_run(name, data, seed, folder, epochs, **(OPTIONS[name] | options))
    return method.run(run), run.log


def metrics(predict, seed):
    table, x = toys.toy_table("test", 4000, 0.5, seed + 1000)
    return fairness_metrics((predict(x) > 0).long().numpy(), table.y, table.a)


# --- who sees protected labels -------------------------------------------------------------------


@pytest.mark.parametrize("granted, train_a, val_a", [
    ("none", False, False), ("validation", False, True), ("train", True, True)])
def test_data_withholds_what_a_method_was_not_granted(granted, train_a, val_a):
    y, a = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    table = ImageTable("real", list("pqrs"), y, a)
    generated = ImageTable("generated", list("tuvw"), y, a)
    settings = SimpleNamespace(synthetic_ratio=1.0)
    data = Data(Splits(table, table, table), generated, settings, 7)
    seen = data.seen_by(granted)
    for part, visible in ((seen.real, train_a), (seen.val, val_a), (seen.test, train_a)):
        assert part.paths == table.paths and part.y.tolist() == [0, 1, 0, 1]
        assert part.a.tolist() == ([0, 0, 1, 1] if visible else [-1] * 4)
    assert sorted(seen.supplemented.a[4:].tolist()) == [0, 0, 1, 1]  # the prompts'
    assert (set(seen.supplemented.a[:4]) == {-1}) is not train_a
    assert (seen.seed, seen.config) == (7, settings)
    assert data.real.a.tolist() == [0, 0, 1, 1]  # for the metrics
    without = Data(Splits(table, None, table), None, None, 7)
    assert without.seen_by(granted).val is None


@pytest.mark.parametrize("name", list(METHODS))
def test_train_py_hands_every_method_only_what_it_declares(name, tmp_path):
    table = ImageTable("real", list("pqrs"), [0, 1, 0, 1], [0, 0, 1, 1])
    config = config_of({"results": tmp_path, "synthetic_root": tmp_path})
    splits = Splits(table, table, table)
    experiment = Experiment(config, {name: METHODS[name]}, {name: {}}, lambda _: splits)
    object.__setattr__(experiment, "_edited", lambda _: table)
    object.__setattr__(experiment, "_digests", lambda _: {"edited": "digest"})
    object.__setattr__(experiment, "synthetic", lambda _: (table, "digest"))
    data = make_run(experiment, name, 1).data
    granted = METHODS[name].uses_attributes
    assert (data.real.a >= 0).all() == (granted == "train")
    assert (data.real.a == -1).all() == (granted != "train")
    assert (data.val.a >= 0).all() == (granted != "none")


def test_the_five_declare_what_the_papers_use():
    assert {name: method.uses_attributes for name, method in BASELINES.items()} == {
        "cfair": "train", "domind": "train", "arl": "none", "fairsmote": "train",
        "influence": "validation",
    }


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_hyper_parameter_has_a_range_and_a_name_of_its_own(name):
    method = BASELINES[name]
    assert method.ranges.keys() == method.defaults.keys() and not method.needs_synthetic()
    assert parse_options([f"{key}={value}" for key, value in method.defaults.items()], name,
                         method.defaults, method.ranges) == method.defaults
    flags = {action.dest for action in train.parser()._actions}
    assert not flags & method.defaults.keys()


# --- features ------------------------------------------------------------------------------------


def test_features_are_what_the_output_layer_is_given():
    torch.manual_seed(0)
    model = toys.build_mlp(None)
    x = torch.randn(5, toys.WIDTH)
    features, logits = features_and_logits(model, x)
    torch.testing.assert_close(features, model[:-1](x))
    torch.testing.assert_close(logits, model(x)[:, 0])
    features.sum().backward()
    assert model[0].weight.grad.abs().sum() > 0 and model[-1].weight.grad is None
    assert not head_of(model)._forward_pre_hooks


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch32"])
def test_every_backbone_has_a_head_of_one_logit(name):
    with torch.device("meta"):
        model = backbones.BACKBONES[name](None)
        features, logits = features_and_logits(model.eval(), torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, head_of(model).in_features) and logits.shape == (2,)


def one_batch(name, **extra):
    """(the method on a fresh network, a batch of it, its network's features and logits)."""
    method = METHODS[name]
    torch.manual_seed(3)
    data = ToyData(1, 120)
    arguments = method.arguments(SimpleNamespace(data=data, seed=1))
    made = method(toys.build_mlp(None), Recipe(1, 0.1), options=method.defaults | extra,
                  **arguments)
    batch = next(iter(data.loader(data.real, train=True, attributes=True).epoch(0)))
    with torch.no_grad():
        features, logits = features_and_logits(made.model, batch[1])
    return made, batch, features, logits


def test_domind_learns_each_sample_on_its_own_head_and_keeps_the_heads_mean():
    method, batch, features, _ = one_batch("domind")
    _, x, y, a = batch
    before = head_of(method.model).weight.clone()
    torch.testing.assert_close(method.heads.weight, before.expand(2, -1))  # one start for both
    own = torch.stack([features[i] @ method.heads.weight[a[i]] + method.heads.bias[a[i]]
                       for i in range(len(y))])
    expected = F.binary_cross_entropy_with_logits(own, y.float())
    torch.testing.assert_close(method.update(batch), expected.detach())
    torch.testing.assert_close(head_of(method.model).weight, before)  # no gradient of its own
    assert (method.heads.weight[0] - method.heads.weight[1]).abs().max() > 1e-3
    method.end_epoch()
    features, logits = features_and_logits(method.model, x)
    torch.testing.assert_close(2 * logits, method.heads(features).sum(dim=1))


def test_cfair_turns_the_adversaries_gradient_round_for_the_features_only():
    steps = {}
    for mu in (0.0, 0.5):
        method, batch, _, _ = one_batch("cfair", mu=mu)
        loss = method.update(batch)
        steps[mu] = (loss, method.model[0].weight.grad,
                     [part.grad for part in method.adversaries.parameters()])
    method, (index, x, y, a), _, _ = one_batch("cfair")  # the same start, no step
    features, logits = features_and_logits(method.model, x)
    by_class, by_group = method.by_class[index], method.by_group[index]
    own = F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")
    own = (by_class * own).sum() / by_class.sum()
    its_class = method.adversaries(features).gather(1, y[:, None])[:, 0]
    nll = F.binary_cross_entropy_with_logits(its_class, a.float(), reduction="none")
    hostile = sum((by_group * nll)[y == j].sum() / by_group[y == j].sum() for j in (0, 1)) / 2
    torch.testing.assert_close(steps[0.0][0], own.detach())
    torch.testing.assert_close(steps[0.5][0], (own + 0.5 * hostile).detach())
    weights = (method.model[0].weight, *method.adversaries.parameters())
    (by_own,) = torch.autograd.grad(own, weights[0], retain_graph=True)
    by_features, *by_adversaries = torch.autograd.grad(hostile, weights)
    torch.testing.assert_close(steps[0.5][1], by_own - 0.5 * by_features)
    torch.testing.assert_close(steps[0.5][2], [0.5 * part for part in by_adversaries])


def test_the_rate_of_added_layers_falls_with_the_others():
    for name in ("cfair", "domind"):
        method = one_batch(name)[0]
        method.schedule.milestones.clear()
        method.schedule.milestones.update([1])
        method.end_epoch()
        (group,) = method.optimizer.param_groups
        assert group["lr"] == pytest.approx(0.01)
        added = method.adversaries[0][0] if name == "cfair" else method.heads
        assert any(part is added.weight for part in group["params"])


def test_arls_adversary_moves_uphill_and_leaves_the_learner_alone():
    method, batch, features, logits = one_batch("arl", warm_up=1, adversary_lr=0.5)
    y = batch[2].float()
    losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    torch.testing.assert_close(method.update(batch), losses.mean())  # warming up
    assert method.adversary.weight.abs().max() == 0
    features, logits = (part.detach() for part in features_and_logits(method.model, batch[1]))
    losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    torch.testing.assert_close(method.update(batch), losses.mean())  # equal weights at first
    scores = method.adversary(torch.cat([features, y[:, None]], dim=1))[:, 0].detach()
    share = torch.sigmoid(scores) / torch.sigmoid(scores).sum()
    assert ((1 + len(y) * share) * losses).mean() > 2 * losses.mean()


# --- FairSMOTE -----------------------------------------------------------------------------------


def test_offspring_are_pairs_of_near_images_of_minority_groups():
    table, x = toys.toy_table("train", 300, 0.1, 4)
    parents, partners = found = pairs(x, table.y, table.a, 5)
    assert (table.y[parents] == table.y[partners]).all()
    assert (table.a[parents] == table.a[partners]).all()
    whole = table.take(np.concatenate([np.arange(300), parents])).counts()
    assert set(whole.values()) == {max(table.counts().values())}
    for parent, partner in found.T:
        group = np.flatnonzero((table.y == table.y[parent]) & (table.a == table.a[parent]))
        distance = (x[group] - x[parent]).norm(dim=1).numpy()
        assert partner in group[np.argsort(distance)[1 : 1 + 5]]  # the nearest is the parent
    assert np.array_equal(found, pairs(x, table.y, table.a, 5))
    assert not np.array_equal(found, pairs(x, table.y, table.a, 6))
    rows = np.flatnonzero((table.y != 1) | (table.a != 1))
    with pytest.raises(UserError, match="0 samples with y = 1 and a = 1"):
        pairs(x[rows], table.y[rows], table.a[rows], 5)


def test_partners_are_cropped_and_flipped_as_their_images(tmp_path):
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(paths[-1])
    order = [0, 1, 2, 3, 4, 1]
    images = ImageTable("images", [paths[i] for i in order], [0] * 6, [0] * 6)
    partners = images.take([0, 1, 2, 3, 4, 1])  # each its own: a mixture must be the image itself
    loader = PartnerLoader(concat([images, partners], "both"), 6, 2, image_size=16, device="cpu",
                           seed=3, min_crop=0.3, store_dir=tmp_path / "store")
    assert len(loader) == 3
    orders = []
    for k in range(2):
        rows = []
        for index, x, _, a in loader.epoch(k):
            assert torch.equal(index[2:], index[:2] + 6) and (a == -1).all()
            assert torch.equal(x[:2], x[2:])
            rows += index[:2].tolist()
        assert sorted(rows) == list(range(6))
        orders.append(rows)
    assert orders[0] != orders[1]


def test_a_real_image_enters_unmixed_and_an_offspring_as_a_mixture(tmp_path, monkeypatch):
    data = ToyData(1, 120)
    (tmp_path / "offspring").mkdir()
    np.save(tmp_path / "offspring" / "offspring.npy", np.array([[4, 9], [7, 2]]))
    run = toys.toy_run("fairsmote", data, 1, tmp_path)
    share = METHODS["fairsmote"].arguments(run)["share"]
    table = data.real.take(METHODS["fairsmote"].rows(run).reshape(-1))
    assert len(table) == 2 * 122 and (share[:120] == 0).all()
    assert ((share[120:] > 0) & (share[120:] < 1)).all()
    assert table.paths[120:122] == ["4", "9"] and table.paths[-2:] == ["7", "2"]
    seen = []
    monkeypatch.setattr(fairsmote, "bce", lambda network, x, y: seen.append(x) or network(x).sum())
    method = METHODS["fairsmote"](toys.build_mlp(None), Recipe(1, 0.1), options={}, share=share)
    index = torch.tensor([0, 120, 122, 242])  # images 0 and the first offspring, their partners
    x = data.x[[0, 4, 0, 7]]
    method.update((index, x, torch.zeros(4).long(), torch.zeros(4)))
    s = float(share[120])
    torch.testing.assert_close(seen[0], torch.stack([x[0], (1 - s) * x[1] + s * x[3]]))


# --- all five ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, *(pytest.param(k, marks=pytest.mark.slow)
                                             for k in (2, 3))])
def erm(request, tmp_path_factory):
    """(seed, ERM's metrics)."""
    seed, folder = request.param, tmp_path_factory.mktemp("erm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "mlp", toys.build_mlp)
        run = toys.toy_run("erm", ToyData(seed, uses_attributes="none"), seed, folder)
        model = pretrained(run)
    return seed, metrics(Method(model, run.config.pretrain).predict, seed)


@pytest.mark.parametrize("name", list(BASELINES))
def test_fairness_improves_over_erm(name, erm, tmp_path):
    seed, baseline = erm
    if name == "arl":  # against the same doubled loss with equal weights, not against ERM
        control, _ = run_toy(name, seed, tmp_path / "control", adversary_lr=0.0)
        baseline = metrics(control.predict, seed)
    method, log = run_toy(name, seed, tmp_path / "run")
    assert log[-1]["epoch"] == 12
    found = metrics(method.predict, seed)
    assert found[IMPROVES[name]] < baseline[IMPROVES[name]] - (0.004 if name == "arl" else 0.02)
    assert found["acc"] > 0.9


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_stopped_run_ends_in_the_same_bits(name, tmp_path, monkeypatch):
    # 12 batches of 60; before them the two-stage ones train the setting's ERM model on as many
    toys.check_resumption(
        lambda folder: run_toy(name, 1, folder, epochs=3, count=240), tmp_path, monkeypatch,
        (5, 9) if name in ("fairsmote", "influence") else (2, 5),
    )


def test_influence_removes_samples_and_says_how_many(tmp_path):
    method, log = run_toy("influence", 2, tmp_path, epochs=3)
    record = next(row for row in log if "removed" in row)
    assert method.weights.min() >= 0 and method.weights.max() <= 1
    assert record["removed"] == pytest.approx(600 - float(method.weights.sum()), abs=1e-2)
    assert 0 < record["removed"] < 300
    assert record["predicted"] <= (1 - record["solved_gap_share"]) * record["gap"] + 1e-6


@pytest.mark.parametrize("name", ["influence", "fairif"])
def test_influence_needs_validation_images(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(tiny.flags(tmp_path, tmp_path, "--methods", name, "--val", "none"))
    assert f"{name} needs validation images with group labels" in capsys.readouterr().err


# --- all images ----------------------------------------------------------------------------------


def test_size_all_trains_on_every_training_image_and_says_so(tmp_path, monkeypatch):
    data = tiny.make(tmp_path / "data")
    tiny.with_network(monkeypatch)
    command = tiny.flags(data, tmp_path / "results", "--backbone", "tiny", "--pretrain-epochs", 1,
                         "--methods", "erm", "--size", "all", "--minority", 0.1, "--no-tables")
    train.main(command)
    folder = tmp_path / "results" / "tiny" / "erm" / "seed100"
    assert (folder / "train.csv").read_text().count("\n") == tiny.PARTITIONS[0] + 1
    config = json.loads((folder / "config.json").read_text())
    assert config["size"] is None
    train.main([*command, "--name", "again"])  # the same configuration is known again
    again = folder.parents[1] / "again" / "seed100" / "classifier.pt"
    assert again.read_bytes() == (folder / "classifier.pt").read_bytes()
