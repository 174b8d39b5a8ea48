"""Intervals of the fairness metrics over the test images: the bootstrap, stratified by group.

Every metric is a function of the four group accuracies, and of n images of a group only the number
of right ones matters. To draw the images of a group again n times with replacement is therefore to
draw how often each pattern of right and wrong models occurs: one multinomial draw a group, which is
the bootstrap itself and not an approximation of it. Models are paired, as they see the same images.

Percentiles of the drawn metrics would do for accuracies only. EO, AD and STD are sizes of
differences, which the noise of a draw makes larger, never smaller: of a model that treats all
groups alike their percentiles would leave 0 out, always. So their interval is the estimate plus and
minus the 95% quantile of the metric of the errors, which by the triangle inequality is enough for
every truth; WST's reaches from the smallest to the largest error of any group. In simulations of
100 to 1,500 images a group 92 to 100% of them hold the truth (tests/test_evaluate.py). Differences
of two models are percentiles, moved so that the draws' mean is the estimate: 90 to 99%, but of STD
82% where one of the two is fair exactly. Where the models differ on few images of a group they are
too narrow, as every bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import GROUPS, METRICS, group_index

DRAWS = 10_000
LEVEL = 95  # per cent
SIZES = ("std", "eo_mean", "eo_worst", "ad", "aod", "eod")  # of differences between groups
Interval = tuple[float, float]


def group_accuracies(
    right: np.ndarray, y: np.ndarray, a: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """float64 [draws, M, 4]: the group accuracies of M models on images drawn again.

    right: bool [M, N], whether a model is right about an image; y, a: int [N] in {0, 1}. Of an
    empty group they are NaN.
    """
    group, rng = group_index(y, a), np.random.default_rng(seed)
    result = np.full((draws, len(right), len(GROUPS)), np.nan)
    for g in range(len(GROUPS)):
        here = right[:, group == g]
        if number := here.shape[1]:
            patterns, counts = np.unique(here, axis=1, return_counts=True)
            drawn = rng.multinomial(number, counts / number, size=draws)  # [draws, patterns]
            result[:, :, g] = drawn @ patterns.T.astype(float) / number
    return result


def measures(group_acc: np.ndarray, count: Sequence[int]) -> dict[str, np.ndarray]:
    """METRICS and the group accuracies, each float64 [...], as `fairness_metrics` defines them.

    group_acc: float64 [..., 4] in the order of GROUPS. count: images of the four groups.
    """
    count = np.asarray(count, float)
    g = np.moveaxis(np.asarray(group_acc, float), -1, 0)
    right = np.where(count[(...,) + (None,) * (g.ndim - 1)] > 0, g, 0)  # an empty group adds none

    def over(groups: Sequence[int]) -> np.ndarray:
        here = count[list(groups)]
        total = np.tensordot(here, right[list(groups)], 1)
        return total / here.sum() if here.sum() else np.full_like(total, np.nan)

    fpr, tpr = np.abs(g[0] - g[1]), np.abs(g[2] - g[3])
    values = {
        "acc": over((0, 1, 2, 3)), "wst": g.min(0), "std": g.std(0), "eo_mean": (tpr + fpr) / 2,
        "eo_worst": np.maximum(tpr, fpr), "ad": np.abs(over((0, 2)) - over((1, 3))),
        "aod": (tpr + fpr) / 2, "eod": tpr,
    }
    return {name: values[name] for name in METRICS} | {
        f"group_acc_{y}_{a}": g[i] for i, (y, a) in enumerate(GROUPS)}


def percentiles(values: np.ndarray) -> Interval:
    """The middle LEVEL per cent of [draws]; NaN where one of them is."""
    edge = (100 - LEVEL) / 2
    low, high = np.percentile(values, [edge, 100 - edge])
    return float(low), float(high)


def of_model(observed: np.ndarray, drawn: np.ndarray, count: Sequence[int]) -> dict[str, Interval]:
    """{metric: interval in [0, 1]} of one model. observed: float64 [4], its group accuracies;
    drawn: float64 [draws, 4]."""
    values, errors = measures(observed, count), drawn - observed
    result = {}
    for name, error in measures(errors, count).items():
        if name == "wst":
            low, high = percentiles(errors.min(1))[0], percentiles(errors.max(1))[1]
        elif name in SIZES:
            high = float(np.percentile(error, LEVEL))
            low = -high
        else:
            low, high = percentiles(error)
        low, high = np.clip([values[name] + low, values[name] + high], 0, 1)
        result[name] = float(low), float(high)
    return result


def intervals(
    right: np.ndarray, y: np.ndarray, a: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[list[dict[str, Interval]], list[dict[str, Interval]]]:
    """(of each model {metric: interval}; of each model after the first {metric: interval of its
    difference to the first}). right, y, a: as for `group_accuracies`."""
    group = group_index(y, a)
    count = np.bincount(group, minlength=4)
    drawn = group_accuracies(right, y, a, draws, seed)
    with np.errstate(invalid="ignore"):  # of an empty group NaN
        observed = np.stack([np.bincount(group, each, 4) / count for each in right])
    own = [of_model(observed[m], drawn[:, m], count) for m in range(len(right))]
    values, estimates = measures(drawn, count), measures(observed, count)
    beside: list[dict[str, Interval]] = [{} for _ in right[1:]]
    for name, value in values.items():
        for m, found in enumerate(beside, 1):
            difference = value[:, m] - value[:, 0]
            moved = estimates[name][m] - estimates[name][0] - difference.mean()
            found[name] = percentiles(difference + moved)
    return own, beside


def of_counts(
    group_acc: Sequence[float], count: Sequence[int], draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """{metric: interval} from four group accuracies and numbers of images alone, as a saved run's
    metrics.json holds them."""
    right, groups = [], []
    for g, (accuracy, number) in enumerate(zip(group_acc, count, strict=True)):
        correct = round(accuracy * number) if number else 0
        right += [True] * correct + [False] * (number - correct)
        groups += [g] * number
    groups = np.array(groups, int)
    own, _ = intervals(np.array([right]), groups // 2, groups % 2, draws, seed)
    return own[0]
