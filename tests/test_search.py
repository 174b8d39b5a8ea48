"""--search: every row has as many candidates, the best on validation images stands for it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from statistics import fmean

import pytest
import tiny
from test_strategies import write_run

import train
from models import METHODS
from models.choices import candidates, read_search
from models.experiment import choices_of, rows_of
from utils.errors import UserError
from utils.reporting import best
from utils.reporting.best import write_best
from utils.reporting.tables import write_summary

ROOT = Path(__file__).resolve().parents[1]
SPACES = """
[cvar_dro]
alpha = [1, 0.3]
[full_finetuning]
finetune_lr = [0.01, 0.02]
[jtt]
first_epochs = [1, 1]
upweight = [3, 6]
[cfair]
mu = [0.1, 1]
"""


@pytest.fixture
def spaces(tmp_path) -> Path:
    (tmp_path / "spaces.toml").write_text(SPACES)
    return tmp_path / "spaces.toml"


@pytest.fixture
def quick(monkeypatch):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"))


def command(data, results, spaces, *more) -> list[str]:
    return tiny.flags(data, results, "--backbone", "tiny", "--pretrain-epochs", 1, "--seeds", 1, 2,
                      "--search", spaces, *more)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_each_row_is_the_best_of_its_candidates_on_validation(
    data, spaces, quick, tmp_path, capsys
):
    methods = ["--methods", "erm", "cvar_dro", "full_finetuning", "cfair"]
    train.main(command(data, tmp_path / "r", spaces, *methods))
    setting, text = tmp_path / "r" / "tiny", capsys.readouterr().out
    assert {path.parent.name for path in setting.glob("*/seed1")} == {
        "erm", "cvar_dro", "full_finetuning", "cfair"}  # no candidate in the table
    names = {"cvar_dro": ["alpha=1.0", "alpha=0.3"], "cfair": ["mu=0.1", "mu=1.0"],
             "full_finetuning": ["finetune_lr=0.01", "finetune_lr=0.02"]}
    for row, tried in names.items():
        figure = "wst" if row == "cfair" else "acc"  # it was granted the group labels
        runs = {name: [read(setting / "search" / row / name / f"seed{seed}" / "metrics.json")
                       for seed in (1, 2)] for name in tried}
        values = {name: fmean(run["validation"][figure] for run in found)
                  for name, found in runs.items()}
        chosen = max(tried, key=values.get)
        passes = sum(fmean(run["passes"] for run in found) for found in runs.values())
        rule = {"acc": "highest validation accuracy,", "wst": "highest worst-group accuracy on"}
        assert f"{row} is {chosen}, chosen of 2 rows ({', '.join(tried)}): {rule[figure]}" in text
        assert f"mean of seeds; {passes / 1000:.1f} thousand passes a seed in all." in text
        for seed in (1, 2):  # the row is that run, with everything that it left
            ours, theirs = (folder / f"seed{seed}" for folder in (
                setting / row, setting / "search" / row / chosen))
            for file in ("metrics.json", "classifier.pt", "log.jsonl", "train.csv", "done"):
                assert (ours / file).read_bytes() == (theirs / file).read_bytes()
            assert read(ours / "config.json")["selected"]["row"].endswith(chosen)
            assert "selected" not in read(theirs / "config.json")
    config = read(setting / "search/full_finetuning/finetune_lr=0.02/seed1/config.json")
    assert (config["method"], config["finetune_lr"]) == ("full_finetuning", 0.02)

    before = tiny.end_state(setting)
    train.main(command(data, tmp_path / "r", spaces, *methods))  # again: nothing is trained
    assert tiny.end_state(setting) == before
    assert capsys.readouterr().out.count("finished, reused") == 14
    with pytest.raises(SystemExit):  # one value alone is another run
        train.main([*command(data, tmp_path / "r", spaces, "--methods", "cvar_dro")[:-4],
                    "--methods", "cvar_dro", "--set", "alpha=0.7"])
    assert "cvar_dro/seed1 holds another run (alpha was" in capsys.readouterr().err


def test_a_candidate_is_the_run_that_set_would_make(data, spaces, quick, tmp_path, capsys):
    fixed = ["--methods", "jtt", "--paper-table", "1"]
    train.main(command(data, tmp_path / "r", spaces, *fixed, "--setting", "tiny/searched"))
    assert "Table 1, JTT" in (tmp_path / "r/tiny/searched/summary.md").read_text()
    capsys.readouterr()
    alone = [flag for flag in command(data, tmp_path / "r", spaces, *fixed)
             if flag not in ("--search", str(spaces))]
    train.main([*alone, "--set", "upweight=6"])
    printed = capsys.readouterr().out
    assert printed.count("search/jtt/first_epochs=1,upweight=6/seed") == 2 and "copied" in printed


def test_jobs_train_the_same_and_a_stopped_choice_is_made_again(
    data, spaces, quick, tmp_path, monkeypatch
):
    flags = ["--methods", "erm", "cvar_dro", "jtt"]
    train.main(command(data, tmp_path / "one", spaces, *flags))
    argv = command(data, tmp_path / "jobs", spaces, *flags)
    config = train.parse(argv)
    for job in train.in_jobs(config, rows_of(config), argv, merged=True):
        train.main(job)
    assert not (tmp_path / "jobs/tiny/cvar_dro").exists()  # not before all have ended

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(best, "_same", stopped)
        train.main(argv)
    train.main(argv)
    assert tiny.end_state(tmp_path / "jobs") == tiny.end_state(tmp_path / "one")


def test_the_figure_is_that_by_which_the_epoch_was_kept(tmp_path):
    """Candidate a is more accurate, b over the two classes, c in its worst group."""
    figures = {"a": (0.9, 0.6, 0.1), "b": (0.8, 0.8, 0.2), "c": (0.7, 0.7, 0.5)}
    for best_epoch, seen, chosen in (
        ("accuracy", "none", "a"), ("class-accuracy", "none", "b"), ("accuracy", "validation", "c"),
        ("class-accuracy", "train", "c"),
    ):
        setting = tmp_path / f"{best_epoch}_{seen}"
        for name, (acc, class_acc, wst) in figures.items():
            write_run(setting, f"search/row/{name}", 100, acc, best_epoch=best_epoch,
                      uses_attributes=seen)
            path = setting / "search" / "row" / name / "seed100" / "metrics.json"
            record = read(path)
            record["validation"] |= {"class_acc": class_acc, "wst": wst}
            path.write_text(json.dumps(record))
        rows = [f"search/row/{name}" for name in figures]
        assert write_best(setting, rows, "row", None) == {100: f"search/row/{chosen}"}
        assert f"row is {chosen}, chosen of 3 rows (a, b, c)" in write_summary(setting)


def write_candidates(setting, row: str, values: dict[str, list[float]], **config) -> list[str]:
    """Finished runs of a row's candidates with these accuracies on validation, a seed each."""
    for name, figures in values.items():
        for seed, acc in enumerate(figures):
            write_run(setting, f"search/{row}/{name}", seed, acc, best_epoch="accuracy", **config)
            path = setting / "search" / row / name / f"seed{seed}" / "metrics.json"
            path.write_text(json.dumps(read(path) | {"validation": {"acc": acc}}))
    return [f"search/{row}/{name}" for name in values]


def test_where_every_seed_is_another_split_each_chooses_by_its_own(tmp_path):
    figures = {"k=1": [0.9, 0.8, 0.7], "k=2": [0.6, 0.9, 0.8]}  # means 0.80 and 0.77
    rows = write_candidates(tmp_path / "same", "row", figures)
    assert set(write_best(tmp_path / "same", rows, "row", None).values()) == {rows[0]}
    rows = write_candidates(tmp_path / "split", "row", figures, test_to_train=0.25)
    assert write_best(tmp_path / "split", rows, "row", None) == {
        0: rows[0], 1: rows[1], 2: rows[1]}
    said = write_summary(tmp_path / "split")
    assert "row is k=2 (2 of 3 seeds) or k=1 (1 of 3 seeds), chosen of 2 rows (k=1, k=2): " in said
    assert "highest validation accuracy, of each split" in said
    assert read(tmp_path / "split/row/seed2/config.json")["selected"]["row"] == rows[1]


def test_a_control_takes_the_choice_of_the_row_it_controls(tmp_path):
    by = write_candidates(tmp_path, "fairif", {"t=1": [0.6, 0.6], "t=2": [0.7, 0.7]})
    own = write_candidates(tmp_path, "shuffled", {"t=1": [0.9, 0.9], "t=2": [0.8, 0.8]})
    assert set(write_best(tmp_path, own, "shuffled", None, by).values()) == {own[1]}
    assert "shuffled is t=2, chosen of 2 rows (t=1, t=2): fairif's highest" in write_summary(
        tmp_path)


def test_values_of_another_row(data, quick, tmp_path, capsys):
    path = tmp_path / "spaces.toml"
    path.write_text("[fairif]\ntemperature = [0.3, 1.0]\n[fairif_shuffled]\nas = 'fairif'\n")
    config = train.parse(["--methods", "fairif", "fairif_shuffled", "--search", str(path)])
    found = choices_of(config)
    assert found["fairif_shuffled"].by == found["fairif"].rows == (
        "search/fairif/temperature=0.3", "search/fairif/temperature=1.0")
    assert found["fairif_shuffled"].rows == (
        "search/fairif_shuffled/temperature=0.3", "search/fairif_shuffled/temperature=1.0")
    with pytest.raises(SystemExit):
        train.main(command(data, tmp_path / "r", path, "--methods", "fairif_shuffled"))
    assert "fairif_shuffled takes the choice of fairif (--search" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "words"), [
    (None, "cannot be read"),
    ("[jtt]\nas = 'cvar_dro'", "jtt has as = 'cvar_dro'; give it alone"),
    ("[lff]\nlr = [0.1]\n[jtt]\nas = 'lff'\nupweight = [1]", "jtt has as = 'lff'; give it alone"),
    ("alpha = 3 =", "cannot be read"),
    ("alpha = 0.5", "alpha must be a table of lists"),
    ("[cvar_dro]\nalpha = 0.5", "cvar_dro must be a table of lists"),
    ("[cvar_dro]", "the lists of cvar_dro must be equally long"),
    ("[jtt]\nfirst_epochs = [1, 2]\nupweight = [3]", "the lists of jtt must be equally long"),
    ("[cvar_dro]\nalpha = [0.5, 0.1]\n[lff]\nlr = [0.1]",
     "give every row as many values as the others (cvar_dro 2, lff 1)"),
    ("[cvar_dro]\nalpha = []", "give every row as many values as the others (cvar_dro 0)"),
    ("", "give every row as many values as the others (there is none)"),
    ("[cvar]\nalpha = [0.5]", "cvar is no row"),
    ("[cvar_dro]\nalhpa = [0.5]", "cvar_dro has no hyper-parameter alhpa"),
    ("[cvar_dro]\nalpha = [2.0]", "alpha of cvar_dro must lie between"),
    ("[cvar_dro]\nalpha = ['half']", "alpha of cvar_dro must be a number"),
    ("[cvar_dro]\npretrain_lr = [-1]", "pretrain_lr of cvar_dro: -1.0 must be above 0"),
    ("[cvar_dro]\noptimizer = ['newton']", "optimizer of cvar_dro must be one of sgd, adam"),
    ("[cvar_dro]\nsize = [10]", "cvar_dro has no hyper-parameter size"),
])
def test_a_wrong_file_is_one_sentence(text, words, data, quick, tmp_path, capsys):
    path = tmp_path / "spaces.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as refused:
        train.main(command(data, tmp_path / "r", path, "--methods", "cvar_dro"))
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1
    assert words in error and str(path) in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("flags", "words"), [
    (["--set", "alpha=0.5"], "--set cvar_dro.alpha: --search tries values of it"),
    (["--name", "mine"], "--name names one run: give a single method with --methods, and no --sea"),
    (["--val", "none"], "--val none leaves --search nothing to choose by"),
])
def test_flags_that_contradict_a_search_are_refused(flags, words, data, spaces, quick, tmp_path,
                                                    capsys):
    with pytest.raises(SystemExit) as refused:
        train.main(command(data, tmp_path / "r", spaces, "--methods", "cvar_dro", *flags))
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/search/*.toml")), ids=lambda p: p.stem)
def test_the_committed_spaces_give_every_row_as_many_values(path):
    rows = tomllib.loads(path.read_text())
    config = train.parse(["--methods", *rows, "--search", str(path)])
    found = candidates(config, METHODS)
    assert found.keys() == rows.keys() == read_search(path)[0].keys() == choices_of(config).keys()
    assert len({len(runs) for runs in found.values()}) == 1
    for row, runs in found.items():
        assert len(runs) == len(rows_of(train.parse(
            ["--methods", row, "--search", str(path)]))), row
    controls = ("fairif_shuffled", "fairif_shuffled_within_groups", "group_weights")
    assert read_search(path)[1] == dict.fromkeys(controls, "fairif")
    assert "erm" not in rows  # the others start from it
    with pytest.raises(UserError, match="is no row"):
        candidates(config, {"erm": METHODS["erm"]})
