"""--dataset folder: a metadata file of one's own, read, split, checked and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from refusals import refused

import train
from datasets import DATASETS, check, metadata
from utils.errors import UserError

IMAGES = 120
PARTS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path) -> Path:
    """120 images below two folders, and metadata.csv: wearing glasses, the person's gender."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    rows = []
    for number in range(IMAGES):
        glasses, man = number % 2, number // 2 % 2
        name = f"{'ab'[number % 3 == 0]}/{number:03d}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.face(rng, glasses, man).save(root / name)
        split = "test" if number >= 96 else "validation" if number >= 80 else "train"
        rows.append((name, glasses, ["woman", "man"][man], ["red", "green", "blue"][number % 3],
                     split))
    frame = pd.DataFrame(rows, columns=["file_name", "glasses", "gender", "colour", "split"])
    frame.to_csv(root / "metadata.csv", index=False)
    return root


def rewrite(root: Path, change, name: str = "metadata.csv") -> None:
    """Change the metadata by a function of its frame, and save it under another name."""
    frame = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    frame = change(frame)
    (root / "metadata.csv").unlink()
    if name.endswith("parquet"):
        frame.to_parquet(root / name)
    else:
        frame.to_csv(root / name, index=False, sep="\t" if name.endswith("tsv") else ",")


def loaded(root: Path, **flags):
    return DATASETS["folder"](root, "glasses", "gender", **{"positive": ["man"], **flags})


def rows_of(table) -> set[tuple]:
    return set(zip(table.paths, table.y.tolist(), table.a.tolist()))


def test_labels_and_splits_are_those_of_the_file(root):
    splits = loaded(root)
    assert [len(getattr(splits, part)) for part in PARTS] == [80, 16, 24]
    for part in PARTS:
        for path, y, a in rows_of(getattr(splits, part)):
            number = int(Path(path).stem)
            assert (y, a) == (number % 2, number // 2 % 2) and Path(path).is_file()
    turned = DATASETS["folder"](root, "gender", "glasses", positive=["gender=man"])
    assert rows_of(turned.test) == {(path, a, y) for path, y, a in rows_of(splits.test)}


@pytest.mark.parametrize("words", [("0", "1"), ("-1", "1"), ("no", "Yes"), ("False", "TRUE"),
                                   ("0.0", "1.0")])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.parquet"])
def test_every_spelling_and_format_gives_the_same(words, name, root):
    before = loaded(root)
    rewrite(root, lambda frame: frame.assign(glasses=[words[int(v)] for v in frame.glasses]).rename(
        columns={"file_name": "image_id"}), name)
    assert rows_of(loaded(root).train) == rows_of(before.train)


def test_parquet_may_hold_numbers_and_none(root):
    def typed(frame):
        glasses = frame.glasses.astype(float)
        glasses[0] = np.nan
        return frame.assign(glasses=glasses, gender=frame.gender == "man")

    rewrite(root, typed, "metadata.parquet")
    splits = DATASETS["folder"](root, "glasses", "gender")
    assert len(splits.train) == 79 and splits.train.counts()[1, 1] == 20


def test_a_metadata_file_in_every_split_folder(root, tmp_path):
    before, other = loaded(root), tmp_path / "other"
    frame = pd.read_csv(root / "metadata.csv")
    for split, part in frame.groupby("split"):
        for name in part.file_name:
            (other / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).rename(other / split / name)
        part.drop(columns="split").to_csv(other / split / "metadata.csv", index=False)
    after = loaded(other)
    for part in PARTS:
        assert getattr(after, part).counts() == getattr(before, part).counts()


def test_a_drawn_split_is_stratified_saved_and_kept(root, capsys):
    rewrite(root, lambda frame: frame.drop(columns="split"))
    first = loaded(root, seed=3)
    assert "split_gender_glasses_3.csv" in capsys.readouterr().err
    assert set(first.train.counts().values()) == {21}  # of 30 a group
    assert set(first.val.counts().values()) == {3} and set(first.test.counts().values()) == {6}
    assert not rows_of(first.train) & (rows_of(first.val) | rows_of(first.test))
    rewrite(root, lambda frame: frame.iloc[::-1])  # the rows' order says nothing
    turned = DATASETS["folder"](root, "gender", "glasses", positive=["man"], seed=3)
    assert set(turned.test.paths) == set(first.test.paths)
    assert set(loaded(root, seed=4).test.paths) != set(first.test.paths)
    (root / "split_gender_glasses_3.csv").unlink()
    assert rows_of(loaded(root, seed=3).test) == rows_of(first.test)
    rewrite(root, lambda frame: frame.iloc[1:])  # one image fewer: the others stay where they were
    fewer = [loaded(root, seed=3), first]
    gone = {row for splits in fewer[1:] for part in PARTS for row in rows_of(getattr(splits, part))}
    left = {row for part in PARTS for row in rows_of(getattr(fewer[0], part))}
    assert left < gone and len(gone - left) == 1
    assert rows_of(fewer[0].test) <= rows_of(first.test)
    frame = pd.read_csv(root / "metadata.csv")
    frame.loc[0, "file_name"] = "a/new.jpg"
    frame.to_csv(root / "metadata.csv", index=False)
    with pytest.raises(UserError, match="did not list all images of today; delete it"):
        loaded(root, seed=3)


def test_a_split_in_capitals_is_the_split(root):
    before = loaded(root)
    rewrite(root, lambda frame: frame.rename(columns={"split": "Split", "file_name": "File_Name"}))
    assert rows_of(loaded(root).test) == rows_of(before.test)
    assert not list(root.glob("split_*"))


def test_every_other_value_is_0_where_the_column_is_named(root):
    rewrite(root, lambda frame: frame.assign(gender=frame.gender.where(
        frame.index % 3 > 0, "Nonbinary")))
    table = metadata.read_table(root)
    labels = metadata.binary(table, "gender", "it", ("gender=man",))
    assert (labels == (table.gender == "man")).all()


def test_the_biased_subset(root):
    train = loaded(root, size=40, minority=0.2).train
    assert list(train.counts().values()) == [4, 16, 16, 4]
    drawn = loaded(root, size=40, minority=0.2, rule="random", seed=1, test_size=8)
    assert drawn.train.paths != train.paths
    assert set(drawn.test.counts().values()) == {2}


def without_gender(parts):
    return lambda frame: frame.assign(gender=frame.gender.where(~frame.split.isin(parts), ""))


def test_the_protected_label_may_be_known_for_the_test_alone(root, capsys):
    rewrite(root, without_gender(["train", "validation"]))
    splits = loaded(root)
    assert set(splits.train.a) == set(splits.val.a) == {-1} and set(splits.test.a) == {0, 1}
    with pytest.raises(UserError, match="--size 40 draws by group.*use --size all"):
        loaded(root, size=40)
    assert len(loaded(root, val="none").train) == 80


def test_images_that_cannot_be_measured_are_left_out_and_said(root, capsys):
    rewrite(root, lambda frame: frame.assign(
        gender=frame.gender.where(frame.index != 100, ""),
        glasses=frame.glasses.where(frame.index != 3, "")))
    splits = loaded(root)
    assert (len(splits.train), len(splits.test)) == (79, 23)
    said = capsys.readouterr().err
    assert "1 of 120 images have no glasses and are left out: b/003.jpg" in said
    assert "1 of 24 test images have no gender and are left out" in said
    rewrite(root, lambda frame: frame[~((frame.split == "test") & (frame.glasses == "1")
                                        & (frame.gender == "man"))])
    loaded(root)
    assert "no test image has glasses 1 and gender 1" in capsys.readouterr().err


def edit(column, value, row=4):
    return lambda frame: frame.assign(
        **{column: [value if i == row else v for i, v in enumerate(frame[column])]})


MISTAKES = {
    "a missing file": (edit("file_name", "a/none.jpg"), "1 missing (none.jpg)"),
    "a file outside": (edit("file_name", "../x.jpg"), "line 6: '../x.jpg' is no file below"),
    "an absolute file": (edit("file_name", "/x.jpg"), "'/x.jpg' is no file below its folder"),
    "a file twice": (edit("file_name", "a/001.jpg"), "names files twice (a/001.jpg)"),
    "three values": (edit("glasses", "2"), "holds '1' (60), '0' (59), '2' (1); correct or"),
    "0 beside -1": (edit("glasses", "-1"), "holds '1' (60), '0' (59), '-1' (1); correct or"),
    "neither value": (edit("gender", "Nonbinary"), "'woman' (59), 'Nonbinary' (1); correct or"),
    "a split twice": (lambda f: f.assign(SPLIT=f.split), "two columns of one name"),
    "an unknown split": (edit("split", "holdout"), "the split 'holdout' is unknown; write train"),
    "no column": (lambda f: f.drop(columns="glasses"), "no column 'glasses'; it has: gender"),
    "no file names": (lambda f: f.rename(columns={"file_name": "f"}), "no column file_name"),
    "no rows": (lambda f: f.iloc[:0], "has no rows"),
    "no test": (lambda f: f[f.split != "test"], "no test image with a gender"),
    "no validation": (lambda f: f[f.split != "validation"], "train without (--val none)"),
    "no group labels": (without_gender(["test"]), "no test image with a gender"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_metadata_is_one_sentence(mistake, root, tmp_path, capsys):
    change, names = MISTAKES[mistake]
    rewrite(root, change)
    arguments = command(root, tmp_path, "--methods", "erm")
    refused(capsys, train.main, arguments, names=names, out=tmp_path / "results")


@pytest.mark.parametrize(("flags", "names"), [
    (["--protected", "glasses"], "both 'glasses'"),
    (["--positive", "boy"], "--positive boy is in neither column"),
    (["--positive", "man", "woman"], "--positive names every value of the column 'gender'"),
    (["--protected", "gendr"], "has no column 'gendr'; it has: glasses, gender"),
    (["--size", "400"], "needs 180 and has 20"),
    (["--minority", "0.2"], "--minority"),
    (["--methods", "jtt", "fairsmote"], "fairsmote"),
], ids=str)
def test_a_mistaken_flag_is_one_sentence(flags, names, root, tmp_path, capsys):
    if "fairsmote" in flags:
        rewrite(root, without_gender(["train"]))
        names = "fairsmote learns from group labels, and 80 of 80 images of folder train have no"
    arguments = command(root, tmp_path, "--methods", "erm", *flags)
    refused(capsys, train.main, arguments, names=names, out=tmp_path / "results")


@pytest.mark.parametrize(("text", "names"), [
    ("file_name,glasses,gender\na,1,man,3\n", "metadata.csv cannot be read"),
    ("file_name,glasses\n\xff\xfe", "metadata.csv cannot be read"),
    ("", "metadata.csv cannot be read"),
    ("file_name,glasses,glasses\na.jpg,1,1\n", "two columns of one name.* glasses"),
    ("\nfile_name,glasses,,\na.jpg,1,,\n", "has no column 'gender'"),
])
def test_a_damaged_metadata_file(text, names, root):
    (root / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=names):
        loaded(root)


def test_the_metadata_file_itself(root, tmp_path):
    (root / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="holds metadata.csv, metadata.parquet; remove all but one"):
        loaded(root)
    (root / "metadata.csv").unlink()
    with pytest.raises(UserError, match="metadata.parquet cannot be read"):
        loaded(root)
    (root / "metadata.parquet").unlink()
    with pytest.raises(UserError, match="holds no metadata.csv, .tsv or .parquet; write one"):
        loaded(root)
    with pytest.raises(UserError, match="there is no folder"):
        loaded(root / "none")


def test_check_says_what_is_wrong(root, capsys):
    def arguments(*more):
        return ["--dataset", "folder", "--root", str(root), *more]

    pair = ["--target", "glasses", "--protected", "gender", "--positive", "man"]
    assert check.main(arguments(*pair)) == 0
    out = capsys.readouterr().out
    assert "0_0     20  0_1     20  1_0     20  1_1     20" in out and "no problems" in out
    assert "glasses: 1 = 1; 0 = 0\ngender: 1 = man; 0 = woman\n" in out
    assert check.main(arguments()) == 0
    out = capsys.readouterr().out
    assert "glasses                       60 0,      60 1, 0 missing" in out
    assert "gender                        60 woman,      60 man, 0 missing" in out
    assert "colour" not in out
    (root / "b/003.jpg").write_bytes((root / "a/097.jpg").read_bytes())
    (root / "a/005.jpg").write_bytes((root / "b/000.jpg").read_bytes())
    (root / "a/001.jpg").write_bytes(b"no image")
    rewrite(root, edit("glasses", "", 7))
    rewrite(root, lambda frame: frame[(frame.split != "test") | (frame.gender != "man")])
    assert check.main(arguments(*pair)) == 1
    out = capsys.readouterr().out
    for line in ("1 images have no glasses and are not used: a/007.jpg",
                 "no test image is of group 0_1, 1_1",
                 "1 images lie in several splits by their bytes: 003.jpg (train) = 097.jpg (test)",
                 "1 images lie there twice by their bytes: 000.jpg = 005.jpg",
                 "1 images unreadable: 001.jpg", "5 problems"):
        assert line in out


@pytest.mark.parametrize("pair", [[], ["--target", "glasses", "--protected", "gender",
                                       "--positive", "man"]], ids=["columns", "pair"])
@pytest.mark.parametrize(("part", "line"), [
    ("validation", "no image is marked as validation: mark some in the column split, or train "
                   "with --val none"),
    ("train", "no image is marked as training")])
def test_check_says_which_part_training_would_lack(part, line, pair, root, capsys):
    rewrite(root, lambda frame: frame[frame.split != part])
    assert check.main(["--dataset", "folder", "--root", str(root), *pair]) == 1
    out = capsys.readouterr().out
    assert f"problem: {line}" in out and "1 problem\n" in out


def command(root: Path, tmp_path: Path, *more) -> list[str]:
    fixed = ["--dataset", "folder", "--data-root", root, "--target", "glasses", "--protected",
             "gender", "--positive", "man", "--results", tmp_path / "results", "--setting", "own",
             "--store-dir", tmp_path / "store", "--image-size", 32, "--batch-size", 8,
             "--pretrained", "none", "--pretrain-epochs", 1, "--finetune-epochs", 1,
             "--backbone", "resnet18_quarter", "--device", "cpu"]
    return [str(flag) for flag in [*fixed, *more]]


def test_train_repairs_with_group_labels_of_the_test_alone(root, tmp_path, monkeypatch, capsys):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)
    rewrite(root, without_gender(["train", "validation"]))
    rng = np.random.default_rng(1)
    for y in (0, 1):
        for a in (0, 1):
            group = tmp_path / "synthetic" / "glasses_gender" / f"{y}_{a}"
            group.mkdir(parents=True)
            for number in range(40):
                tiny.face(rng, y, a).save(group / f"{number}.png")
    train.main(command(root, tmp_path, "--methods", "erm", "aim_fair", "--backbone", "tiny",
                       "--synthetic-root", tmp_path / "synthetic"))
    run = tmp_path / "results/own/aim_fair/seed100"
    measured = json.loads((run / "metrics.json").read_text())["test"]
    assert measured["group_count"] == {"0_0": 6, "0_1": 6, "1_0": 6, "1_1": 6}
    config = json.loads((run / "config.json").read_text())
    assert config["positive"] == ["man"] and config["size"] is None
    assert (run / "train.csv").read_text().splitlines()[1] == "b/000.jpg,0,-1"
