"""Networks that look at images: judges of an attribute, and features in which images are compared.

A judge is a checkpoint of train.py or CLIP zero-shot. Features are Inception's, as in published
FIDs, or the input of a classifier's last layer, or those of any timm model. The classifiers are
models/'s own, so this file imports models; nothing in models/ imports stable_diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.decoding import decode
from models.backbones import BACKBONES
from models.heads import output_layer
from utils.errors import UserError, is_systems, reason
from utils.progress import progress

LogitsFunction = Callable[[Sequence[Image.Image]], torch.Tensor]  # images -> logits [B]
BATCH = 64
INCEPTION_SIZE = 299  # pixels; what Inception takes
# What CLIP is asked per attribute: (attribute = 1, attribute = 0).
CLIP_TEXTS = {
    "Smiling": ("a photo of a smiling person", "a photo of a person with a neutral expression"),
    "Male": ("a photo of a man", "a photo of a woman"),
    "Female": ("a photo of a woman", "a photo of a man"),
    "Young": ("a photo of a young person", "a photo of an old person"),
    "White": ("a photo of a white person", "a photo of a person who is not white"),
}


@dataclass(frozen=True)
class Judge:
    """name: for messages. attribute: which label it predicts. logits: > 0 means 1."""

    name: str
    attribute: str
    logits: LogitsFunction


@dataclass(frozen=True)
class Features:
    """name: for messages and results. values: images -> float [B, D]."""

    name: str
    values: Callable[[Sequence[Image.Image]], torch.Tensor]

    def of(self, paths: Sequence[str | Path], what: str) -> np.ndarray:
        """Features of image files, float32 [N, D] in their order; `what` they are, for the bar."""
        rows = []
        bar = progress(total=len(paths), unit="img", desc=f"features of {what}")
        with ThreadPoolExecutor() as pool, bar:
            for start in range(0, len(paths), BATCH):
                batch = paths[start : start + BATCH]
                rows.append(self.values(list(pool.map(decode, batch))).float().cpu())
                bar.update(len(batch))
        return torch.cat(rows).numpy()


def agreement(logits: LogitsFunction, paths: Sequence[Path], label: int) -> float:
    """Share of the images whose logit has the label's sign (> 0 means 1), in [0, 1].

    NaN without images.
    """
    right = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            images = list(pool.map(decode, paths[start : start + BATCH]))
            right += int(((logits(images) > 0) == bool(label)).sum())
    return right / len(paths) if paths else float("nan")


# --- classifiers of train.py ---------------------------------------------------------------------


def _classifier(path: Path, flag: str, device: torch.device) -> tuple[nn.Module, str, int]:
    """(network, its target attribute, side of its images in pixels) of a checkpoint of train.py.

    path: the file, or a folder with a single .pt file. It is read with weights_only. Raises
    UserError naming `flag` where it is anything else.
    """
    given = f"{flag} {path}"
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise UserError(f"{given}: the folder holds {len(files)} .pt files; give one file")
        path = files[0]
    if not path.is_file():
        raise UserError(f"{given} does not exist; give the classifier.pt of a run of train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        target, size = str(checkpoint["target"]), int(checkpoint["image_size"])
        if not 1 <= size <= 4096:
            raise ValueError(f"image_size {size}")
        if checkpoint["backbone"] not in BACKBONES:
            raise ValueError(f"unknown backbone {checkpoint['backbone']}")
        model = BACKBONES[checkpoint["backbone"]](None)
        model.load_state_dict(checkpoint["model"])
    except Exception as error:  # torch.load raises many classes
        if is_systems(error):
            raise
        raise UserError(
            f"{given} is not a checkpoint of train.py ({type(error).__name__}: {reason(error)}); "
            "give the classifier.pt of one of its runs"
        ) from None
    return model.eval().to(device), target, size


@torch.inference_mode()
def _forward(
    model: nn.Module, size: int, device: torch.device, images: Sequence[Image.Image]
) -> torch.Tensor:
    """The network's output [B, ...] for images resized to size x size, mean and std 0.5."""
    bilinear = Image.Resampling.BILINEAR
    pixels = np.stack([np.asarray(image.resize((size, size), bilinear)) for image in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)  # [B, 3, S, S]
    return model(x.float() / 127.5 - 1)


def load_judge(path: str | Path, device: torch.device) -> Judge:
    """A checkpoint of train.py as a judge of its target attribute. UserError where it is none."""
    model, target, size = _classifier(Path(path), "--judge", device)

    def logits(images: Sequence[Image.Image]) -> torch.Tensor:
        return _forward(model, size, device, images).squeeze(1)

    return Judge(f"--judge {path}", target, logits)


def load_clip(name: str, attribute: str, device: torch.device) -> Judge:
    """CLIP zero-shot: the logit is the similarity to the text for 1 minus that to the text for 0.

    Raises UserError where CLIP_TEXTS lacks the attribute and where the model cannot be loaded.
    """
    from transformers import CLIPModel, CLIPProcessor

    from stable_diffusion.model_files import hub_cause, local_path

    if attribute not in CLIP_TEXTS:
        raise UserError(f"--clip has texts for {', '.join(CLIP_TEXTS)}, not for {attribute}; "
                        "use --judge")
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

    return Judge(f"--clip {name}", attribute, logits)


# --- features ------------------------------------------------------------------------------------


def load_features(name: str, judges: Sequence[str | Path], device: torch.device) -> Features:
    """The features that --features asks for.

    name: "inception"; "timm:NAME", a timm model with its published weights; a checkpoint of
    train.py; or "auto": Inception where it can be loaded, else the first judge. Raises UserError
    where the network cannot be loaded.
    """
    if name == "auto":
        try:
            return _inception(device)
        except UserError as error:
            if not judges:
                raise
            print(f"{reason(error).partition(';')[0]}: the judge's features are used instead")
            name = str(judges[0])
    if name == "inception":
        return _inception(device)
    if name.startswith("timm:"):
        return _timm(name, device)
    return classifier_features(name, device)


def classifier_features(path: str | Path, device: torch.device) -> Features:
    """The input of the last layer of a checkpoint of train.py. UserError where it is none."""
    model, _, size = _classifier(Path(path), "--features", device)
    model.set_submodule(output_layer(model), nn.Identity())
    return Features(str(path), partial(_forward, model, size, device))


def _inception(device: torch.device) -> Features:
    """The network of Heusel et al. (2017), 2048 features, of images resized as by clean-fid."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        model = NoTrainInceptionV3("inception-v3-compat", ["2048"]).eval().to(device)
    except Exception as error:  # noqa: BLE001 - the package, the download or the file
        raise UserError(
            f"--features inception cannot be loaded ({type(error).__name__}: {reason(error)[:200]})"
            "; pip install torch-fidelity and let it download its weights once, or give --features "
            "a checkpoint of train.py or timm:NAME"
        ) from None

    @torch.inference_mode()
    def values(images: Sequence[Image.Image]) -> torch.Tensor:
        side = (INCEPTION_SIZE, INCEPTION_SIZE)
        pixels = [np.asarray(image.resize(side, Image.Resampling.BICUBIC)) for image in images]
        return model(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device))

    return Features("inception", values)


def _timm(name: str, device: torch.device) -> Features:
    import timm

    from stable_diffusion.model_files import hub_cause

    try:
        model = timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0)
    except Exception as error:  # noqa: BLE001 - an unknown name or each hub's own
        cause = hub_cause(error) or f"{type(error).__name__}: {reason(error)[:200]}"
        raise UserError(
            f"--features {name} cannot be loaded ({cause}); give a model of "
            "timm.list_models(pretrained=True), with a hub that can be reached, or a checkpoint of "
            "train.py"
        ) from None
    return timm_features(model, name, device)


def timm_features(model: nn.Module, name: str, device: torch.device) -> Features:
    """The output of a timm model made with num_classes=0, of images prepared as it was trained."""
    from timm.data import create_transform, resolve_model_data_config

    model = model.eval().to(device)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    @torch.inference_mode()
    def values(images: Sequence[Image.Image]) -> torch.Tensor:
        return model(torch.stack([transform(image) for image in images]).to(device))

    return Features(name, values)
