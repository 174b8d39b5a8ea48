"""The best of several rows as a row of its own, chosen on validation accuracy from saved runs.

Table 4 prints the best of four random selections, and of six blocks updated or frozen, without
saying by what. Here it is the row with the highest validation accuracy averaged over the seeds,
which needs no group labels; the test set is not looked at. The same row then stands for every seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from utils.errors import UserError
from utils.files import write_json
from utils.reporting.results import Results


def validation_accuracies(results: Results, rows: Sequence[str]) -> dict[str, dict[int, float]]:
    """{row: {seed: validation accuracy}}. Raises UserError where a row or a figure is missing,
    and where the rows were not all run with the same seeds."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row not in results.runs:
            raise UserError(
                f"{results.folder} has no row {row}; it has {', '.join(results.runs)}")
        found[row] = {}
        for seed, folder in results.runs[row].items():
            record = results.records.get(row, {}).get(seed)
            if record is None:
                raise UserError(f"{folder} is not finished; start the same training again")
            if record.get("validation") is None:
                raise UserError(
                    f"{folder} was trained with --val none: nothing to choose a row by; hold out "
                    "validation images (--val official)"
                )
            found[row][seed] = record["validation"]["acc"]
        if found[row].keys() != found[rows[0]].keys():
            raise UserError(f"{results.folder}: {row} and {rows[0]} were run with different seeds; "
                            "run the missing")
    return found


def write_best(setting_dir: Path, rows: list[str], name: str, paper_row: str | None) -> str:
    """Write <setting>/<name>/seed<k>/ with the chosen row's metrics; returns that row's name.

    config.json holds `selected`: the row, what it was chosen from and by which rule. Raises
    UserError where the folder holds anything but an earlier selection.
    """
    results = Results(setting_dir)
    accuracies = validation_accuracies(results, rows)
    chosen = max(rows, key=lambda row: fmean(accuracies[row].values()))  # of equal ones the first
    earlier = {results.runs[name][seed] for seed, config in results.configs.get(name, {}).items()
               if "selected" in config}
    for path in (setting_dir / name).glob("*"):
        if path not in earlier:
            raise UserError(f"{path} is a run and no earlier selection; choose another name for it")
        shutil.rmtree(path)
    selected = {"row": chosen, "from": rows, "rule": "highest validation accuracy, mean of seeds"}
    for seed in accuracies[chosen]:
        folder = setting_dir / name / f"seed{seed}"
        config = results.configs[chosen][seed] | {"selected": selected}
        write_json(folder / "config.json", config | {"paper_row": paper_row or None})
        write_json(folder / "metrics.json", results.records[chosen][seed])
    return chosen
