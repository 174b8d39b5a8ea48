"""A data set of a few hundred bytes an image and a network for it, for tests that really train."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock

SIDE = 32  # pixels
PARTITIONS = (48, 16, 16)  # training, validation, test images
SYNTHETIC = 14  # images a group
MASK = Path(__file__).parent / "golden" / "tiny_mask.txt"  # the tensors of row given_mask

# Hyper-parameters with which a method takes less than a second there (--set).
QUICK = {
    "eiil": {"inference_steps": 50},
    "maple": {"inference_steps": 50},
    "diga": {"byol_epochs": 1, "byol_batch": 8, "hidden": 16, "projection": 8},
    "influence": {"curvature_samples": 16, "last_tensors": 5, "damping": 0.1},
}


def face(rng: np.random.Generator, smiling: int, male: int) -> Image.Image:
    """Noise with the target in the upper half's red and the protected label in the lower's blue."""
    pixels = rng.integers(0, 120, (SIDE, SIDE, 3))
    pixels[: SIDE // 2, :, 0] += 110 * smiling
    pixels[SIDE // 2 :, :, 2] += 110 * male
    return Image.fromarray(pixels.astype(np.uint8))


def make(root: Path) -> Path:
    """root/celeba in CelebA's layout, root/synthetic/Smiling_Male/<t>_<p>/, root/edits; the root.

    root/edits holds two edits of every training image, one of each protected value.
    """
    rng = np.random.default_rng(0)
    # Every fifth photograph shows the other target, so that no model is right about all of them.
    photographs = root / "celeba" / "img_align_celeba"
    photographs.mkdir(parents=True)
    attributes, partition = [], []
    for number in range(sum(PARTITIONS)):
        smiling, male, name = number % 2, number // 2 % 2, f"{number + 1:06d}.jpg"
        face(rng, smiling ^ (number % 5 == 3), male).save(photographs / name, quality=90)
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
            group = root / "synthetic" / "Smiling_Male" / f"{smiling}_{male}"
            group.mkdir(parents=True)
            for number in range(SYNTHETIC):
                face(rng, smiling, male).save(group / f"{number:05d}.png")
    edits, rows = root / "edits", ["path,source,protected"]
    edits.mkdir()
    for number in range(PARTITIONS[0]):
        for male in (0, 1):
            face(rng, number % 2, male).save(edits / f"{number + 1:06d}_{male}.png")
            rows.append(f"{number + 1:06d}_{male}.png,{number + 1:06d}.jpg,{male}")
    (edits / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


class Network(nn.Module):
    """A residual network with ResNet-18's names, one narrow block a layer: 38 tensors, 200 kB."""

    def __init__(self, weights: dict | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(16), nn.ReLU()
        self.layer1 = BasicBlock(16, 16)
        for layer, before, after in (("layer2", 16, 32), ("layer3", 32, 32), ("layer4", 32, 32)):
            shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after)
            )
            setattr(self, layer, BasicBlock(before, after, 2, shortcut))
        self.fc = nn.Linear(32, 1)
        if weights is not None:
            self.load_state_dict(weights)

    def forward(self, x):
        """float [B, 3, H, W] -> logits [B, 1]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def flags(data: Path, results: Path, *more) -> list[str]:
    """train.py's flags for that data: seconds on one core; later flags override them."""
    fixed = [
        "--dataset", "celeba", "--data-root", data / "celeba", "--results", results,
        "--synthetic-root", data / "synthetic", "--store-dir", results / "store",
        "--edits", data / "edits",
        "--setting", "tiny", "--size", 24, "--minority", 0.25, "--synthetic-minority", 0.25,
        "--image-size", 32, "--batch-size", 8, "--eval-batch-size", 16, "--pretrained", "none",
        "--pretrain-epochs", 2, "--finetune-epochs", 2, "--finetune-lr", 0.02, "--device", "cpu",
        "--checkpoint-seconds", 0, "--precision", "fp32",
    ]  # fmt: skip
    return [str(flag) for flag in [*fixed, *more]]


def without_pictures(patch) -> None:
    """Tables without figures and contact sheets, which take seconds. patch: pytest.MonkeyPatch."""
    from utils.reporting import plots, report

    patch.setattr(plots, "draw_all", lambda *_: [])
    patch.setattr(report, "write_contact_sheets", lambda *_: [])


def with_network(patch) -> None:
    """The small network can be asked for by name. patch: a pytest.MonkeyPatch."""
    from models.backbones import BACKBONES

    patch.setitem(BACKBONES, "tiny", Network)


def runnable(methods: dict) -> list[str]:
    """The rows that this data and network are large enough for, without the variants.

    A variant is its row with other flags; Figure 5's k are too many for 38 tensors. A tenth of
    four validation images a group is none.
    """
    return [name for name, row in methods.items() if not row.overrides and name != "fairif_10"]


def quick(name: str, **options) -> list[str]:
    """train.py's flags for one method: QUICK's hyper-parameters, `options` in their place."""
    pairs = [f"{key}={value}" for key, value in (QUICK.get(name, {}) | options).items()]
    mask = ["--mask", str(MASK)] if name == "given_mask" else []
    return ["--methods", name, *(["--set", *pairs] if pairs else []), *mask]


def end_state(folder: Path) -> dict[str, str]:
    """{relative path: digest} of every file, without what may differ: seconds and environment.

    Lock files are left out: the lock is the kernel's, not the file, which may stay or go. So is
    report.html, which shows those seconds.
    """
    state = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".lock" or path.name in (".lock", "report.html"):
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
