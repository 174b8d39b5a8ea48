"""FairIF's Tables 1 to 4: `python -m models.fairif.tables --table 4 --splits 20`.

Table 4 trains, on every random split of Adult, German and COMPAS, a logistic regression (or --model
mlp) by ERM, by the baselines, by FairIF and by the control whose eps are FairIF's on shuffled
samples (splits.py). Tables 1 (MLP), 2 (CNN) and 3 (LeNet) do so on CI-MNIST: its three biases take
the place of the datasets, seeds that of the splits (digits.py). Writes
results/<name>/<dataset>/split<k>.json or results/<name>/<bias>/seed<k>/<row>.json as it goes, which
a second start with the same settings reuses, and summary.csv, .md and .tex (summary.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from datasets import ci_mnist, tabular
from models.fairif import digits
from models.fairif.baselines import BASELINES
from models.fairif.digits import identity, verify
from models.fairif.fairif import Settings
from models.fairif.hessian import METHODS
from models.fairif.relaxation import KINDS, Relaxation
from models.fairif.reweight import NORMS
from models.fairif.splits import NETWORKS, run_split
from models.fairif.summary import Heading, latex, markdown, summarise
from models.fairif.training import Recipe
from utils.errors import UserError, exit_cleanly
from utils.files import is_plain_name, write_atomic, write_json
from utils.options import ArgumentParser, check_device
from utils.records import read_record
from utils.run import exclusive

DIGIT_TABLES = {"1": "mlp", "2": "cnn", "3": "lenet"}
TITLES = {"logistic": "logistic regression", "mlp": "MLP (64), which the paper does not run"}
DIGIT_TITLES = {
    "mlp": "MLP (64) on CI-MNIST", "cnn": "CNN (two 5x5 convolutions) on CI-MNIST",
    "lenet": "LeNet (three convolutions) on CI-MNIST",
}  # fmt: skip
PRODUCTS = ("gauss_newton", "hessian")
# flag: its default where the table has it; None stands for "not given"
TABULAR_FLAGS = {"splits": 20, "model": "logistic", "l2": 1e-3}
DIGIT_FLAGS = {
    "seeds": 5, "mnist": Path("data/mnist"), "epochs": 500, "batch_size": 128, "rate": 2e-4,
    "damping": 0.01, "cg_steps": 30, "device": "cuda" if torch.cuda.is_available() else "cpu",
}  # fmt: skip


def run(
    names: list[str], count: int, folder: Path, config: dict[str, Any], heading: Heading,
    compute: Callable[[str, int], dict[str, Any]],
) -> str:
    """All splits or seeds, 0 to count - 1, of the datasets; returns summary.md's text.

    compute: (dataset, number) -> {"rows", "check"}, from files in `folder` where they are there.
    """
    frames, checks = [], {}
    with exclusive(folder):
        for name in names:
            done = [compute(name, number)
                    for number in tqdm(range(count), desc=name, unit=heading.unit[:-1])]
            frames.append(summarise(name, done, heading))
            checks[name] = [one["check"] for one in done]
        frame = pd.concat(frames, ignore_index=True)
        csv = frame.to_csv(index=False, float_format="%.4f", na_rep="n/a", lineterminator="\n")
        text = markdown(frame, checks, config, heading)
        write_atomic(folder / "summary.csv", csv)
        write_atomic(folder / "summary.md", text)
        write_atomic(folder / "summary.tex", latex(frame, heading))
    return text


def run_tabular(options: argparse.Namespace, folder: Path) -> str:
    """Table 4 as the flags say."""
    relaxation = relaxation_of(options)
    inverse = options.inverse or NETWORKS[options.model].inverse
    settings = Settings(
        relaxation, options.strength, options.norm, inverse, options.l2, options.product, steps=100
    )
    config = {
        "model": options.model, "baselines": " ".join(options.baselines) or "none",
        **reweighting_config(options), "l2": options.l2, "inverse": inverse,
        "fractions": "70/10/20",
    }
    tables = {name: tabular.read(name) for name in options.datasets}

    def compute(name: str, seed: int) -> dict[str, Any]:
        path = folder / name / f"split{seed}.json"
        if not path.exists():
            split = run_split(tables[name], seed, options.l2, settings.with_seed(seed),
                              options.model, options.baselines)
            write_json(path, identity(config) | split)
        split = read_record(path)
        verify(path, split, config)
        return split

    heading = Heading("4", TITLES[options.model], "splits")
    return run(options.datasets, options.splits, folder, config, heading, compute)


def run_digits(options: argparse.Namespace, folder: Path) -> str:
    """Tables 1, 2 and 3 as the flags say."""
    network, inverse = DIGIT_TABLES[options.table], options.inverse or "cg"
    recipe = Recipe(options.epochs, options.batch_size, options.rate)
    settings = Settings(
        relaxation_of(options), options.strength, options.norm, inverse, options.damping,
        options.product, steps=options.cg_steps,
    )
    training = {
        "model": network, "epochs": recipe.epochs, "optimizer": "Adam", "rate": recipe.rate,
        "batch": recipe.batch, "kept": "best validation accuracy",
        "mnist": ci_mnist.read(options.mnist, "shift").train.digest(),
        # left out on the CPU: results from before there was a choice keep their fingerprint
        **({} if options.device == "cpu" else {"device": "cuda"}),
    }
    reweighting = reweighting_config(options) | {
        "damping": options.damping, "inverse": f"{inverse}, {options.cg_steps} products",
        "curvature": f"{digits.CURVATURE} digits",
    }

    def compute(bias: str, seed: int) -> dict[str, Any]:
        parts = ci_mnist.read(options.mnist, bias, seed)
        problem, test = digits.make_problem(
            parts, seed, network, recipe, settings, options.device
        )
        where = folder / bias / f"seed{seed}"
        which = {"bias": bias, "seed": seed}
        return digits.Rows(problem, test, where, training | which, reweighting).run(
            options.baselines
        )

    heading = Heading(options.table, DIGIT_TITLES[network], "seeds")
    return run(
        options.datasets, options.seeds, folder, training | reweighting, heading, compute
    )


def relaxation_of(options: argparse.Namespace) -> Relaxation:
    return Relaxation(options.relaxation, options.temperature, options.draws)


def reweighting_config(options: argparse.Namespace) -> dict[str, Any]:
    """What the fingerprint holds of FairIF's own flags."""
    return {
        "relaxation": options.relaxation, "temperature": options.temperature,
        "draws": options.draws if options.relaxation == "gumbel" else None,
        "lambda": options.strength, "penalty": options.norm,
        # left out at the default: results from before there was a choice keep their fingerprint
        **({} if options.product == PRODUCTS[0] else {"product": options.product}),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The flags with the defaults of their table. Raises UserError for one of another table."""
    parser = ArgumentParser(description="FairIF's Tables 1 to 3 on CI-MNIST, 4 on tabular data.")
    parser.add_argument("--table", default="4", choices=[*DIGIT_TABLES, "4"],
                        help="the paper's table: 1 MLP, 2 CNN, 3 LeNet, 4 logistic regression")
    parser.add_argument("--datasets", nargs="+", metavar="NAME",
                        help=f"Table 4: of {', '.join(tabular.TABLES)}; Tables 1 to 3, the biases: "
                        f"of {', '.join(ci_mnist.BIASES)}; all where not given")
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES),
                        choices=list(BASELINES), help="rows beside ERM, FairIF and the control")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--name", default=None,
                        help="folder under --results; fairif_table<number>_<model> if not given")
    parser.add_argument("--lambda", dest="strength", type=float, default=0.1,
                        help="weight of the penalty on eps (the paper's 0.1)")
    parser.add_argument("--norm", choices=NORMS, default="norm",
                        help="penalty: the Euclidean norm as printed, or its square")
    parser.add_argument("--relaxation", choices=KINDS, default="sigmoid")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--draws", type=int, default=10, help="Gumbel draws a validation sample")
    parser.add_argument("--inverse", choices=METHODS,
                        help="inverse of the curvature: exact, conjugate gradients or LiSSA (exact "
                        "for logistic regression, else cg); Tables 1 to 3 are too large for exact")
    parser.add_argument("--product", choices=PRODUCTS, default=PRODUCTS[0],
                        help="the curvature: the Gauss-Newton matrix or the Hessian, which may be "
                        "indefinite")
    four = parser.add_argument_group("Table 4")
    four.add_argument("--splits", type=int, help="random 70/10/20 splits a dataset (20)")
    four.add_argument("--model", choices=list(NETWORKS),
                      help="the paper's logistic regression, or an MLP of 64 hidden units")
    four.add_argument("--l2", type=float, help="L2 penalty of every fit (0.001)")
    digit = parser.add_argument_group("Tables 1 to 3")
    digit.add_argument("--mnist", type=Path, help="folder of MNIST's four idx files (data/mnist)")
    digit.add_argument("--seeds", type=int, help="seeds a bias, counted from 0 (5)")
    digit.add_argument("--epochs", type=int, help="of every training (the paper's 500)")
    digit.add_argument("--rate", type=float,
                       help="Adam's (the paper's 2e-4; it names no optimiser)")
    digit.add_argument("--batch-size", type=int, help="the paper states none (128)")
    digit.add_argument("--damping", type=float, help="of the Gauss-Newton matrix (0.01)")
    digit.add_argument("--device", help="cpu, cuda or cuda:N (cuda where there is one)")
    digit.add_argument("--cg-steps", type=int, help="products with the curvature, or LiSSA's (30)")
    options = parser.parse_args(arguments)
    _fill(options, *((TABULAR_FLAGS, DIGIT_FLAGS) if options.table == "4" else
                     (DIGIT_FLAGS, TABULAR_FLAGS)))
    return options


def _fill(options: argparse.Namespace, own: dict[str, Any], others: dict[str, Any]) -> None:
    for flag in others:
        if getattr(options, flag) is not None:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} is no flag of Table {options.table}: remove it")
    for flag, default in own.items():
        if getattr(options, flag) is None:
            setattr(options, flag, default)
    known = tabular.TABLES if options.table == "4" else ci_mnist.BIASES
    options.datasets = options.datasets or list(known)
    for name in options.datasets:
        if name not in known:
            raise UserError(
                f"--datasets {name}: for Table {options.table} choose from {', '.join(known)}"
            )
    for flag, least in (("splits", 2), ("seeds", 2), ("epochs", 1), ("batch_size", 1),
                        ("cg_steps", 1)):  # fmt: skip
        if flag in own and getattr(options, flag) < least:
            why = ", for a standard deviation" if least == 2 else ""
            raise UserError(f"--{flag.replace('_', '-')} must be {least} or more{why}")
    for flag in ("rate", "damping"):
        if flag in own and not 0 < getattr(options, flag) < 1e6:
            raise UserError(f"--{flag} must be above 0")
    if "device" in own:
        check_device(options.device)
    if options.inverse == "exact" and options.table != "4":
        raise UserError("--inverse exact is for Table 4's few parameters: choose cg or lissa")
    if not is_plain_name(options.name or "run"):
        raise UserError("--name must be a plain folder name, without a '/'")


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    model = DIGIT_TABLES.get(options.table) or options.model
    folder = options.results / (options.name or f"fairif_table{options.table}_{model}")
    run_table = run_tabular if options.table == "4" else run_digits
    print(run_table(options, folder), end="")


if __name__ == "__main__":
    main()
