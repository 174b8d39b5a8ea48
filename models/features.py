"""Penultimate features of the test images, from a finished run's classifier.pt; computed once.

A features file is valid for one content of classifier.pt and one list of test images: it is
computed again where either has changed, and read without touching the images where not.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets import DATASETS
from datasets.base import ImageTable
from datasets.loader import Loader
from models import checkpoints, heads
from utils.errors import UserError
from utils.files import atomic_path
from utils.records import read_record

# The flags of train.py that decide which images are tested on, as config.json holds them.
TEST_FLAGS = ("dataset", "target", "protected", "size", "minority", "rule", "data_seed", "val",
              "test_size")
BATCH = 256  # changes speed only


@dataclass(frozen=True)
class Features:
    """values float32 [N, D] of N test images in table order; y and a int64 [N] in {0, 1}."""

    values: np.ndarray
    y: np.ndarray
    a: np.ndarray


@torch.inference_mode()
def penultimate(model: nn.Module, loader: Loader) -> np.ndarray:
    """What the output layer is given, in evaluation mode: float32 [N, D] in table order.

    512 numbers an image for ResNet-18 and -34, 2048 for ResNet-50, 384 for ViT-S/32.
    """
    rows: list[torch.Tensor] = []
    layer = model.get_submodule(heads.output_layer(model))
    hook = layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].float()))
    try:
        model.eval()
        for _, x, _, _ in loader.epoch(0):
            model(x)
    finally:
        hook.remove()
    return torch.cat(rows).cpu().numpy()


def run_config(run: Path) -> dict[str, Any]:
    """A run's config.json with the values of TEST_FLAGS. UserError where the run has none."""
    if not (run / "config.json").exists():
        raise UserError(f"{run} has no config.json and is no run of train.py; delete that folder")
    return read_record(run / "config.json", *TEST_FLAGS)


@functools.lru_cache(maxsize=1)  # the runs of a setting share their test images
def _test_table(
    root: Path, positive: tuple[str, ...], *flags: Any
) -> tuple[ImageTable, str]:
    """The test images under root and their digest, from the values of TEST_FLAGS."""
    given = dict(zip(TEST_FLAGS, flags, strict=True))
    load = DATASETS[given.pop("dataset")]
    target, protected, seed = (given.pop(key) for key in ("target", "protected", "data_seed"))
    table = load(root, target, protected, **given, seed=seed, positive=positive).test
    return table, table.digest()


def test_images(root: Path, run: Path, config: Mapping[str, Any]) -> ImageTable:
    """The images a run was tested on. Raises UserError where those under root are others."""
    table, digest = _test_table(
        root, tuple(config.get("positive", ())), *(config[key] for key in TEST_FLAGS)
    )
    if config.get("test_list", digest) != digest:
        raise UserError(
            f"--data-root {root}: its {len(table)} test images are not those that {run} was tested "
            "on; give the folder that the run was trained with"
        )
    return table


def run_features(
    run: Path, path: Path, root: Path, *, device: str = "cpu",
    store_dir: Path | None = None, workers: int = 1,
) -> Features:
    """The features of a run's test images, read from `path` (.npz) or computed and written there.

    run: a finished run folder. root: the data set's folder. store_dir, workers: of the Loader.
    Raises UserError for an unfinished run and for other test images than the run's.
    """
    config = run_config(run)
    checkpoint = run / "classifier.pt"
    if not checkpoint.exists():
        raise UserError(
            f"{checkpoint} is missing: the run is unfinished or the file was deleted; start the "
            "same training again, which makes only what is missing"
        )
    loaded = checkpoints.classifier(checkpoint, device=device, flag="a run")
    with open(checkpoint, "rb") as file:
        key = f"{hashlib.file_digest(file, 'sha256').hexdigest()} {config.get('test_list')}"
    if (saved := _read(path, key)) is not None:
        return saved
    table = test_images(root, run, config)
    loader = Loader(table, BATCH, train=False, device=device, store_dir=store_dir,
                    workers=workers, image_size=loaded.image_size, mean=loaded.mean,
                    std=loaded.std)
    features = Features(penultimate(loaded.model, loader), table.y, table.a)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, features=features.values, y=features.y, a=features.a, key=np.array(key))
    return features


def _read(path: Path, key: str) -> Features | None:
    """The features of a file that was written for this key, or None."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return Features(file["features"], file["y"], file["a"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return None
