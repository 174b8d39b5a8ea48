"""Any classifier of timm or torchvision as a backbone: `timm:NAME`, `torchvision:NAME`.

The libraries make the network for one class, so that their own name of the output layer and its
initialisation hold; its weights are theirs but for that layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from models.heads import output_layer
from utils.errors import UserError

LIBRARIES = ("timm", "torchvision")
AUXILIARY = ("aux", "AuxLogits")  # further outputs that only torchvision's own training uses
RECTIFIED = ("squeezenet1_0", "squeezenet1_1")  # end in a ReLU: a logit is never below 0
WITH_AUXILIARY = ("googlenet", "inception_v3")


def is_library(name: str) -> bool:
    return name.partition(":")[0] in LIBRARIES and ":" in name


def names_of(library: str) -> list[str]:
    """Every classifier that the library makes, by its own name."""
    if library == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        return [name for name in known if name not in RECTIFIED]
    import timm  # seconds to import

    return timm.list_models()


def maker(name: str) -> Callable[[dict | None], nn.Module]:
    """What BACKBONES has for its own names: called with None or the state dict of the library's
    pre-trained network, it makes the network float [B, 3, H, W] -> logit [B, 1].

    Raises UserError for a name that the library does not have.
    """
    library, _, plain = name.partition(":")
    known = names_of(library)
    if plain.partition(".")[0] not in known:  # timm: a tag after the dot names weights
        close = difflib.get_close_matches(plain, known, 5) or known[:5]
        raise UserError(f"--backbone {name} is unknown to {library}; choose from "
                        f"{', '.join(close)} and the others that it lists")

    def make(weights: dict | None) -> nn.Module:
        model = _create(library, plain)
        if weights is not None:
            head = output_layer(model)
            own = {key: part for key, part in model.state_dict().items()
                   if key.startswith(f"{head}.")}
            rest = {key: part for key, part in weights.items()
                    if key not in own and not key.startswith(AUXILIARY)}
            model.load_state_dict({**rest, **own})
        return model

    return make


def _create(library: str, name: str) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=1)
    # without the auxiliary outputs a training step has one output, too
    more = {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY else {}
    return torchvision.models.get_model(name, weights=None, num_classes=1, **more)


def has_weights(name: str) -> bool:
    """Whether the library publishes weights for it."""
    library, _, plain = name.partition(":")
    if library == "torchvision":
        return True
    import timm

    return timm.is_model_pretrained(plain)


def weights_of(name: str) -> tuple[str, Callable[[], dict]]:
    """(where the published weights lie, what downloads their state dict)."""
    library, _, plain = name.partition(":")
    if library == "torchvision":
        entries = torchvision.models.get_model_weights(plain)
        entry = getattr(entries, "IMAGENET1K_V1", entries.DEFAULT)
        return entry.url, lambda: entry.get_state_dict(progress=True, weights_only=True)
    import timm

    hub = timm.get_pretrained_cfg(plain).hf_hub_id
    source = f"https://huggingface.co/{hub}"
    return source, lambda: timm.create_model(plain, pretrained=True).state_dict()


def check_size(name: str, size: int, model: nn.Module) -> None:
    """Raise UserError where a library's network does not take images of that side, or gives
    something else than one logit an image. It is left as it was."""
    was, model = model.training, model.eval()
    try:
        with torch.inference_mode():
            out = model(torch.zeros(2, 3, size, size))
    except Exception as error:  # noqa: BLE001 - each network refuses in its own way
        said = " ".join(str(error).split())[:200]
        fixed = getattr(model, "pretrained_cfg", {}).get("input_size", ("", "", 224))[-1]
        raise UserError(f"--backbone {name} does not take images of {size} pixels ({said}): give "
                        f"--image-size {fixed}, or choose another") from None
    finally:
        model.train(was)
    if not isinstance(out, torch.Tensor) or out.shape != (2, 1):
        raise UserError(f"--backbone {name} gives no single logit an image: choose another")
