"""Which parameter tensors to update: AIM-Fair's selective mask (section 3.2) and the other rules.

To add a rule, write a function and a `Rule` that says which gradients it needs; to make a row of
it, one line in models/strategies.py. Rules of our own are in models/own_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from models.backbones import parameter_names
from models.lora import is_adapter
from models.method import bce
from utils.blocks import OUTPUT_BLOCKS, block_of, require_block
from utils.errors import UserError
from utils.gradients import gradient_moments, mean_gradients
from utils.preemption import PREEMPTION
from utils.run import Run

Gradients = Mapping[str, Tensor]


def absolute_difference(a: Tensor, b: Tensor) -> float:
    """Mean over a tensor's elements of |a - b| (Equation 4, one number a tensor)."""
    return float((a.double() - b.double()).abs().mean())


def cosine_difference(a: Tensor, b: Tensor) -> float:
    """1 - cos(a, b) over the flattened tensor; a tensor of zero norm counts as 0 (Table 4)."""
    a, b = a.double().flatten(), b.double().flatten()
    norm = float(a.norm() * b.norm())
    return 1.0 - float(a @ b) / norm if norm > 0 else 0.0


CRITERIA: dict[str, Callable[[Tensor, Tensor], float]] = {
    "absolute": absolute_difference,
    "cosine": cosine_difference,
}


def differences(a: Gradients, b: Gradients, criterion: str = "absolute") -> dict[str, float]:
    """One difference per tensor name. Raises ValueError for other names, shapes or NaN."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    if a.keys() != b.keys():
        raise ValueError("the gradients do not name the same tensors")
    result = {}
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(f"gradients of {name} differ in shape")
        result[name] = CRITERIA[criterion](a[name], b[name])
        if result[name] != result[name] or result[name] == float("inf"):
            raise ValueError(f"the gradient difference of {name} is not finite")
    return result


def top(values: Mapping[str, float], k: int, *, largest: bool) -> set[str]:
    """The k names of smallest or largest value; ties go to the name that sorts first.

    The name, not the position, breaks ties, so the result does not depend on parameter order.
    """
    sign = -1.0 if largest else 1.0
    return set(sorted(values, key=lambda name: (sign * values[name], name))[:k])


def select_tensors(
    g_real: Gradients,
    g_synthetic_biased: Gradients,
    g_synthetic_balanced: Gradients,
    k: int,
    criterion: str = "absolute",
) -> set[str]:
    """Tensors insensitive to the domain and sensitive to the bias (Equations 4-7).

    Arguments map tensor name -> mean gradient (any shape, the same in all three). Delta1, real
    against synthetic biased, is ranked ascending; Delta2, synthetic biased against balanced,
    descending; the result is the intersection of the two top-k sets, possibly empty.
    Raises ValueError for k below 1 or above the number of tensors, and as `differences` does.
    """
    if isinstance(k, bool) or not 1 <= k <= len(g_real) or k != int(k):
        raise ValueError(f"k must be a whole number from 1 to {len(g_real)}, not {k}")
    domain = differences(g_real, g_synthetic_biased, criterion)
    bias = differences(g_synthetic_biased, g_synthetic_balanced, criterion)
    return intersection(domain, bias, int(k))


def intersection(delta1: Mapping[str, float], delta2: Mapping[str, float], k: int) -> set[str]:
    """The names among the k of smallest delta1 and the k of largest delta2, possibly none."""
    return top(delta1, k, largest=False) & top(delta2, k, largest=True)


def not_empty(chosen: set[str], k: int) -> set[str]:
    """The chosen tensors. Raises UserError where there are none."""
    if not chosen:
        raise UserError(
            f"the mask is empty: the two sets of {k} tensors share none; raise --top-k"
        )
    return chosen


def resolve_k(k: float, tensors: int) -> int:
    """--top-k as a number of tensors: below 1 it is a share of them (0.887 is 55 of ResNet-18).

    Raises UserError outside 1 to `tensors` and for a number above 1 that is not whole.
    """
    number = round(k * tensors) if 0 < k < 1 else k
    if not 1 <= number <= tensors or number != int(number):
        raise UserError(
            f"--top-k {k} is no whole number from 1 to {tensors}, the tensors of the backbone, nor "
            "a share of them between 0 and 1 that makes at least one"
        )
    return int(number)


def random_tensors(names: list[str], size: int, seed: int, control: bool = False) -> set[str]:
    """`size` names drawn without replacement, from a seed (Table 4's random selection).

    Draws of different sizes are not parts of each other, and one that is a `control` is another.
    """
    if not 1 <= size <= len(names):
        raise ValueError(f"size must be from 1 to {len(names)}, not {size}")
    drawn = np.random.default_rng([seed, size, control]).permutation(sorted(names))
    return set(drawn[:size].tolist())


# --- rules ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How a row chooses the tensors it updates.

    choose: called with the tensors' names in parameter order, the mean gradients at the pre-trained
    weights by training set, the configuration and the run's seed; returns what mask.json holds,
    {"tensors": {name: updated or not}, "criterion": the rule's name} and what else is worth
    keeping. sets: the tables of datasets.mixing.Data over which it needs gradients. blocks: blocks
    that the network must have. noise: it needs the gradients' noise too and is given, by training
    set, utils.gradients.Moments instead.
    """

    choose: Callable[[list[str], Mapping[str, Gradients], Any, int], dict]
    sets: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    noise: bool = False

    def mask(self, model: nn.Module, run: Run) -> dict:
        """The mask of a pre-trained model; its `passes` are the images of the mean gradients.

        Raises UserError where none can be made.
        """
        names, gradients, images = parameter_names(model), {}, []
        measure = gradient_moments if self.noise else mean_gradients
        for block in self.blocks:
            require_block(block, names, "the network")
        for name in self.sets:
            loader = run.data.loader(getattr(run.data, name), train=True)
            if self.noise and len(loader) < 2:
                raise UserError(f"no mask: the noise of a mean gradient needs two batches, and "
                                f"{name} has one; choose a smaller --batch-size")
            gradients[name] = measure(
                model, counted(loader.epoch(0), images), bce, count=len(loader),
                name=f"gradient, {name}", autocast=run.config.autocast, check=PREEMPTION.check,
            )
            mean = gradients[name].mean if self.noise else gradients[name]
            if wrong := [key for key, value in mean.items() if not value.isfinite().all()]:
                raise UserError(f"no mask: the gradient of {wrong[0]} over {name} is not finite; "
                                "lower --pretrain-lr or look at the images")
        mask = self.choose(names, gradients, run.config, run.seed)
        return mask | {"passes": sum(images)}


def counted(batches: Iterable[tuple], images: list[int]) -> Iterator[tuple]:
    """The batches (index, x, y, a); the number of images of each is appended."""
    for batch in batches:
        images.append(len(batch[1]))
        yield batch


def mask_of(names: list[str], chosen: Iterable[str], criterion: str, **more) -> dict:
    """A mask that updates the `chosen` tensors."""
    chosen = set(chosen)
    return {"tensors": {name: name in chosen for name in names}, "criterion": criterion, **more}


# Full fine-tuning.
ALL = Rule(lambda names, *_: mask_of(names, names, "all"))

# Linear probing: weight and bias of the last layer. The features still see batches in training
# mode, so batch norm's running statistics follow the new images unless --batch-norm freeze.
OUTPUT_LAYER = Rule(lambda names, *_: mask_of(
    names, [n for n in names if block_of(n) in OUTPUT_BLOCKS], "output layer"))

# LoRA's matrices and the last layer; the weights they are added to stay frozen.
ADAPTERS = Rule(lambda names, *_: mask_of(
    names, [n for n in names if is_adapter(n) or block_of(n) in OUTPUT_BLOCKS],
    "adapters and output layer"))


def random_share(share: float) -> Rule:
    """Table 4's random selection: round(share * tensors) of them."""
    return Rule(lambda names, _gradients, _config, seed: mask_of(
        names, random_tensors(names, round(share * len(names)), seed), "random", share=share))


def one_block(block: str, *, frozen: bool = False) -> Rule:
    """Table 4's sub-tuning: one block is updated and nothing else, not even the last layer, or,
    frozen, all but that block (Figure 2)."""
    criterion = f"{'all but' if frozen else 'only'} {block}"
    return Rule(lambda names, *_: mask_of(
        names, [n for n in names if (block_of(n) == block) != frozen], criterion), blocks=(block,))


REAL_AND_SYNTHETIC = ("real", "synthetic_biased", "synthetic_balanced")


def _sensitive_to_bias(
    names: list[str], gradients: Mapping[str, Gradients], config, seed: int
) -> dict:
    three = [gradients[name] for name in REAL_AND_SYNTHETIC]
    k = resolve_k(config.top_k, len(names))
    chosen = not_empty(select_tensors(*three, k, config.criterion), k)
    real, biased, balanced = three
    return mask_of(
        names, chosen, config.criterion, k=k,
        delta1=differences(real, biased, config.criterion),
        delta2=differences(biased, balanced, config.criterion),
    )


# AIM-Fair's mask: two rankings of three mean gradients.
SENSITIVE_TO_BIAS = Rule(_sensitive_to_bias, REAL_AND_SYNTHETIC)


def _random_of_same_size(
    names: list[str], gradients: Mapping[str, Gradients], config, seed: int
) -> dict:
    size = sum(_sensitive_to_bias(names, gradients, config, seed)["tensors"].values())
    chosen = random_tensors(names, size, seed, control=True)
    return mask_of(names, chosen, "random, as many as AIM-Fair", size=size)


# As many tensors as AIM-Fair selects with these settings and this seed, drawn at random: the
# difference of the two rows is the rule's doing, not the amount's.
RANDOM_OF_SAME_SIZE = Rule(_random_of_same_size, REAL_AND_SYNTHETIC)
