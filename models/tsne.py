"""The paper's Figure 6: t-SNE of the test images' penultimate features, coloured by (y, a).

    python -m models.tsne results/demo/figure6 --rows erm data_supplementation aim_fair \
        --data-root data/demo

Writes <setting>/figures/tsne.png and .pdf from the runs' classifier.pt, one panel a row, and the
features beside them (features_<row>_seed<k>.npz), which a second call reads.

A t-SNE alone proves nothing: it keeps neighbourhoods, not distances, and another perplexity gives
another picture. Each panel therefore says how well the protected attribute of images of one class
is told from the features themselves, by their nearest neighbours and by a linear probe. 50% is
chance; the latter can stay where groups mingle to the eye: fine-tuning hides more than it removes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # started by its path: python models/tsne.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from models.features import Features, run_config, run_features
from utils.devices import pick
from utils.errors import UserError, exit_cleanly
from utils.metrics import group_index
from utils.options import ArgumentParser, check_device
from utils.reporting.comparisons import paired_difference
from utils.reporting.figure_style import STYLE, Axes, Figure, columns, plt, save
from utils.reporting.results import Results
from utils.reporting.section import aligned

FOLDS, NEIGHBOURS = 5, 15
PROBES = {
    "neighbours": KNeighborsClassifier(NEIGHBOURS),
    "linear": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=(0.5, 0.5)),
}
TOO_FEW = f"n/a: a group has fewer than {NEIGHBOURS} test images"
COMPONENTS = 50  # t-SNE gets the first principal components, as van der Maaten and Hinton (2008)
PERPLEXITY = 30
# The protected attribute is the hue, the class how dark: what should not part is what contrasts.
LOOKS = {(0, 0): ("#56B4E9", "o"), (0, 1): ("#E69F00", "o"),
         (1, 0): ("#0072B2", "^"), (1, 1): ("#D55E00", "^")}


def probe(features: Features, seed: int = 0) -> dict[str, float]:
    """{probe: balanced accuracy in [0, 1]} of telling the protected attribute within a class.

    "neighbours": which value is more frequent among the 15 nearest images than in the class; it
    sees what t-SNE shows. "linear": discriminant analysis with Ledoit-Wolf shrinkage and equal
    priors, nothing to tune; it also sees what lies spread over many features. Each is fitted on
    four fifths of a class's test images and asked about the rest, five times; mean of y = 0 and
    y = 1. The classes apart: where y and a go together, telling y would pass for telling a. 0.5 is
    chance; NaN where a group has fewer than 15 images.
    """
    return {name: float(np.mean([_told(features, y, model, seed) for y in (0, 1)]))
            for name, model in PROBES.items()}


def _told(features: Features, y: int, model: ClassifierMixin, seed: int) -> float:
    """Balanced accuracy of a cross-validated model for a within class y."""
    values, a = features.values[features.y == y].astype(np.float64), features.a[features.y == y]
    if min(np.bincount(a, minlength=2)) < NEIGHBOURS:
        return math.nan
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    share = cross_val_predict(model, values, a, cv=folds, method="predict_proba")[:, 1]
    prior = 0.5 if isinstance(model, LinearDiscriminantAnalysis) else a.mean()
    told = share > prior
    return float(np.mean([(told[a == value] == value).mean() for value in (0, 1)]))


def draw_rows(y: np.ndarray, a: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """At most `number` rows of each group (y, a), drawn from the seed, ascending: int64 [M]."""
    groups, rng = group_index(y, a), np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(groups == group))[:number] for group in range(4)]
    return np.sort(np.concatenate(drawn))


def embed(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of features float [M, D], M > 3: float [M, 2], the same for the same seed.

    On one thread: sums over several differ in the last digits, and t-SNE amplifies that.
    """
    with threadpool_limits(1):
        if min(values.shape) > COMPONENTS:
            values = PCA(COMPONENTS, random_state=seed).fit_transform(values.astype(np.float64))
        perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
        return tsne.fit_transform(values)


def percent(values: Iterable[float]) -> str:
    """Mean over seeds in percent and, of several, the sample standard deviation."""
    values = [100 * value for value in values]
    if any(map(math.isnan, values)):
        return "n/a"
    text = f"{statistics.fmean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}%" if len(values) > 1 else f"{text}%"


def panels(
    points: dict[str, tuple[np.ndarray, Features]], told: dict[str, dict[str, dict[int, float]]],
    names: tuple[str, str],
) -> Figure:
    """One panel a row. points: {row: (embedding [M, 2], Features of the M images)}.

    told: {row: {probe: {seed: balanced accuracy}}}. names: target and protected attribute.
    """
    figure, axes = plt.subplots(1, len(points), figsize=(0.4 + 3.5 * len(points), 4.5),
                                squeeze=False, layout="constrained")
    for axis, (row, (places, shown)) in zip(axes.flat, points.items(), strict=True):
        _scatter(axis, places, shown, names)
        axis.set_title(row, fontsize=11)
        neighbours, linear = (percent(told[row][name].values()) for name in PROBES)
        lacking = f"\n{TOO_FEW}" if "n/a" in (neighbours, linear) else ""
        axis.set_xlabel(f"{names[1]} or not, told within a class (chance: 50%)\n"
                        f"by the nearest images: {neighbours}\n"
                        f"by a linear probe: {linear}{lacking}")
    seeds = list(next(iter(next(iter(told.values())).values())))
    drawn = f"test images of seed {seeds[0]}"
    drawn += f"; numbers: mean ± std of {len(seeds)} seeds" if len(seeds) > 1 else ""
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns(figure, labels),
                  markerscale=2, handletextpad=0.1, title=drawn)
    return figure


def _scatter(axis: Axes, places: np.ndarray, shown: Features, names: tuple[str, str]) -> None:
    for (y, a), (colour, marker) in LOOKS.items():
        here = (shown.y == y) & (shown.a == a)
        label = ", ".join(name if value else f"not {name}"
                          for name, value in zip(names, (y, a), strict=True))
        axis.scatter(*places[here].T, color=colour, marker=marker, s=9, alpha=0.75, linewidths=0,
                     label=f"{label} ({here.sum()})")
    axis.set(xticks=[], yticks=[])  # t-SNE's axes have no unit
    axis.set_aspect("equal", "datalim")
    axis.spines[:].set(visible=True, color="#cccccc")


def select_runs(setting: Path, rows: list[str], seeds: list[int] | None) -> dict:
    """{row: {seed: run folder}} of the seeds given, or that all rows have; UserError without."""
    folders = Results(setting).runs
    for row in rows:
        if row not in folders:
            raise UserError(
                f"--rows {row}: {setting} has no such run, only {', '.join(folders)}; train it "
                "there first, or leave it out"
            )
    if seeds is None:
        seeds = sorted(set.intersection(*(set(folders[row]) for row in rows)))
        if not seeds:
            raise UserError(f"{setting}: {', '.join(rows)} share no seed; train the missing ones")
    for row in rows:
        if lacking := [seed for seed in seeds if seed not in folders[row]]:
            raise UserError(
                f"--seeds {lacking[0]}: {row} in {setting} was run with "
                f"{', '.join(map(str, folders[row]))} only; train that seed or take another"
            )
    return {row: {seed: folders[row][seed] for seed in seeds} for row in rows}


def report(told: dict[str, dict[str, dict[int, float]]]) -> str:
    """The probes as a table, with the paired difference to the first row over seeds."""
    first, lines = next(iter(told)), []
    for row, probes in told.items():
        line = [row, str(len(next(iter(probes.values()))))]
        for name, seeds in probes.items():
            pair = paired_difference(seeds, told[first][name])
            mean, low, high = (100 * value for value in (pair.mean, pair.low, pair.high))
            spread = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else ""
            line += [percent(seeds.values()), "" if row == first else f"{mean:+.1f}{spread}"]
        lines.append(line)
    minus = f"minus {first} [95%]"
    return aligned(["row", "seeds", "nearest images", minus, "linear probe", minus], lines)


def draw(
    setting: Path, runs: dict, root: Path, *, number: int, seed: int, **loading
) -> tuple[list[Path], str]:
    """Write the figure; returns its files and the probe's table. loading: see run_features."""
    folder = setting / "figures"
    config = run_config(next(iter(next(iter(runs.values())).values())))
    points: dict = {}
    told: dict[str, dict[str, dict[int, float]]] = {}
    for row, seeds in runs.items():
        for k, run in seeds.items():
            features = run_features(run, folder / f"features_{row}_seed{k}.npz", root, **loading)
            for name, accuracy in probe(features, seed).items():
                told.setdefault(row, {}).setdefault(name, {})[k] = accuracy
            if row not in points:  # the picture is the first seed's
                shown = draw_rows(features.y, features.a, number, seed)
                shown = Features(features.values[shown], features.y[shown], features.a[shown])
                points[row] = embed(shown.values, seed), shown
    with plt.rc_context(STYLE):
        figure = panels(points, told, (config["target"], config["protected"]))
        return save(figure, folder, "tsne"), report(told)


def parser() -> ArgumentParser:
    p = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                       formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("setting", type=Path, help="folder of a setting, results/<setting>")
    p.add_argument("--rows", nargs="+", default=["erm", "data_supplementation", "aim_fair"],
                   help="runs to draw, one panel each")
    p.add_argument("--seeds", nargs="+", type=int, default=None,
                   help="the first is drawn, all are probed; default: those that all rows have")
    p.add_argument("--data-root", type=Path, required=True,
                   help="folder of the data set that the runs were trained on")
    p.add_argument("--store-dir", type=Path, default=None,
                   help="folder of decoded images; data/store where not given")
    p.add_argument("--points", type=int, default=500,
                   help="test images of each group (y, a) that are drawn at most; all are probed")
    p.add_argument("--seed", type=int, default=0, help="of the drawn points, t-SNE and the folds")
    p.add_argument("--device", default="auto",
                   help="where features are computed: auto, cpu, cuda or cuda:N")
    p.add_argument("--workers", type=int, default=1, help="threads that prepare batches")
    return p


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.points < 2 or not 0 <= args.seed < 2**32:
        raise UserError("--points must be at least 2, and --seed at least 0 and below 2^32")
    check_device(args.device)
    runs = select_runs(args.setting, args.rows, args.seeds)
    written, table = draw(args.setting, runs, args.data_root, number=args.points, seed=args.seed,
                          device=pick(args.device), store_dir=args.store_dir, workers=args.workers)
    print("The protected attribute told from the features within a class (balanced accuracy; 50% "
          f"is chance):\n\n{table}")
    if "n/a" in table:
        print(TOO_FEW)
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
