"""Datasets by name. Each entry is called as

    load(root, target, protected, *, size, minority=0.1, rule="first", seed=0,
         val="official" | "none", test_size=None) -> Splits

and returns tables of image files with labels y (target) and a (protected). size: of the biased
training set, None for every image that there is for training, as it is. To add a dataset, write
one file with such a `load` and add one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from datasets import celeba, demo, fairface, utkface
from datasets.base import Splits

DATASETS: dict[str, Callable[..., Splits]] = {
    "celeba": celeba.load,  # photographs of celebrities, 40 attributes; Liu et al., ICCV 2015
    "utkface": utkface.load,  # photographs labelled by file name; Zhang et al., CVPR 2017
    "fairface": fairface.load,  # Black and White faces; Karkkainen and Joo, WACV 2021
    "demo": demo.load,  # rendered faces committed with this repository, in CelebA's format
}
