"""FairIF's Tables 1 to 3 on real digits: networks, training by recipe, rows, resumption, errors."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

from datasets import ci_mnist
from models.fairif import digits, influence, tables
from models.fairif.baselines import BASELINES, domind, fairsmote
from models.fairif.fairif import Settings
from models.fairif.networks import PIXELS, digit_cnn, digit_lenet, digit_mlp, mlp
from models.fairif.problem import Problem, Samples
from models.fairif.relaxation import Relaxation
from models.fairif.training import Recipe, fit_by_recipe
from utils.errors import UserError
from utils.files import write_json
from utils.metrics import group_index

SAMPLE = Path(__file__).parent / "mnist"  # 240 and 40 digits
SETTINGS = Settings(Relaxation("sigmoid", 0.3), damping=0.1, steps=5)


def rows(folder, settings=SETTINGS, network="mlp", seed=0):
    parts = ci_mnist.read(SAMPLE, "size", seed)
    problem, test = digits.make_problem(parts, seed, network, Recipe(3, 32, 1e-3), settings)
    return digits.Rows(problem, test, folder, {"network": network}, {"damping": settings.damping})


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "parameters", "features"), [
    (digit_mlp, 2352 * 64 + 64 + 65, 64),
    (digit_cnn, (75 * 10 + 10) + (250 * 20 + 20) + (320 * 50 + 50) + 51, 50),
    (digit_lenet,
     (75 * 6 + 6) + (150 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + 85, 84),
])
def test_networks_take_bytes_and_end_in_a_linear_layer(build, parameters, features):
    model = build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert f"{parameters:,} parameters" in build.__doc__
    assert isinstance(model[-1], nn.Linear) and model[-1].in_features == features
    x = torch.randint(0, 256, (5, PIXELS), dtype=torch.uint8)
    assert model(x).shape == (5, 1) and model[:-1](x).shape == (5, features)
    kernels = [m.kernel_size for m in model if isinstance(m, nn.Conv2d)]
    assert kernels == [(5, 5)] * {digit_mlp: 0, digit_cnn: 2, digit_lenet: 3}[build]


def test_the_bytes_are_the_coloured_digits():
    part = ci_mnist.read(SAMPLE, "shift", 1).train
    seen = digit_mlp()[0](torch.from_numpy(part.x.reshape(len(part), -1)))
    assert np.allclose(seen.numpy(), part.x / 255, atol=1e-6)


# --- training ------------------------------------------------------------------------------------


def test_the_recipe_is_adam_and_keeps_the_best_epoch():
    generator = torch.Generator().manual_seed(0)
    x, val = (torch.randn(n, 3, generator=generator) for n in (70, 50))
    y, val_y = ((part[:, 0] + torch.randn(len(part), generator=generator) > 0).long()
                for part in (x, val))

    def build():
        torch.manual_seed(1)
        return mlp(3, 8)

    def loss_of(model):
        return lambda rows: nn.functional.binary_cross_entropy_with_logits(
            model(x[rows]).squeeze(1), y[rows].float())

    ours, plain = build(), build()
    kept = fit_by_recipe(ours, loss_of(ours), 70, (val, val_y), Recipe(12, 16, 0.3), seed=4)
    optimizer, loss = torch.optim.Adam(plain.parameters(), lr=0.3, fused=False), loss_of(plain)
    order, reached, states = torch.Generator().manual_seed(4), [], []
    for _ in range(12):
        for some in torch.randperm(70, generator=order).split(16):
            optimizer.zero_grad()
            loss(some).backward()
            optimizer.step()
        reached.append(((plain(val).squeeze(1) > 0) == (val_y == 1)).double().mean().item())
        states.append([p.detach().clone() for p in plain.parameters()])
    best = max(range(12), key=lambda epoch: (reached[epoch], epoch))
    assert (kept.epoch, kept.accuracy) == (best + 1, pytest.approx(reached[best]))
    assert best < 11  # otherwise this shows nothing
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(ours.parameters(), states[best]))
    with pytest.raises(UserError, match="diverged in epoch 1"):
        fit_by_recipe(ours, lambda rows: math.nan * ours(x).sum(), 70, (val, val_y), Recipe(1),
                      seed=0)


def test_domind_trains_each_head_on_its_own_domain_in_batches():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(700, 2, generator=generator)
    a = torch.randint(2, (700,), generator=generator)
    y = ((x[:, 0] > 0) == (a == 1)).long()  # the domains contradict each other
    samples = Samples(x, y, a)

    def build():
        torch.manual_seed(0)
        return mlp(2, 16)

    recipe = Recipe(10, 64, 0.01)
    for problem in (Problem(samples, samples, build, False, 1e-3, 1.0, 0),
                    Problem(samples, samples, build, False, 0.0, math.inf, 0, recipe=recipe)):
        model = domind.train(problem)
        own = model.heads(model.features(x)).gather(1, a[:, None]).squeeze(1) > 0
        assert (own == (y == 1)).double().mean() > 0.93


def test_fairsmote_of_bytes_is_made_of_pixels_of_three_images():
    part = ci_mnist.read(SAMPLE, "size").train
    train = Samples(*map(torch.from_numpy, (part.x.reshape(len(part), -1), part.y, part.a)))
    x, y, a = fairsmote.oversampled(Problem(train, train, digit_mlp, False, 0, 1, 0))
    counts = torch.bincount(group_index(y, a), minlength=4)
    assert x.dtype == torch.uint8 and (counts == counts[0]).all() and len(x) > len(train)
    new, cell = x[len(train):], group_index(y, a)[len(train):]
    image = new[cell == 1][0].int()  # y = 0, a = 1: red
    assert (image[:784] == 255).all() and (new[cell == 2][0][2 * 784:] == 255).all()
    own = train.x[(train.y == 0) & (train.a == 1)].int()
    near = (own[:, None] - own[None]).double().square().sum(dim=2).argsort(dim=1)[:, 1:6]
    shares = []
    for i, others in enumerate(near):  # some parent and two of its neighbours explain every byte
        for j in others:
            for k in others[others != j]:
                moved = (own[i] + 0.8 * (own[j] - own[k])).round().clamp(0, 255)
                shares.append(((image == own[i]) | (image == moved)).double().mean().item())
    assert max(shares) == 1.0 and sorted(shares)[len(shares) // 2] < 0.95


# --- rows ----------------------------------------------------------------------------------------


def test_eps_of_zero_is_erm_bit_for_bit(tmp_path):
    unit = rows(tmp_path, Settings(Relaxation("sigmoid", 0.3), strength=1e6, damping=0.1, steps=5))
    erm, fair, control = (unit.train(name)[0] for name in ("erm", "fairif", "shuffled"))
    assert not unit.reweighting()["eps"].any()
    for other in (fair, control):
        assert all(map(torch.equal, erm.parameters(), other.parameters()))
    changed = rows(tmp_path / "other").train("fairif")[0]
    assert not all(map(torch.equal, erm.parameters(), changed.parameters()))


def test_the_control_gets_the_same_eps_on_other_digits(tmp_path, monkeypatch):
    unit, given = rows(tmp_path), []
    fit = Problem.fit

    def recorded(self, model, x, y, weights, logits=None):
        given.append(weights)
        return fit(self, model, x, y, weights, logits)

    monkeypatch.setattr(Problem, "fit", recorded)
    for name in ("erm", "fairif", "shuffled"):
        unit.train(name)
    uniform, fair, control = given
    n = len(unit.problem.train)
    assert (uniform == 1 / n).all()
    assert torch.allclose(fair, (1 / n + unit.reweighting()["eps"]).clamp(min=0))
    assert torch.equal(fair.sort().values, control.sort().values)
    assert (fair != control).double().mean() > 0.5 and fair.std() > 0


@pytest.mark.parametrize("name", ["erm", *BASELINES, "fairif", "shuffled"])
def test_no_row_reads_more_labels_than_it_declares(name, tmp_path, monkeypatch):
    sees = BASELINES[name].uses_attributes if name in BASELINES else (
        "none" if name == "erm" else "validation")
    unit = rows(tmp_path)
    unit.train(name)
    hidden = rows(tmp_path / "hidden")
    train, val = hidden.problem.train, hidden.problem.val
    if sees != "train":  # labels that say the opposite would change what reads them
        train.a.copy_(1 - train.a)
    if sees == "none":
        val.a.copy_(1 - val.a)
    one, other = (row.train(name)[0].state_dict() for row in (unit, hidden))
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- tables --------------------------------------------------------------------------------------


def command(folder, table="1", *more):
    return ["--table", table, "--mnist", str(SAMPLE), "--results", str(folder), "--seeds", "2",
            "--epochs", "2", "--datasets", "size", "--cg-steps", "3", *more]


@pytest.mark.parametrize("table", ["1", "2", "3"])
def test_a_table_runs_resumes_and_refuses_other_settings(table, tmp_path, capsys):
    main = tables.main
    few = ["--baselines"] if table != "1" else []
    main(command(tmp_path, table, *few))
    printed = capsys.readouterr().out
    name = {"1": "mlp", "2": "cnn", "3": "lenet"}[table]
    folder = tmp_path / f"fairif_table{table}_{name}"
    assert printed == (folder / "summary.md").read_text()
    assert {"1": "[97.55]", "2": "[98.46]", "3": "[99.11]"}[table] in printed  # Original
    assert "## group size, 2 seeds" in printed and "Mean best epoch: ERM " in printed
    csv = [line.split(",") for line in (folder / "summary.csv").read_text().splitlines()]
    assert csv[0][:4] == ["dataset", "row", "sees", "seeds"]
    names = ["ERM", *([] if few else [entry.title for entry in BASELINES.values()]), "FairIF",
             "shuffled eps"]
    assert [line[1] for line in csv[1:]] == [
        *names, *(f"{one} minus ERM" for one in names[1:]), "FairIF minus shuffled eps"]

    seeds = [folder / "size" / f"seed{seed}" for seed in (0, 1)]
    records = {path: path.read_text() for seed in seeds for path in seed.glob("*.json")}
    acc = [json.loads(records[seed / "erm.json"])["metrics"]["acc"] for seed in seeds]
    assert float(csv[1][4]) == pytest.approx(50 * sum(acc), abs=1e-4)
    edited = json.loads(records[seeds[0] / "erm.json"])
    edited["metrics"]["acc"] = 1.0  # a finished row is read, not computed again
    write_json(seeds[0] / "erm.json", edited)
    for gone in ("fairif.json", "shuffled.json"):  # and a missing one comes out the same,
        (seeds[0] / gone).unlink()
        (seeds[1] / gone).unlink()
    (seeds[1] / "erm.pt").unlink()  # whether or not what it starts from is still there
    (seeds[1] / "eps.pt").unlink()
    main(command(tmp_path, table, *few))
    for path, text in records.items():
        assert path == seeds[0] / "erm.json" or path.read_text() == text
    line = (folder / "summary.csv").read_text().splitlines()[1].split(",")
    assert float(line[4]) == pytest.approx(50 * (1 + acc[1]), abs=1e-4)
    capsys.readouterr()
    said = refused(capsys, main, command(tmp_path, table, *few, "--rate", "0.01"),
                   names="erm.json", out=tmp_path)
    assert "rate was 0.0002 and is now 0.01" in said
    said = refused(capsys, main, command(tmp_path, table, *few, "--temperature", "0.5"),
                   names="influence.json" if table == "1" else "fairif.json", out=tmp_path)
    assert "temperature was 0.3 and is now 0.5" in said  # ERM's row does not depend on it


@pytest.mark.parametrize("table", ["1", "2", "3"])
def test_the_runners_line_is_the_papers_setting(table, tmp_path):
    python, record = tmp_path / "python", tmp_path / "record"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$RECORD"\n')
    python.chmod(0o755)
    runner = Path(tables.__file__).resolve().parents[2] / "runner.sh"
    subprocess.run(["bash", runner, f"fairif-table{table}", "--seeds", "3"], check=True, env={
        **os.environ, "PYTHON": str(python), "RECORD": str(record), "MNIST": "/data/digits"})
    module, name, *flags = record.read_text().splitlines()
    assert (module, name) == ("-m", tables.main.__module__)
    options = tables.parse(flags)
    assert (options.table, options.seeds, options.mnist) == (table, 3, Path("/data/digits"))
    assert (options.epochs, options.rate, options.strength) == (500, 2e-4, 0.1)
    assert options.datasets == ["size", "shift", "class"]
    assert options.baselines == list(BASELINES)


def test_inverse_and_product_reach_the_digits(tmp_path, monkeypatch):
    calls, inverse_hvp = [], influence.inverse_hvp

    def recorded(*arguments, **settings):
        calls.append((settings["method"], settings["product"]))
        return inverse_hvp(*arguments, **settings)

    monkeypatch.setattr(influence, "inverse_hvp", recorded)
    default = {"damping": 0.01, "inverse": "cg, 3 products", "curvature": "10000 digits"}
    for number, (flags, given, held) in enumerate((
        ([], ("cg", "gauss_newton"), default),
        (["--inverse", "lissa", "--damping", "10"], ("lissa", "gauss_newton"),
         default | {"inverse": "lissa, 3 products", "damping": 10}),
        (["--product", "hessian", "--damping", "10"], ("cg", "hessian"),
         default | {"product": "hessian", "damping": 10}),
    )):
        calls.clear()
        tables.main(command(tmp_path, "1", "--baselines", "--name", str(number), *flags))
        assert calls == [given] * 2
        record = json.loads((tmp_path / str(number) / "size/seed0/fairif.json").read_text())
        assert {key: record["config"][key] for key in held} == held
        assert ("product" in record["config"]) == ("product" in held)


def test_mistakes_are_one_sentence(tmp_path, capsys):
    out, main = tmp_path / "out", tables.main
    for arguments, names in (
        (["--mnist", str(tmp_path / "none")], "none has no train-images-idx3-ubyte"),
        (["--datasets", "tilt"], "--datasets tilt"),
        (["--datasets", "adult"], "--datasets adult"),
        (["--splits", "3"], "--splits"),
        (["--model", "mlp"], "--model"),
        (["--l2", "0.1"], "--l2"),
        (["--seeds", "1"], "--seeds"),
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "0"], "--batch-size"),
        (["--rate", "0"], "--rate"),
        (["--damping", "nan"], "--damping"),
        (["--table", "5"], "--table"),
        (["--inverse", "exact"], "--inverse exact"),
        (["--device", "gpu"], "--device gpu is none of"),
        (["--device", "cuda:99"], "--device cuda:99 is not on this machine"),
        (["--inverse", "newton"], "--inverse"),
        (["--product", "fisher"], "--product"),
        (["--name", "a/b"], "--name"),
    ):
        refused(capsys, main, [*command(out), *arguments], names=names, out=out)
    for flag in ("--epochs", "--seeds", "--cg-steps"):
        refused(capsys, main, ["--results", str(out), flag, "3"], names=flag, out=out)
    refused(capsys, main, ["--results", str(out), "--mnist", "x"], names="--mnist", out=out)


def test_damaged_and_foreign_files_of_a_run_are_named(tmp_path):
    unit = rows(tmp_path)
    unit.row("erm")
    path = tmp_path / "erm.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match="erm.pt is damaged"):
        rows(tmp_path).train("fairif")
    path.write_bytes(whole)
    other = rows(tmp_path, network="cnn")
    with pytest.raises(UserError, match="erm.pt was computed otherwise .network was mlp and is"):
        other.train("fairif")
    (tmp_path / "erm.json").write_text("{")
    with pytest.raises(UserError, match="erm.json"):
        unit.row("erm")
