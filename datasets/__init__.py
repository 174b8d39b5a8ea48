"""Datasets by name. Each entry is called as

    DATASETS[name](root, target, protected, *, size, minority=0.1, rule="first", seed=0,
                   val="official" | "none", test_size=None, positive=()) -> Splits

and returns tables with labels y (target) and a (protected): of image files (ImageTable), or of
samples in memory (ArrayTable), which have no biased subset to draw, so that only seed and val
matter. size: of the biased training set, None for every image that there is for training, as it is.
positive: values of columns that mean 1, for a dataset whose labels the user wrote.
To add a dataset, write one file with such a `load` and add one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import celeba, ci_mnist, demo, fairface, folder, tabular, utkface
from datasets.base import Splits
from utils.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """load: as above; of samples in memory without size, minority, rule and test_size.
    attributes: the (target, protected) pair where none is given; None where one must be. size: of
    the training set where none is given. own_labels: the user wrote them, and says which value is
    `positive`. resplits: `seed` draws which samples are for training and which for the test.
    root: the folder where none is given; None where one must be."""

    load: Callable[..., Splits]
    attributes: tuple[str, str] | None
    in_memory: bool = False
    resplits: bool = False
    size: int | None = 20000
    own_labels: bool = False
    root: Path | None = None

    def __call__(
        self, root: str | Path, target: str, protected: str, *, positive: Sequence[str] = (),
        **flags,
    ) -> Splits:
        if self.in_memory:
            own = ("seed", "val", "blind") if self.resplits else ("seed", "val")
            flags = {key: value for key, value in flags.items() if key in own}
        if self.own_labels:
            flags["positive"] = positive
        return self.load(root, target, protected, **flags)


DATASETS: dict[str, Dataset] = {
    # photographs of celebrities, 40 attributes; Liu et al., ICCV 2015
    "celeba": Dataset(celeba.load, ("Smiling", "Male")),
    # photographs labelled by file name; Zhang et al., CVPR 2017
    "utkface": Dataset(utkface.load, utkface.ATTRIBUTES),
    # Black and White faces; Karkkainen and Joo, WACV 2021
    "fairface": Dataset(fairface.load, fairface.ATTRIBUTES),
    # rendered faces committed with this repository, in CelebA's format
    "demo": Dataset(demo.load, ("Smiling", "Male"), root=Path("data/demo")),
    # your own photographs and their metadata.csv
    "folder": Dataset(folder.load, None, size=None, own_labels=True),
    # rows of features: Adult, German credit, COMPAS
    **{name: Dataset(partial(tabular.load, name), pair, True, True, root=tabular.ROOT)
       for name, pair in tabular.ATTRIBUTES.items()},
    # coloured digits: ci_mnist_size, ci_mnist_shift, ci_mnist_class
    **{f"ci_mnist_{bias}": Dataset(partial(ci_mnist.load, bias), ci_mnist.ATTRIBUTES, True)
       for bias in ci_mnist.BIASES},
}  # fmt: skip


def root_of(dataset: str, given: Path | None) -> Path:
    """The folder of a name of DATASETS: --data-root as given, else the dataset's own. Raises
    UserError where it has none."""
    root = DATASETS[dataset].root if given is None else given
    if root is None:
        raise UserError(f"--data-root is missing: give the folder of --dataset {dataset}")
    return root
