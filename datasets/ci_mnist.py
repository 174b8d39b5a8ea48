"""CI-MNIST with the three biases of FairIF's section 6.1, from MNIST's four idx files.

y = 1 is an even digit; a = 1 a red background, a = 0 a blue one, the digit is white. The first five
sixths of MNIST's training file (50,000) train, the rest (10,000) validates, the test file tests;
each part is biased alike, which gives the counts of the paper's Table 7.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.base import GROUPS, ArrayTable, Splits, check_fixed, check_val
from utils.errors import UserError

# bias -> percent of the odd and of the even digits that are kept, and of each that become red;
# the paper's "25% of class 0" is a quarter of the even digits
BIASES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "size": ((100, 100), (15, 15)),
    "shift": ((100, 100), (15, 85)),
    "class": ((100, 25), (50, 50)),
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


ATTRIBUTES = ("even", "red")  # the digit; its background


def coloured(grey: np.ndarray, a: np.ndarray) -> np.ndarray:
    """White digits on red (a = 1) or blue, uint8 [N, 3, 28, 28], channels red, green, blue.

    grey: uint8 [N, 28, 28], 0 background; a: int64 [N] in {0, 1}.
    """
    red, full = (a == 1)[:, None, None], np.uint8(255)
    return np.stack([np.where(red, full, grey), grey, np.where(red, grey, full)], axis=1)


def group_counts(odd: int, even: int, bias: str) -> dict[tuple[int, int], int]:
    """Digits per group (y, a) of a part with so many odd and even digits; shares round down.

    Raises UserError for another bias.
    """
    if bias not in BIASES:
        raise UserError(f"CI-MNIST's bias is one of {', '.join(BIASES)}, not {bias}")
    counts = {}
    for y, (count, kept, red) in enumerate(zip((odd, even), *BIASES[bias], strict=True)):
        total = count * kept // 100
        counts[y, 1] = total * red // 100
        counts[y, 0] = total - counts[y, 1]
    return {group: counts[group] for group in GROUPS}


def read(root: str | Path, bias: str, seed: int = 0) -> Splits:
    """CI-MNIST from the idx files (or their .gz) in root or root/MNIST/raw.

    bias: "size", "shift" or "class". Which digits are kept and which become red is drawn by seed;
    a part keeps MNIST's order, and `rows` are those of its file. Raises UserError for a missing or
    damaged file and another bias.
    """
    group_counts(0, 0, bias)
    root = Path(root)
    train_x, train_y, test_x, test_y = (_read(root, name) for name in FILES)
    for images, labels, what in ((train_x, train_y, "train"), (test_x, test_y, "t10k")):
        if len(images) != len(labels) or (len(labels) and labels.max() > 9):
            raise UserError(f"the {what} files in {root} do not belong together: copy them again")
    cut = len(train_y) * 5 // 6
    parts = {"train": (train_x[:cut], train_y[:cut]), "val": (train_x[cut:], train_y[cut:]),
             "test": (test_x, test_y)}  # fmt: skip
    return Splits(*(
        _biased(f"ci_mnist {bias} {part}", *pair, bias, np.random.default_rng([seed, number]))
        for number, (part, pair) in enumerate(parts.items())
    ))


def load(
    bias: str, root: str | Path, target: str, protected: str, *, seed: int = 0,
    val: str = "official",
) -> Splits:
    """`read` as an entry of DATASETS. Raises UserError for other names than ATTRIBUTES, another
    `val`, and as `read` does."""
    check_val(val)
    check_fixed("CI-MNIST", ATTRIBUTES, target, protected)
    parts = read(root, bias, seed)
    return parts if val == "official" else replace(parts, val=None)


def _biased(
    name: str, grey: np.ndarray, digits: np.ndarray, bias: str, generator: np.random.Generator
) -> ArrayTable:
    y = (digits % 2 == 0).astype(np.int64)
    counts = group_counts(int((y == 0).sum()), int((y == 1).sum()), bias)
    a = np.full(len(y), -1)
    for label in (0, 1):
        order = generator.permutation(np.flatnonzero(y == label))
        red, blue = counts[label, 1], counts[label, 0]
        a[order[:red]], a[order[red : red + blue]] = 1, 0
    kept = np.flatnonzero(a >= 0)
    y, a = y[kept], a[kept]
    return ArrayTable(name, coloured(grey[kept], a), y, a, rows=kept)


def _read(root: Path, name: str) -> np.ndarray:
    """The array of one idx file: uint8, [N, 28, 28] for images, [N] for labels."""
    dotted = name.replace("-idx", ".idx")
    places = [folder / f"{stem}{end}" for folder in (root, root / "MNIST" / "raw")
              for stem in (name, dotted) for end in ("", ".gz")]  # fmt: skip
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"{root} has no {name} (or .gz): copy MNIST's four idx files there, or download them "
            f"with python -c \"import torchvision; torchvision.datasets.MNIST('{root}', "
            'download=True)"'
        )
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    axes = 3 if "images" in name else 1
    head = 4 * (axes + 1)
    shape = np.frombuffer(data[4:head].ljust(head - 4, b"\0"), ">u4").tolist()
    whole = data[:4] == bytes([0, 0, 8, axes]) and len(data) == head + int(np.prod(shape))
    if not whole or (axes == 3 and shape[1:] != [28, 28]):
        raise UserError(f"{path} is not a whole idx file of MNIST; copy it again")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
