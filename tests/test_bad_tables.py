"""Lists, file names and manifests that are wrong, and those that only look so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from PIL import Image
from refusals import refused

import train
from datasets import celeba, check, utkface
from stable_diffusion import audit, generate, manifest
from stable_diffusion.prompt_set import read_prompts

ATTRIBUTES, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def data(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "data"))


# --- CelebA's lists ------------------------------------------------------------------------------


def edited(name: str, change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        after = change((root / name).read_text())
        (root / name).write_bytes(after.encode() if isinstance(after, str) else after)

    return apply


def line(number: int, text: str) -> Callable[[str], str]:
    def change(old: str) -> str:
        lines = old.split("\n")
        lines[number - 1] = text
        return "\n".join(lines)

    return change


def replaced(old: str, new: str, times: int = -1) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, times)


def folder_in_place(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return apply


SAME = {  # changes that mean nothing
    "mixed line ends": edited(ATTRIBUTES, replaced("\n", "\r\n", 20)),
    "old Mac line ends": edited(PARTITION, replaced("\n", "\r")),
    "tabs": edited(ATTRIBUTES, replaced(" ", "\t")),
    "blank lines at the end": edited(PARTITION, lambda text: text + "\n\n  \n"),
    "no line end at the end": edited(ATTRIBUTES, str.rstrip),
    "plus signs left out of the count": edited(ATTRIBUTES, line(1, " 80 ")),
}


@pytest.mark.parametrize("case", SAME)
def test_lists_that_are_fine(case, data):
    before = celeba.read_table(data / "celeba")
    SAME[case](data / "celeba")
    assert celeba.read_table(data / "celeba").equals(before)


LISTS: dict[str, tuple] = {  # what is done, what the sentence names, part of it
    "UTF-16": (edited(ATTRIBUTES, lambda s: s.encode("utf-16")), ATTRIBUTES, "as text"),
    "a count and more": (edited(ATTRIBUTES, line(1, "80 images")), ATTRIBUTES, "line 1"),
    "negative count": (edited(ATTRIBUTES, line(1, "-80")), ATTRIBUTES, "line 1"),
    "count only": (edited(ATTRIBUTES, lambda s: "0\n"), ATTRIBUTES, "attribute names"),
    "cut in the middle": (edited(ATTRIBUTES, lambda s: s[: len(s) // 2]), ATTRIBUTES, "line 1"),
    "a label of 2": (edited(ATTRIBUTES, line(9, "000007.jpg -1 2 1")), ATTRIBUTES, "line 9"),
    "a label of nan": (edited(ATTRIBUTES, line(9, "000007.jpg -1 nan 1")), ATTRIBUTES, "'nan'"),
    "a decimal label": (edited(ATTRIBUTES, line(9, "000007.jpg -1 1.0 1")), ATTRIBUTES, "'1.0'"),
    "NUL in a name": (
        edited(ATTRIBUTES, line(9, "000007\0.jpg -1 1 1")), ATTRIBUTES, "outside"),
    "a drive letter": (edited(PARTITION, line(7, "C:000007.jpg 0")), PARTITION, "outside"),
    "upper-case names": (edited(PARTITION, replaced(".jpg", ".JPG")), PARTITION, "lacks"),
    "a name twice": (edited(PARTITION, line(7, "000001.jpg 0")), PARTITION, "000001.jpg"),
    "three fields": (edited(PARTITION, line(7, "000007.jpg 0 1")), PARTITION, "line 7"),
    "partition in words": (edited(PARTITION, line(7, "000007.jpg train")), PARTITION, "'train'"),
    "no column asked for": (
        edited(ATTRIBUTES, replaced("Smiling", "smiling")), ATTRIBUTES, "no attribute 'Smiling'"),
    "attributes are a folder": (folder_in_place(ATTRIBUTES), "list_attr_celeba", "holds no"),
    "partition is missing": (lambda r: (r / PARTITION).unlink(), "list_eval_partition", "holds"),
    "one class only": (
        edited(ATTRIBUTES, lambda s: "\n".join(
            row if n < 2 else " ".join([row.split()[0], "1", *row.split()[2:]])
            for n, row in enumerate(s.strip().split("\n")))),
        "--size", "group 0_0 needs 3 and has 0"),
    "an empty group": (
        edited(ATTRIBUTES, replaced("jpg 1 1", "jpg -1 1")), "--size", "group 1_1 needs 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_train_on_wrong_lists(case, data, tmp_path, capsys):
    spoil, names, part = LISTS[case]
    spoil(data / "celeba")
    arguments = tiny.flags(data, tmp_path / "results", "--methods", "erm")
    assert part in refused(capsys, train.main, arguments, names=names, out=tmp_path)


@pytest.mark.parametrize("case", [case for case in LISTS if LISTS[case][1] != "--size"])
def test_check_of_wrong_lists(case, data, tmp_path, capsys):
    spoil, names, part = LISTS[case]
    spoil(data / "celeba")
    arguments = ["--dataset", "celeba", "--root", data / "celeba", "--no-images"]
    assert part in refused(capsys, check.main, arguments, names=names)


# --- UTKFace's names -----------------------------------------------------------------------------


def utkface_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name, "JPEG")


WHOLE = [f"{20 + i}_{i % 2}_{i // 2 % 2}_2017{i:014d}.jpg.chip.jpg" for i in range(80)]
NO_LABELS = [  # beside those of test_datasets: a field missing, or a value nobody has
    "117_0_0_20170109142408075.jpg", "-5_0_0_20170109142408075.jpg", "_0_0_20170109142408075.jpg",
    "30_0_0.jpg", "30_0_0_.jpg", "30_0_0_today.jpg", "30_male_0_20170109142408075.jpg",
    "30_0_White_20170109142408075.jpg", "30__0_20170109142408075.jpg", "30 0 0 20170109142408.jpg",
    "3e1_0_0_20170109142408075.jpg", "٣٠_0_0_20170109142408075.jpg", "1234_0_0_2017010914.jpg",
    "30_0_0_0_20170109142408075.jpg",
]  # fmt: skip


def test_names_without_labels_are_skipped_and_named(tmp_path, capsys):
    utkface_images(tmp_path, [*WHOLE, *NO_LABELS, "0_1_4_20170109142408075.JPG"])
    table, _, bad = utkface.read_table(tmp_path)
    assert len(table) == 81
    assert sorted(bad) == sorted(NO_LABELS)
    assert check.main(["--dataset", "utkface", "--root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in NO_LABELS)


UTKFACE = {
    "only names without labels": (NO_LABELS, [], "age_gender_race_date.jpg"),
    "men only": ([n for n in WHOLE if n.split("_")[1] == "0"], [], "group 1_1 needs"),
    "too few": (WHOLE[:8], [], "group 0_0 needs"),
    "CelebA's attributes": (WHOLE, ["--target", "Smiling", "--protected", "Male"], "target"),
    "too few to hold any out": (WHOLE, ["--size", "8"], "val"),
    "a test set that is too large": (WHOLE, ["--test-size", "80"], "--test-size"),
}  # fmt: skip


@pytest.mark.parametrize("case", UTKFACE)
def test_train_on_wrong_names(case, data, tmp_path, capsys):
    names, more, part = UTKFACE[case]
    utkface_images(tmp_path / "faces", names)
    arguments = tiny.flags(
        data, tmp_path / "results", "--dataset", "utkface", "--data-root", tmp_path / "faces",
        "--target", "Female", "--protected", "White", "--test-size", 8, "--methods", "erm",
        "--minority", 0.5, "--size", 40, *more,
    )  # fmt: skip
    refused(capsys, train.main, arguments, names=part, out=tmp_path)


# --- manifests -----------------------------------------------------------------------------------

PROMPTS = {
    "dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male",
    "cells": {f"{y}_{a}": ["a face", "another face"] for y in (0, 1) for a in (0, 1)},
}  # fmt: skip


def rows_of(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")


MANIFESTS: dict[str, Callable[[str], str | bytes | None]] = {
    "empty": lambda text: "",
    "header only": lambda text: rows_of(text)[0] + "\n",
    "without the column y": lambda text: text.replace("path,y,a", "path,label,a", 1),
    "without a header": lambda text: "\n".join(rows_of(text)[1:]) + "\n",
    "a row cut off": lambda text: text[: text.rindex("1_1/") + 6],
    "a row twice": lambda text: text + rows_of(text)[-1] + "\n",
    "an absolute path": lambda text: text.replace("0_1/00000.png", "/etc/passwd", 1),
    "a path that leaves": lambda text: text.replace("0_1/00000.png", "../0_1/00000.png", 1),
    "Windows separators": lambda text: text.replace("0_1/00000.png", "0_1\\00000.png", 1),
    "a label of 2": lambda text: text.replace("0_1/00000.png,0,1", "0_1/00000.png,2,1", 1),
    "a label in words": lambda text: text.replace("0_1/00000.png,0,1", "0_1/00000.png,no,1", 1),
    "no label": lambda text: text.replace("0_1/00000.png,0,1", "0_1/00000.png,,1", 1),
    "binary": lambda text: b"\xff\xfe\x00\x80",
    "a folder": lambda text: None,
}


@pytest.fixture
def generated(tmp_path) -> Path:
    """A finished folder as generate.py leaves it, images by hand."""
    prompts = tmp_path / "Smiling_Male_plain.json"
    prompts.write_text(json.dumps(PROMPTS))
    folder = tmp_path / "images" / "plain" / "Smiling_Male"
    plan = manifest.plan(read_prompts(prompts), 4, 42)
    folder.mkdir(parents=True)
    manifest.write_manifest(folder, plan, "model", {"steps": 2})
    for number, row in enumerate(plan):
        (folder / row.path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / row.path)
    assert manifest.finish(folder, 42) == 0
    return folder


def spoiled_manifest(folder: Path, case: str) -> Path:
    path = folder / "manifest.csv"
    text = path.read_text()
    after = MANIFESTS[case](text)
    path.unlink()
    if after is None:
        path.mkdir()
    else:
        path.write_bytes(after.encode() if isinstance(after, str) else after)
    return path


@pytest.mark.parametrize("case", MANIFESTS)
def test_train_on_a_wrong_manifest(case, generated, data, tmp_path, capsys):
    path = spoiled_manifest(generated, case)
    arguments = tiny.flags(
        data, tmp_path / "results", "--methods", "aim_fair", "--prompt-set", "plain",
        "--synthetic-root", tmp_path / "images",
    )
    # a folder in the manifest's place is not one: the images then lie in a layout without any
    names = "--synthetic-ratio" if case == "a folder" else path
    refused(capsys, train.main, arguments, names=str(names), out=tmp_path)


@pytest.mark.parametrize("case", MANIFESTS)
def test_generation_into_a_wrong_manifest(case, generated, tiny_pipeline_dir, tmp_path, capsys):
    path = spoiled_manifest(generated, case)
    arguments = [
        "--model", tiny_pipeline_dir, "--prompts", tmp_path / "Smiling_Male_plain.json",
        "--out", tmp_path / "images", "--images-per-group", 4, "--steps", 2, "--device", "cpu",
    ]  # fmt: skip
    refused(capsys, generate.main, arguments, names=str(path), out=tmp_path)


@pytest.mark.parametrize("case", [case for case in MANIFESTS if case != "a folder"])
def test_audit_of_a_wrong_manifest(case, generated, tmp_path, capsys):
    path = spoiled_manifest(generated, case)
    arguments = ["--images", tmp_path / "images", "--device", "cpu"]
    refused(capsys, audit.main, arguments, names=str(path), out=tmp_path)


@pytest.mark.parametrize("settings", ["", "[]", '["steps"]', "{", "2", '"steps"'])
def test_settings_of_a_manifest_that_nobody_can_read(settings, generated, tmp_path):
    path = generated / "manifest.csv"
    path.write_text(path.read_text().replace('"{""steps"": 2}"', json.dumps(settings), 3))
    plan = manifest.plan(read_prompts(tmp_path / "Smiling_Male_plain.json"), 4, 42)
    with pytest.raises(manifest.UserError, match="was written for other images.*another --out"):
        manifest.write_manifest(generated, plan, "model", {"steps": 2})


def test_audit_of_a_folder_of_another_name(generated, tmp_path, capsys):
    generated.rename(generated.with_name("faces"))
    arguments = ["--images", tmp_path / "images", "--device", "cpu"]
    refused(capsys, audit.main, arguments, names="faces", out=tmp_path)


def test_the_folder_of_a_group_is_a_file(generated, tiny_pipeline_dir, tmp_path, capsys):
    shutil.rmtree(generated)
    generated.mkdir()
    (generated / "0_1").write_text("in the way")
    arguments = [
        "--model", tiny_pipeline_dir, "--prompts", tmp_path / "Smiling_Male_plain.json",
        "--out", tmp_path / "images", "--images-per-group", 1, "--steps", 1, "--device", "cpu",
        "--batch-size", 1,
    ]  # fmt: skip
    refused(capsys, generate.main, arguments, names=os.path.join("Smiling_Male", "0_1"))
    assert not list(tmp_path.rglob("*.tmp"))
