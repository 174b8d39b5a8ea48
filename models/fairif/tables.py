"""FairIF's Table 4: `python -m models.fairif.tables --table 4 --splits 20`, about two minutes.

Trains, on every split, the logistic regression by ERM, by FairIF and by the control whose eps are
FairIF's on shuffled samples. Writes results/<name>/<dataset>/split<k>.json as it goes, which a
second start with the same settings reuses, and summary.csv and summary.md.

summary.csv has one row a method and one a paired difference; acc and ad in percent (points), aod
and eod as fractions, as the paper prints them: <metric>, its sample standard deviation <metric>_std
over splits, for a difference its 95% t interval <metric>_low and _high, and <metric>_paper.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from datasets import tabular
from models.fairif.fairif import Result, Settings, as_batches, fairif
from models.fairif.influence import predict
from models.fairif.networks import logistic_regression
from models.fairif.relaxation import KINDS, Relaxation, relaxed_gaps
from models.fairif.reweight import NORMS
from models.fairif.training import fit_to_convergence
from utils.errors import UserError, exit_cleanly
from utils.files import write_atomic, write_json
from utils.metrics import fairness_metrics, from_json, to_json
from utils.runs import exclusive, fingerprint
from utils.table_text import aligned
from utils.tables import paired_difference, read_json

PAPER = Path(__file__).resolve().parents[2] / "paper_tables" / "fairif.csv"
TITLES = {"erm": "ERM", "fairif": "FairIF", "shuffled": "shuffled eps"}
PAPER_ROWS = {"erm": "Original", "fairif": "FairIF"}
PAPER_SETTINGS = {"adult": "Adult", "german": "German", "compas": "COMPAS"}
PAIRS = (("fairif", "erm"), ("shuffled", "erm"), ("fairif", "shuffled"))
# column: (factor from fraction, title, decimals, the paper's column)
FIGURES = {
    "acc": (100, "Acc (%)", 2, "acc_percent"),
    "ad": (100, "AD (%)", 2, "ad_percent"),
    "aod": (1, "AOD", 3, "aod"),
    "eod": (1, "EOD", 3, "eod"),
}


def run_split(table: tabular.Table, seed: int, l2: float, settings: Settings) -> dict[str, Any]:
    """Test metrics of the three rows on one split (JSON form), and how the reweighting went.

    `check` holds the worst gradient norm of the fits, the weights clipped at 0, and the relaxed
    validation gaps (TPR, TNR) of ERM, as predicted for FairIF, and of FairIF after retraining.
    Raises UserError as the parts do.
    """
    parts = tabular.split(table, seed)
    train, val, test = (
        tuple(map(torch.from_numpy, (part.x, part.y, part.a)))
        for part in (parts.train, parts.val, parts.test)
    )
    hidden = torch.full_like(train[2], -1)  # protected labels of the training rows are not used
    gradient_norms = []

    def train_model(weights: torch.Tensor) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = logistic_regression(train[0].shape[1]).double()
        fit = fit_to_convergence(model, train[0], train[1], weights, l2=l2)
        gradient_norms.append(fit.gradient_norm)
        return model

    val_batches = as_batches(*val)
    result: Result = fairif(train_model, as_batches(train[0], train[1], hidden), val_batches,
                            settings)
    models = {"erm": result.erm, "fairif": result.fair, "shuffled": result.control}
    rows = {}
    for name, model in models.items():
        prediction = predict(model, as_batches(*test)) > 0
        rows[name] = to_json(fairness_metrics(prediction, test[1], test[2]))
    found = result.reweighting
    after = relaxed_gaps(predict(result.fair, val_batches), val[1], val[2], settings.relaxation)
    check = {
        "gradient_norm": max(gradient_norms),
        "clipped": found.clipped,
        "training_rows": len(found.eps),
        "eps_rms_times_n": (found.eps.norm() * math.sqrt(len(found.eps))).item(),
        "gaps": found.influence.gaps.tolist(),
        "gaps_predicted": found.predicted.tolist(),
        "gaps_after": after.tolist(),
    }
    return {"rows": rows, "check": check}


def figures(splits: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """{row: frame with one line a split and the columns acc, ad (percent), aod, eod}."""
    result = {}
    for row in TITLES:
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
        line: dict[str, Any] = {"dataset": dataset, "row": TITLES[row], "splits": len(splits)}
        for name in FIGURES:
            line[name], line[f"{name}_std"] = frame[name].mean(), frame[name].std()
            line[f"{name}_paper"] = paper.get(row, {}).get(name, math.nan)
        lines.append(line)
    for one, other in PAIRS:
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
    return pd.DataFrame(lines, columns=["dataset", "row", "splits", *order])


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
        "# FairIF, Table 4: logistic regression\n",
        "Mean ± sample standard deviation over splits, [the paper's figure]. Differences are "
        "paired by split: mean [95% t interval]. \"Shuffled eps\" is the control: FairIF's weights "
        "dealt to other samples.\n",
        "Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None) + ".\n",
    ]
    header = ["", *(title for _, title, *_ in FIGURES.values())]
    for dataset, lines in frame.groupby("dataset", sort=False):
        records = lines.to_dict("records")
        parts.append(f"## {PAPER_SETTINGS[dataset]}, {records[0]['splits']} splits\n")
        methods = [line for line in records if " minus " not in line["row"]]
        pairs = [line for line in records if " minus " in line["row"]]
        parts.append(aligned(header, [[m["row"], *map(_mean_cell, [m] * 4, FIGURES)]
                                      for m in methods]))
        parts.append(aligned(header, [[p["row"], *map(_pair_cell, [p] * 4, FIGURES)]
                                      for p in pairs]))
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


def run(names: list[str], splits: int, folder: Path, l2: float, settings: Settings) -> str:
    """All splits of the datasets into `folder`; returns summary.md's text."""
    relaxation = settings.relaxation
    config = {
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
                    split = run_split(table, seed, l2, settings.with_seed(seed))
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
    parser = argparse.ArgumentParser(description="FairIF's Table 4 on Adult, German and COMPAS.")
    parser.add_argument("--table", default="4", choices=["4"], help="the paper's table")
    parser.add_argument("--splits", type=int, default=20, help="random 70/10/20 splits a dataset")
    parser.add_argument("--datasets", nargs="+", default=list(tabular.TABLES),
                        choices=list(tabular.TABLES))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--name", default="fairif_table4", help="folder under --results")
    parser.add_argument("--lambda", dest="strength", type=float, default=0.1,
                        help="weight of the penalty on eps (the paper's 0.1)")
    parser.add_argument("--norm", choices=NORMS, default="norm",
                        help="penalty: the Euclidean norm as printed, or its square")
    parser.add_argument("--relaxation", choices=KINDS, default="sigmoid")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--draws", type=int, default=10, help="Gumbel draws a validation sample")
    parser.add_argument("--l2", type=float, default=1e-3, help="L2 penalty of all three fits")
    options = parser.parse_args(arguments)
    if options.splits < 2:
        raise UserError("--splits must be 2 or more, for a standard deviation")
    relaxation = Relaxation(options.relaxation, options.temperature, options.draws)
    settings = Settings(relaxation, options.strength, options.norm, "exact", options.l2)
    folder = options.results / options.name
    print(run(options.datasets, options.splits, folder, options.l2, settings), end="")


if __name__ == "__main__":
    main()
