"""The best of several rows as a row of its own, chosen on validation images from saved runs.

Table 4 prints the best of four random selections, and of six blocks updated or frozen, without
saying by what, and --search tries values of a row's hyper-parameters. Here it is the row with the
best figure on the validation images averaged over the seeds: the one by which its best epoch was
kept, which needs no group labels, or the worst-group accuracy of a row that was granted them. The
test set is not looked at. The same row then stands for every seed; but where every seed splits the
samples anew, each split chooses by its own validation samples, which are other splits' test.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import write_json
from utils.records import read_record
from utils.reporting.results import Results
from utils.run import BESIDE

RULES = {
    "acc": "highest validation accuracy",
    "class_acc": "highest validation accuracy averaged over the two classes",
    "wst": "highest worst-group accuracy on the validation images, whose group labels it may see",
}


def figure_of(config: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    """The figure of RULES by which a run of that config.json is compared with its rivals."""
    if "wst" in validation and config.get("uses_attributes", "none") != "none":
        return "wst"
    return "class_acc" if config.get("best_epoch") == "class-accuracy" else "acc"


class Candidates(NamedTuple):
    """Finished rows among which one is chosen."""

    folders: dict[str, dict[int, Path]]  # {row: {seed: folder}}
    figures: dict[str, dict[int, float]]  # {row: {seed: figure on validation}}
    rule: str  # a name of RULES
    passes: float  # of all rows, mean of the seeds
    resplit: bool  # whether every seed is another split


def validation_figures(setting: Path, rows: Sequence[str]) -> Candidates:
    """The rows' figures on validation. rows: folders below the setting's.

    Raises UserError where a row or a figure is missing, and where the rows were not all run with
    the same seeds.
    """
    folders, found, passes, rule, resplit = {}, {}, 0.0, "acc", False
    for row in rows:
        results, name = Results((setting / row).parent), Path(row).name
        if name not in results.runs:
            raise UserError(
                f"{results.folder} has no row {name}; it has {', '.join(results.runs)}")
        folders[row], found[row] = results.runs[name], {}
        for seed, folder in results.runs[name].items():
            record = results.records.get(name, {}).get(seed)
            if record is None:
                raise UserError(f"{folder} is not finished; start the same training again")
            if record.get("validation") is None:
                raise UserError(
                    f"{folder} was trained with --val none: nothing to choose a row by; hold out "
                    "validation images (--val official)"
                )
            config = results.configs[name][seed]
            rule, resplit = figure_of(config, record["validation"]), "test_to_train" in config
            value = record["validation"].get(rule)
            if value is None:
                raise UserError(f"{folder} has no {rule} on the validation images, of which a "
                                "group is empty; leave --search out for this row")
            found[row][seed] = value
        passes += fmean(results.records[name][seed].get("passes", 0) for seed in found[row])
        if found[row].keys() != found[rows[0]].keys():
            raise UserError(f"{setting}: {row} and {rows[0]} were run with different seeds; "
                            "run the missing")
    return Candidates(folders, found, rule, passes, resplit)


def write_best(
    setting: Path, rows: Sequence[str], name: str, paper_row: str | None, by: Sequence[str] = ()
) -> dict[int, str]:
    """Write <setting>/<name>/seed<k>/, the chosen row's; returns {seed: that row}.

    rows: folders below the setting's. by: as many others, whose figures decide in their place. Of
    rows that stand in the table config.json and metrics.json are written, of others, such as
    candidates of --search, the whole run. config.json holds `selected`: the row, what it was chosen
    from, the rule, how many seeds have which row, and the passes of all. Raises UserError where the
    folder holds anything but an earlier selection.
    """
    own_rows = validation_figures(setting, rows)
    judged = validation_figures(setting, by) if by else own_rows
    seeds, chosen = list(own_rows.figures[rows[0]]), {}
    for part in [[seed] for seed in seeds] if own_rows.resplit else [seeds]:
        means = [fmean(figures[seed] for seed in part) for figures in judged.figures.values()]
        best = rows[means.index(max(means))]  # of equal ones the first
        chosen |= dict.fromkeys(part, best)
    own = Results(setting) if any(setting.glob("*/seed*")) else None
    earlier = {own.runs[name][seed] for seed, config in own.configs.get(name, {}).items()
               if "selected" in config} if own else set()
    for path in (setting / name).glob("*"):
        if path not in earlier and (path.is_file() or any(path.glob("[!.]*"))):
            raise UserError(f"{path} is a run and no earlier selection; choose another name for it")
        shutil.rmtree(path)
    whose = f"{Path(by[0]).parent.name}'s " if by else ""
    over = "of each split" if own_rows.resplit else "mean of seeds"
    selected = {"from": list(rows), "passes": round(own_rows.passes),
                "rule": f"{whose}{RULES[judged.rule]}, {over}",
                "seeds": dict(Counter(chosen.values()).most_common())}
    for seed, row in chosen.items():
        source, folder = own_rows.folders[row][seed], setting / name / f"seed{seed}"
        config = read_record(source / "config.json")
        # first: a selection that was stopped half-way is known as one, and made again
        write_json(folder / "config.json", config | {"selected": {"row": row, **selected},
                                                     "paper_row": paper_row or None})
        for path in source.rglob("*") if "/" in row else [source / "metrics.json"]:
            if path.is_file() and path.name not in BESIDE:
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                _same(path, target)
    return chosen


def _same(source: Path, target: Path) -> None:
    """A second name of the file, which nobody changes in place, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
