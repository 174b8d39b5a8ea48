"""What each row cost: parameters updated, passes, arithmetic, a GPU's memory."""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from utils.reporting.results import Results
from utils.reporting.section import Section, thousands

KEYS = ("trainable", "parameters", "passes", "flops")


def section(results: Results) -> Section | None:
    """Means over seeds, of runs that recorded it; None where none did."""
    rows = []
    for method, seeds in results.records.items():
        said = [record for record in seeds.values() if all(key in record for key in KEYS)]
        if not said:
            continue
        trainable, parameters, passes, flops = (fmean(r[key] for r in said) for key in KEYS)
        memory = [r["gpu_bytes"] for r in said if r.get("gpu_bytes")]
        rows.append({
            "method": method, "parameters updated": f"{trainable:,.0f}",
            "of the network": f"{trainable / parameters:.0%}", "passes": thousands(passes),
            "PFLOP": f"{flops / 1e15:.3g}",
            "GPU memory, GiB": f"{max(memory) / 2**30:.1f}" if memory else "n/a",
        })
    if not rows:
        return None
    return Section(
        "What a row costs",
        "Parameters that the last stage updates; thousands of image passes and their arithmetic, "
        "three times a forward pass each, of a seed and all stages; a process's peak on a GPU.",
        pd.DataFrame(rows))
