"""Figures over rows and settings: the numbers on the drawn artists."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from utils.files import write_json
from utils.metrics import GROUPS, fairness_metrics, to_json
from utils.reporting.figures_sweeps import block_bars, top_k_curve
from utils.reporting.plots import accuracy_against_eo, draw_all, training_curves
from utils.reporting.results import Results


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def write_run(folder, correct: tuple, **mask) -> None:
    """A finished run with that many of 10 right in each group, and a mask.json of 4 tensors."""
    y, a = np.repeat(GROUPS, 10, axis=0).T
    right = np.concatenate([np.arange(10) < c for c in correct])
    write_json(folder / "metrics.json",
               {"test": to_json(fairness_metrics(np.where(right, y, 1 - y), y, a))})
    if mask:
        tensors = dict.fromkeys(("conv1.weight", "layer1.w", "layer2.w", "fc.weight"), True)
        write_json(folder / "mask.json", {"tensors": tensors, **mask})


def test_top_k_curve_shows_mean_and_spread_over_seeds(tmp_path):
    write_run(tmp_path / "aim_fair_k2" / "seed1", (5, 10, 10, 5), k=2, criterion="absolute")
    write_run(tmp_path / "aim_fair_k2" / "seed2", (7, 10, 10, 5), k=2, criterion="absolute")
    assert top_k_curve(Results(tmp_path)) is None  # one k is no curve
    write_run(tmp_path / "aim_fair_k3" / "seed1", (8, 8, 8, 8), k=3, criterion="absolute")
    write_run(tmp_path / "cosine" / "seed1", (1, 1, 1, 1), k=3, criterion="cosine")
    figure = top_k_curve(Results(tmp_path))
    for axis, expected in zip(figure.axes, ([77.5, 80], [50, 80], [50, 0]), strict=True):
        line, _, (bars,) = axis.containers[0]
        assert list(line.get_xdata()) == [2, 3]
        assert list(line.get_ydata()) == pytest.approx(expected)
        assert not np.isfinite(bars.get_segments()[1]).any()  # one seed has no spread
    spread = 100 * np.std([0.75, 0.80], ddof=1)
    bars = figure.axes[0].containers[0][2][0].get_segments()
    assert np.ptp(bars[0][:, 1]) == pytest.approx(2 * spread)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2\n50%", "3\n75%"]
    write_run(tmp_path / "another_k3" / "seed1", (8, 8, 8, 8), k=3, criterion="absolute")
    assert top_k_curve(Results(tmp_path)) is None  # two rows of the same k differ in something else


def test_figure_1_shows_of_a_search_its_choice_alone(tmp_path):
    for name in ("erm", "random_40", "random_55", "best_random"):
        write_run(tmp_path / name / "seed1", (5, 10, 10, 5))
        write_json(tmp_path / name / "seed1" / "config.json", {"method": name} | (
            {"selected": {"row": "random_55", "from": ["random_40", "random_55"], "rule": "r"}}
            if name == "best_random" else {}
        ))
    axis = accuracy_against_eo(Results(tmp_path)).axes[0]
    assert axis.get_legend_handles_labels()[1] == ["erm (1)", "best_random: random_55 (1)"]


@pytest.mark.parametrize("letters", [4, 30, 60])
def test_a_legend_lies_within_its_figure(letters, tmp_path):
    for index in range(9):
        row = f"row_{index}"
        write_run(tmp_path / row / "seed1", (5, 10, 10, 5))
        write_json(tmp_path / row / "seed1" / "config.json", {"method": row, "selected": {
            "row": f"search/{row}/{'x' * letters}", "from": [], "rule": "r"}})
    figure = accuracy_against_eo(Results(tmp_path))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_block_bars_are_in_network_order_with_references(tmp_path):
    write_run(tmp_path / "freeze_fc" / "seed1", (9, 9, 9, 6))
    assert block_bars(Results(tmp_path), "freeze_") is None
    write_run(tmp_path / "freeze_stem" / "seed1", (8, 10, 10, 4))
    write_run(tmp_path / "aim_fair" / "seed1", (10, 10, 10, 10))
    figure = block_bars(Results(tmp_path), "freeze_")
    accuracy, worst, odds = figure.axes
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["stem", "fc"]
    for axis, heights in ((accuracy, [80, 82.5]), (worst, [40, 60]), (odds, [60, 30])):
        assert [bar.get_height() for bar in axis.patches] == pytest.approx(heights)
        low, high = axis.get_ylim()
        assert low <= min(heights) and max(heights) <= high
    (reference,) = (line for line in accuracy.lines if line.get_label() == "aim_fair")
    assert reference.get_ydata()[0] == 100
    assert block_bars(Results(tmp_path), "update_") is None


def test_a_row_has_one_colour_in_all_figures_of_a_setting(tmp_path):
    for name in ("erm", "aim_fair", "erm_longer"):
        write_run(tmp_path / name / "seed1", (5, 10, 10, 5))
    row = '{"stage": "finetune", "epoch": 1, "loss": 1.0, "val_acc": 0.5, "seconds": 1.0}\n'
    (tmp_path / "erm_longer" / "seed1" / "log.jsonl").write_text(row)  # erm's model was copied
    results = Results(tmp_path)
    (curve,) = training_curves(results).axes[0].lines
    points = accuracy_against_eo(results).axes[0].containers
    colours = {bar.get_label().split()[0]: bar[0].get_color() for bar in points}
    assert colours["erm_longer"] == curve.get_color() and len(set(colours.values())) == 3


def test_figure_1_joins_several_settings(tmp_path):
    write_run(tmp_path / "table3" / "erm" / "seed1", (5, 10, 10, 5))
    write_run(tmp_path / "table4" / "erm" / "seed1", (9, 9, 9, 9))  # table3's is drawn
    for number in range(8):  # more than there are colours
        write_run(tmp_path / "table4" / f"random_{number}" / "seed1", (number, 10, 10, 10))
    settings = [Results(tmp_path / "table3"), Results(tmp_path / "table4")]
    odds, worst = accuracy_against_eo(*settings).axes
    labels = odds.get_legend_handles_labels()[1]
    assert len(labels) == 9 and "erm (1)" in labels
    place = labels.index("erm (1)")
    assert odds.collections[place].get_offsets().tolist() == [[50, 75]]
    assert worst.collections[place].get_offsets().tolist() == [[50, 75]]
    looks = {(bar[0].get_color(), bar[0].get_marker()) for bar in odds.containers}
    assert len(looks) == 9
    figure = accuracy_against_eo(*settings)
    sizes = [figure.legends[0].get_window_extent(), figure.bbox]
    assert sizes[0].x0 >= sizes[1].x0 and sizes[0].x1 <= sizes[1].x1
    names = {path.name for path in draw_all(tmp_path / "table4", [tmp_path / "table3"])}
    assert names == {"accuracy_against_eo.png", "accuracy_against_eo.pdf"}
