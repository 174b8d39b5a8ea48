"""How much the masks of different seeds agree. With 48 to 55 of 62 tensors selected, a large
overlap alone says little, so what random masks of the same sizes would overlap stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from utils.reporting.results import Results
from utils.reporting.section import Section, number

Mask = Mapping[str, bool]  # {tensor name: updated}, in parameter order


def jaccard(a: Mask, b: Mask) -> float:
    """|both| / |either| of the selected tensors of two masks over the same names; 1 if none is."""
    either = sum(a[name] or b[name] for name in a)
    return sum(a[name] and b[name] for name in a) / either if either else 1.0


def jaccard_by_chance(tensors: int, one: int, other: int) -> float:
    """Expected Jaccard of two independent random masks of `one` and `other` of `tensors`, exactly.

    The number of tensors in both is hypergeometric. Raises ValueError for sizes outside 1..tensors.
    """
    if not (1 <= one <= tensors and 1 <= other <= tensors):
        raise ValueError(f"sizes must lie between 1 and {tensors}, not {one} and {other}")
    both = np.arange(max(0, one + other - tensors), min(one, other) + 1)
    return float((hypergeom.pmf(both, tensors, one, other) * both / (one + other - both)).sum())


def section(results: Results) -> Section:
    """A row for every method with masks, and the tensors that none of its seeds updates."""
    rows, frozen = [], []
    for method in results.masks:
        masks = results.tensors(method)
        sizes, pairs = [sum(mask.values()) for mask in masks], list(combinations(masks, 2))
        count = len(masks[0])
        overlap = [jaccard(a, b) for a, b in pairs]
        chance = [jaccard_by_chance(count, sum(a.values()), sum(b.values())) for a, b in pairs]
        means = [float(np.mean(values)) if values else math.nan for values in (overlap, chance)]
        span = f"{min(sizes)}-{max(sizes)}" if min(sizes) < max(sizes) else f"{sizes[0]}"
        always, never = ([name for name in masks[0] if all(mask[name] == updated for mask in masks)]
                         for updated in (True, False))
        rows.append({"method": method, "seeds": str(len(masks)), "selected": f"{span} of {count}",
                     "Jaccard": number(means[0]), "by chance": number(means[1]),
                     "always updated": str(len(always)), "always frozen": str(len(never))})
        if never and len(never) < count / 2:
            frozen.append(f"{method}, frozen in every seed: {', '.join(never)}.")
    return Section(
        "Selected tensors", "Jaccard overlap of the masks: mean over pairs of seeds; by chance: "
        "expected of independent random masks of the same sizes.", pd.DataFrame(rows), lines=frozen,
    )
