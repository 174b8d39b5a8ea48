"""Group fairness metrics of AIM-Fair (section 4.2) and FairIF (section 3.1) from 0/1 predictions.

y is the target label, a the protected label, h the prediction; g(y, a) = P(h = y | y, a) is the
accuracy of the group (y, a). Everything is a fraction in [0, 1]. A metric that needs a group
without images is NaN, never 0, and `group_count` says which it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

GROUPS: tuple[tuple[int, int], ...] = ((0, 0), (0, 1), (1, 0), (1, 1))  # (y, a), in order of g
METRICS: tuple[str, ...] = ("acc", "wst", "std", "eo_mean", "eo_worst", "ad", "aod", "eod")


def group_index(y, a):
    """The group g = 2 * y + a in {0, 1, 2, 3}, of the shape and kind of the inputs.

    y, a: numbers, lists, numpy arrays or torch tensors (any device) of the same shape, in {0, 1}.
    Raises ValueError for other values: with a = -1 (label withheld) 2 * y + a would be another
    group's number.
    """
    if isinstance(y, list | tuple) or isinstance(a, list | tuple):
        y, a = np.asarray(y), np.asarray(a)
    for name, value in (("y", y), ("a", a)):
        valid = (value == 0) | (value == 1)
        if not (valid if isinstance(valid, bool) else bool(valid.all())):
            raise ValueError(f"{name} must hold only 0 and 1 (a = -1 means the label is withheld)")
    return 2 * y + a


def fairness_metrics(prediction, y, a) -> dict[str, Any]:
    """Accuracy and fairness of 0/1 predictions on N images.

    prediction, y, a: numpy arrays, lists or torch tensors of shape [N], N >= 1, values in {0, 1}.
    Returns fractions in [0, 1], with TPR_a = P(h = 1 | y = 1, a), FPR_a = P(h = 1 | y = 0, a):

        acc       P(h = y) over all images
        wst       min over groups of g(y, a)                         AIM-Fair eq. 10
        std       population standard deviation of the four g(y, a)
        eo_mean   (|TPR_0 - TPR_1| + |FPR_0 - FPR_1|) / 2            AIM-Fair eq. 9, its Table 8
        eo_worst  max(|TPR_0 - TPR_1|, |FPR_0 - FPR_1|)              what its other tables hold
        ad        |P(h = y | a = 0) - P(h = y | a = 1)|              FairIF eq. 3
        aod       (|TPR_1 - TPR_0| + |TNR_1 - TNR_0|) / 2            FairIF eq. 4 (equals eo_mean)
        eod       |TPR_1 - TPR_0|                                    FairIF eq. 5

    and `group_acc` {(y, a): g} and `group_count` {(y, a): number of images}. With an empty group
    its accuracy, wst, std, eo_* and aod are NaN; eod is NaN only where a y = 1 group is empty, ad
    only where no image has a = 0 or none has a = 1.
    Raises ValueError on empty input, unequal lengths and values outside {0, 1}.
    """
    prediction = _labels("prediction", prediction)
    y, a = _labels("y", y), _labels("a", a)
    if not len(prediction) == len(y) == len(a):
        raise ValueError(
            "prediction, y and a must have the same length, "
            f"not {len(prediction)}, {len(y)} and {len(a)}"
        )
    group = group_index(y, a)
    count = np.bincount(group, minlength=4)
    correct = np.bincount(group[prediction == y], minlength=4)
    group_acc = {group: _ratio(correct[i], count[i]) for i, group in enumerate(GROUPS)}

    # |FPR_0 - FPR_1| = |TNR_0 - TNR_1|, and TNR_a = g(0, a), TPR_a = g(1, a)
    fpr_difference = abs(group_acc[0, 0] - group_acc[0, 1])
    tpr_difference = abs(group_acc[1, 0] - group_acc[1, 1])
    acc_by_a = [_ratio(correct[s] + correct[2 + s], count[s] + count[2 + s]) for s in (0, 1)]
    wst, std = _worst_and_spread(group_acc)
    return {
        "acc": _ratio(correct.sum(), count.sum()),
        "wst": wst,
        "std": std,
        "eo_mean": (tpr_difference + fpr_difference) / 2,
        "eo_worst": float(np.maximum(tpr_difference, fpr_difference)),  # max() would drop a NaN
        "ad": abs(acc_by_a[0] - acc_by_a[1]),
        "aod": (tpr_difference + fpr_difference) / 2,
        "eod": tpr_difference,
        "group_acc": group_acc,
        "group_count": {group: int(count[i]) for i, group in enumerate(GROUPS)},
    }


def table_style(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over seeds the way AIM-Fair's tables compute them; same keys as fairness_metrics.

    runs: one fairness_metrics result per seed (or its JSON form). Group accuracies are averaged
    over seeds first; wst is the smallest and std the population standard deviation of these means.
    acc, eo_mean, eo_worst, ad, aod and eod are means over seeds. A figure that is NaN in one seed
    is NaN here. `group_count` is the smallest count of any seed (the test set is usually the same).
    Raises ValueError without runs.
    """
    runs = _runs(runs)
    group_acc = {group: _mean([run["group_acc"][group] for run in runs]) for group in GROUPS}
    result = {name: _mean([run[name] for run in runs]) for name in METRICS}
    result["wst"], result["std"] = _worst_and_spread(group_acc)
    result["group_acc"] = group_acc
    result["group_count"] = {c: min(run["group_count"][c] for run in runs) for c in GROUPS}
    return result


def summary(runs: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation (n - 1) over seeds of each seed's own figure.

    runs: as for table_style. Returns {metric: (mean, std)} for the eight METRICS; the standard
    deviation of a single seed is NaN. Raises ValueError without runs.
    """
    runs = _runs(runs)
    result = {}
    for name in METRICS:
        values = np.array([run[name] for run in runs])
        spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        result[name] = (float(values.mean()), spread)
    return result


def to_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures with groups as "y_a" strings; utils.files.write_json turns NaN into null."""
    return {
        key: {f"{y}_{a}": value[y, a] for y, a in GROUPS} if key.startswith("group_") else value
        for key, value in metrics.items()
    }


def from_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Undo to_json: groups as (y, a) tuples and null as NaN; a fairness_metrics result stays as is.

    Raises KeyError naming the metric or group that is missing.
    """
    result: dict[str, Any] = {name: _number(metrics[name]) for name in METRICS}
    for key in ("group_acc", "group_count"):
        groups = metrics[key]
        values = {c: groups[c] if c in groups else groups[f"{c[0]}_{c[1]}"] for c in GROUPS}
        result[key] = {c: _number(v) if key == "group_acc" else int(v) for c, v in values.items()}
    return result


def _labels(name: str, values) -> np.ndarray:
    """Values in {0, 1} as int64 [N]."""
    if hasattr(values, "detach"):  # a torch tensor, maybe bfloat16 or on a GPU
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have shape [N] with N >= 1, not {list(array.shape)}")
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must hold only 0 and 1 (a = -1 means the label is withheld)")
    return array.astype(np.int64)


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else math.nan


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _number(value) -> float:
    return math.nan if value is None else float(value)


def _worst_and_spread(group_acc: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    values = np.array([group_acc[group] for group in GROUPS])
    return float(values.min()), float(values.std())  # both NaN where a group is


def _runs(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    runs = [from_json(run) for run in runs]
    if not runs:
        raise ValueError("no runs to summarise")
    return runs
