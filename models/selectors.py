"""The rules by which a strategy chooses the parameter tensors it updates.

A selector is called as selector(model, data, settings) at the pre-trained weights and returns what
mask.json holds: {"tensors": {tensor name: updated or not}, in parameter order, "criterion": its
name} and whatever else is worth keeping. Random choices follow the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from datasets.mixing import Data
from models.backbones import parameter_names
from models.lora import is_adapter
from models.method import bce
from models.selection import differences, random_tensors, resolve_k, select_tensors
from utils.blocks import OUTPUT_BLOCKS, block_of, require_block
from utils.engine import PREEMPTION
from utils.errors import UserError
from utils.gradients import mean_gradients

Selector = Callable[[nn.Module, Data, object], dict]


def _mask(names: list[str], chosen: Iterable[str], criterion: str, **more) -> dict:
    chosen = set(chosen)
    return {"tensors": {name: name in chosen for name in names}, "criterion": criterion, **more}


def every_tensor(model: nn.Module, data: Data, settings) -> dict:
    """All tensors: full fine-tuning."""
    names = parameter_names(model)
    return _mask(names, names, "all")


def output_layer(model: nn.Module, data: Data, settings) -> dict:
    """Weight and bias of the last layer: linear probing.

    The features still see batches in training mode, so batch norm's running statistics follow the
    new images unless --batch-norm freeze.
    """
    names = parameter_names(model)
    return _mask(names, [n for n in names if block_of(n) in OUTPUT_BLOCKS], "output layer")


def adapters(model: nn.Module, data: Data, settings) -> dict:
    """LoRA's matrices and the last layer; the weights they are added to stay frozen."""
    names = parameter_names(model)
    chosen = [n for n in names if is_adapter(n) or block_of(n) in OUTPUT_BLOCKS]
    return _mask(names, chosen, "adapters and output layer")


def random_share(share: float) -> Selector:
    """Table 4's random selection: round(share * tensors) of them."""

    def choose(model: nn.Module, data: Data, settings) -> dict:
        names = parameter_names(model)
        chosen = random_tensors(names, round(share * len(names)), data.seed)
        return _mask(names, chosen, "random", share=share)

    return choose


@dataclass(frozen=True)
class OneBlock:
    """Table 4's sub-tuning: one block is updated and nothing else, not even the last layer, or,
    frozen, all but that block (Figure 2). Raises UserError where the network has no such block.
    """

    block: str
    frozen: bool = False

    def __call__(self, model: nn.Module, data: Data, settings) -> dict:
        names = parameter_names(model)
        require_block(self.block, names, "the network")
        chosen = [name for name in names if (block_of(name) == self.block) != self.frozen]
        return _mask(names, chosen, f"{'all but' if self.frozen else 'only'} {self.block}")


def sensitive_to_bias(model: nn.Module, data: Data, settings) -> dict:
    """AIM-Fair's mask: three mean gradients at the pre-trained weights, two rankings."""
    names = parameter_names(model)
    k = resolve_k(settings.top_k, len(names))
    gradients = []
    for title, table in (
        ("gradient, real", data.real),
        ("gradient, synthetic biased", data.synthetic_biased),
        ("gradient, synthetic balanced", data.synthetic_balanced),
    ):
        loader = data.loader(table, train=True)
        gradients.append(
            mean_gradients(
                model, loader.epoch(0), bce, count=len(loader), name=title,
                autocast=settings.autocast, check=PREEMPTION.check,
            )
        )
    real, biased, balanced = gradients
    try:
        chosen = select_tensors(real, biased, balanced, k, settings.criterion)
    except ValueError as error:
        raise UserError(f"no mask: {error}; lower --pretrain-lr or look at the images") from None
    if not chosen:
        raise UserError(
            f"the mask is empty: the two sets of {k} tensors share none; raise --top-k"
        )
    return {
        "tensors": {name: name in chosen for name in names},
        "k": k,
        "criterion": settings.criterion,
        "delta1": differences(real, biased, settings.criterion),
        "delta2": differences(biased, balanced, settings.criterion),
    }


def random_of_same_size(model: nn.Module, data: Data, settings) -> dict:
    """As many tensors as AIM-Fair selects with these settings and this seed, drawn at random.

    The amount is AIM-Fair's, the rule is not: the difference of the two rows is the rule's doing.
    The gradients are taken again for it, three passes over the images.
    """
    names = parameter_names(model)
    size = sum(sensitive_to_bias(model, data, settings)["tensors"].values())
    chosen = random_tensors(names, size, data.seed)
    return _mask(names, chosen, "random, as many as AIM-Fair", size=size)
