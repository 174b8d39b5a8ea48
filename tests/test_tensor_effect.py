"""Each tensor updated alone: what is measured, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiny
import torch

import train
from models.tensor_effect import measured
from utils.files import write_json
from utils.reporting.effects import correlations, effects, gains, section
from utils.reporting.figures_effects import tensor_effects
from utils.reporting.results import Results

NAMES = ["conv1.weight", "layer1.w", "layer2.w", "fc.weight"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Path:
    root = tiny.make(tmp_path_factory.mktemp("effect"))
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        flags = tiny.flags(root, root / "results", "--backbone", "tiny", "--val", "official",
                           "--finetune-epochs", 1, "--batch-norm", "freeze", "--finetune-lr", 0.1,
                           "--no-tables")
        train.main([*flags, "--methods", "tensor_effect", "erm", "aim_fair", "update_layer1"])
    return root / "results" / "tiny"


def test_every_tensor_and_block_has_its_effect(setting):
    folder = setting / "tensor_effect" / "seed100"
    record = json.loads((folder / "effects.json").read_text())
    names = [name for name, _ in tiny.Network().named_parameters()]
    assert list(record["tensors"]) == names
    assert list(record["blocks"]) == ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]
    # Delta1, Delta2 and the choice are those of AIM-Fair's own run
    mask = json.loads((setting / "aim_fair" / "seed100" / "mask.json").read_text())
    for name, effect in record["tensors"].items():
        assert effect["selected"] == mask["tensors"][name]
        assert (effect["delta1"], effect["delta2"]) == (mask["delta1"][name], mask["delta2"][name])
    assert sum(e["elements"] for e in record["tensors"].values()) == sum(
        p.numel() for p in tiny.Network().parameters())
    # with one epoch there is no best one to choose: the block's row is the same training
    row = json.loads((setting / "update_layer1" / "seed100" / "metrics.json").read_text())
    assert record["blocks"]["layer1"]["acc"] == row["validation"]["acc"]
    erm = json.loads((setting / "erm" / "seed100" / "metrics.json").read_text())
    assert record["erm"]["acc"] == erm["validation"]["acc"]
    ours = json.loads((folder / "metrics.json").read_text())
    assert record["all"]["acc"] == ours["validation"]["acc"]
    # two epochs of ERM, three mean gradients, 38 tensors, 6 blocks, nothing and all of them
    assert ours["passes"] == 48 + 72 + 24 * (38 + 6 + 1 + 1)
    assert not list(folder.glob("*/model.pt")) and len(list(folder.glob("update_*"))) == 45
    assert record["statistics"] == record["erm"]  # they are frozen here
    assert not (folder / "mask.json").exists()  # it selects nothing


def test_the_continuous_figures_by_hand():
    y, a, p = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 1], [0.2, 0.4, 0.9, 0.6, 0.7, 0.9]
    table = SimpleNamespace(y=np.array(y), a=np.array(a))
    batch = (None, torch.tensor(p), None, None)
    loader = SimpleNamespace(epoch=lambda number: [batch])
    run = SimpleNamespace(data=SimpleNamespace(val=table, loader=lambda *_, **__: loader))
    found = measured(SimpleNamespace(predict=torch.logit), run)
    assert found["soft_eo"] == pytest.approx(0.9 - (0.2 + 0.4) / 2)  # y = 1: 0.8 - 0.6
    right = np.where(np.array(y) == 1, p, 1 - np.array(p))
    assert found["loss"] == pytest.approx(-np.log(right).mean())
    table.a[2] = 0
    assert np.isnan(measured(SimpleNamespace(predict=torch.logit), run)["soft_eo"])


def test_the_returned_model_is_the_one_of_all_tensors(setting):
    before, after = (torch.load(setting / row / "seed100" / "classifier.pt",
                                weights_only=True)["model"] for row in ("erm", "tensor_effect"))
    assert all(not torch.equal(before[name], after[name])
               for name, _ in tiny.Network().named_parameters())


def record_of(delta1: list, delta2: list, acc: list, eo: list, selected: list) -> dict:
    erm = {"acc": 0.9, "eo_worst": 0.2, "loss": 0.5, "soft_eo": 0.3}
    tensors = {
        name: {"acc": 0.9 + a, "eo_worst": 0.2 - e, "loss": 0.5 - 2 * a, "soft_eo": 0.3 - 3 * e,
               "delta1": d1, "delta2": d2, "elements": 10 + i, "selected": s}
        for i, (name, a, e, d1, d2, s) in enumerate(
            zip(NAMES, acc, eo, delta1, delta2, selected, strict=True))}
    blocks = {block: {"acc": 0.91, "eo_worst": 0.1, "loss": 0.4, "soft_eo": 0.2}
              for block in ("stem", "layer1", "layer2", "fc")}
    statistics = {"acc": 0.905, "eo_worst": 0.18, "loss": 0.49, "soft_eo": 0.27}
    return {"erm": erm, "statistics": statistics, "tensors": tensors, "blocks": blocks}


def records() -> dict[int, dict]:
    # accuracy falls with Delta1 in both seeds; fairness rises with Delta2 in the first, and in the
    # second two neighbours are exchanged: rho = 1 - 6 * 2 / (4 * 15) = 0.8
    return {
        1: record_of([1, 2, 3, 4], [1, 2, 3, 4], [0.04, 0.03, 0.02, 0.01],
                     [0.01, 0.02, 0.03, 0.04], [False, False, True, True]),
        2: record_of([4, 3, 2, 1], [1, 2, 3, 4], [0.01, 0.02, 0.03, 0.04],
                     [0.01, 0.03, 0.02, 0.04], [False, False, True, True]),
    }


def test_correlations_by_hand():
    found = correlations(records())
    assert found["delta1", "acc"].mean == pytest.approx(-1)
    assert found["delta1", "acc"].low == pytest.approx(-1)  # the same in both seeds
    mean, low, high, pairs, _ = found["delta2", "eo_worst"]
    assert (mean, pairs) == (pytest.approx(0.9), 2)
    assert high - mean == pytest.approx(12.7062 * 0.1)  # t with one degree of freedom
    assert found["elements", "eo_worst"].mean == pytest.approx(0.9)
    assert np.isnan(found["ratio", "acc"].mean)  # 1 for every tensor of the first seed
    frame = gains(records()[1], "tensors")
    assert frame["acc"].tolist() == pytest.approx([4, 3, 2, 1])
    assert frame["eo_worst"].tolist() == pytest.approx([1, 2, 3, 4])
    assert frame["loss"].tolist() == pytest.approx([8, 6, 4, 2])
    assert frame["soft_eo"].tolist() == pytest.approx([3, 6, 9, 12])


def test_the_section_says_what_the_choice_does():
    said = section(records())
    assert "Delta1 with Delta2: rho +0.00 [" in said.lines[0]  # 1 in the one seed, -1 in the other
    frame = said.frame.set_index("ranked by")
    assert frame.loc["Delta1", "change of accuracy"] == "-1.00 [-1.00, -1.00]"
    # seed 1: (2 + 1 - 4 - 3) / 2 = -2; seed 2: +2
    assert frame.loc["selected minus not, points", "change of accuracy"].startswith("+0.00")
    assert frame.loc["selected minus not, points", "reduction of EO worst"].startswith("+1.50")
    assert frame.loc["nothing updated, points"].tolist() == [
        f"{gain} [{gain}, {gain}]" for gain in ("+0.50", "+1.00", "+2.00", "+3.00")]
    assert list(frame.index[-4:]) == [
        f"{block} updated, points" for block in ("stem", "layer1", "layer2", "fc")]
    assert frame.loc["layer2 updated, points", "reduction of EO worst"].startswith("+10.00 [+10.00")


def test_the_figure_holds_the_tensors_and_blocks(tmp_path):
    setting = tmp_path / "s"
    (setting / "erm" / "seed1").mkdir(parents=True)
    assert effects(Results(setting)) == {} and tensor_effects(Results(setting)) is None
    for seed, record in records().items():
        write_json(setting / "tensor_effect" / f"seed{seed}" / "effects.json", record)
    axes = tensor_effects(Results(setting)).axes
    points = np.concatenate([c.get_offsets() for c in axes[1].collections])
    assert points[:, 0].tolist() == [1, 2, 3, 4]  # Delta2, the same in both seeds
    assert points[:, 1].tolist() == pytest.approx([2.5, 2.5, 2.5, 2.5])
    heights = [[bar.get_height() for bar in axes[i].patches] for i in (2, 5, 8, 11)]
    for row, height in zip(heights, (1, 10, 10, 10), strict=True):
        assert row == pytest.approx([height] * 4)
    assert "-1.00 [-1.00, -1.00]" in axes[0].get_title()
