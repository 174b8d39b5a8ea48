"""Networks that look at images: judges of an attribute, and features in which images are compared.

A judge is a classifier's checkpoint or CLIP zero-shot. Features are Inception's, as in published
FIDs, or the input of a classifier's last layer, or those of any timm model. Checkpoints are read by
models/, so this file imports it; nothing in models/ imports stable_diffusion.
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
from models import checkpoints
from models.heads import output_layer
from utils.errors import UserError, reason
from utils.progress import progress

LogitsFunction = Callable[[Sequence[Image.Image]], torch.Tensor]  # images -> logits [B]
BATCH = 64
INCEPTION_SIZE = 299  # pixels; what Inception takes
LARGEST = 4096  # pixels of a side; a damaged file may say a million
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


# --- classifiers ---------------------------------------------------------------------------------


def _classifier(path: str | Path, flag: str, device: torch.device) -> checkpoints.Classifier:
    """A checkpoint's network. UserError where it cannot be read, or for images of no real size."""
    try:
        classifier = checkpoints.classifier(Path(path), device=str(device), flag=flag)
    except UserError as error:  # of an unknown backbone, it speaks of train.py's flag
        said = str(error)
        raise UserError(said if str(path) in said else f"{flag} {path}: {said}") from None
    if not 1 <= classifier.image_size <= LARGEST:
        raise UserError(f"{flag} {path} says that its images have {classifier.image_size} pixels a "
                        f"side, and 1 to {LARGEST} are possible; give another checkpoint")
    return classifier


@torch.inference_mode()
def _forward(
    model: nn.Module, like: checkpoints.Classifier, images: Sequence[Image.Image]
) -> torch.Tensor:
    """The network's output [B, ...] for images prepared as those of the classifier `like`."""
    side = (like.image_size, like.image_size)
    pixels = [np.asarray(image.resize(side, Image.Resampling.BILINEAR)) for image in images]
    device = next(model.parameters()).device
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)  # [B, 3, S, S]
    mean, std = (torch.tensor(part, device=device).view(-1, 1, 1) for part in (like.mean, like.std))
    return model((x.float() / 255 - mean) / std)


def load_judge(path: str | Path, device: torch.device) -> Judge:
    """A classifier's checkpoint as a judge of its target attribute.

    Raises UserError where it cannot be read (see checkpoints.read) or does not name its target.
    """
    classifier = _classifier(path, "--judge", device)
    if "target" not in classifier.about:
        raise UserError(f"--judge {path} does not say which attribute it predicts; give the "
                        "classifier.pt of a run of train.py")

    def logits(images: Sequence[Image.Image]) -> torch.Tensor:
        return _forward(classifier.model, classifier, images).squeeze(1)

    return Judge(f"--judge {path}", classifier.about["target"], logits)


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

    name: "inception"; "timm:NAME", a timm model with its published weights; a classifier's
    checkpoint; or "auto": Inception where it can be loaded, else the first judge. Raises UserError
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
    """The input of the last layer of a checkpoint. UserError where it cannot be read."""
    classifier = _classifier(path, "--features", device)
    model = classifier.model
    model.set_submodule(output_layer(model), nn.Identity())
    return Features(str(path), partial(_forward, model, classifier))


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
