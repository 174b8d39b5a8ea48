"""Which measure of a synthetic set tells how well a model fine-tuned on it treats its worst group?

    python -m stable_diffusion.correlate \
        --set data/synthetic/plain/Smiling_Male results/demo/plain/aim_fair \
        --set data/synthetic/contextual_25/Smiling_Male results/demo/contextual_25/aim_fair \
        --set data/synthetic/contextual_50/Smiling_Male results/demo/contextual_50/aim_fair

Each --set is a folder of images that stable_diffusion.audit has measured (with --dataset, in the
same features) and the runs that learned from them. Printed are the measures in all groups, the
worst group's accuracy (mean over seeds), and Kendall's tau of each measure with it over the sets.
Few sets say little: with n of them no p is below 2 / n!, which is 0.33 for three and 0.08 for four.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started by its path: python stable_diffusion/correlate.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.metrics import METRICS
from utils.options import ArgumentParser, path
from utils.reporting.results import Results

MEASURES = {  # name -> (what it is, which way is better)
    "fid": ("Frechet distance to the photographs", "lower"),
    "kid": ("kernel distance to the photographs, without bias by their number", "lower"),
    "distance": ("mean cosine distance of two images", "higher"),
    "vendi": ("Vendi score, the effective number of different images", "higher"),
    "density": ("how densely photographs surround an image", "higher"),
    "coverage": ("share of the photographs with an image nearby", "higher"),
    "nearest": ("median cosine distance to the nearest photograph", "neither"),
    "near_copies": ("share nearer to one than 99% of held-out photographs are", "lower"),
}
FEWEST = 3  # sets; over two every measure agrees or disagrees fully


def read_audit(folder: Path) -> tuple[dict[str, float], str]:
    """(MEASURES in all groups and the mean agreement, name of the features) of an audited folder.

    Raises UserError where audit.json is missing, damaged or without a comparison.
    """
    file = folder / "audit.json"
    try:
        report = json.loads(file.read_text())
        quality = report["quality"]
        values = {name: float("nan") if value is None else float(value)
                  for name, value in quality["groups"]["all"].items() if name in MEASURES}
        values = {name: values[name] for name in MEASURES}
        shares = [share for group in report["cells"].values()
                  for share in group["agreement"].values() if share is not None]
        values["agreement"] = float(np.mean(shares)) if shares else float("nan")
        return values, str(quality["features"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--set {folder}: {file} is missing or holds no comparison with photographs "
            f"({type(error).__name__}); start python -m stable_diffusion.audit --images "
            f"{folder} --dataset NAME first"
        ) from None


def mean_metric(runs: Path, metric: str) -> float:
    """Mean over the finished seeds of a method's folder, in percent. UserError without any."""
    try:
        frame = Results(runs.parent).frame
    except UserError:
        frame = pd.DataFrame()
    if runs.name not in frame.index.get_level_values(0):
        raise UserError(
            f"--set {runs}: no finished run (seed<k>/metrics.json) there; give the folder of one "
            "method, such as results/demo/aim_fair"
        )
    return float(frame.loc[runs.name, metric].mean())


def correlations(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Kendall's tau and its p of every column of `table` with the column `metric`; one row a set.

    Exact p without ties. NaN where a measure is not known for every set, or never differs.
    """
    rows = {}
    for name in table.columns.drop(metric):
        values = table[name]
        if values.isna().any() or values.nunique() == 1:
            rows[name] = (np.nan, np.nan)
        else:
            rows[name] = tuple(kendalltau(values, table[metric]))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["tau", "p"])


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="python -m stable_diffusion.correlate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--set", action="append", nargs=2, type=path, required=True,
                        metavar=("IMAGES", "RUNS"),
                        help="audited images and the runs of one method that learned from them")
    parser.add_argument("--metric", default="wst", choices=METRICS,
                        help="of the runs (default: the worst group's accuracy)")
    parser.add_argument("--out", type=path, help="also write table and correlations there, as json")
    args = parser.parse_args(arguments)
    if len(args.set) < FEWEST:
        raise UserError(f"--set is given {len(args.set)} times; give at least {FEWEST} sets")
    rows, networks = {}, {}
    for images, runs in args.set:
        values, network = read_audit(images)
        rows[str(images)] = values | {args.metric: mean_metric(runs, args.metric)}
        networks.setdefault(network, images)
    if len(networks) > 1:
        said = ", ".join(f"{folder} in {network}" for network, folder in networks.items())
        raise UserError(f"the sets are measured in different features ({said}); start the audits "
                        "again with the same --features")
    table = pd.DataFrame.from_dict(rows, orient="index")
    found = correlations(table, args.metric)
    print(table.to_string(float_format="{:.4g}".format))
    print(f"\nwith {args.metric}, over {len(table)} sets, features of {next(iter(networks))}:")
    print(found.to_string(float_format="{:.2f}".format))
    if args.out:
        write_json(args.out, {"features": next(iter(networks)), "metric": args.metric,
                              "sets": table.to_dict("index"),
                              "correlations": found.to_dict("index")})


if __name__ == "__main__":
    main()
