"""CI-MNIST and FairFace: the paper's counts, what a part holds, and bad files."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datasets import check, ci_mnist, fairface
from datasets.subsets import NotEnoughImages
from utils.errors import UserError

SAMPLE = Path(__file__).parent / "mnist"  # the first 240 training and 40 test digits of MNIST
PAPER = {  # FairIF's Table 7: (0, 0) (0, 1) (1, 0) (1, 1)
    "size": [30245, 5337, 29257, 5161],
    "shift": [30245, 5337, 5163, 29255],
    "class": [17791, 17791, 4303, 4301],
}
ODD, EVEN = (25448, 5060, 5074), (24552, 4940, 4926)  # of MNIST's three parts


@pytest.mark.parametrize("bias", list(PAPER))
def test_the_rule_gives_the_papers_counts_of_all_70000_digits(bias):
    parts = [ci_mnist.group_counts(*pair, bias) for pair in zip(ODD, EVEN, strict=True)]
    assert [sum(part[group] for part in parts) for group in parts[0]] == PAPER[bias]


@pytest.mark.parametrize("bias", list(PAPER))
def test_the_loader_keeps_to_the_rule_on_real_digits(bias):
    splits = ci_mnist.read(SAMPLE, bias, seed=3)
    digits = np.frombuffer(
        gzip.decompress((SAMPLE / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    for part, labels in ((splits.train, digits[:200]), (splits.val, digits[200:])):
        even = int((labels % 2 == 0).sum())
        assert part.counts() == ci_mnist.group_counts(len(labels) - even, even, bias)
    if bias != "class":  # every digit is kept, in order
        assert np.array_equal(splits.train.y, (digits[:200] % 2 == 0).astype(int))
        assert len(splits.test) == 40
    again, other = ci_mnist.read(SAMPLE, bias, seed=3), ci_mnist.read(SAMPLE, bias, seed=4)
    assert np.array_equal(splits.train.a, again.train.a)
    assert not (len(splits.train) == len(other.train)
                and np.array_equal(splits.train.a, other.train.a)
                and np.array_equal(splits.train.rows, other.train.rows))


def test_colours_are_red_and_blue_under_a_white_digit():
    part = ci_mnist.read(SAMPLE, "size").val
    grey = np.frombuffer(
        gzip.decompress((SAMPLE / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    ).reshape(-1, 28, 28)[200:][part.rows]
    assert part.x.shape == (40, 3, 28, 28) and part.x.dtype == np.uint8
    assert np.array_equal(part.x[:, 1], grey)  # green is the digit alone
    corner, ink = part.x[:, :, 0, 0], grey == 255  # no digit reaches the corner
    for a, colour in ((0, [0, 0, 255]), (1, [255, 0, 0])):
        assert (corner[part.a == a] == colour).all()
    assert (np.moveaxis(part.x, 1, -1)[ink] == 255).all() and ink.sum() == 63


def test_missing_and_damaged_digits_stop(tmp_path):
    with pytest.raises(UserError, match="no train-images-idx3-ubyte .*download=True"):
        ci_mnist.read(tmp_path, "size")
    with pytest.raises(UserError, match="one of size, shift, class, not tilt"):
        ci_mnist.read(SAMPLE, "tilt")
    raw = tmp_path / "MNIST" / "raw"  # where torchvision puts them, unpacked
    raw.mkdir(parents=True)
    for path in SAMPLE.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert len(ci_mnist.read(tmp_path, "size").train) == 200
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole idx file"):
        ci_mnist.read(tmp_path, "size")
    images.unlink()
    packed = raw / "train-images-idx3-ubyte.gz"
    packed.write_bytes((SAMPLE / packed.name).read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        ci_mnist.read(tmp_path, "size")
    shutil.copy(SAMPLE / packed.name, packed)
    shutil.copy(raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte")
    with pytest.raises(UserError, match="do not belong together"):
        ci_mnist.read(tmp_path, "size")


# --- FairFace ------------------------------------------------------------------------------------


def write_csv(root: Path, part: str, groups: dict) -> None:
    """A label file with so many rows of each (gender, race), the images not written."""
    pairs = [pair for pair, count in groups.items() for _ in range(count)]
    frame = pd.DataFrame(pairs, columns=["gender", "race"])
    frame.insert(0, "file", [f"{part}/{number}.jpg" for number in range(1, len(pairs) + 1)])
    frame["age"] = "20-29"
    frame.to_csv(root / fairface.CSV[part], index=False)


def test_the_groups_are_the_papers_as_corrected(tmp_path):
    counts = {("Female", "Black"): 6894, ("Female", "White"): 8789, ("Male", "Black"): 6895,
              ("Male", "White"): 9823, ("Male", "East Asian"): 50}
    write_csv(tmp_path, "train", counts)
    table = fairface.read_table(tmp_path, "train")
    groups = table.groupby(["Male", "White"]).size()
    assert groups.tolist() == [6894, 8789, 6895, 9823]  # (y, a) in order
    assert len(table) == sum(groups)  # other races are left out


def test_check_knows_the_papers_groups(tmp_path, capsys):
    """FairFace's own two parts hold together what the paper counts; a lost row is named."""
    val = {("Female", "Black"): 757, ("Female", "White"): 963, ("Male", "Black"): 799,
           ("Male", "White"): 1122}
    paper = dict(zip(val, (6894, 8789, 6895, 9823)))
    command = ["--dataset", "fairface", "--root", str(tmp_path), "--no-images"]
    for lost, code in ((0, 0), (1, 1)):
        write_csv(tmp_path, "val", val)
        write_csv(tmp_path, "train", {group: paper[group] - val[group] - lost for group in val})
        assert check.main(command) == code
    out = capsys.readouterr().out
    assert "no differences" in out
    assert ("difference: images by Male_White: (6893, 8788, 6894, 9822), "
            "expected (6894, 8789, 6895, 9823)") in out
    with pytest.raises(SystemExit):
        check.main([*command, "--target", "Male", "--protected", "White"])
    assert "fairface has one pair, Male/White; leave out" in capsys.readouterr().err


@pytest.fixture
def faces(tmp_path):
    for part, count in (("train", 20), ("val", 5)):
        write_csv(tmp_path, part, {(g, r): count for g in ("Female", "Male")
                                   for r in ("White", "Black", "Indian")})
        (tmp_path / part).mkdir()
        for number in range(1, 6 * count + 1):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / part / f"{number}.jpg")
    return tmp_path


def test_fairface_splits_are_disjoint_and_keep_to_the_parts(faces):
    whole = fairface.load(faces, "Male", "White")
    assert (len(whole.train), len(whole.val), len(whole.test)) == (72, 8, 20)
    assert set(whole.val.counts().values()) == {2}
    assert not set(whole.train.paths) & set(whole.val.paths)
    assert all("/val/" in path for path in whole.test.paths)
    assert all("/train/" in path for path in [*whole.train.paths, *whole.val.paths])
    assert len(fairface.load(faces, "Male", "White", val="none").train) == 80
    biased = fairface.load(faces, "White", "Male", size=20, minority=0.2, val="none", test_size=8)
    assert biased.train.counts() == {(0, 0): 2, (0, 1): 8, (1, 0): 8, (1, 1): 2}
    assert set(biased.test.counts().values()) == {2}


def test_bad_fairface_files_stop(faces):
    with pytest.raises(UserError, match="Male and White, not Male and Black"):
        fairface.load(faces, "Male", "Black")
    with pytest.raises(NotEnoughImages):
        fairface.load(faces, "Male", "White", size=1000)
    (faces / "train" / "1.jpg").unlink()
    with pytest.raises(UserError, match="1 missing .1.jpg."):
        fairface.load(faces, "Male", "White")
    path = faces / fairface.CSV["train"]
    text = path.read_text()
    for wrong, words in ((text.replace("race", "group"), "no column race"),
                         (text.replace("train/2.jpg", "../2.jpg"), "not below its folder"),
                         (text.replace("train/2.jpg", "train/3.jpg"), "names a file twice"),
                         (text.replace("Female", "F"), "gender other than")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=words):
            fairface.load(faces, "Male", "White")
    path.unlink()
    with pytest.raises(UserError, match="fairface_label_train.csv is missing"):
        fairface.load(faces, "Male", "White")
