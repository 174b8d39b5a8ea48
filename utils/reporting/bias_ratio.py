"""How biased the training set is, from the mistakes of an ERM model: no group labels.

    python -m utils.reporting.bias_ratio results/demo/table1/jtt

AIM-Fair takes the bias ratio of its biased synthetic set from "the error set of real training
examples, as suggested in JTT" (section 4.5). A model trained for a short time leans on the spurious
attribute and fails the minority groups, so the share of its mistakes estimates theirs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError, exit_cleanly, reason
from utils.options import ArgumentParser


def minority_share(logits: np.ndarray, y: np.ndarray) -> float:
    """Share of the training images that the model gets wrong, in [0, 1].

    logits float [N] of a short ERM training on these very images, without augmentation (the logits
    of JTT's first stage); y int [N] in {0, 1}. With a share m of minority images, of which it
    fails a share p, and failing q of the others, the estimate is m p + (1 - m) q: it is right for
    a model that has learned the spurious attribute and nothing else, too large for an underfit one,
    and tends to 0 as the training set is memorised. It says how large the minority is, not which.
    Raises ValueError for empty input and unequal lengths.
    """
    if len(logits) != len(y) or not len(y):
        raise ValueError(f"{len(logits)} logits for {len(y)} labels")
    return float(np.mean((logits > 0) != (y == 1)))


def of_run(folder: Path) -> float:
    """`minority_share` of a finished JTT run folder (or another with reference/logits.npy)."""
    try:
        logits = np.load(folder / "reference" / "logits.npy")
        y = pd.read_csv(folder / "train.csv")["y"].to_numpy()  # its column `a` is not used
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing: run JTT (--methods jtt) and give its folder"
        ) from None
    except (OSError, EOFError, ValueError, KeyError) as error:  # an empty table: a ValueError
        raise UserError(
            f"{folder}: reference/logits.npy or train.csv is damaged ({reason(error)}); delete "
            "that folder and run JTT again"
        ) from None
    if not len(y):
        raise UserError(f"{folder}/train.csv lists no image; delete that folder and run JTT again")
    if len(logits) != len(y):
        raise UserError(f"{folder}: logits and train.csv differ in length; run that seed again")
    return minority_share(logits, y)


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="The bias ratio from JTT's error set.")
    parser.add_argument("run", type=Path, help="results/<setting>/jtt, with its seeds' folders")
    run = parser.parse_args(arguments).run
    folders = sorted(run.glob("seed*"))
    if not folders:
        raise UserError(f"{run} has no seed*/ folder; give the folder of a JTT row")
    shares = [of_run(folder) for folder in folders]
    for folder, share in zip(folders, shares, strict=True):
        print(f"{folder.name}: {share:.1%} of the training images are mistaken")
    print(f"estimated minority share {np.mean(shares):.3f}: --synthetic-minority "
          f"{min(np.mean(shares), 0.5):.2f}")


if __name__ == "__main__":
    main()
