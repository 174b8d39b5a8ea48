"""FairIF's Table 6: by how many percent FairIF changes ERM's figures, network by network.

`write_summary` (tables.py) asks for it: the rows erm_<network> and fairif_<network> of a setting
are a pair, and beside it stands the paper's own change. With erm_<network> and
fairif_shuffled_<network> they say what the same weights change on other images; the paper has none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from utils.records import read_record
from utils.reporting import paper
from utils.reporting.table_text import FAIRIF_FIGURES, TITLES, aligned, number

ROWS = {"fairif_shuffled_": "shuffled weights", "fairif_": "FairIF"}  # the longer prefix first


def relative_changes(setting_dir: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """One line a row beside ERM's: `network`, `row` ("FairIF" or "shuffled weights"), <figure> and
    paper_<figure>, changes in percent of ERM's.

    frame: `tables.collect` of the setting; the figures are means over seeds. NaN where ERM's is 0
    and where the paper has none. No rows without a pair.
    """
    by_name = {record["method"]: record for record in frame.to_dict("records")}
    lines = []
    for method, ours in by_name.items():
        prefix = next((start for start in ROWS if method.startswith(start)), None)
        network = method.removeprefix(prefix or "")
        base = by_name.get(f"erm_{network}")
        if prefix is None or base is None:
            continue
        line: dict[str, Any] = {"network": network, "row": ROWS[prefix]}
        config = next((setting_dir / method).glob("seed*/config.json"), None)
        theirs = _paper(config) if prefix == "fairif_" else {}
        for name in FAIRIF_FIGURES:
            before, after = (record[f"{name}_table"] for record in (base, ours))
            line[name] = 100 * (after - before) / before if before else math.nan
            line[f"paper_{name}"] = theirs.get(name, math.nan)
        lines.append(line)
    order = [f"{start}{name}" for name in FAIRIF_FIGURES for start in ("", "paper_")]
    frame = pd.DataFrame(lines, columns=["network", "row", *order])
    return frame.sort_values(["network", "row"], ignore_index=True)


def _paper(config: Path | None) -> dict[str, float]:
    if config is None:
        return {}
    held = read_record(config)
    keys = ("dataset", "target", "protected", "backbone")
    if held.get("pretrained") != "imagenet" or not held.keys() >= set(keys):
        return {}
    return paper.relative_change(*(held[key] for key in keys))


def section(changes: pd.DataFrame) -> str:
    """The section of summary.md, "" without a pair."""
    if changes.empty:
        return ""
    rows = [
        [line["network"], line["row"],
         *(f"{_percent(line[name])} / {_percent(line[f'paper_{name}'])}"
           for name in FAIRIF_FIGURES)]
        for line in changes.to_dict("records")
    ]
    control = " Shuffled weights: FairIF's, dealt to other images, as a control."
    header = ["network", "row", *(TITLES[name] for name in FAIRIF_FIGURES)]
    return (
        "\n## FairIF's change of ERM's figures\n\nIn % of ERM's mean over seeds: ours / the "
        f"paper's.{control if (changes['row'] != 'FairIF').any() else ''}\n\n"
        f"{aligned(header, rows)}"
    )


def _percent(value: float) -> str:
    return number(value, sign=True)
