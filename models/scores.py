"""Scores of a set of test images, from a network or from a table made elsewhere."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from datasets.base import ImageTable
from datasets.loader import Loader
from models.checkpoints import Classifier
from models.evaluate_files import LOGITS
from utils.errors import UserError
from utils.files import write_atomic
from utils.progress import progress


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says of N images. score: float64 [N], its probability of y = 1; logit: float
    [N]; files: their names, None where a table has none. It predicts 1 where the logit is above 0.
    """

    name: str
    logit: np.ndarray
    y: np.ndarray
    a: np.ndarray
    files: list[str] | None = None

    @property
    def score(self) -> np.ndarray:
        return expit(self.logit.astype(np.float64))

    @property
    def prediction(self) -> np.ndarray:
        return (self.logit > 0).astype(np.int64)


@torch.inference_mode()
def of_classifier(
    classifier: Classifier, table: ImageTable, *, device: str, batch_size: int = 256,
    store_dir: Path | None = None, workers: int = 1,
) -> Scores:
    """The scores of a table's images, prepared as train.py prepares its test images, in
    the precision of the classifier's run.

    Raises UserError where an output is not finite.
    """
    loader = Loader(table, batch_size, image_size=classifier.image_size, train=False, device=device,
                    store_dir=store_dir, workers=workers, mean=classifier.mean, std=classifier.std)
    batches = progress(loader.epoch(0), total=len(loader), desc="evaluate", unit="batch",
                       leave=False)
    logit = torch.cat([classifier.logits(x) for _, x, _, _ in batches]).cpu().numpy()
    if not np.isfinite(logit).all():
        raise UserError(f"{classifier.name} gives NaN or infinity: check --backbone, --mean and "
                        "--std")
    return Scores(classifier.name, logit, table.y, table.a, list(table.paths))


def of_file(path: Path) -> Scores:
    """The scores of a csv with the columns y, a (0 or 1) and score (the probability of 1).

    Raises UserError where it cannot be read, lacks one, or holds other values.
    """
    flag = f"--predictions {path}"
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{flag} cannot be read ({said}): give a csv file with the columns y, a "
                        "and score") from None
    lacking = {"y", "a", "score"} - set(frame.columns)
    if lacking:
        raise UserError(f"{flag} has no column {' and none '.join(sorted(lacking))}; it has "
                        f"{', '.join(map(str, frame.columns))}: name them y, a and score")
    for column in ("y", "a", "score"):
        values = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
        wrong = ~np.isin(values, (0, 1)) if column != "score" else ~((values >= 0) & (values <= 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            wanted = "a probability from 0 to 1" if column == "score" else "0 or 1"
            raise UserError(f"{flag}, line {row + 2}: {column} is '{frame[column][row]}' and must "
                            f"be {wanted}")
        frame[column] = values
    if not len(frame):
        raise UserError(f"{flag} has no row below its header: give a line an image")
    score = frame["score"].to_numpy()
    with np.errstate(divide="ignore"):
        logit = np.log(score) - np.log1p(-score)
    names = next((frame[key].astype(str).tolist() for key in ("file", "file_name")
                  if key in frame), None)
    return Scores(str(path), logit, frame["y"].to_numpy(int), frame["a"].to_numpy(int), names)


def save(scores: Scores, path: Path) -> None:
    """Write file, y, a, logit and score of every image as csv, which `of_file` reads again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LOGITS)
    files = scores.files or [""] * len(scores.y)
    for row in zip(files, scores.y.tolist(), scores.a.tolist(), scores.logit.tolist(),
                   scores.score.tolist(), strict=True):
        writer.writerow(row)
    write_atomic(path, text.getvalue())
