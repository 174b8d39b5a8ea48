"""How much the masks of different seeds agree: `python -m utils.reporting.masks results/<setting>`.

Prints and writes to results/<setting>/masks.md, for every method with masks: how many tensors it
selects, the Jaccard overlap of the masks of two seeds beside what random masks of the same sizes
would overlap, and the tensors that no seed updates. A report.html is written anew with it. With 48
to 55 of 62 tensors selected, a large overlap alone says little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic
from utils.options import ArgumentParser
from utils.reporting.report import write_report
from utils.reporting.table_text import aligned, number
from utils.reporting.tables import read_json, run_folders

Mask = Mapping[str, bool]  # {tensor name: updated}, in parameter order


def read_masks(setting_dir: str | Path, method: str) -> list[dict[str, bool]]:
    """The masks of a method's seeds, in parameter order; [] without any.

    Raises UserError where the seeds' masks are of different models.
    """
    masks: list[dict[str, bool]] = []
    for run in run_folders(setting_dir)[method].values():
        path = run / "mask.json"
        if not path.exists():
            continue
        tensors = read_json(path).get("tensors")
        if not isinstance(tensors, dict) or (masks and list(tensors) != list(masks[0])):
            raise UserError(f"{path} has no tensors or others than the first seed's; run it again")
        masks.append(tensors)
    return masks


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


def always(masks: list[Mask], updated: bool) -> list[str]:
    """Names that every mask updates (or that none does), in parameter order."""
    return [name for name in masks[0] if all(mask[name] == updated for mask in masks)]


def report(setting_dir: str | Path) -> str:
    """The table and the lists of frozen tensors. Raises UserError where no run has a mask."""
    rows, frozen = [], []
    for method in run_folders(setting_dir):
        masks = read_masks(setting_dir, method)
        if not masks:
            continue
        sizes, pairs = [sum(mask.values()) for mask in masks], list(combinations(masks, 2))
        count = len(masks[0])
        overlap = [jaccard(a, b) for a, b in pairs]
        chance = [jaccard_by_chance(count, sum(a.values()), sum(b.values())) for a, b in pairs]
        span = f"{min(sizes)}-{max(sizes)}" if min(sizes) < max(sizes) else f"{sizes[0]}"
        never = always(masks, False)
        means = [float(np.mean(values)) if values else math.nan for values in (overlap, chance)]
        rows.append([method, str(len(masks)), f"{span} of {count}", *map(number, means),
                     str(len(always(masks, True))), str(len(never))])
        if never and len(never) < count / 2:
            frozen.append(f"{method}, frozen in every seed: {', '.join(never)}\n")
    if not rows:
        raise UserError(f"no run in {setting_dir} has a mask.json; train aim_fair there first")
    header = ["method", "seeds", "selected", "Jaccard", "by chance", "always updated",
              "always frozen"]
    note = ("\nJaccard: mean over pairs of seeds; by chance: expected of independent random masks "
            "of the same sizes.\n")
    return aligned(header, rows) + note + "".join("\n" + line for line in frozen)


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Overlap of the masks of different seeds.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    setting = parser.parse_args(arguments).setting
    text = report(setting)
    write_atomic(setting / "masks.md", text)
    if (setting / "report.html").exists():  # its page was written before
        write_report(setting)
    print(text, end="")


if __name__ == "__main__":
    main()
