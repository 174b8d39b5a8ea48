"""FairIF's Table 4: `python -m models.fairif.tables --table 4 --splits 20`.

Trains, on every split, a logistic regression (or --model mlp) by ERM, by the baselines, by FairIF
and by the control whose eps are FairIF's on shuffled samples (splits.py). Writes
results/<name>/<dataset>/split<k>.json as it goes, which a second start with the same settings
reuses, and summary.csv and summary.md.

summary.csv has one row a method and one a paired difference; acc and ad in percent (points), aod
and eod as fractions, as the paper prints them: <metric>, its sample standard deviation <metric>_std
over splits, for a difference its 95% t interval <metric>_low and _high, and <metric>_paper.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from datasets import tabular
from datasets.base import is_plain_name
from models.fairif.baselines import BASELINES
from models.fairif.fairif import Settings
from models.fairif.relaxation import KINDS, Relaxation
from models.fairif.reweight import NORMS
from models.fairif.splits import NETWORKS, run_split
from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic, write_json
from utils.metrics import from_json
from utils.options import ArgumentParser
from utils.runs import exclusive, fingerprint
from utils.table_text import aligned
from utils.tables import paired_difference, read_json

PAPER = Path(__file__).resolve().parents[2] / "paper_tables" / "fairif.csv"
BASELINE_TITLES = {name: entry.title for name, entry in BASELINES.items()}
TITLES = {"erm": "ERM", **BASELINE_TITLES, "fairif": "FairIF", "shuffled": "shuffled eps"}
PAPER_ROWS = {"erm": "Original", **BASELINE_TITLES, "fairif": "FairIF"}
SEES = {"erm": "none", "fairif": "validation", "shuffled": "validation",
        **{name: entry.uses_attributes for name, entry in BASELINES.items()}}
PAPER_SETTINGS = {"adult": "Adult", "german": "German", "compas": "COMPAS"}
PAIRS = (*((name, "erm") for name in TITLES if name != "erm"), ("fairif", "shuffled"))
MODEL_TITLES = {"logistic": "logistic regression", "mlp": "MLP (64), which the paper does not run"}
# column: (factor from fraction, title, decimals, the paper's column)
FIGURES = {
    "acc": (100, "Acc (%)", 2, "acc_percent"),
    "ad": (100, "AD (%)", 2, "ad_percent"),
    "aod": (1, "AOD", 3, "aod"),
    "eod": (1, "EOD", 3, "eod"),
}


def figures(splits: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """{row: frame with one line a split and the columns acc, ad (percent), aod, eod}."""
    result = {}
    for row in (name for name in TITLES if name in splits[0]["rows"]):
        metrics = [from_json(split["rows"][row]) for split in splits]
        result[row] = pd.DataFrame(
            {name: [factor * m[name] for m in metrics] for name, (factor, *_) in FIGURES.items()}
        )
    return result


def summarise(dataset: str, splits: list[dict[str, Any]]) -> pd.DataFrame:
    """The lines of summary.csv of one dataset (this module's docstring)."""
    frames = figures(splits)
    paper = paper_figures(dataset)
    lines = []
    for row, frame in frames.items():
        line: dict[str, Any] = {"dataset": dataset, "row": TITLES[row], "sees": SEES[row],
                                "splits": len(splits)}
        for name in FIGURES:
            line[name], line[f"{name}_std"] = frame[name].mean(), frame[name].std()
            line[f"{name}_paper"] = paper.get(row, {}).get(name, math.nan)
        lines.append(line)
    for one, other in (pair for pair in PAIRS if frames.keys() >= set(pair)):
        title = f"{TITLES[one]} minus {TITLES[other]}"
        line = {"dataset": dataset, "row": title, "splits": len(splits)}
        for name in FIGURES:
            a, b = (frames[key][name].to_dict() for key in (one, other))
            line[name], line[f"{name}_low"], line[f"{name}_high"], _ = paired_difference(a, b)
            line[f"{name}_std"] = (frames[one][name] - frames[other][name]).std()
            if one in paper and other in paper:
                line[f"{name}_paper"] = paper[one][name] - paper[other][name]
        lines.append(line)
    order = [f"{name}{end}" for name in FIGURES for end in ("", "_std", "_low", "_high", "_paper")]
    return pd.DataFrame(lines, columns=["dataset", "row", "sees", "splits", *order])


def paper_figures(dataset: str) -> dict[str, dict[str, float]]:
    """{row: {acc, ad (percent), aod, eod}} of the paper's Table 4."""
    table = pd.read_csv(PAPER)
    table = table[table["table"].str.startswith("4 ")]
    table = table[table["setting"] == PAPER_SETTINGS[dataset]].set_index("row")
    return {
        row: {name: float(table.loc[title, column]) for name, (*_, column) in FIGURES.items()}
        for row, title in PAPER_ROWS.items()
    }


def markdown(frame: pd.DataFrame, checks: dict[str, list[dict]], settings: dict[str, Any]) -> str:
    """summary.md from the lines of summary.csv and the splits' checks."""
    parts = [
        f"# FairIF, Table 4: {MODEL_TITLES[settings['model']]}\n",
        "Mean ± sample standard deviation over splits, [the paper's figure]. Differences are "
        "paired by split: mean [95% t interval]. \"Shuffled eps\" is the control: FairIF's weights "
        "dealt to other samples. \"Sees a\": whose protected labels a method uses.\n",
        "Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None) + ".\n",
    ]
    titles = [title for _, title, *_ in FIGURES.values()]
    for dataset, lines in frame.groupby("dataset", sort=False):
        records = lines.to_dict("records")
        parts.append(f"## {PAPER_SETTINGS[dataset]}, {records[0]['splits']} splits\n")
        methods = [line for line in records if " minus " not in line["row"]]
        pairs = [line for line in records if " minus " in line["row"]]
        parts.append(aligned(["", "sees a", *titles], [
            [m["row"], m["sees"], *map(_mean_cell, [m] * 4, FIGURES)] for m in methods
        ]))
        parts.append(aligned(["", *titles], [
            [p["row"], *map(_pair_cell, [p] * 4, FIGURES)] for p in pairs
        ]))
        parts.append(_check_text(checks[dataset]))
    return "\n".join(parts)


def _mean_cell(line: dict, name: str) -> str:
    digits = FIGURES[name][2]
    paper = line[f"{name}_paper"]
    text = f"{line[name]:.{digits}f} ± {line[f'{name}_std']:.{digits}f}"
    return text if math.isnan(paper) else f"{text} [{paper:.{digits}f}]"


def _pair_cell(line: dict, name: str) -> str:
    digits = FIGURES[name][2]
    low, high = (f"{line[f'{name}_{end}']:+.{digits}f}" for end in ("low", "high"))
    return f"{line[name]:+.{digits}f} [{low}, {high}]"


def _check_text(checks: list[dict]) -> str:
    frame = pd.DataFrame(checks)
    gaps = {
        key: sum(abs(value) for row in frame[key] for value in row) / (2 * len(frame))
        for key in ("gaps", "gaps_predicted", "gaps_after")
    }
    share = 100 * (frame["clipped"] / frame["training_rows"]).mean()
    return (
        f"Relaxed validation gaps, mean |gap|: ERM {gaps['gaps']:.4f}, predicted for FairIF "
        f"{gaps['gaps_predicted']:.4f}, after retraining {gaps['gaps_after']:.4f}. Weights clipped "
        f"at 0: {share:.2f}%; root mean square of n eps: {frame['eps_rms_times_n'].mean():.3f}. "
        f"Largest gradient norm of a fit: {frame['gradient_norm'].max():.1e}.\n"
    )


def read_split(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A finished split. Raises UserError where it was computed with other settings or code."""
    split = read_json(path)
    if split.get("fingerprint") != fingerprint(config):
        held = split.get("config", {})
        changed = [f"{key} was {held.get(key)} and is now {value}"
                   for key, value in config.items() if held.get(key) != value]
        raise UserError(
            f"{path} was computed otherwise ({'; '.join(changed) or 'the code changed'}): choose "
            f"another --name or delete {path.parent.parent}"
        )
    return split


def run(
    names: list[str], splits: int, folder: Path, l2: float, settings: Settings, model: str,
    baselines: list[str],
) -> str:
    """All splits of the datasets into `folder`; returns summary.md's text."""
    relaxation = settings.relaxation
    config = {
        "model": model, "baselines": " ".join(baselines) or "none",
        "relaxation": relaxation.kind, "temperature": relaxation.temperature,
        "draws": relaxation.draws if relaxation.kind == "gumbel" else None,
        "lambda": settings.strength, "penalty": settings.norm, "l2": l2,
        "inverse": settings.method, "fractions": "70/10/20",
    }
    frames, checks = [], {}
    with exclusive(folder):
        for name in names:
            table, done = tabular.load(name), []
            for seed in tqdm(range(splits), desc=name, unit="split"):
                path = folder / name / f"split{seed}.json"
                if not path.exists():
                    split = run_split(table, seed, l2, settings.with_seed(seed), model, baselines)
                    write_json(path, {"fingerprint": fingerprint(config), "config": config} | split)
                done.append(read_split(path, config))
            frames.append(summarise(name, done))
            checks[name] = [split["check"] for split in done]
        frame = pd.concat(frames, ignore_index=True)
        csv = frame.to_csv(index=False, float_format="%.4f", na_rep="n/a", lineterminator="\n")
        text = markdown(frame, checks, config)
        write_atomic(folder / "summary.csv", csv)
        write_atomic(folder / "summary.md", text)
    return text


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="FairIF's Table 4 on Adult, German and COMPAS.")
    parser.add_argument("--table", default="4", choices=["4"], help="the paper's table")
    parser.add_argument("--splits", type=int, default=20, help="random 70/10/20 splits a dataset")
    parser.add_argument("--datasets", nargs="+", default=list(tabular.TABLES),
                        choices=list(tabular.TABLES))
    parser.add_argument("--model", default="logistic", choices=list(NETWORKS),
                        help="the paper's logistic regression, or an MLP of 64 hidden units")
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES),
                        choices=list(BASELINES), help="rows beside ERM, FairIF and the control")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--name", default=None,
                        help="folder under --results; fairif_table4_<model> where not given")
    parser.add_argument("--lambda", dest="strength", type=float, default=0.1,
                        help="weight of the penalty on eps (the paper's 0.1)")
    parser.add_argument("--norm", choices=NORMS, default="norm",
                        help="penalty: the Euclidean norm as printed, or its square")
    parser.add_argument("--relaxation", choices=KINDS, default="sigmoid")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--draws", type=int, default=10, help="Gumbel draws a validation sample")
    parser.add_argument("--l2", type=float, default=1e-3, help="L2 penalty of every fit")
    options = parser.parse_args(arguments)
    if options.splits < 2:
        raise UserError("--splits must be 2 or more, for a standard deviation")
    if not is_plain_name(options.name or "run"):
        raise UserError("--name must be a plain folder name, without a '/'")
    relaxation = Relaxation(options.relaxation, options.temperature, options.draws)
    inverse = NETWORKS[options.model].inverse
    settings = Settings(relaxation, options.strength, options.norm, inverse, options.l2, steps=100)
    folder = options.results / (options.name or f"fairif_table4_{options.model}")
    print(run(options.datasets, options.splits, folder, options.l2, settings, options.model,
              options.baselines), end="")


if __name__ == "__main__":
    main()
