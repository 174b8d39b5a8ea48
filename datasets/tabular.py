"""Adult, German and COMPAS from the committed raw files (datasets/tabular/README.md), for FairIF.

`read` gives the rows whose (y, a) counts are those of FairIF's Table 8, `split` a seeded 70/10/20
split whose features are standardised by the training part; `load` is an entry of DATASETS.
"""

from __future__ import annotations

import functools
import hashlib
import io
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.base import ArrayTable, Splits, check_fixed, check_val
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent / "tabular"
ATTRIBUTES = {  # name -> what is learned (y), what to be fair about (a)
    "adult": ("income", "sex"),  # above 50,000 dollars a year; male
    "german": ("credit", "sex"),  # bad credit; male
    "compas": ("recidivism", "race"),  # within two years; White
}
FRACTIONS = (0.7, 0.1, 0.2)  # train, validation, test; the paper's own splits cannot be recovered
SHA256 = {  # of the unpacked files
    "adult/adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "adult/adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    "german/german.data": "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
    "compas/compas-scores-two-years.csv":
        "a5e5c34bfd2d1f065bb12a44c0323421baf74b98b97d585915a0c2e1513ecaba",
}


def raw(file: str, root: Path = ROOT) -> str:
    """The text of a committed raw file, a key of SHA256.

    Raises UserError where it is missing, does not unpack, or is not the published file.
    """
    path = Path(root) / f"{file}.xz"
    mend = f"restore it (git checkout -- datasets/tabular/{file}.xz)"
    try:
        data = lzma.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {mend}") from None
    except lzma.LZMAError as error:
        raise UserError(f"{path} does not unpack ({error}); {mend}") from None
    if hashlib.sha256(data).hexdigest() != SHA256[file]:
        raise UserError(f"{path} is not the published file, its sha256 differs; {mend}")
    return data.decode()


def read(name: str, root: Path = ROOT) -> ArrayTable:
    """All rows of "adult", "german" or "compas", features not yet standardised.

    Raises UserError for another name and as `raw` does.
    """
    if name not in TABLES:
        raise UserError(f"there is no tabular dataset {name}; choose from {', '.join(TABLES)}")
    frame, y, a = TABLES[name](root)
    return ArrayTable(
        name, frame.to_numpy(np.float64), y.to_numpy(np.int64), a.to_numpy(np.int64),
        tuple(frame.columns),
    )


def split(table: ArrayTable, seed: int) -> Splits:
    """Shuffle the rows by `seed`, cut them 70/10/20, standardise by the training part.

    Every feature is shifted and scaled to mean 0 and standard deviation 1 (population) over the
    training rows; a feature that is constant there becomes 0 everywhere, as no method could learn
    from it.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    first, second = np.round(np.cumsum(FRACTIONS)[:2] * len(table)).astype(int)
    parts = [table.take(rows) for rows in np.split(order, [first, second])]
    mean, spread = parts[0].x.mean(axis=0), parts[0].x.std(axis=0)
    constant = np.ptp(parts[0].x, axis=0) == 0  # the rounded deviation of a constant may not be 0
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
    return Splits(*(replace(part, x=(part.x - mean) * scale) for part in parts))


def load(
    name: str, root: str | Path, target: str, protected: str, *, seed: int = 0,
    val: str = "official", blind: bool = False,
) -> Splits:
    """The 70/10/20 split of a data set of TABLES that `seed` draws; without `val` the validation
    rows are left out. blind: without the protected attribute's columns (others may tell it, as
    Adult's "husband" does). root is not read: the raw files are committed. Raises UserError for
    other attributes than ATTRIBUTES, another `val`, and as `raw` does."""
    check_val(val)
    check_fixed(name, ATTRIBUTES[name], target, protected)
    table = _read_once(name)
    if blind:
        seen = [not column.startswith(f"{protected}=") for column in table.columns]
        columns = tuple(np.array(table.columns)[seen].tolist())
        table = replace(table, x=table.x[:, seen], columns=columns)
    parts = split(table, seed)
    return parts if val == "official" else replace(parts, val=None)


@functools.lru_cache(maxsize=1)
def _read_once(name: str) -> ArrayTable:
    return read(name)


def _adult(root: Path) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    names = ["age", "workclass", "fnlwgt", "education", "education-num", "marital-status",
             "occupation", "relationship", "race", "sex", "capital-gain", "capital-loss",
             "hours-per-week", "native-country", "income"]
    reader = {"names": names, "skipinitialspace": True, "na_values": "?"}
    parts = [
        pd.read_csv(io.StringIO(raw("adult/adult.data", root)), **reader),
        pd.read_csv(io.StringIO(raw("adult/adult.test", root)), skiprows=1, **reader),
    ]
    frame = pd.concat(parts, ignore_index=True).dropna()
    y = frame["income"].str.startswith(">50K")  # adult.test ends its labels with a full stop
    a = frame["sex"] == "Male"
    edges = [0, *range(20, 66, 5), 200]  # 11 buckets, see the README
    frame["age"] = pd.cut(frame["age"], edges, right=False)
    numeric = ["education-num", "fnlwgt", "capital-gain", "capital-loss", "hours-per-week"]
    return _one_hot(frame.drop(columns="income"), numeric), y, a


def _german(root: Path) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    names = ["status", "duration", "history", "purpose", "amount", "savings", "employment",
             "installment_rate", "sex", "debtors", "residence", "property", "age", "plans",
             "housing", "credits", "job", "liable", "telephone", "foreign", "credit"]
    frame = pd.read_csv(io.StringIO(raw("german/german.data", root)), sep=" ", names=names)
    y = frame["credit"] == 2  # 2 is bad credit
    a = frame["sex"].isin(["A91", "A93", "A94"])  # A92 and A95 are women
    frame["sex"] = np.where(a, "male", "female")
    numeric = ["duration", "amount", "installment_rate", "residence", "age", "credits", "liable"]
    return _one_hot(frame.drop(columns="credit"), numeric), y, a


def _compas(root: Path) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    text = raw("compas/compas-scores-two-years.csv", root)
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
    frame = frame[
        frame["days_b_screening_arrest"].between(-30, 30)
        & (frame["is_recid"] != -1)
        & (frame["c_charge_degree"] != "O")
        & (frame["score_text"] != "N/A")
        & frame["race"].isin(["African-American", "Caucasian"])
    ]
    numeric = ["age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
    features = frame[["sex", "race", "age_cat", "c_charge_degree", *numeric]]
    return _one_hot(features, numeric), frame["two_year_recid"] == 1, frame["race"] == "Caucasian"


def _one_hot(frame: pd.DataFrame, numeric: list[str]) -> pd.DataFrame:
    """One 0/1 column "name=value" for every value of every other column; numeric columns stay."""
    categorical = [name for name in frame.columns if name not in numeric]
    return pd.get_dummies(frame, columns=categorical, prefix_sep="=", dtype=float)


TABLES: dict[str, Callable[[Path], tuple[pd.DataFrame, pd.Series, pd.Series]]] = {
    "adult": _adult,
    "german": _german,
    "compas": _compas,
}
