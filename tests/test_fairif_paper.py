"""FairIF's image tables and figures: the paper's rows, relative change, Figure 2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datasets.base import ImageTable, save_list
from models import METHODS, backbones
from utils.blocks import block_of
from utils.errors import UserError
from utils.files import write_json
from utils.metrics import GROUPS, fairness_metrics, to_json
from utils.reporting import paper
from utils.reporting.figures_fairif import methods_with_weights, weighted_images
from utils.reporting.results import Results
from utils.reporting.tables import collect, write_summary

CELEBA = ("celeba", "Blond_Hair", "Male")
FAIRFACE = ("fairface", "Male", "White")


def write_run(folder: Path, correct: tuple, **config) -> None:
    """A finished run with that many of 100 right in each group."""
    y, a = np.repeat(GROUPS, 100, axis=0).T
    right = np.concatenate([np.arange(100) < c for c in correct])
    write_json(folder / "metrics.json",
               {"test": to_json(fairness_metrics(np.where(right, y, 1 - y), y, a))})
    write_json(folder / "config.json",
               dict(zip(("dataset", "target", "protected"), CELEBA, strict=True)) | config)


# --- the paper's figures -------------------------------------------------------------------------


def test_exactly_the_known_rows_are_impossible():
    table = paper.printed("fairif")
    found = set()
    for number in ("5", "11"):
        rows = table[table["table"].str.startswith(f"{number} ")]
        assert len(rows) == {"5": 12, "11": 10}[number]
        for setting, row in zip(rows["setting"], rows["row"], strict=True):
            where = {"CelebA": CELEBA, "FairFace": FAIRFACE}[setting]
            if paper.impossible(paper.paper_row(f"fairif-{number}", row, *where)):
                found.add((number, setting, row))
    assert found == {
        ("5", "CelebA", "Original"), ("5", "CelebA", "FairIF"), ("5", "FairFace", "FairIF"),
        ("11", "CelebA", "Original"), ("11", "CelebA", "100%"), ("11", "FairFace", "100%"),
        ("11", "FairFace", "50%"), ("11", "CelebA", "50%"), ("11", "CelebA", "25%"),
        ("11", "CelebA", "10%"),
    }


def test_a_row_of_fairifs_tables_is_in_percent_and_named_by_its_paper():
    row = paper.paper_row("fairif-5", "Baseline (ERM)", *FAIRFACE)
    figures = {name: value for name, value in row.items() if not math.isnan(value)}
    assert figures == pytest.approx({"acc": 86.68, "ad": 7.23, "aod": 7.21, "eod": 6.10})
    # a row or a pair that the paper does not have stands beside nothing
    assert paper.paper_row("fairif-5", "Influence", *CELEBA) is None
    assert paper.paper_row("fairif-5", "FairIF", "demo", "Smiling", "Male") is None
    with pytest.raises(UserError, match="are 1, 2, 3, 4, 5, 11, not 6"):
        paper.paper_row("fairif-6", "ResNet-18", *CELEBA)
    # a method of the other paper has no row
    assert paper.own_row("fairif-5", "AIM-Fair") is None is paper.own_row("3", "FairIF")
    assert paper.own_row("3", "JTT") == "JTT" and paper.own_row(None, "JTT") is None
    assert paper.own_row("fairif-11", METHODS["erm"].paper_row) == "Baseline (ERM)"
    assert METHODS["fairif"].paper_row == "FairIF" and METHODS["fairif_shuffled"].paper_row is None


def test_summary_stands_beside_fairifs_paper_and_marks_the_impossible(tmp_path):
    for method, row, correct in (("erm", "Baseline (ERM)", (90, 96, 80, 50)),
                                 ("cfair", "CFair", (90, 95, 80, 60)),
                                 ("fairif", "FairIF", (90, 94, 80, 76))):
        write_run(tmp_path / "s" / method / "seed1", correct, paper_table="fairif-5", paper_row=row)
    text = write_summary(tmp_path / "s", ["erm"])
    section = text.split("## Beside FairIF's paper")[1].split("\n## ")[0]
    lines = {line.split("|")[1].strip(): [group.strip() for group in line.split("|")[2:-1]]
             for line in section.splitlines() if line.startswith("| ")}
    # AD: |(90 + 80) - (94 + 76)| / 2 = 0; AOD (4 + 4) / 2; EOD 4
    assert lines["fairif"] == [
        "Table 5, FairIF", "85.00 / 95.37 / -10.37", "0.00 / 3.81 / -3.81",
        "4.00 / 12.20* / n/a", "4.00 / 31.45* / n/a",
    ]
    assert lines["cfair"][3] == "12.50 / 19.54 / -7.04"
    assert "\\* impossible as printed (AOD < EOD / 2)" in section
    assert "Beside the paper" not in text
    frame = collect(Results(tmp_path / "s")).set_index("method")
    assert frame.paper_note["fairif"] == "impossible: AOD < EOD / 2"
    assert frame.paper_aod["fairif"] == pytest.approx(12.2)
    assert math.isnan(frame.difference_aod["fairif"]) and pd.isna(frame.paper_note["cfair"])
    paired = text.split("## Paired differences to erm")[1]
    assert " AOD " in paired and "| cfair " in paired


@pytest.mark.parametrize("control", [False, True])
def test_relative_change_is_of_erms_mean_over_seeds(tmp_path, control):
    for seed, (before, after) in enumerate([((80, 80, 80, 40), (80, 80, 80, 60)),
                                            ((80, 80, 80, 60), (80, 80, 80, 70))]):
        for name, correct in (("erm_resnet18", before), ("fairif_resnet18", after)):
            write_run(tmp_path / "s" / name / f"seed{seed}", correct,
                      backbone="resnet18_h128", pretrained="imagenet")
        if control:  # as ERM but for 10 points less in the last group
            write_run(tmp_path / "s" / "fairif_shuffled_resnet18" / f"seed{seed}",
                      (*before[:3], before[3] - 10), backbone="resnet18_h128",
                      pretrained="imagenet")
    write_run(tmp_path / "s" / "fairif_resnet34" / "seed0", (1, 2, 3, 4))  # no ERM beside it
    text = write_summary(tmp_path / "s")
    line, *others = (line for line in text.splitlines() if line.startswith("| resnet18 "))
    # EOD 40 and 20, mean 30; 20 and 10, mean 15. Accuracy 70 and 75, then 75 and 77.5
    assert [group.strip() for group in line.split("|")[2:-1]] == [
        "FairIF", "+5.17 / +0.07", "-50.00 / -23.73", "-50.00 / -37.08", "-50.00 / -23.51"
    ]
    assert "resnet34" not in text.split("FairIF's change")[1]
    stored = pd.read_csv(tmp_path / "s" / "relative_change.csv")
    assert stored.eod.tolist()[:1] == [-50] and stored.paper_aod.tolist()[:1] == [-37.08]
    assert len(stored) == 1 + control == 1 + len(others)
    assert ("Shuffled weights: FairIF's, dealt to other images" in text) == control
    if control:  # EOD 30 becomes 40, and accuracy 72.5 becomes 70; the paper has no such row
        groups = [group.strip() for group in others[0].split("|")[2:-1]]
        assert groups[0] == "shuffled weights" and stored["row"].tolist()[1] == groups[0]
        assert groups[1] == "-3.45 / n/a" and groups[4] == "+33.33 / n/a"


# --- Figure 2 ------------------------------------------------------------------------------------


@pytest.fixture
def weighted(tmp_path):
    """A setting with FairIF's weights of 24 images of one colour each, two seeds, and the table."""
    folder = tmp_path / "images"
    folder.mkdir()
    groups = np.array([GROUPS[i % 4] for i in range(24)])
    for i in range(24):
        Image.new("RGB", (6, 6), (10 * i, 0, 0)).save(folder / f"{i:03d}.png")
    table = ImageTable("t", [str(folder / f"{i:03d}.png") for i in range(24)], *groups.T)
    for seed in (1, 2):
        run = tmp_path / "s" / "fairif" / f"seed{seed}"
        write_run(run, (9, 9, 9, 9), method="fairif")
        save_list(table, run / "train.csv")
        weights = np.ones(24)
        weights[[5, 7]] = 3.0, 2.0 + seed  # groups (0, 1) and (1, 1)
        weights[[4]] = 0.0
        np.save(run / "weights.npy", weights)
    yield tmp_path / "s", table
    plt.close("all")


def test_figure_2_shows_the_extremes_and_the_mean_of_each_group(weighted):
    setting, table = weighted
    figure = weighted_images(Results(setting), "fairif", table)
    *faces, panel = figure.axes
    assert len(faces) == 20
    assert [axis.get_title() for axis in (faces[0], faces[1], faces[10])] == [
        "0, 1\n3.00", "1, 1\n3.00", "0, 0\n0.00"
    ]
    shown = [faces[place].images[0].get_array()[0, 0, 0] for place in (0, 1, 10)]
    assert shown == [50, 70, 40]
    # of six images a group: one 0; one 3; none; one 3 and 4
    assert [bar.get_y() + bar.get_height() for bar in panel.patches] == pytest.approx(
        [5 / 6, 8 / 6, 1, (8 / 6 + 9 / 6) / 2]
    )
    assert panel.get_xticklabels()[0].get_text() == "0, 0\nn=6"


def test_figure_2_is_not_drawn_of_other_images_or_without_weights(weighted):
    setting, table = weighted
    assert weighted_images(Results(setting), "fairif", table.take(range(23))) is None
    assert weighted_images(Results(setting), "erm", table) is None
    for seed in (1, 2):
        np.save(setting / "fairif" / f"seed{seed}" / "weights.npy", np.ones(24))
    assert weighted_images(Results(setting), "fairif", table) is None
    for content in (np.ones(3), None):
        path = setting / "fairif" / "seed1" / "weights.npy"
        path.write_bytes(b"") if content is None else np.save(path, content)
        with pytest.raises(UserError, match="seed1"):
            weighted_images(Results(setting), "fairif", table)
    assert methods_with_weights(Results(setting)) == ["fairif"]
    for seed in (1, 2):
        config = setting / "fairif" / f"seed{seed}" / "config.json"
        write_json(config, json.loads(config.read_text()) | {"method": "fairif_shuffled"})
    assert methods_with_weights(Results(setting)) == []


# --- backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet34", 512),
                                                ("resnet50", 2048)])
def test_the_hidden_layer_is_a_part_of_the_last_block(name, features):
    with torch.device("meta"):
        plain = dict(backbones.BACKBONES[name](None).named_parameters())
        model = backbones.BACKBONES[f"{name}_h128"](None)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    own = {"fc.0.weight": (128, features), "fc.0.bias": (128,), "fc.2.weight": (1, 128),
           "fc.2.bias": (1,)}
    assert {key: shapes[key] for key in own} == own
    assert shapes.keys() - own.keys() == plain.keys() - {"fc.weight", "fc.bias"}
    assert {block_of(key) for key in shapes} == {"stem", "layer1", "layer2", "layer3", "layer4",
                                                 "fc"}


def test_imagenet_weights_fit_the_network_with_a_hidden_layer(tmp_path, monkeypatch):
    import torchvision

    torch.manual_seed(0)
    source = torchvision.models.resnet18().state_dict()
    torch.save(source, tmp_path / "resnet18.pth")
    model = backbones.build("resnet18_h128", str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.layer4[1].conv2.weight, source["layer4.1.conv2.weight"])
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 1)
    asked = []
    monkeypatch.setattr(torchvision.models, "get_model_weights",
                        lambda name: asked.append(name) or {}["stop"])
    with pytest.raises(KeyError):
        backbones.build("resnet50_h128", "imagenet")
    assert asked == ["resnet50"]
