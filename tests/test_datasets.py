"""Subset rules, CelebA, UTKFace, synthetic folders, the demo archive, and what bad input says."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from datasets import DATASETS, celeba, check, demo, synthetic, utkface
from datasets.base import GROUPS, ImageTable, bad_images, concat, save_list
from datasets.subsets import (
    NotEnoughImages,
    biased_counts,
    biased_subset,
    draw_groups,
    list_hash,
)
from utils.errors import UserError

ATTRIBUTES = ("Male", "Smiling", "Young")
ATTR, PART, IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"


def write_image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def celeba_source(tmp_path_factory) -> Path:
    """40 photographs: 24 train, 4 validation, 12 test; Smiling and Male cycle through groups."""
    root = tmp_path_factory.mktemp("celeba")
    names = [f"{i + 1:06d}.jpg" for i in range(40)]
    rows, parts = [], []
    for i, name in enumerate(names):
        write_image(root / "img_align_celeba" / name, i)
        male, smiling, young = i % 2, i // 2 % 2, i // 4 % 2
        signs = " ".join(f"{2 * v - 1:2d}" for v in (male, smiling, young))
        rows.append(f"{name} {signs}")
        parts.append(f"{name} {0 if i < 24 else 1 if i < 28 else 2}")
    header = ["40", " ".join(ATTRIBUTES) + " "]
    (root / "list_attr_celeba.txt").write_text("\n".join(header + rows) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


@pytest.fixture
def celeba_root(celeba_source, tmp_path) -> Path:
    return Path(shutil.copytree(celeba_source, tmp_path / "celeba"))


def load_small(root, **changes):
    arguments = {"target": "Smiling", "protected": "Male", "size": 12, "minority": 0.5, **changes}
    return celeba.load(root, **arguments)


def same(one: ImageTable, other: ImageTable) -> bool:
    return (
        one.paths == other.paths
        and one.y.tolist() == other.y.tolist()
        and one.a.tolist() == other.a.tolist()
    )


def same_splits(one, other) -> bool:
    return all(same(getattr(one, part), getattr(other, part)) for part in ("train", "val", "test"))


# ---- subsets ----


@given(st.integers(1, 10**6), st.integers(0, 1000))
def test_biased_counts_sum_to_size(size, permille):
    minority = permille / 1000
    counts = biased_counts(size, minority)
    assert sum(counts.values()) == size and min(counts.values()) >= 0
    assert counts[0, 0] == counts[1, 1] and 0 <= counts[0, 1] - counts[1, 0] <= 1
    assert abs(counts[0, 0] - size * minority / 2) <= 0.5 + 1e-6


def test_biased_counts_by_hand():
    def numbers(*arguments):
        return tuple(biased_counts(*arguments)[group] for group in GROUPS)

    assert numbers(20000, 0.1) == (1000, 9000, 9000, 1000)
    assert numbers(200, 0.29) == (29, 71, 71, 29)  # 200 * 0.29 / 2 is 28.999... in floats
    assert numbers(10, 0.1) == (1, 4, 4, 1)  # a half goes up
    assert numbers(11, 0.2) == (1, 5, 4, 1)  # the odd image goes to (0, 1)
    assert numbers(3, 1.0) == (1, 1, 0, 1)  # never more than size // 2 each
    for size, minority in ((0, 0.1), (2.5, 0.1), (True, 0.1), (10, 1.1), (10, -0.1)):
        with pytest.raises(ValueError, match="must"):
            biased_counts(size, minority)


@st.composite
def attribute_tables(draw):
    groups = draw(st.lists(st.integers(0, 3), min_size=1, max_size=120))
    zero = draw(st.sampled_from([0, -1]))
    values = np.array([0, 1])[[[c // 2, c % 2] for c in groups]]
    values = np.where(values == 1, 1, zero)
    index = [f"{i:03d}.jpg" for i in np.random.default_rng(len(groups)).permutation(len(groups))]
    table = pd.DataFrame(values, columns=["T", "P"], index=index)
    return table.assign(other="ignored"), groups


@settings(deadline=None, max_examples=150)
@given(attribute_tables(), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.data())
def test_biased_subset_properties(drawn, size, minority, data):
    table, groups = drawn
    rule = data.draw(st.sampled_from(["first", "random"]))
    seed = data.draw(st.integers(0, 5))
    counts = biased_counts(size, minority)
    have = {(c // 2, c % 2): groups.count(c) for c in range(4)}
    if any(counts[group] > have[group] for group in GROUPS):
        with pytest.raises(NotEnoughImages) as caught:
            biased_subset(table, "T", "P", size, minority, rule, seed)
        assert caught.value.needed == counts and caught.value.available == have
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, UserError)
        return
    names = biased_subset(table, "T", "P", size, minority, rule, seed)
    assert names == biased_subset(table, "T", "P", size, minority, rule, seed)
    positions = [table.index.get_loc(name) for name in names]
    assert positions == sorted(set(positions)) and len(names) == size
    chosen = [groups[position] for position in positions]
    assert {(c // 2, c % 2): chosen.count(c) for c in range(4)} == counts
    if rule == "first":  # the slow walk of the released code
        room, walked = dict(counts), []
        for name, group in zip(table.index, groups, strict=True):
            if room[group // 2, group % 2]:
                room[group // 2, group % 2] -= 1
                walked.append(name)
        assert names == walked


def test_random_rule_depends_on_the_seed():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 2, (400, 2)), columns=["T", "P"]).rename(index=str)
    draws = {tuple(biased_subset(table, "T", "P", 60, 0.5, "random", seed)) for seed in range(5)}
    assert len(draws) == 5
    assert tuple(biased_subset(table, "T", "P", 60, 0.5)) not in draws


def test_biased_subset_refuses_wrong_input():
    table = pd.DataFrame({"T": [0, 1, 0, 1], "P": [0, 0, 1, 1]}, index=list("abcd"))
    assert biased_subset(table, "T", "P", 4, 0.5) == list("abcd")
    with pytest.raises(ValueError, match="no attribute 'Q'; there are: T, P"):
        biased_subset(table, "T", "Q", 4)
    with pytest.raises(ValueError, match="both 'T'"):
        biased_subset(table, "T", "T", 4)
    with pytest.raises(ValueError, match="first, random, not 'last'"):
        biased_subset(table, "T", "P", 4, rule="last")
    with pytest.raises(ValueError, match="must hold 1 and -1, or 1 and 0"):
        biased_subset(table.assign(P=[0, 2, 1, 1]), "T", "P", 4)
    with pytest.raises(ValueError, match="must hold 1 and -1, or 1 and 0"):
        biased_subset(table.assign(P=[0, -1, 1, 1]), "T", "P", 4)
    with pytest.raises(ValueError, match="must hold"):
        biased_subset(table.assign(P=[0, np.nan, 1, 1]), "T", "P", 4)
    with pytest.raises(ValueError, match="twice: a"):
        biased_subset(table.set_axis(list("aacd")), "T", "P", 4)


def test_list_hash_is_the_stated_one():
    # printf '000001.jpg\n000002.jpg\n' | sha256sum
    assert list_hash(["000002.jpg", "000001.jpg"]) == (
        "aae0f2c3331be4cdc250c4cf8705e448fee6132171bfd15ba5f9d2f20f9e227d"
    )


def test_tables_and_draws():
    y, a = np.array([0, 0, 1, 1] * 5), np.array([0, 1, 0, 1] * 5)
    table = ImageTable("t", [f"/x/{i}.png" for i in range(20)], y, a)
    assert table.y.dtype == table.a.dtype == np.int64
    assert table.counts() == dict.fromkeys(GROUPS, 5)
    counts = {(0, 0): 2, (1, 1): 4}
    drawn = draw_groups(table, counts, seed=3)
    assert drawn.counts() == {(0, 0): 2, (0, 1): 0, (1, 0): 0, (1, 1): 4}
    rows = [table.paths.index(path) for path in drawn.paths]
    assert rows == sorted(rows) and same(drawn, draw_groups(table, counts, seed=3))
    assert len({tuple(draw_groups(table, counts, seed).paths) for seed in range(6)}) > 1
    with pytest.raises(NotEnoughImages, match="group 1_0 needs 6 and has 5"):
        draw_groups(table, {(1, 0): 6}, 0)
    both = concat([drawn, table.take([3, 1])], "both")
    assert both.name == "both" and both.paths[-2:] == ["/x/3.png", "/x/1.png"]
    assert both.y.tolist()[-2:] == [1, 0] and both.a.tolist()[-2:] == [1, 1]
    unknown = ImageTable("u", ["/p"], [1], [-1])
    assert unknown.counts() == {**dict.fromkeys(GROUPS, 0), (1, -1): 1}
    assert len(concat([], "none")) == 0
    with pytest.raises(ValueError, match="2 samples, 1 y"):
        ImageTable("t", ["/a", "/b"], [1], [1])


def test_save_list_round_trip(celeba_root, tmp_path):
    train = load_small(celeba_root).train
    save_list(train, tmp_path / "train.csv", celeba_root)
    with open(tmp_path / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [str(celeba_root / row["file"]) for row in rows] == train.paths
    assert [(int(row["y"]), int(row["a"])) for row in rows] == list(
        zip(train.y.tolist(), train.a.tolist(), strict=True)
    )
    save_list(train, tmp_path / "names.csv")
    assert (tmp_path / "names.csv").read_text().splitlines()[:2] == ["file,y,a", "000001.jpg,0,0"]


# ---- CelebA ----


def test_celeba_splits_and_labels(celeba_root):
    splits = load_small(celeba_root)
    assert [Path(path).name for path in splits.train.paths] == [
        f"{i:06d}.jpg" for i in range(1, 13)
    ]
    assert splits.train.counts() == dict.fromkeys(GROUPS, 3)
    assert splits.train.y.tolist()[:4] == [0, 0, 1, 1]  # Smiling
    assert splits.train.a.tolist()[:4] == [0, 1, 0, 1]  # Male
    assert len(splits.val) == 4 and Path(splits.val.paths[0]).name == "000025.jpg"
    assert len(splits.test) == 12 and Path(splits.test.paths[0]).name == "000029.jpg"
    assert load_small(celeba_root, val="none").val is None
    balanced = load_small(celeba_root, test_size=8).test
    assert balanced.counts() == dict.fromkeys(GROUPS, 2)
    assert set(balanced.paths) <= set(splits.test.paths)
    assert len(celeba.partitions(celeba_root, "Young", "Male").train) == 24
    whole = load_small(celeba_root, size=None)  # --size all
    assert [Path(path).name for path in whole.train.paths] == [f"{i:06d}.jpg" for i in range(1, 25)]
    assert same(whole.val, splits.val) and same(whole.test, splits.test)


def test_celeba_blond_hair_groups_are_fairifs_as_corrected(tmp_path):
    """The attribute file with the paper's counts of all images: which is which, and none lost.

    FairIF's Table 9 has the two middle groups swapped: blond women are many, blond men few.
    """
    groups = {(-1, -1): 89931, (-1, 1): 82685, (1, -1): 28234, (1, 1): 1749}
    signs = np.repeat(np.array(list(groups)), list(groups.values()), axis=0)
    np.random.default_rng(0).shuffle(signs)
    names = [f"{i + 1:06d}.jpg" for i in range(len(signs))]
    lines = [f"{name} {blond} {male}" for name, (blond, male) in zip(names, signs, strict=True)]
    (tmp_path / ATTR).write_text("\n".join([str(len(names)), "Blond_Hair Male", *lines]) + "\n")
    ends = check.CELEBA_RANGES["train"][1], check.CELEBA_RANGES["val"][1]
    lines = [f"{name} {(name > ends[0]) + (name > ends[1])}" for name in names]
    (tmp_path / PART).write_text("\n".join(lines) + "\n")
    (tmp_path / IMAGES).mkdir()
    parts = celeba.partitions(tmp_path, "Blond_Hair", "Male")
    parts = (parts.train, parts.val, parts.test)
    assert [len(part) for part in parts] == list(check.CELEBA_SPLITS.values())
    assert [sum(part.counts()[group] for part in parts) for group in GROUPS] == [
        89931, 82685, 28234, 1749]


def to_csv(root: Path, zero: str = "-1") -> None:
    lines = (root / ATTR).read_text(encoding="utf-8-sig").splitlines()
    rows = [line.replace("-1", zero).split() for line in lines[2:]]
    text = [["image_id", *lines[1].split()], *rows]
    (root / "list_attr_celeba.csv").write_text("\n".join(map(",".join, text)) + "\n")
    parts = (root / PART).read_text(encoding="utf-8-sig").replace(" ", ",")
    (root / "list_eval_partition.csv").write_text("image_id,partition\n" + parts)
    (root / ATTR).unlink()
    (root / PART).unlink()


def test_celeba_layouts_agree(celeba_root):
    expected = load_small(celeba_root)
    attributes, parts = (
        celeba_root / "list_attr_celeba.txt",
        celeba_root / "list_eval_partition.txt",
    )
    for path in (attributes, parts):  # Windows line ends and a byte order mark
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert same_splits(expected, load_small(celeba_root))
    (celeba_root / "Anno").mkdir()
    (celeba_root / "Eval").mkdir()
    attributes.rename(celeba_root / "Anno" / attributes.name)
    parts.rename(celeba_root / "Eval" / parts.name)
    assert same_splits(expected, load_small(celeba_root))
    (celeba_root / "Anno" / attributes.name).rename(attributes)
    (celeba_root / "Eval" / parts.name).rename(parts)
    to_csv(celeba_root)
    assert same_splits(expected, load_small(celeba_root))
    path = celeba_root / "list_attr_celeba.csv"
    path.write_text(path.read_text().replace("-1", "0"))
    assert same_splits(expected, load_small(celeba_root))
    images = celeba_root / "img_align_celeba"
    images.rename(celeba_root / "inner")
    images.mkdir()
    (celeba_root / "inner").rename(images / "img_align_celeba")
    doubled = load_small(celeba_root)
    assert same_splits(expected, load_small(celeba_root)) is False
    assert [Path(p).name for p in doubled.train.paths] == [
        Path(p).name for p in expected.train.paths
    ]


def edit(name: str, change):
    def apply(root: Path) -> None:
        path = root / name
        path.write_text(change(path.read_text()))

    return apply


def line(number: int, text: str):
    def change(old: str) -> str:
        lines = old.split("\n")
        lines[number - 1] = text
        return "\n".join(lines)

    return change


BAD_LISTS = {
    "wrong count": (edit(ATTR, line(1, "41")), r"line 1 says 41 images, but 40 follow"),
    "no count": (
        edit(ATTR, lambda s: s.split("\n", 1)[1]),
        r"line 1: must be the number of images",
    ),
    "no names": (edit(ATTR, lambda s: s.replace(" ".join(ATTRIBUTES) + " \n", "")), "39 follow"),
    "doubled column": (edit(ATTR, line(2, "Male Male Young")), "or a name twice"),
    "renamed column": (
        edit(ATTR, line(2, "Male Smile Young")),
        r"no attribute 'Smiling'; it has: Male, Smile, Young",
    ),
    "zero in txt": (
        edit(ATTR, line(5, "000003.jpg -1 0 1")),
        r"line 5 \(000003.jpg\): Smiling is '0', must be one of 1, -1",
    ),
    "word": (edit(ATTR, line(5, "000003.jpg -1 yes 1")), "Smiling is 'yes'"),
    "too few": (edit(ATTR, line(5, "000003.jpg -1 1")), "line 5: 3 fields, not 4"),
    "too many": (edit(ATTR, line(5, "000003.jpg -1 1 1 1")), "line 5: 5 fields, not 4"),
    "doubled name": (edit(ATTR, line(5, "000001.jpg -1 1 1")), r"twice \(000001.jpg\)"),
    "traversal": (
        edit(ATTR, line(5, "../../etc/passwd -1 1 1")),
        r"outside the image folder \(\.\./\.\./etc/passwd\)",
    ),
    "absolute": (edit(PART, line(1, "/000001.jpg 0")), r"outside the image folder"),
    "backslash": (edit(PART, line(1, "..\\1.jpg 0")), r"outside the image folder"),
    "unknown name": (edit(ATTR, line(5, "x.jpg -1 1 1")), r"names 1 images that .* \(000003.jpg\)"),
    "unlisted": (edit(PART, lambda s: s.split("\n", 1)[1]), r"names 1 images .* \(000001.jpg\)"),
    "partition 3": (edit(PART, line(2, "000002.jpg 3")), "line 2: partition '3' is not 0, 1 or 2"),
    "no training": (edit(PART, lambda s: s.replace(".jpg 0", ".jpg 1")), r"as training \(0\)"),
    "no test": (edit(PART, lambda s: s.replace(".jpg 2", ".jpg 1")), r"as test \(2\)"),
    "no validation": (edit(PART, lambda s: s.replace(".jpg 1", ".jpg 2")), r"as validation \(1\)"),
    "empty file": (edit(ATTR, lambda s: " \n"), "is empty"),
    "binary": (lambda root: (root / ATTR).write_bytes(b"\xff\xfe\x00"), "cannot be read as text"),
    "no list": (lambda root: (root / ATTR).unlink(), "holds no list_attr_celeba.txt or .csv"),
    "no images": (lambda root: shutil.rmtree(root / IMAGES), "holds no folder img_align_celeba/"),
    "no folder": (lambda root: shutil.rmtree(root), "there is no folder"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_celeba_bad_lists(celeba_root, case):
    spoil, sentence = BAD_LISTS[case]
    spoil(celeba_root)
    with pytest.raises(UserError, match=sentence) as caught:
        load_small(celeba_root)
    assert "\n" not in str(caught.value)


def test_celeba_bad_csv(celeba_root):
    to_csv(celeba_root)
    path = celeba_root / "list_attr_celeba.csv"
    good = path.read_text()
    for old, new, sentence in (
        ("000002.jpg,1,-1", "000002.jpg,1,0", "holds both 0 and -1"),
        ("000002.jpg,1,-1", "000002.jpg,1,", "Smiling is ''"),
        ("000002.jpg,", '"000002.jpg,', "no well-formed csv|several lines"),
        ("000002.jpg,", "000002.jpg,1,", "line 3: 5 fields, not 4"),
    ):
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(UserError, match=sentence):
            load_small(celeba_root)


def test_celeba_bad_arguments(celeba_root):
    for changes, sentence in (
        ({"target": "Male"}, "both 'Male'"),
        ({"target": "partition"}, "no attribute 'partition'"),
        ({"rule": "last"}, "not 'last'"),
        ({"size": 0}, "at least 1"),
        ({"minority": 2}, "between 0 and 1"),
        ({"size": 24, "minority": 0.1}, "group 0_1 needs 11 and has 6"),
        ({"test_size": 6}, "multiple of 4"),
        ({"test_size": 16}, "group 0_0 needs 4 and has 3"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_small(celeba_root, **changes)
    with pytest.raises(ValueError, match="'official' or 'none', not 'some'"):
        load_small(celeba_root, val="some")
    shutil.rmtree(celeba_root / IMAGES)
    (celeba_root / "img_align_celeba.zip").write_bytes(b"")
    with pytest.raises(UserError, match="still packed; unzip"):
        load_small(celeba_root)


def test_celeba_bad_images_are_named_together(celeba_root):
    images = celeba_root / IMAGES
    (images / "000001.jpg").unlink()
    (images / "000002.jpg").write_bytes(b"")
    whole = (images / "000025.jpg").read_bytes()
    (images / "000025.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "000030.jpg").write_text("not a photograph")
    (images / "000020.jpg").unlink()  # in no subset: not complained of
    with pytest.raises(UserError) as caught:
        load_small(celeba_root)
    message = str(caught.value)
    assert "1 missing (000001.jpg)" in message and "1 empty (000002.jpg)" in message
    assert "2 unreadable (000025.jpg, 000030.jpg)" in message and "000020" not in message
    # padding after the end, and another format under the name of a JPEG, can be used
    (images / "000003.jpg").write_bytes(whole + b"\0" * 200)
    Image.new("RGB", (4, 4)).save(images / "000004.jpg", "PNG")
    assert bad_images([str(images / f"00000{i}.jpg") for i in (3, 4)]) == {}


# ---- UTKFace ----


def write_utkface(root: Path, per_group: int) -> None:
    for i in range(per_group * 4):
        gender, race = i % 2, (0, 1 + i % 4)[i // 2 % 2]
        write_image(root / f"{1 + i % 90}_{gender}_{race}_201701{i:011d}.jpg.chip.jpg", i)


BAD_NAMES = (
    "61_1_20170109142408075.jpg.chip.jpg",  # the public archive's own: no race
    "53__0_20170116184028385.jpg",
    "200_0_0_20170116184028385.jpg",
    "30_3_0_20170116184028385.jpg",
    "30_0_5_20170116184028385.jpg",
    "me.jpg",
)


def test_utkface_splits(tmp_path, capsys):
    write_utkface(tmp_path / "UTKFace", 40)
    for name in BAD_NAMES:
        (tmp_path / "UTKFace" / name).write_bytes(b"")
    (tmp_path / "UTKFace" / "readme.txt").write_text("no image, no warning")
    arguments = {"size": 40, "minority": 0.5, "test_size": 40}
    splits = utkface.load(tmp_path, "Female", "White", **arguments)
    warning = capsys.readouterr().err
    assert "6 of 166 images" in warning and all(name in warning for name in BAD_NAMES)
    assert "readme" not in warning
    assert splits.test.counts() == dict.fromkeys(GROUPS, 10)
    assert splits.val.counts() == dict.fromkeys(GROUPS, 1)
    assert splits.train.counts() == dict.fromkeys(GROUPS, 9)
    used = [p for part in (splits.train, splits.val, splits.test) for p in part.paths]
    assert len(set(used)) == len(used) == 80
    for path, y, a in zip(splits.train.paths, splits.train.y, splits.train.a, strict=True):
        fields = Path(path).name.split("_")
        assert y == (fields[1] == "1") and a == (fields[2] == "0")
    assert same_splits(splits, utkface.load(tmp_path, "Female", "White", **arguments))
    other = utkface.load(tmp_path, "Female", "White", **arguments, seed=1)
    assert not same(splits.test, other.test)
    whole = utkface.load(tmp_path, "Female", "White", **arguments, val="none")
    assert whole.val is None and same(whole.test, splits.test)
    assert sorted(whole.train.paths) == sorted(splits.train.paths + splits.val.paths)
    swapped = utkface.load(tmp_path, "White", "Female", **arguments)
    assert swapped.train.counts() == dict.fromkeys(GROUPS, 9)


def test_utkface_paper_counts(monkeypatch, tmp_path):
    """The paper's sizes, on labels alone: 9,000 + 1,000 in 5/45/45/5 and 800 of every group."""
    group = np.repeat(np.arange(4), 5400)
    columns = {"Female": group // 2, "White": group % 2}
    index = [f"{i}.jpg" for i in range(len(group))]
    table = pd.DataFrame(columns, index=index)
    monkeypatch.setattr(utkface, "read_table", lambda root: (table, tmp_path, []))
    monkeypatch.setattr(utkface, "check_images", lambda tables, root: None)
    splits = utkface.load(tmp_path, "Female", "White")
    assert list(splits.train.counts().values()) == [450, 4050, 4050, 450]
    assert list(splits.val.counts().values()) == [50, 450, 450, 50]
    assert list(splits.test.counts().values()) == [800] * 4
    whole = utkface.load(tmp_path, "Female", "White", size=None)  # --size all
    assert same(whole.test, splits.test)
    assert list(whole.train.counts().values()) == [4140] * 4  # 4,600 of each are left
    assert list(whole.val.counts().values()) == [460] * 4
    assert not set(whole.train.paths) & set(whole.val.paths + whole.test.paths)
    with pytest.raises(NotEnoughImages, match="group 0_0 needs 6000 and has 5400"):
        utkface.load(tmp_path, "Female", "White", size=None, val="none", test_size=24000)


def test_utkface_bad_input(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        utkface.load(tmp_path / "none", "Female", "White")
    with pytest.raises(UserError, match="holds no image named age_gender_race_date.jpg"):
        utkface.load(tmp_path, "Female", "White")
    write_utkface(tmp_path, 10)
    with pytest.raises(UserError, match="are Female and White, not Young and White"):
        utkface.load(tmp_path, "Young", "White")
    with pytest.raises(NotEnoughImages, match="group 0_1 needs 5300 and has 10"):
        utkface.load(tmp_path, "Female", "White")
    with pytest.raises(UserError, match="too few to hold a tenth out"):
        utkface.load(tmp_path, "Female", "White", size=20, test_size=4)
    first = min(tmp_path.iterdir())
    first.write_bytes(b"")
    with pytest.raises(UserError, match=f"1 empty \\({first.name}\\)"):
        utkface.load(tmp_path, "Female", "White", size=36, minority=0.5, test_size=4, val="none")


# ---- synthetic images ----


def write_pool(folder: Path, per_group: int = 3) -> None:
    for t, p in GROUPS:
        for i in range(per_group):
            write_image(folder / f"{t}_{p}" / f"{8 + i}.png", 100 * t + 10 * p + i)


@pytest.mark.parametrize(
    "layout", ["contextual_50/Smiling_Male", "Smiling_Male/contextual_50", "Smiling_Male"]
)
def test_synthetic_layouts(tmp_path, layout):
    write_pool(tmp_path / layout)
    table = synthetic.load_synthetic(tmp_path, "Smiling", "Male", "contextual_50")
    expected = [
        str(tmp_path / layout / f"{t}_{p}" / f"{n}.png") for t, p in GROUPS for n in (8, 9, 10)
    ]
    assert table.paths == expected  # by number: 9 before 10
    assert table.y.tolist() == [0] * 6 + [1] * 6
    assert table.a.tolist() == [0, 0, 0, 1, 1, 1] * 2


@pytest.mark.parametrize("manifest", [False, True])
def test_synthetic_transposed(tmp_path, manifest):
    folder = tmp_path / "plain" / "Young_Male"
    write_pool(folder, 1)
    if manifest:
        rows = [f"{t}_{p}/8.png,{t},{p}" for t, p in GROUPS]
        (folder / "manifest.csv").write_text("path,y,a\n" + "\n".join(rows) + "\n")
    table = synthetic.load_synthetic(tmp_path, "Male", "Young", "plain")
    names = [str(Path(path).parent.name) for path in table.paths]
    assert names == ["0_0", "1_0", "0_1", "1_1"]  # folder 1_0 is Young 1, Male 0: y = 0, a = 1
    assert table.y.tolist() == [0, 0, 1, 1] and table.a.tolist() == [0, 1, 0, 1]
    write_pool(tmp_path / "plain" / "Male_Young", 1)  # the untransposed folder goes first
    assert "Male_Young" in synthetic.load_synthetic(tmp_path, "Male", "Young", "plain").paths[0]


def test_synthetic_labels_come_from_the_manifest(tmp_path):
    folder = tmp_path / "plain" / "Smiling_Male"
    write_pool(folder)
    rows = [f"{t}_{p}/{n}.png,{1 - t},{p},words" for t, p in GROUPS for n in (8, 9)]
    manifest = folder / "manifest.csv"
    header = "path,y,a,prompt\n"
    manifest.write_text(header + "\n".join(rows) + "\n")
    table = synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")
    assert len(table) == 8 and table.counts() == dict.fromkeys(GROUPS, 2)
    assert all(Path(p).parent.name[0] == str(1 - y) for p, y in zip(table.paths, table.y))
    for text, sentence in (
        (header.replace(",a", "") + "0_0/8.png,0,x\n", "lacks the column a"),
        (header, "lists no image"),
        (header + rows[0] + "\n" + rows[0] + "\n", r"lists images twice \(0_0/8.png\)"),
        (header + f"{folder}/0_0/8.png,0,0,x\n", "no path inside"),
        (header + "../0_0/8.png,0,0,x\n", "row 1: '../0_0/8.png' is no path inside"),
        (header + "0_0/8.png,2,0,x\n", "labels '2' and '0' must be 0 or 1"),
        (header + "0_0/8.png\n", "labels '' and '' must be 0 or 1"),
        (header + rows[0] + "\n", "no images with labels 0_0, 0_1, 1_1"),
        (header + "\n".join(rows) + "\n0_0/99.png,0,0,x\n", r"1 missing \(99.png\)"),
    ):
        manifest.write_text(text)
        with pytest.raises(UserError, match=sentence):
            synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")


def test_synthetic_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no generated images for Smiling/Male, prompt set 'plain'"):
        synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")
    write_pool(tmp_path / "Smiling_Male")
    (tmp_path / "Smiling_Male" / "0_1" / "9.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 empty \(9.png\)"):
        synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")
    shutil.rmtree(tmp_path / "Smiling_Male" / "1_0")
    with pytest.raises(UserError, match="1_0 holds no images"):
        synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")


# ---- the demo archive ----


def pack(source: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                out.write(path, path.relative_to(source))


def test_demo_is_celeba_unpacked_once(celeba_root, tmp_path, monkeypatch):
    archive = tmp_path / "faces.zip"
    pack(celeba_root, archive)
    monkeypatch.setattr(demo.unpack, "__defaults__", (demo.unpack.__defaults__[0], archive))
    root = tmp_path / "data" / "demo"
    splits = DATASETS["demo"](root, "Smiling", "Male", size=12, minority=0.5)
    expected = load_small(celeba_root)
    assert splits.train.name == "demo train"
    assert [Path(p).name for p in splits.train.paths] == [
        Path(p).name for p in expected.train.paths
    ]
    (folder,) = root.iterdir()
    kept = folder / "img_align_celeba" / "000001.jpg"
    before = kept.stat().st_mtime_ns
    assert demo.unpack(root) == folder and kept.stat().st_mtime_ns == before
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("README.md", "another archive")
    assert demo.unpack(root) != folder and len(list(root.iterdir())) == 2


def test_demo_is_not_unpacked_among_a_users_photographs(tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    refused(capsys, check.main, ["--dataset", "demo", "--root", tmp_path],
            names="holds photo.jpg, and the demo's faces", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "a\\..\\out.txt"])
def test_demo_refuses_traversal(tmp_path, name):
    archive = tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("list_attr_celeba.txt", "1\n")
        out.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(UserError, match="a link or a path outside its folder"):
        demo.unpack(tmp_path / "data", archive)
    assert list((tmp_path / "data").iterdir()) == [] and not list(tmp_path.rglob("out.txt"))


def test_demo_refuses_links_and_damage(tmp_path, monkeypatch):
    archive = tmp_path / "faces.zip"
    link = zipfile.ZipInfo("img_align_celeba")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(link, "/etc")
    with pytest.raises(UserError, match="holds 'img_align_celeba', a link"):
        demo.unpack(tmp_path / "data", archive)
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.txt", b"0123456789" * 50)
    whole = archive.read_bytes()
    for damaged in (
        whole[:100],
        b"version https://git-lfs",
        whole.replace(b"0123456789", b"x" * 10),
    ):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match="faces.zip is damaged"):
            demo.unpack(tmp_path / "data", archive)
    archive.write_bytes(whole)
    monkeypatch.setattr(demo, "LARGEST", 100)
    with pytest.raises(UserError, match="unpacks to 500 bytes, over 100"):
        demo.unpack(tmp_path / "data", archive)
    archive.unlink()
    with pytest.raises(UserError, match="is missing; restore it"):
        demo.unpack(tmp_path / "data", archive)
    assert list((tmp_path / "data").iterdir()) == []


# ---- the check command ----


def test_check_names_differences(celeba_root, capsys):
    (celeba_root / IMAGES / "000040.jpg").unlink()
    arguments = ["--dataset", "celeba", "--root", str(celeba_root)]
    assert check.main(arguments) == 1
    out = capsys.readouterr().out
    assert "train images: 24, expected 162770" in out
    assert "test groups of Smiling/Male: (3, 3, 3, 3), expected (5354, 4621, 6893, 3094)" in out
    assert "1 images missing: 000040.jpg" in out
    with pytest.raises(SystemExit) as stopped:
        check.main([*arguments, "--target", "Smiling"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --target and --protected go together")


def test_check_accepts_the_official_counts(tmp_path, capsys):
    """A list with CelebA's names, splits, test groups and invented labels: only hashes differ."""
    groups = np.concatenate([np.arange(182637) % 4, np.repeat(range(4), (5354, 4621, 6893, 3094))])
    names = [f"{i + 1:06d}.jpg" for i in range(len(groups))]
    words = ["-1 -1  1", " 1 -1  1", "-1  1 -1", " 1  1 -1"]  # Male Smiling Young
    rows = [f"{name} {words[group]}\n" for name, group in zip(names, groups, strict=True)]
    (tmp_path / ATTR).write_text("202599\nMale Smiling Young \n" + "".join(rows))
    parts = np.searchsorted([162770, 182637], np.arange(202599), side="right")
    (tmp_path / PART).write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    (tmp_path / IMAGES).mkdir()
    assert check.main(["--dataset", "celeba", "--root", str(tmp_path), "--no-images"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "difference: " in line]
    assert len(lines) == 3 and all("SHA-256 of the first 20000 of" in line for line in lines)


def test_check_utkface(tmp_path, capsys):
    write_utkface(tmp_path, 2)
    (tmp_path / BAD_NAMES[0]).write_bytes(b"")
    assert check.main(["--dataset", "utkface", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert BAD_NAMES[0] in out and "images with labels: 8, expected 23705" in out
