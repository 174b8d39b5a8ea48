"""The best of several rows as a row of its own, chosen on validation accuracy from saved runs.

    python -m utils.reporting.best results/demo/table4 --name best_random \
        --rows random_40 random_55 random_70 random_85

Table 4 prints the best of four random selections, and of six blocks updated or frozen, without
saying by what. Here it is the row with the highest validation accuracy averaged over the seeds,
which needs no group labels; the test set is not looked at. The same row then stands for every seed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from utils.errors import UserError, exit_cleanly
from utils.files import is_plain_name, write_atomic, write_json
from utils.options import ArgumentParser
from utils.reporting import tables


def validation_accuracies(setting_dir: Path, rows: list[str]) -> dict[str, dict[int, float]]:
    """{row: {seed: validation accuracy}}. Raises UserError where a row or a figure is missing,
    and where the rows were not all run with the same seeds."""
    folders = tables.run_folders(setting_dir)
    result: dict[str, dict[int, float]] = {}
    for row in rows:
        if row not in folders:
            raise UserError(f"{setting_dir} has no row {row}; it has {', '.join(folders)}")
        result[row] = {}
        for seed, folder in folders[row].items():
            if not (folder / "metrics.json").exists():
                raise UserError(f"{folder} is not finished; start the same training again")
            validation = tables.read_json(folder / "metrics.json").get("validation")
            if validation is None:
                raise UserError(
                    f"{folder} was trained with --val none: nothing to choose a row by; hold out "
                    "validation images (--val official)"
                )
            result[row][seed] = validation["acc"]
        if result[row].keys() != result[rows[0]].keys():
            raise UserError(
                f"{setting_dir}: {row} and {rows[0]} were run with different seeds; run the missing"
            )
    return result


def choose(accuracies: dict[str, dict[int, float]]) -> str:
    """The row of the highest mean over seeds; of equal ones the first."""
    return max(accuracies, key=lambda row: sum(accuracies[row].values()) / len(accuracies[row]))


def write_best(setting_dir: Path, rows: list[str], name: str, paper_row: str | None) -> str:
    """Write <setting>/<name>/seed<k>/ with the chosen row's metrics; returns that row's name.

    config.json holds `selected`: the row, what it was chosen from and by which rule. Raises
    UserError where the folder holds anything but an earlier selection.
    """
    chosen = choose(accuracies := validation_accuracies(setting_dir, rows))
    target = setting_dir / name
    for path in target.glob("*"):
        if "selected" not in tables.read_json(path / "config.json"):
            raise UserError(f"{path} is a run and no earlier selection; choose another --name")
        shutil.rmtree(path)
    selected = {"row": chosen, "from": rows, "rule": "highest validation accuracy, mean of seeds"}
    for seed in accuracies[chosen]:
        source, folder = setting_dir / chosen / f"seed{seed}", target / f"seed{seed}"
        config = tables.read_json(source / "config.json") | {"selected": selected}
        config["paper_row"] = paper_row or None
        write_json(folder / "config.json", config)
        write_atomic(folder / "metrics.json", (source / "metrics.json").read_bytes())
    return chosen


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="The best of several rows on validation accuracy.")
    parser.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    parser.add_argument("--rows", nargs="+", required=True, help="rows to choose from")
    parser.add_argument("--name", required=True, help="name of the chosen row's copy")
    parser.add_argument("--paper-row", default=None, help="its row in the paper's table")
    options = parser.parse_args(arguments)
    if not is_plain_name(options.name):
        raise UserError(f"--name {options.name} must be a plain folder name, without a '/'")
    chosen = write_best(options.setting, options.rows, options.name, options.paper_row)
    print(f"{options.name} is {chosen}: highest validation accuracy of {', '.join(options.rows)}")
    tables.write_summary(options.setting)


if __name__ == "__main__":
    main()
