"""A data set of a few hundred bytes an image, for tests that really train."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # pixels
PARTITIONS = (48, 16, 16)  # training, validation, test images
SYNTHETIC = 14  # images a cell


def face(rng: np.random.Generator, smiling: int, male: int) -> Image.Image:
    """Noise with the target in the upper half's red and the protected label in the lower's blue."""
    pixels = rng.integers(0, 120, (SIDE, SIDE, 3))
    pixels[: SIDE // 2, :, 0] += 110 * smiling
    pixels[SIDE // 2 :, :, 2] += 110 * male
    return Image.fromarray(pixels.astype(np.uint8))


def make(root: Path) -> Path:
    """root/celeba in CelebA's layout and root/synthetic/Smiling_Male/<t>_<p>/; returns root."""
    rng = np.random.default_rng(0)
    photographs = root / "celeba" / "img_align_celeba"
    photographs.mkdir(parents=True)
    attributes, partition = [], []
    for number in range(sum(PARTITIONS)):
        smiling, male, name = number % 2, number // 2 % 2, f"{number + 1:06d}.jpg"
        face(rng, smiling, male).save(photographs / name, quality=90)
        young = number // 4 % 2
        attributes.append(f"{name} {2 * smiling - 1} {2 * male - 1} {2 * young - 1}")
        part = int(number >= PARTITIONS[0]) + int(number >= PARTITIONS[0] + PARTITIONS[1])
        partition.append(f"{name} {part}")
    head = [str(len(attributes)), "Smiling Male Young"]
    lists = root / "celeba"
    (lists / "list_attr_celeba.txt").write_text("\n".join(head + attributes) + "\n")
    (lists / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    for smiling in (0, 1):
        for male in (0, 1):
            cell = root / "synthetic" / "Smiling_Male" / f"{smiling}_{male}"
            cell.mkdir(parents=True)
            for number in range(SYNTHETIC):
                face(rng, smiling, male).save(cell / f"{number:05d}.png")
    return root


def flags(data: Path, results: Path, *more) -> list[str]:
    """train.py's flags for that data: seconds on one core; later flags override them."""
    fixed = [
        "--dataset", "celeba", "--data-root", data / "celeba", "--results", results,
        "--synthetic-root", data / "synthetic", "--store-dir", results / "store",
        "--setting", "tiny", "--size", 24, "--minority", 0.25, "--synthetic-minority", 0.25,
        "--image-size", 32, "--batch-size", 8, "--eval-batch-size", 16, "--pretrained", "none",
        "--pretrain-epochs", 2, "--finetune-epochs", 2, "--finetune-lr", 0.02, "--device", "cpu",
    ]  # fmt: skip
    return [str(flag) for flag in [*fixed, *more]]


def end_state(folder: Path) -> dict[str, str]:
    """{relative path: digest} of every file, without what may differ: seconds and environment."""
    state = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.name == "log.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            data = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
        elif path.name == "config.json":
            config = json.loads(data)
            del config["environment"]
            data = json.dumps(config)
        data = data.encode() if isinstance(data, str) else data
        state[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return state
