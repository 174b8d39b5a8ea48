"""Look at generated images: counts per cell, unreadable files, label agreement, contact sheets.

    python -m stable_diffusion.audit --images data/synthetic --judge judge.pt

Agreement is the share of a cell's images to which a classifier gives the label that their prompt
asked for: what the images can teach is limited by it. The judge is a checkpoint of train.py (give
--judge twice for target and protected attribute), or CLIP zero-shot with --clip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if not __package__:  # started by its path: python stable_diffusion/audit.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from datasets.decoding import decode
from stable_diffusion.manifest import CELLS, read_table
from utils.errors import UserError, exit_cleanly, is_systems, reason
from utils.files import atomic_path, write_json
from utils.options import ArgumentParser, path
from utils.progress import progress

LogitsFunction = Callable[[Sequence[Image.Image]], torch.Tensor]
# What CLIP is asked per attribute: (attribute = 1, attribute = 0).
CLIP_TEXTS = {
    "Smiling": ("a photo of a smiling person", "a photo of a person with a neutral expression"),
    "Male": ("a photo of a man", "a photo of a woman"),
    "Female": ("a photo of a woman", "a photo of a man"),
    "Young": ("a photo of a young person", "a photo of an old person"),
    "White": ("a photo of a white person", "a photo of a person who is not white"),
}


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that training could not use: see decoding.decode."""

    def broken(path: Path) -> bool:
        try:
            decode(path)
        except Exception as error:  # what Pillow's decoders raise varies
            if is_systems(error):  # to delete the file would not help
                raise
            return True
        return False

    with ThreadPoolExecutor() as pool:
        flags = progress(pool.map(broken, paths), total=len(paths), unit="img", desc="read")
        return [path for path, bad in zip(paths, flags, strict=True) if bad]


def agreement(
    logits_fn: LogitsFunction, paths: Sequence[Path], label: int, batch_size: int = 256
) -> float:
    """Share of the images whose logit's sign is the label (logit > 0 means 1), in [0, 1].

    `logits_fn` takes a list of RGB images and returns logits [B]. NaN without images.
    """
    right = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            images = list(pool.map(decode, paths[start : start + batch_size]))
            right += int(((logits_fn(images) > 0) == bool(label)).sum())
    return right / len(paths) if paths else float("nan")


def load_judge(path: str | Path, device: torch.device) -> tuple[str, LogitsFunction]:
    """(attribute, logits function) of a checkpoint file, or of a folder with a single .pt file.

    The file holds {"model": state_dict, "backbone": "resnet18", "target": attribute,
    "image_size": pixels}: a ResNet-18 with one logit, inputs resized and normalised with mean and
    std 0.5. It is read with weights_only. UserError where it is anything else.
    """
    from torchvision.models import resnet18

    given, path = path, Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise UserError(f"--judge {given}: the folder must hold exactly one .pt file")
        path = files[0]
    if not path.is_file():
        raise UserError(f"--judge {given}: there is no such file; train.py writes checkpoints")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["backbone"] != "resnet18":
            raise ValueError(f"backbone {checkpoint['backbone']}")
        target, size = str(checkpoint["target"]), int(checkpoint["image_size"])
        if not 1 <= size <= 4096:
            raise ValueError(f"image_size {size}")
        model = resnet18(weights=None)
        model.fc = torch.nn.Linear(model.fc.in_features, 1)
        model.load_state_dict(checkpoint["model"])
    except Exception as error:  # torch.load raises many classes
        if is_systems(error):
            raise
        raise UserError(
            f"--judge {given} is no ResNet-18 checkpoint of train.py ({type(error).__name__}: "
            f"{reason(error)}); it needs model, backbone, target and image_size"
        ) from None
    return target, partial(_judge_logits, model.eval().to(device), size, device)


@torch.inference_mode()
def _judge_logits(
    model: torch.nn.Module, size: int, device: torch.device, images: Sequence[Image.Image]
) -> torch.Tensor:
    bilinear = Image.Resampling.BILINEAR
    pixels = np.stack([np.asarray(image.resize((size, size), bilinear)) for image in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)  # [B, 3, S, S]
    return model(x.float() / 127.5 - 1).squeeze(1)


def load_clip(name: str, attribute: str, device: torch.device) -> LogitsFunction:
    """CLIP zero-shot: the logit is similarity to the text for 1 minus that for 0."""
    from transformers import CLIPModel, CLIPProcessor

    if attribute not in CLIP_TEXTS:
        raise UserError(f"--clip knows texts for {', '.join(CLIP_TEXTS)}, not for {attribute}")
    from stable_diffusion.model_files import hub_cause, local_path

    source = str(local_path(name) or name)
    try:
        model = CLIPModel.from_pretrained(source, use_safetensors=True).eval().to(device)
        processor = CLIPProcessor.from_pretrained(source)
    except Exception as error:  # noqa: BLE001 - each hub and reader has its own
        cause = hub_cause(error) or f"{type(error).__name__}: {reason(error)[:200]}"
        raise UserError(
            f"--clip {name} cannot be loaded ({cause}); give a hub id that can be reached or a "
            "folder with safetensors, or use --judge"
        ) from None

    @torch.inference_mode()
    def logits(images: Sequence[Image.Image]) -> torch.Tensor:
        inputs = processor(
            text=list(CLIP_TEXTS[attribute]), images=list(images), return_tensors="pt", padding=True
        )
        similarity = model(**inputs.to(device)).logits_per_image  # [B, 2]
        return similarity[:, 0] - similarity[:, 1]

    return logits


def contact_sheet(paths: Sequence[Path], out: Path, grid: int = 10) -> None:
    """A PNG of the first grid * grid images in their own size; cells without an image are white."""
    images = [decode(path) for path in paths[: grid * grid]]
    width, height = images[0].size if images else (64, 64)
    sheet = Image.new("RGB", (grid * width, grid * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image.resize((width, height)), (i % grid * width, i // grid * height))
    with atomic_path(out) as temporary:
        sheet.save(temporary, "PNG")


def audit(
    folder: Path, judges: Sequence[tuple[str, str, LogitsFunction]], grid: int = 10
) -> dict[str, object]:
    """Check one pair's folder against its manifest; writes contact_<t>_<p>.png and audit.json.

    `judges` are (name, attribute, logits function). Returns {"cells": {"y_a": {"listed", "made",
    "unreadable", "agreement": {attribute: share in [0, 1]}}}, "unreadable": [relative paths]}.
    """
    rows = read_table(folder / "manifest.csv")
    target, _, protected = folder.name.partition("_")
    if not target or not protected:
        raise UserError(
            f"--images: {folder} is not named <Target>_<Protected>, so nobody knows what its "
            "labels mean; name it as generate.py did"
        )
    made = [folder / row["path"] for row in rows if (folder / row["path"]).is_file()]
    broken = set(unreadable(made))
    cells = {}
    for y, a in CELLS:
        listed = [folder / row["path"] for row in rows if (row["y"], row["a"]) == (str(y), str(a))]
        there = [path for path in listed if path.is_file()]
        good = [path for path in there if path not in broken]
        shares = {}
        for name, attribute, logits_fn in judges:
            if attribute not in (target, protected):
                raise UserError(
                    f"{name} judges {attribute}, which {folder.name} is not about; give a judge of "
                    f"{target} or {protected}"
                )
            shares[attribute] = agreement(logits_fn, good, y if attribute == target else a)
        cells[f"{y}_{a}"] = {
            "listed": len(listed),
            "made": len(there),
            "unreadable": len(there) - len(good),
            "agreement": shares,
        }
        contact_sheet(good, folder / f"contact_{y}_{a}.png", grid)
    report = {"cells": cells, "unreadable": sorted(str(p.relative_to(folder)) for p in broken)}
    write_json(folder / "audit.json", report)
    return report


def _print_report(folder: Path, report: dict) -> None:
    print(f"\n{folder}")
    print(f"{'cell':6}{'listed':>8}{'made':>8}{'broken':>8}  agreement")
    for cell, row in report["cells"].items():
        shares = ", ".join(f"{name} {100 * v:.1f}%" for name, v in row["agreement"].items())
        counts = f"{row['listed']:>8}{row['made']:>8}{row['unreadable']:>8}"
        print(f"{cell:6}{counts}  {shares or '-'}")
    for name in report["unreadable"]:
        print(f"unreadable: {folder / name}")
    if report["unreadable"]:
        print("delete these files and start the generation again: it makes them anew")
    print(f"contact sheets: {folder}/contact_<t>_<p>.png")


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m stable_diffusion.audit`; exit code 1 if images miss or are broken."""
    parser = ArgumentParser(
        prog="python -m stable_diffusion.audit", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--images", required=True, type=path,
                        help="folder that generate.py wrote, any level")
    parser.add_argument("--judge", action="append", type=path, default=[],
                        help="checkpoint; may be repeated")
    parser.add_argument("--clip", metavar="ID", help="CLIP model (hub id or folder), zero-shot")
    parser.add_argument("--grid", type=int, default=10, help="n of the n x n contact sheets")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args(arguments)
    if not 1 <= args.grid <= 100:
        raise UserError(f"--grid {args.grid}: give a number from 1 to 100")
    root = args.images
    if root.is_dir():
        os.listdir(root)  # what may not be listed would look empty below
    folders = sorted(
        file.parent for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}manifest.csv")
    )
    if not folders:
        raise UserError(
            f"--images {root}: no manifest.csv there or up to two folders below; "
            "give the folder that generate.py wrote (its --out)"
        )
    from stable_diffusion.pipeline import pick_device

    device = pick_device(args.device)
    judges = [(f"--judge {file}", *load_judge(file, device)) for file in args.judge]
    complete = True
    for folder in folders:
        wanted = list(judges)
        for attribute in folder.name.split("_", 1) if args.clip else []:
            wanted.append(
                (f"--clip {args.clip}", attribute, load_clip(args.clip, attribute, device))
            )
        report = audit(folder, wanted, args.grid)
        _print_report(folder, report)
        counts = report["cells"].values()
        complete &= all(c["listed"] == c["made"] and not c["unreadable"] for c in counts)
    if not complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
