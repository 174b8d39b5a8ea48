"""How synthetic images compare with photographs: FID, KID, diversity, and memorised photographs.

Arrays in, numbers out: every function takes features float [N, D], one row an image. What a
distance means depends on the network that the features are of (judges.py), so its name stands in
every result; only FIDs of the same network, and of similar numbers of images, can be compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin_min, pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from utils.metrics import GROUPS

KID_SUBSET, KID_SUBSETS = 1000, 100  # Binkowski et al. (2018); fewer images are one subset
NEIGHBOURS = 5  # of density and coverage, as in Naeem et al. (2020)
NEAR = 0.01  # quantile of held-out photographs' distances below which an image is a near copy


class _AsGiven(torch.nn.Module):
    """torchmetrics' feature network for features that are computed already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _compared(metric, real: np.ndarray, synthetic: np.ndarray):
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(synthetic).double(), real=False)
    return metric.compute()


def fid(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to the features (Heusel et al., 2017), >= 0.

    Biased upwards for few images, the more so the fewer. NaN with fewer than two on a side.
    """
    if min(len(real), len(synthetic)) < 2:
        return math.nan
    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1])).set_dtype(torch.float64)
    return max(0.0, float(_compared(metric, real, synthetic)))  # rounding can fall below


def kid(real: np.ndarray, synthetic: np.ndarray, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al., 2018).

    Around 0, also below, for images of one distribution. The mean over KID_SUBSETS subsets of
    KID_SUBSET images drawn from the seed; with fewer images on a side, over subsets of that many.
    NaN with fewer than two on a side.
    """
    size = min(len(real), len(synthetic), KID_SUBSET)
    if size < 2:
        return math.nan
    whole = len(real) == len(synthetic) == size  # every subset would be the same
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features in memory
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_AsGiven(real.shape[1]), subset_size=size, subsets=1 if whole else KID_SUBSETS
        )
        return float(_compared(metric, real, synthetic)[0])


def mean_distance(values: np.ndarray) -> float:
    """Mean cosine distance of two different rows, in [0, 2]; NaN with fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan
    total = normalize(values.astype(np.float64)).sum(0)
    return float(1 - (total @ total - n) / (n * (n - 1)))  # |sum u|^2 = n + sum of i != j


def vendi_score(values: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosine similarities: in [1, n].

    Friedman and Dieng (2023): n rows all alike give 1, n orthogonal ones n. Computed from the
    smaller of K and the D x D matrix with the same eigenvalues other than 0. NaN without rows.
    """
    if not len(values):
        return math.nan
    unit = normalize(values.astype(np.float64))
    small = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    shares = np.linalg.eigvalsh(small / len(unit))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def density_and_coverage(
    real: np.ndarray, synthetic: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Naeem et al. (2020), with the distance of a photograph to its fifth neighbour as its radius.

    density: the mean number of photographs within whose radius a synthetic image lies, over 5; >= 0
    and around 1 for images of one distribution. coverage: share of the photographs with a synthetic
    image within their radius, in [0, 1]. As many rows of both are used, drawn from the seed. NaN
    with fewer than NEIGHBOURS + 1.
    """
    size = min(len(real), len(synthetic))
    if size <= NEIGHBOURS:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    real, synthetic = (rows[rng.permutation(len(rows))[:size]] for rows in (real, synthetic))
    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(real).kneighbors()
    radius = distances[:, -1]
    within = np.concatenate(list(pairwise_distances_chunked(
        real, synthetic,
        reduce_func=lambda block, start: (block <= radius[start : start + len(block), None]).sum(1),
    )))  # synthetic images within each photograph's radius, int64 [size]
    return float(within.sum() / (NEIGHBOURS * size)), float((within > 0).mean())


def nearest(real: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the nearest photograph int64 [N], cosine distance to it float64 [N]) per image."""
    rows, distances = pairwise_distances_argmin_min(images, real, metric="cosine")
    return rows, distances


def compare(
    real: np.ndarray, synthetic: np.ndarray, distances: np.ndarray, limit: float
) -> dict[str, float]:
    """The measures of one group's images. distances [N]: to the nearest photograph of any group.

    limit: the distance below which an image is a near copy; NaN where it is not known.
    """
    density, coverage = density_and_coverage(real, synthetic)
    return {
        "fid": fid(real, synthetic),
        "kid": kid(real, synthetic),
        "distance": mean_distance(synthetic),
        "vendi": vendi_score(synthetic),
        "density": density,
        "coverage": coverage,
        "nearest": float(np.median(distances)),
        "near_copies": math.nan if math.isnan(limit) else float((distances < limit).mean()),
    }


def per_prompt(values: np.ndarray, prompts: Sequence[str]) -> list[dict[str, object]]:
    """Diversity of the images of each prompt, in order of their first image."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return [
        {"prompt": prompt, "images": len(own), "distance": mean_distance(values[own]),
         "vendi": vendi_score(values[own])}
        for prompt, own in rows.items()
    ]


def by_group(
    real: Mapping[tuple[int, int], np.ndarray],
    held_out: Mapping[tuple[int, int], np.ndarray],
    synthetic: Mapping[tuple[int, int], np.ndarray],
) -> tuple[dict[str, dict], np.ndarray, np.ndarray]:
    """(measures per group and in all, nearest photograph, distance to it), images group by group.

    The three hold features per group (y, a) of training photographs, of photographs that training
    does not see (they may be none), and of synthetic images; groups without images are left out.
    A group's measures are those of `compare`, the numbers of images, and `fid_held_out`: the FID
    of the held-out photographs, what a perfect generator would reach with so many. "all" sets the
    groups together as they come, so it also holds that photographs and synthetic images mix the
    groups differently. The nearest photograph is a row of the real groups laid one after the other.
    """
    every = [group for group in GROUPS if len(synthetic[group])]
    pool = np.concatenate([real[group] for group in GROUPS])
    kept = np.concatenate([held_out[group] for group in GROUPS])
    limit = float(np.quantile(nearest(pool, kept)[1], NEAR)) if len(kept) else math.nan
    images = np.concatenate([synthetic[group] for group in every])
    rows, distances = nearest(pool, images)
    result, start = {}, 0
    parts = {f"{y}_{a}": (real[y, a], held_out[y, a], synthetic[y, a]) for y, a in every}
    for name, (photographs, unseen, own) in [*parts.items(), ("all", (pool, kept, images))]:
        start = 0 if name == "all" else start
        result[name] = {
            "synthetic": len(own), "real": len(photographs), "held_out": len(unseen),
            **compare(photographs, own, distances[start : start + len(own)], limit),
            "fid_held_out": fid(photographs, unseen),
        }
        start += len(own)
    return result, rows, distances
