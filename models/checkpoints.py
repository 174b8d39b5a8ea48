"""A model that somebody else trained, or train.py: read, unwrapped, and put into a backbone.

Taken are a classifier.pt of train.py, a state dict that torch.save wrote (bare or in a training
script's wrapper), a safetensors file, and a folder that holds one of these: a run's, or what
`python -m models.export` writes. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import backbones
from models.heads import logits_of, one_logit, output_layer
from models.weights import load_weights
from utils.config import Config
from utils.errors import UserError, reason

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of DDP, compile, Lightning
IN_FOLDER = ("classifier.pt", "model.safetensors")
ABOUT = ("backbone", "image_size", "mean", "std", "target", "protected")
# where neither the command nor the checkpoint says anything
DEFAULTS = {"backbone": "resnet18", "image_size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3}


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, what the file says of its network (of ABOUT), and what was unwrapped."""

    path: Path
    state: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    unwrapped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network that maps float [B, 3, S, S], S the image_size, to a logit [B, 1]; its images are
    normalised with mean and std, of three channels in [0, 1]. name: for tables and messages.
    precision: in which its run computed, fp32 where none is recorded."""

    name: str
    model: nn.Module
    backbone: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: Mapping[str, Any]
    precision: str = "fp32"

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B] of float [B, 3, S, S], rounded as the run that tested it rounded them."""
        half = self.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16 if half else None, enabled=half):
            return logits_of(self.model.eval(), x)


def file_of(path: Path, flag: str) -> Path:
    """The checkpoint's file: `path`, or the one in that folder. UserError where there is none."""
    if path.is_dir():
        for name in IN_FOLDER:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{flag} {path} is a folder without {' or '.join(IN_FOLDER)}: give the "
                        "weights file")
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist: give a weights file, or the folder of a "
                        "run or an exported model")
    return path


def recorded(path: Path, flag: str = "CHECKPOINT") -> dict[str, Any]:
    """What config.json says beside a run's classifier.pt (its flags and a fingerprint) or beside
    an exported model.safetensors; {} beside any other file, whose config.json is somebody else's.
    """
    file = file_of(path, flag)
    beside = file.parent / "config.json"
    if file.name not in IN_FOLDER or not beside.is_file():
        return {}
    try:
        said = json.loads(beside.read_text())
    except ValueError:
        raise UserError(f"{beside} is damaged: copy it again, or give {file} from another folder") \
            from None
    own = "fingerprint" if file.suffix == ".pt" else "backbone"
    return said if isinstance(said, dict) and {own, "image_size"} <= said.keys() else {}


def say_other_labels(
    where: str, about: Mapping[str, Any], given: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Say where a model was trained for another target or protected attribute than is given."""
    for key in ("target", "protected"):
        if key in about and given[key] not in (None, about[key]):
            say(f"{where} was trained with --{key} {about[key]}; now it is {given[key]}")


def read(path: Path, flag: str = "--start") -> Checkpoint:
    """The tensors of a file, whatever they are wrapped in. Raises UserError where it has none."""
    path = file_of(path, flag)
    if path.suffix == ".safetensors":
        content, about = _read_safetensors(path, flag)
    else:
        content = load_weights(path, flag)
        about = dict(content) if isinstance(content, Mapping) else {}
    said: list[str] = []
    while isinstance(content, Mapping):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        if "backbone" not in about:  # train.py's own is what it should be
            said.append(f"'{inner[0]}'")
        content = content[inner[0]]
    state = content if isinstance(content, Mapping) else {}
    state = {str(key): part for key, part in state.items() if isinstance(part, Tensor)}
    if not state:
        raise UserError(f"{flag} {path} holds no state dict: give a file of tensors by name, as "
                        "torch.save(model.state_dict(), FILE) writes")
    for prefix in PREFIXES * 2:  # module.model. and model.module. are both written
        if all(key.startswith(prefix) for key in state):
            said.append(f"prefix '{prefix}'")
            state = {key.removeprefix(prefix): part for key, part in state.items()}
    if len(heads := {key.rpartition(".")[0] for key in state if key.startswith("fc.")}) == 1:
        (head,) = heads  # fc.1 of Sequential(Dropout, Linear); none of the backbones has it alone
        if head.removeprefix("fc.").isdecimal():
            said.append(f"head '{head}'")
            state = {key.replace(f"{head}.", "fc.", 1) if key.startswith(head) else key: part
                     for key, part in state.items()}
    for name, part in state.items():
        if part.is_floating_point() and not bool(part.isfinite().all()):
            raise UserError(f"{flag} {path}: {name} is not finite (NaN): give a checkpoint of "
                            "before the training went wrong")
    return Checkpoint(path, state, _about(about, path, flag), tuple(said))


def _read_safetensors(path: Path, flag: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()
                     if key in ABOUT}
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{flag} {path} is no whole safetensors file ({reason(error)}): copy or "
                        "download it again") from None


def _about(content: Mapping[str, Any], path: Path, flag: str) -> dict[str, Any]:
    """What a file says of its network, where it is of the kind that it should be."""
    try:
        about = {"backbone": str, "image_size": int, "target": str, "protected": str,
                 "mean": _three, "std": _three}
        return {key: kind(content[key]) for key, kind in about.items()
                if content.get(key) is not None}
    except (TypeError, ValueError):
        raise UserError(f"{flag} {path} is damaged: its backbone, image_size, mean or std is of "
                        "another kind; copy it again") from None


def _three(values: Any) -> tuple[float, ...]:
    """Numbers of three channels, of one where only one is given."""
    values = tuple(map(float, values))
    if len(values) not in (1, 3):
        raise ValueError(f"{len(values)} channels")
    return values * 3 if len(values) == 1 else values


def load_into(model: nn.Module, checkpoint: Checkpoint, backbone: str, flag: str) -> None:
    """Give the model the checkpoint's tensors, two logits as their difference.

    Raises UserError where names, shapes or the number of outputs are another network's.
    """
    own = model.state_dict()
    where = f"{flag} {checkpoint.path}"
    try:
        state = one_logit(checkpoint.state, output_layer(model), model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    counters = {name: part for name, part in own.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    remedy = f"choose the file's own --backbone (now {backbone})"
    missing, beside = own.keys() - state.keys(), state.keys() - own.keys()
    for what, names in (("lacks", missing), ("has besides", beside)):
        if names:
            raise UserError(f"{where} {what} {len(names)} tensors ({_some(names)}), so it is no "
                            f"{backbone}: {remedy}")
    for name, part in own.items():
        if part.shape != state[name].shape:
            raise UserError(f"{where}: {name} has shape {list(state[name].shape)} and not "
                            f"{list(part.shape)}, so it is no {backbone}: {remedy}")
    model.load_state_dict(state)


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > 3 else "")


def filled(
    given: Mapping[str, Any], about: Mapping[str, Any], where: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """backbone, image_size, mean and std: as given, else as the checkpoint says, else DEFAULTS.

    Raises UserError where another backbone is given than the checkpoint's; of the others `say` is
    called with the difference.
    """
    result = {}
    for key, default in DEFAULTS.items():
        value = given.get(key)
        if value is not None and key in ("mean", "std"):
            try:
                value = _three(value)
            except ValueError:
                raise UserError(f"--{key} takes one number or three, of red, green and blue") \
                    from None
        stated = about.get(key)
        if value is not None and stated is not None and value != stated:
            flag = f"--{key.replace('_', '-')}"
            if key == "backbone":
                raise UserError(f"{where} is a {stated}, not {flag} {value}: leave out that flag")
            say(f"{where} was trained with {flag} {stated}; now it is {value}")
        result[key] = next(v for v in (value, stated, default) if v is not None)
    return result


def say_assumed(
    given: Mapping[str, Any], about: Mapping[str, Any], where: str, say: Callable[[str], None]
) -> None:
    """Say which of image size, mean and std `filled` takes from DEFAULTS, and how to change it."""
    keys = [key for key in ("image_size", "mean", "std")
            if given.get(key) is None and key not in about]
    if keys:
        values = {key: DEFAULTS[key] if key == "image_size" else DEFAULTS[key][0] for key in keys}
        assumed = ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in values.items())
        say(f"{where} does not say how its images were prepared; assumed is {assumed}: give these "
            "flags where it was otherwise")


def classifier(
    path: Path, *, device: str = "cpu", flag: str = "CHECKPOINT",
    say: Callable[[str], None] = print, **given: Any,
) -> Classifier:
    """The network of a checkpoint on a device. given: backbone, image_size, mean and std, None
    where the file is to say it. Raises UserError as `read`, `filled` and `load_into`."""
    checkpoint = read(path, flag)
    settings = filled(given, checkpoint.about, str(checkpoint.path), say)
    say_assumed(given, checkpoint.about, str(checkpoint.path), say)
    if checkpoint.unwrapped:
        say(f"{checkpoint.path}: unwrapped {', '.join(checkpoint.unwrapped)}")
    model = network(settings["backbone"], settings["image_size"])
    load_into(model, checkpoint, settings["backbone"], flag)
    model = model.to(device, memory_format=torch.channels_last).eval()
    return Classifier(str(path), model, **settings, about=checkpoint.about,
                      precision=recorded(path, flag).get("precision", "fp32"))


def network(backbone: str, image_size: int) -> nn.Module:
    """A backbone of random weights for images. UserError where it takes no images of that size."""
    made = backbones.build(backbone, "none")
    if backbones.libraries.is_library(backbone):
        backbones.libraries.check_size(backbone, image_size, made)
    return made


def completed(config: Config, say: Callable[[str], None]) -> Config:
    """The configuration with what --start's file says of its network, and its file."""
    about: Mapping[str, Any] = {}
    if config.start is not None:
        config = replace(config, start=file_of(config.start, "--start"))
        checkpoint = read(config.start)
        about = checkpoint.about
        if checkpoint.unwrapped:
            say(f"--start {config.start}: unwrapped {', '.join(checkpoint.unwrapped)}")
        say_other_labels(f"--start {config.start}", about, vars(config), say)
    given = {key: getattr(config, key) for key in DEFAULTS}
    if config.start is not None:
        say_assumed(given, about, f"--start {config.start}", say)
    return replace(config, **filled(given, about, f"--start {config.start}", say))
