"""What updating one tensor does, against Delta1 and Delta2: models/tensor_effect.py measures it.

A tensor's effects are what `EFFECTS` names, against the ERM model of the same seed and in points on
validation images: more is better. AIM-Fair's argument expects small Delta1 to go with accuracy (a
negative correlation) and large Delta2 with fairness (a positive one). Beside the two stands a
tensor's size, which the argument does not name. Cross-entropy and the EO of probabilities are there
because one tensor may change hardly a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from utils.records import read_record
from utils.reporting.comparisons import Paired, paired_difference
from utils.reporting.results import Results
from utils.reporting.section import Section, interval

PREDICTORS = {"delta1": "Delta1", "delta2": "Delta2", "ratio": "Delta2 / Delta1",
              "elements": "elements"}
EFFECTS = {"acc": "change of accuracy", "loss": "reduction of cross-entropy",
           "eo_worst": "reduction of EO worst", "soft_eo": "reduction of probabilities' EO"}


def effects(results: Results) -> dict[int, dict[str, Any]]:
    """{seed: effects.json} of the setting's runs that have one."""
    found = results.each("effects.json", lambda path: read_record(
        path, "erm", "statistics", "tensors", "blocks"))
    return {seed: record for seeds in found.values() for seed, record in seeds.items()}


def gains(record: Mapping[str, Any], parts: str) -> pd.DataFrame:
    """One row a tensor or block ("tensors", "blocks"): `EFFECTS` in points (of cross-entropy 0.01
    nats), more is better, and of a tensor the `PREDICTORS`."""
    rows = {}
    for name, after in record[parts].items():
        rows[name] = _gain(record, after)
        if parts == "tensors":
            rows[name] |= {key: after[key] for key in ("delta1", "delta2", "elements", "selected")}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    if parts == "tensors":
        frame["ratio"] = frame["delta2"] / frame["delta1"].replace(0, np.nan)
    return frame


def _gain(record: Mapping[str, Any], after: Mapping[str, float]) -> dict[str, float]:
    gain = {effect: 100 * (record["erm"][effect] - after[effect]) for effect in EFFECTS}
    return gain | {"acc": -gain["acc"]}  # the only one of which more is better


def floors(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Paired]:
    """{effect: that of batch norm's statistics alone, mean of the seeds and its interval}."""
    return _over_seeds(records, {seed: record["statistics"] for seed, record in records.items()})


def _over_seeds(records: Mapping[int, Mapping[str, Any]],
                after: Mapping[int, Mapping[str, float]]) -> dict[str, Paired]:
    """{effect: what one update did, mean of the seeds and its interval}. after: {seed: figures}."""
    gain = {seed: _gain(record, after[seed]) for seed, record in records.items()}
    return {effect: _mean({seed: each[effect] for seed, each in gain.items()})
            for effect in EFFECTS}


def _mean(values: Mapping[int, float]) -> Paired:
    """Mean over seeds and its t interval."""
    return paired_difference(values, dict.fromkeys(values, 0.0))


def correlations(records: Mapping[int, Mapping[str, Any]]) -> dict[tuple[str, str], Paired]:
    """{(predictor, effect): Spearman's rho over the tensors, mean of the seeds and its interval}.

    Each seed has its own rho; the interval is the t interval of their mean. NaN where a seed has a
    constant column or a group without validation images.
    """
    frames = {seed: gains(record, "tensors") for seed, record in records.items()}
    return {(predictor, effect): _correlation(frames, predictor, effect)
            for predictor in PREDICTORS for effect in EFFECTS}


def _correlation(frames: Mapping[int, pd.DataFrame], one: str, other: str) -> Paired:
    """Spearman's rho of two columns of `gains`, mean of the seeds and its t interval."""
    rho = {}
    for seed, frame in frames.items():
        two = frame[[one, other]].to_numpy(dtype=float)
        constant = (two == two[0]).all(0).any()
        rho[seed] = np.nan if constant else float(spearmanr(two).statistic)
    return _mean(rho)


def section(records: Mapping[int, Mapping[str, Any]]) -> Section:
    """Each predictor's correlations, and what AIM-Fair's choice does against the other tensors."""
    found = correlations(records)
    rows = [{"ranked by": title} | {
        EFFECTS[effect]: interval(*found[predictor, effect][:3]) for effect in EFFECTS}
        for predictor, title in PREDICTORS.items()]
    halves = {effect: paired_difference(*(
        {seed: _mean_gain(record, effect, side) for seed, record in records.items()}
        for side in (True, False))) for effect in EFFECTS}
    rows.append({"ranked by": "selected minus not, points"}
                | {EFFECTS[effect]: interval(*halves[effect][:3]) for effect in EFFECTS})
    blocks = next(iter(records.values()))["blocks"]
    alone = {"nothing updated": floors(records)} | {
        f"{block} updated": _over_seeds(records, {
            seed: record["blocks"][block] for seed, record in records.items()}) for block in blocks}
    rows += [{"ranked by": f"{name}, points"} | {
        EFFECTS[effect]: interval(*gain[:3]) for effect, gain in found.items()}
        for name, found in alone.items()]
    frames = {seed: gains(record, "tensors") for seed, record in records.items()}
    both = _correlation(frames, "delta1", "delta2")
    count = len(next(iter(records.values()))["tensors"])
    return Section(
        "What updating one tensor does",
        f"Spearman's correlation over {count} tensors, each updated alone, with the effect on "
        f"validation images: mean of {len(records)} seeds [95% t interval]. The argument for the "
        "mask needs accuracy to fall with Delta1 and fairness to rise with Delta2.",
        pd.DataFrame(rows), lines=[
            f"Delta1 with Delta2: rho {interval(*both[:3])}. Where it is near 1 the two rankings "
            "are one: no tensor is low in the first and high in the second. Nothing updated: batch "
            "norm's statistics alone, which follow the synthetic images in every row. Updated: a "
            "whole block and nothing else."],
    )


def _mean_gain(record: Mapping[str, Any], effect: str, selected: bool) -> float:
    frame = gains(record, "tensors")
    return float(frame.loc[frame["selected"] == selected, effect].mean())
