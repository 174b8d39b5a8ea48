"""Figures show what the saved runs hold: checked on the drawn artists, not on pixels."""

import json
import math

import matplotlib.pyplot as plt
import pytest

from utils.blocks import block_of
from utils.errors import UserError
from utils.files import write_json
from utils.metrics import fairness_metrics, to_json
from utils.reporting.plots import (
    accuracy_against_eo,
    draw_all,
    selected_tensors,
    training_curves,
)
from utils.reporting.results import Results

NAMES = ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.bias", "fc.weight")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def write_log(folder, losses, val_acc=0.75, stage="finetune"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"stage": stage, "epoch": e, "loss": loss, "val_acc": val_acc, "seconds": 1.0})
        for e, loss in enumerate(losses, start=1)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def write_metrics(folder, prediction, y=(0, 0, 1, 1), a=(0, 1, 0, 1)):
    write_json(folder / "metrics.json", {"test": to_json(fairness_metrics(prediction, y, a))})


def test_the_log_of_all_runs(tmp_path):
    write_log(tmp_path / "erm" / "seed2", [1.0, 0.5])
    write_log(tmp_path / "jtt" / "seed1", [0.25], val_acc=None, stage="pretrain")
    first, _, last = Results(tmp_path).log.to_dict("records")
    assert first == {"method": "erm", "seed": 2, "stage": "finetune", "epoch": 1, "loss": 1.0,
                     "val_acc": 0.75, "seconds": 1.0}
    assert (last["method"], last["stage"], last["loss"]) == ("jtt", "pretrain", 0.25)
    assert math.isnan(last["val_acc"])
    (tmp_path / "erm" / "seed2" / "log.jsonl").write_text('{"stage": "fine')
    with pytest.raises(UserError, match=r"log\.jsonl is damaged"):
        Results(tmp_path).log  # noqa: B018


def test_training_curves_show_every_seed_and_the_mean(tmp_path):
    write_log(tmp_path / "erm" / "seed1", [1.0, 0.5])
    write_log(tmp_path / "erm" / "seed2", [0.5, 0.25, 0.125])  # one epoch further
    loss, accuracy = training_curves(Results(tmp_path)).axes
    assert loss.get_title() == "finetune"
    drawn = [list(line.get_ydata()) for line in loss.lines]
    assert drawn[-1] == [0.75, 0.375, 0.125]
    assert drawn[1] == [0.5, 0.25, 0.125]
    assert list(accuracy.lines[-1].get_ydata()) == [75, 75, 75]


def test_selected_tensors_count_by_block_and_by_seed(tmp_path):
    for seed, chosen in ((1, NAMES[:3]), (2, NAMES[1:2])):
        mask = {name: name in chosen for name in NAMES}
        write_json(tmp_path / "aim_fair" / f"seed{seed}" / "mask.json", {"tensors": mask, "k": 3})
    masks = Results(tmp_path).tensors("aim_fair")
    top, bottom = selected_tensors(masks, "aim_fair").axes
    assert [bar.get_height() for bar in top.patches] == [50, 75, 0]
    assert [text.get_text() for text in top.texts] == ["0.5 of 1", "1.5 of 2", "0 of 1"]
    assert [bar.get_height() for bar in bottom.patches] == [50, 100, 50, 0]
    write_json(tmp_path / "aim_fair" / "seed3" / "mask.json", {"tensors": {"other": True}})
    with pytest.raises(UserError, match=r"seed3/mask\.json"):
        Results(tmp_path).tensors("aim_fair")


@pytest.mark.parametrize(
    ("tensor", "block"),
    [
        ("conv1.weight", "stem"),
        ("bn1.bias", "stem"),
        ("layer4.1.bn2.weight", "layer4"),
        ("fc.bias", "fc"),
        ("cls_token", "stem"),
        ("patch_embed.proj.weight", "stem"),
        ("blocks.11.attn.qkv.weight", "blocks.11"),
        ("norm.weight", "norm"),
        ("head.weight", "head"),
        ("classifier.3.weight", "classifier"),
        ("stages.2.blocks.0.conv_dw.weight", "stages.2"),
        ("features.7.0.weight", "features.7"),
    ],
)
def test_block_of(tensor, block):
    assert block_of(tensor) == block


def test_accuracy_against_eo_leaves_out_what_is_undefined(tmp_path):
    write_log(tmp_path / "erm" / "seed1", [1.0])
    assert accuracy_against_eo(Results(tmp_path)) is None
    write_metrics(tmp_path / "erm" / "seed1", (0, 1, 1, 1))
    write_metrics(tmp_path / "jtt" / "seed1", (0, 1), y=(0, 1), a=(0, 1))  # two empty groups
    axis = accuracy_against_eo(Results(tmp_path)).axes[0]
    assert axis.get_legend_handles_labels()[1] == ["erm (1)"]
    assert axis.collections[0].get_offsets().tolist() == [[100, 75]]


def test_what_the_runs_allow_is_drawn(tmp_path):
    folder = tmp_path / "aim_fair" / "seed1"
    folder.mkdir(parents=True)
    assert draw_all(tmp_path) == []
    write_log(folder, [1.0, 0.5], val_acc=None)
    write_metrics(folder, (0, 1, 1, 1))
    write_json(folder / "mask.json", {"tensors": dict.fromkeys(NAMES, True)})
    names = ("training_curves", "accuracy_against_eo", "selected_tensors_aim_fair")
    written = [tmp_path / "figures" / f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    assert draw_all(tmp_path) == written
    assert sorted((tmp_path / "figures").iterdir()) == sorted(written)
    for path in written:
        assert path.read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix])
