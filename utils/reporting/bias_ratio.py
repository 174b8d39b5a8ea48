"""How biased the training set is, from the mistakes of an ERM model: no group labels.

    python -m utils.reporting.bias_ratio results/demo/table1/jtt

AIM-Fair takes the bias ratio of its biased synthetic set from "the error set of real training
examples, as suggested in JTT" (section 4.5). A model trained for a short time leans on the spurious
attribute and fails the minority groups, so the share of its mistakes estimates theirs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError, exit_cleanly
from utils.options import ArgumentParser
from utils.reporting.results import Results


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


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="The bias ratio from JTT's error set.")
    parser.add_argument("run", type=Path, help="results/<setting>/jtt, with its seeds' folders")
    run = parser.parse_args(arguments).run
    if not any(run.glob("seed*/")):
        raise UserError(f"{run} has no seed*/ folder; give the folder of a JTT row")
    results, name, shares = Results(run.resolve().parent), run.resolve().name, []
    method = results.first_configs.get(name, {}).get("method", "jtt")
    if method != "jtt":  # before its lack of reference/ looks like damage: the run is whole
        raise UserError(f"{run} is a row of {method} and not of JTT; give the "
                        "folder of a JTT row (train.py --methods jtt)")
    for seed in results.runs[name]:
        logits, table = results.array(name, seed, "reference/logits.npy")
        shares.append(minority_share(logits, table["y"].to_numpy()))  # its column `a` is not used
        print(f"seed{seed}: {shares[-1]:.1%} of the training images are mistaken")
    print(f"estimated minority share {np.mean(shares):.3f}: --synthetic-minority "
          f"{min(np.mean(shares), 0.5):.2f}")


if __name__ == "__main__":
    main()
