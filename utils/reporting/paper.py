"""The papers' own figures, from paper_tables/: a row of one of their tables, in percent.

A table is named as AIM-Fair numbers it ("3", "8 (ViT-S/32)"), or "fairif-1" to "fairif-5" and
"fairif-11" as FairIF does. FairIF's paper prints some figures that cannot be: AOD is half the sum
of two gaps of which EOD is one, so AOD < EOD / 2 is impossible. Such rows are shown, marked, and
nothing is compared with them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.reporting.results import read_table

TABLES = Path(__file__).parent / "paper_tables"
FIGURES = ("acc", "wst", "eo", "std", "ad", "aod", "eod")  # columns; AIM-Fair's eo is one of ours
GROUP_FIGURES = ("g00", "g01", "g10", "g11")
OUR_EO = {"worst": "eo_worst", "mean": "eo_mean"}  # which of ours stands beside its EO
FAIRIF = "fairif-"
FAIRIF_TABLES = ("1", "2", "3", "4", "5", "11")  # in absolute figures
FAIRIF_SETTINGS = {  # (dataset, target, protected) -> its name in FairIF's tables
    ("celeba", "Blond_Hair", "Male"): "CelebA",
    ("fairface", "Male", "White"): "FairFace",
    ("adult", "income", "sex"): "Adult",
    ("german", "credit", "sex"): "German",
    ("compas", "recidivism", "race"): "COMPAS",
    ("ci_mnist_size", "even", "red"): "group size",
    ("ci_mnist_shift", "even", "red"): "group distribution",
    ("ci_mnist_class", "even", "red"): "class size",
}
IMPOSSIBLE = "AOD < EOD / 2"


@functools.cache
def printed(paper: str) -> pd.DataFrame:
    """Every printed row of a paper, "aim_fair" or "fairif"; figures as printed, NaN if not."""
    return read_table(TABLES / f"{paper}.csv")


def own_row(table: str | None, row: str | None) -> str | None:
    """A method's row where the paper that `table` belongs to knows it, None where only the other
    paper does (or `row` is None)."""
    if table is None or row is None:
        return None
    held = printed("fairif" if table.startswith(FAIRIF) else "aim_fair")["row"]
    return row if _renamed(table, row) in set(held) else None


def _renamed(table: str, row: str) -> str:
    """ERM's name differs between tables; FairIF's Table 11 calls FairIF by its share of labels."""
    if table.startswith(FAIRIF):
        shares = {"FairIF": "100%"} if table == f"{FAIRIF}11" else {}
        return ({"Baseline (ERM)": "Original"} | shares).get(row, row)
    return {"Baseline (ERM)": "ERM"}.get(row, row) if table.split()[0] in ("1", "2") else row


def paper_row(
    table: str, row: str, dataset: str | None, target: str | None, protected: str | None
) -> dict[str, float] | None:
    """{acc, wst, eo, std, ad, aod, eod, g00, g01, g10, g11} in percent as printed, NaN if not.

    table, row: as in paper_tables/aim_fair.csv ("3", "AIM-Fair") or fairif.csv ("fairif-5",
    "FairIF"). dataset, target and protected may be None where the first two are enough. None where
    the table has no such row or pair. Raises UserError for an unknown table and where several rows
    fit.
    """
    row = _renamed(table, row)
    if table.startswith(FAIRIF):
        return _fairif_row(table.removeprefix(FAIRIF), row, dataset, target, protected)
    found = _aim_fair_row(table, row, dataset, target, protected)
    if found is None:
        return None
    return {name: float(found.get(name, math.nan)) for name in (*FIGURES, *GROUP_FIGURES)}


def marks_of(
    table: str, row: str, dataset: str | None, target: str | None, protected: str | None
) -> str | None:
    """Which of a row's group accuracies are not as the paper prints them, None where all are.

    "g10 computed": illegible there, solved for from the accuracy and the group counts. "g10
    printed 91.26": the paper's figure is in another column's place and was corrected. A figure
    that is NaN is not printed. Arguments and errors as for `paper_row`.
    """
    if table.startswith(FAIRIF):
        return None
    found = _aim_fair_row(table, _renamed(table, row), dataset, target, protected)
    return found["marks"] if found is not None and isinstance(found["marks"], str) else None


def _aim_fair_row(table: str, row: str, *setting: str | None) -> pd.Series | None:
    dataset, target, protected = setting
    rows = printed("aim_fair")
    if table not in set(rows["table"]):
        raise UserError(
            f"the paper has no table {table} of figures; it has {', '.join(rows['table'].unique())}"
        )
    given = {"table": table, "row": row, "dataset": dataset, "target": target,
             "protected": protected}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        rows = rows[rows[name] == value]
    return _one(rows, "aim_fair", given)


def _fairif_row(number: str, row: str, *setting: str | None) -> dict[str, float] | None:
    rows = printed("fairif")
    numbers = rows["table"].str.split().str[0]
    name = FAIRIF_SETTINGS.get(setting)
    if number not in FAIRIF_TABLES:
        raise UserError(
            f"FairIF's tables of figures are {', '.join(FAIRIF_TABLES)}, not {number}"
        )
    rows = rows[(numbers == number) & (rows["setting"] == name) & (rows["row"] == row)]
    found = _one(rows, "fairif", {"table": number, "row": row, "setting": name or setting})
    if found is None:
        return None
    figures = {"acc": float(found["acc_percent"]), "ad": float(found["ad_percent"]),
               "aod": 100 * float(found["aod"]), "eod": 100 * float(found["eod"])}
    return dict.fromkeys((*FIGURES, *GROUP_FIGURES), math.nan) | figures


def _one(rows: pd.DataFrame, name: str, given: Mapping[str, Any]) -> pd.Series | None:
    """The row that fits, None where none does. Raises UserError where several do."""
    if len(rows) > 1:
        raise UserError(
            f"{len(rows)} rows of utils/reporting/paper_tables/{name}.csv fit {given}; name "
            "another --paper-row"
        )
    return rows.iloc[0] if len(rows) else None


def impossible(figures: Mapping[str, float]) -> bool:
    """Whether a row of `paper_row` has AOD < EOD / 2 by more than its rounding to 0.01 percent."""
    return figures["aod"] < figures["eod"] / 2 - 0.0075


def eo_definition(table: str, row: str) -> str | None:
    """"worst", "mean" or "not stated": which equalized odds difference a paper row holds.

    Only Table 8 fits equation 9 (the mean); other rows with group accuracies fit the larger
    difference. The competitors of Tables 1 and 2 come from another pipeline, without them.
    None for FairIF's tables, which hold none.
    """
    number = table.split()[0]
    if number.startswith(FAIRIF):
        return None
    if number == "8":
        return "mean"
    return "not stated" if number in ("1", "2") and row != "AIM-Fair" else "worst"


def relative_change(dataset: str, target: str, protected: str, network: str) -> dict[str, float]:
    """FairIF's Table 6: {acc, ad, aod, eod}, change in percent of ERM's figure; {} if not there.

    network: as in --backbone, with or without the hidden layer ("resnet18", "resnet34_h128").
    """
    rows = printed("fairif")
    name = FAIRIF_SETTINGS.get((dataset, target, protected))
    title = network.removesuffix("_h128").replace("resnet", "ResNet-")
    rows = rows[(rows["table"].str.split().str[0] == "6") & (rows["setting"] == name)
                & (rows["row"] == title)]
    if rows.empty:
        return {}
    columns = {"acc": "acc_percent", "ad": "ad_percent", "aod": "aod", "eod": "eod"}
    found = rows.iloc[0]
    return {figure: float(found[column].rstrip("%")) for figure, column in columns.items()}
