"""Figures 4 and 7: every group in its place, the first images by file order, nothing picked."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from refusals import refused

from datasets.base import GROUPS
from datasets.synthetic import load_synthetic
from stable_diffusion import grids
from utils.files import write_json
from utils.reporting.report import write_report

SIDE = 8


def colour(place: int, y: int, a: int, number: int) -> tuple[int, int, int]:
    """What image `number` of a group of the set at `place` is filled with: all differ."""
    return 60 * place + 10, 100 * y + 50 * a + 20, 10 * number


def make_set(folder, place: int, number: int = 12, prompts: int | None = None) -> None:
    """Groups of `number` images, and a manifest with `prompts` different prompts."""
    lines = ["path,y,a,prompt"]
    for y, a in GROUPS:
        (folder / f"{y}_{a}").mkdir(parents=True)
        for i in range(number):  # 10.png sorts before 2.png as text
            path = folder / f"{y}_{a}" / f"{i}.png"
            Image.new("RGB", (SIDE, SIDE), colour(place, y, a, i)).save(path)
            lines.append(f"{y}_{a}/{i}.png,{y},{a},prompt {i % (prompts or 1)}")
    if prompts:
        (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    make_set(tmp_path / "images" / "contextual_25" / "Smiling_Male", 1, prompts=5)
    make_set(tmp_path / "images" / "plain" / "Smiling_Male", 0, prompts=1)
    return tmp_path / "images"


def pictures(axis, rows: int, columns: int) -> list[tuple]:
    """The middle pixel of every image of a panel, row by row."""
    sheet, step = axis.images[0].get_array(), SIDE + grids.GAP
    assert sheet.shape == (rows * step - grids.GAP, columns * step - grids.GAP, 3)
    return [tuple(sheet[r * step + SIDE // 2, c * step + SIDE // 2].tolist())
            for r in range(rows) for c in range(columns)]


def draw(root, groups):
    tables = {name: load_synthetic(root, "Smiling", "Male", name) for name in
              grids.find_sets(root, "Smiling", "Male", None)}
    return grids.grid(tables, {name: f"of {name}" for name in tables}, groups, ("Smiling", "Male"))


@pytest.mark.parametrize(("groups", "rows", "columns"), [(GROUPS, 2, 4), ([(1, 1)], 2, 10),
                                                        ([(1, 0), (0, 1)], 2, 6)])
def test_every_group_is_in_its_place_with_its_first_images(root, groups, rows, columns):
    figure = draw(root, groups)
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 2 * len(groups)
    white = (255, 255, 255)
    for place in (0, 1):  # plain above contextual_25
        for (y, a), axis in zip(groups, panels[place * len(groups) :], strict=False):
            expected = [colour(place, y, a, i) for i in range(12)]
            expected += [white] * (rows * columns - 12)  # a group with too few leaves white
            assert pictures(axis, rows, columns) == expected[: rows * columns]
    words = {(0, 0): "not Smiling, not Male", (0, 1): "not Smiling, Male",
             (1, 0): "Smiling, not Male", (1, 1): "Smiling, Male"}
    titles = [axis.get_title() for axis in panels[: len(groups)]]
    assert titles == [words[group] for group in groups]
    labels = [axis.texts[0].get_text() for axis in figure.axes if axis.texts]
    assert labels == ["plain\nof plain", "contextual_25\nof contextual_25"]
    plt.close(figure)


def test_large_and_oblong_images_show_their_middle(tmp_path):
    faces = Image.new("RGB", (300, 500), "black")
    faces.paste((0, 255, 0), (0, 100, 300, 400))
    faces.save(tmp_path / "0.png")
    sheet = grids.mosaic([str(tmp_path / "0.png")], 1, 2)
    assert sheet.shape == (grids.SIDE, 2 * grids.SIDE + grids.GAP, 3)
    assert (sheet[:, : grids.SIDE] == (0, 255, 0)).all()
    assert (sheet[:, grids.SIDE :] == 255).all()


def test_the_command_writes_the_figures_and_names_what_is_missing(root, tmp_path, capsys):
    out = tmp_path / "results" / "figures"
    grids.main([str(root), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "not shown, because they do not exist: contextual_50, contextual_head_poses" in printed
    grids.main([str(root), "--out", str(out), "--groups", "1_1", "--sets", "contextual_25"])
    names = {"generated_images", "generated_images_1_1"}
    assert {path.name for path in out.iterdir()} == {f"{n}.{k}" for n in names
                                                     for k in ("png", "pdf")}
    write_json(out.parent / "erm" / "seed1" / "config.json", {})
    (out.parent / "summary.md").write_text("# results\n")
    page = write_report(out.parent).read_text()
    assert page.count("<figure class=\"plot\">") == 2 and "Synthetic images by prompt set" in page


def test_prompts_and_images_are_counted(root, tmp_path):
    for name, words in (("plain", "1 prompt,\n12 images a group"),
                        ("contextual_25", "5 prompts,\n12 images a group")):
        folder = root / name / "Smiling_Male"
        assert grids.describe(folder, load_synthetic(root, "Smiling", "Male", name)) == words
    make_set(tmp_path / "flat" / "Smiling_Male", 0, number=3)
    (tmp_path / "flat" / "Smiling_Male" / "0_0" / "2.png").unlink()
    found = grids.find_sets(tmp_path / "flat", "Smiling", "Male", None)
    assert list(found) == ["synthetic images"]  # in a folder that names no prompt set
    table = load_synthetic(tmp_path / "flat", "Smiling", "Male", "synthetic images")
    assert grids.describe(found["synthetic images"], table) == "2-3 images a group"


def test_the_folder_of_one_set_is_drawn_once(root):
    for name in ("plain", "contextual_25"):
        found = grids.find_sets(root / name, "Smiling", "Male", None)
        assert found == {name: root / name / "Smiling_Male"}


def test_transposed_groups_are_shown_under_their_own_labels(root):
    tables = {"plain": load_synthetic(root, "Male", "Smiling", "plain")}
    figure = grids.grid(tables, {"plain": ""}, [(1, 0)], ("Male", "Smiling"))
    (panel,) = (axis for axis in figure.axes if axis.images)
    assert pictures(panel, 2, 10)[0] == colour(0, 0, 1, 0)  # made as not smiling, male
    assert panel.get_title() == "Male, not Smiling"
    plt.close(figure)


def test_mistakes_are_one_sentence(root, tmp_path, capsys):
    out = tmp_path / "out"
    for more, names in (
        (["--sets", "contextual_50"], "contextual_50"),
        (["--protected", "Young"], "Smiling/Young"),
        (["--groups", "2_0"], "--groups"),
    ):
        refused(capsys, grids.main, [root, "--out", out, *more], names=names, out=out)
    refused(capsys, grids.main, [tmp_path / "none", "--out", out], names="none", out=out)
    broken = root / "plain" / "Smiling_Male" / "0_1" / "1.png"
    broken.write_bytes(b"no image")
    refused(capsys, grids.main, [root, "--out", out], names=str(broken), out=out)
    assert not out.exists()
