"""runner.sh: every line of every experiment is one that the program takes; none is carried out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import train
from models import CHOICES, METHODS, backbones, tsne
from models.choices import row_of
from models.experiment import complete, options_given, rows_of
from models.fairif.controls import CONTROLS
from stable_diffusion import generate, grids
from utils.config import Config
from utils.reporting.paper import FAIRIF_SETTINGS, TABLES, own_row, paper_row

ROOT = Path(__file__).resolve().parents[1]
RUNNER, FAIRIF_SH = ((ROOT / name).read_text() for name in ("runner.sh", "fairif.sh"))
RECORDER = """#!/usr/bin/env bash
printf '%s\\x1f' "$@" >> "$RECORD"; printf '\\n' >> "$RECORD"
"""
PAIRS = {  # setting -> the (target, protected) that the paper's tables hold, the default first
    "demo": [("Smiling", "Male"), ("Smiling", "Young"), ("Young", "Male")],
    "celeba": [("Smiling", "Male"), ("Smiling", "Young"), ("Young", "Male"), ("Male", "Young")],
    "utkface": [("Female", "White")],
}
NUMBERS = [*range(1, 12)]
SETTINGS = set(re.findall(r"\$\{(\w+):?-", RUNNER + FAIRIF_SH))  # the environment's
FIGURES = ["figure1", "figure2", "figure4", "figure5", "figure6", "figure7", "figure8"]
OTHERS = ["bias-ratio", "rates", "rules", "tensor-effect", "fairif-strategies"]
FAIRIF = {  # setting -> the pair of FairIF's image tables
    "demo": ("Smiling", "Male"), "celeba": ("Blond_Hair", "Male"), "fairface": ("Male", "White"),
}
FAIRIF_ROWS = {
    "table5": {"erm", "cfair", "domind", "arl", "fairsmote", "influence", "fairif",
               *CONTROLS},
    "table11": {"erm", "fairif", "fairif_50", "fairif_25", "fairif_10", "fairif_shuffled"},
    "figure2": {"fairif"},
}


def called(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """runner.sh with a python that only notes its arguments in folder/record."""
    python = folder / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    (folder / "record").unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        ["bash", str(ROOT / "runner.sh"), *words], check=False, capture_output=True, text=True,
        env={**clean, "PYTHON": str(python), "RECORD": str(folder / "record"), "LAUNCHER": "true",
             "SEEDS": "100 200", "BASH_COMPAT": "3.2", **environment},
    )  # fmt: skip


def recorded(folder: Path, *words: str, **environment: str) -> list[list[str]]:
    """The python commands of one experiment, each as its arguments."""
    done = called(folder, *words, **environment)
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f")[:-1] for line in (folder / "record").read_text().splitlines()]


def trainings(lines: list[list[str]]) -> list[Config]:
    """The train.py lines as train.py reads them: flags, rows, --baseline and --set are checked."""
    taken = []
    for line in (line for line in lines if line[0] == "train.py"):
        asked = train.parse(line[1:])
        options_given(asked, rows_of(asked))
        taken.append(complete(asked) if asked.launcher == "none" else asked)
    return taken


def printed(args: Config) -> set[str]:
    """The paper's rows that stand beside this line's."""
    where = (args.dataset, args.target, args.protected)
    rows = [own_row(args.paper_table, {**METHODS, **CHOICES}[name].paper_row)
            for name in args.methods]
    return {row for row in filter(None, rows) if paper_row(args.paper_table, row, *where)}


# --- every pair of the papers' tables ------------------------------------------------------------


@pytest.mark.parametrize(("setting", "pair"),
                         [(setting, pair) for setting, pairs in PAIRS.items() for pair in pairs])
def test_every_experiment_is_taken_for_every_pair(setting, pair, tmp_path):
    environment = {"SETTING": setting, "RESULTS": str(tmp_path / "results")}
    if pair != PAIRS[setting][0]:  # by what the paper's command line would say
        environment |= {"TARGET": pair[0], "PROTECTED": pair[1]}
    for name in [*(f"table{number}" for number in NUMBERS), *FIGURES, *OTHERS]:
        lines = recorded(tmp_path, name, **environment)
        asked = pair if name != "table11" else ("Male", "Smiling" if setting == "demo" else "Young")
        runs = trainings(lines)
        assert runs or name in ("figure4", "figure7")
        for args in runs:
            assert (args.dataset, args.target, args.protected) == (setting, *asked), name
            assert args.setting.split("/")[0] in ("demo", f"{setting}_{'_'.join(asked)}")
            assert args.paper_table is None or name.startswith(("table", "figure1", "fairif"))
        if name == "figure6":
            (panels,) = [tsne.parser().parse_args(line[2:]) for line in lines
                         if line[1] == "models.tsne"]
            assert set(panels.rows) <= set(runs[0].methods)
            assert (panels.setting, panels.data_root) == (
                tmp_path / "results" / runs[0].setting, runs[0].data_root)
        if name in ("figure4", "figure7"):
            drawn = grids.parser().parse_args(lines[-1][2:])
            assert (drawn.target, drawn.protected) == pair
            assert drawn.groups == ([(1, 1)] if name == "figure4" else None)


def test_every_row_that_aim_fair_prints_has_its_line(tmp_path):
    """Of every table, dataset and pair: the experiment trains all rows beside the paper's."""
    (tmp_path / "manifest.csv").touch()  # DiGA's edits are made beforehand
    paper = pd.read_csv(TABLES / "aim_fair.csv", dtype={"table": str})
    paper["row"] = paper["row"].replace("ERM", "Baseline (ERM)")
    columns = ["table", "dataset", "target", "protected"]
    for (table, setting, target, protected), rows in paper.groupby(columns):
        environment = {"SETTING": setting, "TARGET": target, "PROTECTED": protected}
        lines = recorded(tmp_path, f"table{table.split()[0]}", EDITS=str(tmp_path), **environment)
        (args,) = [args for args in trainings(lines) if args.paper_table == table]
        assert (args.dataset, args.target, args.protected) == (setting, target, protected)
        assert printed(args) == set(rows["row"]), (table, target, protected)


@pytest.mark.parametrize(("words", "environment", "pair", "table"), [
    (["Young", "Male"], {}, ("Young", "Male"), "1"),
    (["Male", "Young"], {}, ("Male", "Young"), "11"),
    (["Smiling", "Young"], {}, ("Smiling", "Young"), "3"),
    (["Young"], {}, ("Young", "Male"), "1"),
    ([], {}, ("Smiling", "Male"), "3"),
    ([], {"TARGET": "Young"}, ("Young", "Male"), "1"),
])  # fmt: skip
def test_celeba_takes_a_pair_and_further_flags(words, environment, pair, table, tmp_path):
    (args,) = trainings(recorded(tmp_path, "celeba", *words, "--top-k", "50", **environment))
    assert (args.target, args.protected, args.paper_table, args.top_k) == (*pair, table, 50)
    assert args.methods == ("erm", "full_finetuning", "aim_fair")
    assert "AIM-Fair" in printed(args)


def test_the_demo_draws_the_pair_that_is_asked_for(tmp_path):
    python = str(tmp_path / "python")
    files = {("Smiling", "Young"): "Smiling_Young", ("Male", "Smiling"): "Smiling_Male"}
    for (target, protected), file in files.items():
        lines = recorded(tmp_path, "table5", TARGET=target, PROTECTED=protected, LAUNCHER=python)
        prompts = [line[line.index("--prompts") + 1] for line in lines
                   if line[0].endswith("generate.py")]
        assert prompts == [f"prompts/{file}_{name}.json" for name in grids.SETS]
        assert all((ROOT / path).exists() for path in prompts)
        # each row trains on its own set
        assert {name.removeprefix("synthetic_only_") for name in trainings(lines)[0].methods} == (
            set(grids.SETS))
    paper = recorded(tmp_path, "table5", SETTING="celeba", LAUNCHER=python)
    assert [line[0] for line in paper] == ["train.py"]  # its images take hours


def test_the_demo_is_the_method_its_control_and_its_rivals(tmp_path):
    (args,) = trainings(recorded(tmp_path))
    assert args.methods == (
        "erm", "erm_longer", "linear_probing", "full_finetuning", "aim_fair")
    assert args.backbone == "resnet18_quarter" and args.threads == 1 and args.baseline == ("erm",)
    assert args.best_epoch == "class-accuracy"
    (paper,) = trainings(recorded(tmp_path, "celeba"))
    assert paper.best_epoch == "accuracy"  # the release's
    (args,) = trainings(recorded(tmp_path, METHODS="aim_fair jtt"))
    assert args.methods == ("aim_fair", "jtt") and args.baseline == ("aim_fair",)


def test_both_gaps_are_in_one_table_each_with_its_own_images(tmp_path):
    lines = recorded(tmp_path, "domain-gap", LAUNCHER=str(tmp_path / "python"))
    made = [generate.parse_arguments(line[1:]) for line in lines if line[0].endswith("rate.py")]
    samplers = {str(args.out): (args.steps, args.guidance) for args in made}
    assert samplers == {"data/synthetic_narrow": (5, 3), "data/synthetic_wide": (3, 8)}
    runs = trainings(lines)
    assert {args.setting for args in runs} == {"demo/domain-gap"}
    assert {args.name: str(args.synthetic_root) for args in runs[:-1]} == {
        f"{row}_{gap}": f"data/synthetic_{gap}" for gap in ("narrow", "wide")
        for row in ("synthetic_only", "linear_probing", "full_finetuning", "aim_fair")}
    assert runs[-1].methods == ("erm", "erm_longer") and not runs[-1].no_tables


@pytest.mark.parametrize(("setting", "epochs", "milestone"), [("demo", 24, 18), ("celeba", 15, 10)])
def test_longer_training_is_longer_with_the_same_schedule(setting, epochs, milestone, tmp_path):
    runs = trainings(recorded(tmp_path, "longer", SETTING=setting))
    times = {args.name or "": (args.pretrain_epochs / epochs, args.pretrain_milestone / milestone)
             for args in runs}
    assert times == {"": (1, 1), "erm_2x": (2, 2), "erm_4x": (4, 4),
                     "full_finetuning_4x": (4, 4), "aim_fair_4x": (4, 4)}
    assert {args.methods[0] for args in runs if args.name} == {"erm", "full_finetuning", "aim_fair"}
    assert runs[-1].methods == ("erm", "erm_longer", "full_finetuning", "aim_fair")


def test_the_demo_makes_digas_edits_and_elsewhere_they_are_given(tmp_path):
    results, data = tmp_path / "results", tmp_path / "data"
    (results / "demo/table1/erm/seed100").mkdir(parents=True)
    (results / "demo/table1/erm/seed100/train.csv").write_text("file,y\n000001.jpg,1\n")
    (data / "demo/faces_1/img_align_celeba").mkdir(parents=True)
    environment = {"RESULTS": str(results), "DATA": str(data)}
    erm, edit, rest = recorded(tmp_path, "table1", **environment)
    assert trainings([erm])[0].methods == ("erm",)
    assert edit[1] == "stable_diffusion.edit"
    assert edit[edit.index("--images") + 1] == str(data / "demo/faces_1/img_align_celeba")
    out = Path(edit[edit.index("--out") + 1])
    assert "diga" not in trainings([rest])[0].methods  # nothing was edited by the recorder
    out.mkdir(parents=True)
    (out / "manifest.csv").touch()
    (args,) = trainings(recorded(tmp_path, "table1", **environment)[2:])
    assert "diga" in args.methods and args.edits == out
    assert {"eiil.rate=0.01", "diga.warm_start=1", "maple.outer_lr=0.05"} <= set(args.set)
    assert args.search == Path("models/search/demo.toml") and "erm_longer" in args.methods
    assert {row_of(name) for name in rows_of(args) if "/" in name} == set(args.methods) - {"erm"}
    done = called(tmp_path, "table1", SETTING="celeba", EDITS="none")
    assert "DiGA is left out: EDITS=none" in done.stderr and "diga" not in done.stdout


# --- FairIF --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "backbone"), [
    ("1", "mlp"), ("2", "digit_cnn"), ("3", "digit_lenet"), ("4", "logistic")])
def test_fairifs_tables_in_memory_are_the_papers(number, backbone, tmp_path):
    runs = trainings(recorded(tmp_path, f"fairif-table{number}", MNIST="/digits"))
    rows = pd.read_csv(TABLES / "fairif.csv")
    rows = rows[rows["table"].str.startswith(f"{number} ")]
    names = {"Original": "Baseline (ERM)"}  # theirs -> ours
    for args in runs:
        setting = FAIRIF_SETTINGS[args.dataset, args.target, args.protected]
        papers = set(rows["row"][rows["setting"] == setting].replace(names))
        assert printed(args) == papers - ({"CFair"} if args.backbone == "logistic" else set())
        assert args.search == Path("models/search/in_memory.toml")
        assert {"fairif", "fairif_shuffled"} <= set(args.methods) and args.data_seed == "run"
        assert {pair.partition(".")[0] for pair in args.set} >= {"influence", "fairif",
                                                                "fairif_shuffled"}
    papers = [args for args in runs if args.backbone == backbone]
    assert {FAIRIF_SETTINGS[args.dataset, args.target, args.protected] for args in papers} == set(
        rows["setting"])
    for args in papers:
        if number == "4":
            assert (len(args.seeds), args.optimizer, args.batch_size) == (20, "lbfgs", None)
        else:
            assert args.data_root == Path("/digits") and args.pretrain.milestone == 500
            assert (args.pretrain_epochs, args.pretrain_lr, args.optimizer) == (500, 2e-4, "adam")


@pytest.mark.parametrize("setting", FAIRIF)
@pytest.mark.parametrize("name", [*FAIRIF_ROWS, "table6"])
def test_fairifs_image_tables_are_taken(setting, name, tmp_path):
    runs = trainings(recorded(tmp_path, f"fairif-{name}", SETTING=setting))
    for args in runs:
        assert (args.dataset, args.target, args.protected) == (setting, *FAIRIF[setting])
        assert args.setting.endswith(f"/fairif-{name}")
        if setting != "demo":
            assert args.backbone.endswith("_h128") and args.pretrain_lr == 2e-4
            assert (args.pretrain_epochs, args.batch_size, args.size) == (50, 128, None)
            assert args.pretrain_milestone == 50  # no schedule
            assert (args.pretrained == "imagenet") == (name == "table6")
        weighing = {name for name in args.methods if name.startswith("fairif") or name in CONTROLS}
        given = {pair.partition(".")[0] for pair in args.set}
        assert given == (weighing if setting == "demo" else set())
        assert setting != "demo" or not weighing or "curvature_samples=300" in str(args.set)
    if name == "table6":
        networks = ["resnet18_quarter"] if setting == "demo" else backbones.RESNETS
        assert {args.name for args in runs} == {
            f"{method}_{network}" for network in networks
            for method in ("erm", "fairif", "fairif_shuffled")}
    else:
        (args,) = runs
        assert set(args.methods) == FAIRIF_ROWS[name]
    if setting != "demo" and args.paper_table:
        rows = pd.read_csv(TABLES / "fairif.csv")
        rows = rows[rows["table"].str.startswith(f"{name.removeprefix('table')} ")
                    & (rows["setting"] == FAIRIF_SETTINGS[setting, *FAIRIF[setting]])]
        names = {"Original": "Baseline (ERM)", "100%": "FairIF"}  # theirs -> ours
        assert printed(args) == set(rows["row"].replace(names))


# --- flags, seeds, jobs --------------------------------------------------------------------------


def test_the_papers_settings_take_ten_seeds_and_the_demo_five(tmp_path):
    ten = tuple(range(100, 1001, 100))
    for setting, seeds in (("demo", ten[:5]), ("celeba", ten), ("utkface", ten)):
        (args,) = trainings(recorded(tmp_path, "table9", SEEDS="", SETTING=setting))
        assert args.seeds == seeds
        assert args.prompt_set.endswith("poses_50") == (setting != "utkface")
        assert args.paper_table == "9" and args.baseline == ("erm",)


def test_further_flags_reach_every_training(tmp_path):
    trained = trainings(recorded(tmp_path, "table2", "--tensorboard", "--seeds", "7"))
    assert len(trained) == 6  # ERM's list of images, and the table, for three sizes
    assert all(args.tensorboard and args.seeds == (7,) for args in trained)
    assert [args.size for args in trained] == [750, 750, 375, 375, 150, 150]
    blanks = "a folder with 'blanks'"
    (args,) = trainings(recorded(tmp_path, "demo", RESULTS=blanks, DATA=f"{blanks}/data"))
    assert args.results == Path(blanks) and args.data_root == Path(blanks) / "data/demo"
    for name in ("judge", "figure4", "figure7"):
        refused = called(tmp_path, name, "--tensorboard")
        assert refused.returncode == 2 and "no further flags: --tensorboard" in refused.stderr
        assert not (tmp_path / "record").exists()


def test_jobs_are_train_pys(tmp_path):
    assert [args.jobs for args in trainings(recorded(tmp_path, "table2", JOBS="3"))] == [3] * 6
    for setting, jobs in (("demo", 2), ("celeba", 1)):  # the demo is for two cores
        assert [args.jobs for args in trainings(recorded(tmp_path, "table9", SETTING=setting))] == [
            jobs]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ["table1", "table4", "table9", "fairif-table11", "bias-ratio"])
def test_every_job_of_a_table_is_taken_alone(name, merged, tmp_path):
    """--jobs and SLURM: a job knows neither the table's other rows nor their --set."""
    lines = recorded(tmp_path, name, RESULTS=str(tmp_path / "results"))
    line = [line for line in lines if line[0] == "train.py"][-1]
    (table,) = trainings([line])
    jobs = train.in_jobs(table, rows_of(table), line[1:], merged=merged)
    runs = trainings([["train.py", *words] for words in jobs])
    rows = tuple(dict.fromkeys(map(row_of, rows_of(table))))
    parts = filter(None, (rows[:1], rows[1:])) if merged else [(row,) for row in rows]
    assert [(args.methods, args.seeds) for args in runs] == [
        (part, (seed,)) for part in parts for seed in table.seeds]
    assert sum(len(args.set) for args in runs) == len(table.set) * len(table.seeds)
    assert all(args.no_tables for args in runs)


def test_flags_of_the_gpu_check_reach_it(tmp_path):
    (line,) = recorded(tmp_path, "gpu-check", "--rehearse")
    assert line[0] == "tests/gpu/check.py" and line[-1] == "--rehearse"


def test_runs_of_seconds_are_dealt_to_as_many_processes_as_jobs(tmp_path):
    (line, *_) = recorded(tmp_path, "fairif-table4", DATASETS="german", SPLITS="0 1 2 3 4")
    (table,) = trainings([line])
    jobs = train.in_jobs(table, rows_of(table), line[1:], merged=True, dealt=True)
    runs = trainings([["train.py", *words] for words in jobs])
    rows = tuple(dict.fromkeys(map(row_of, rows_of(table))))
    assert [(args.methods, args.seeds) for args in runs] == [(rows, (0, 2, 4)), (rows, (1, 3))]
    assert all(args.set == table.set for args in runs)


@pytest.mark.parametrize("flags", [["--launcher", "slurm"], ["--launcher=slurm"]])
def test_with_slurm_every_table_is_one_line_of_train_py(flags, tmp_path):
    array = [*flags, "--slurm", "partition=gpu", "gpus=1"]
    for number in NUMBERS:
        lines = recorded(tmp_path, f"table{number}", *array, SETTING="celeba")
        runs = trainings(lines)
        assert len(lines) == len(runs) == (3 if number == 2 else 1), number
        assert all(args.launcher == "slurm" and args.slurm == ("partition=gpu", "gpus=1")
                   for args in runs)
    done = called(tmp_path, "figure1", *array, SETTING="celeba")
    # what needs finished runs is printed, to be given later
    assert "-m utils.reporting results/celeba_Smiling_Male/table3" in done.stderr
    assert len(trainings(recorded(tmp_path, "figure1", *array, SETTING="celeba"))) == 2
    assert [line[1] for line in recorded(tmp_path, "figure1", SETTING="celeba")
            if line[0] == "-m"] == ["utils.reporting"]


def test_a_line_is_printed_so_that_it_can_be_pasted(tmp_path):
    done = called(tmp_path, "table8", SETTING="celeba", RESULTS="my 'own' results")
    (printed,) = [line for line in done.stderr.splitlines() if "train.py" in line]
    before = (tmp_path / "record").read_text()
    subprocess.run(["bash", "-c", printed.removeprefix("$ ")], check=True,
                   env={**os.environ, "RECORD": str(tmp_path / "record")})
    assert (tmp_path / "record").read_text() == 2 * before
    assert "8 (ViT-S/32)" in before and "my 'own' results" in before


def test_wrong_words_are_one_sentence(tmp_path):
    for words, environment, said in (
        (["table12"], {}, "no experiment 'table12'; there are: demo judge"),
        (["train"], {}, "no experiment 'train'"),  # a function, but no experiment
        (["table3"], {"SETTING": "fairface"}, "table3 has no SETTING=fairface"),
        (["fairif-table5"], {"SETTING": "utkface"}, "fairif-table5 has no SETTING=utkface"),
        (["table3"], {"SETTING": "nowhere"}, "table3 has no SETTING=nowhere"),
    ):
        done = called(tmp_path, *words, **environment)
        assert done.returncode == 2 and said in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert not (tmp_path / "record").exists()


def test_the_judges_are_balanced_and_one_for_each_attribute(tmp_path):
    *judges, audit = recorded(tmp_path, "judge", SETTING="celeba")  # it judges the demo's images
    assert [(a.dataset, a.target, a.protected, a.minority, a.seeds) for a in trainings(judges)] == [
        ("demo", "Smiling", "Male", 0.5, (100,)), ("demo", "Male", "Smiling", 0.5, (100,))]
    assert audit.count("--judge") == 2 and audit[1] == "stable_diffusion.audit"


# --- the script itself ---------------------------------------------------------------------------

# What macOS's bash 3.2 does not have, or does otherwise; BASH_COMPAT above turns little of it off.
NEWER_THAN_BASH_3_2 = {
    r"\$\{[^}]*@[QEPAaKkUuL]\}": "${x@Q}",
    r"\$\{[A-Za-z_]\w*(\[[@*]\])?[,^]": "${x,,}, ${x^^}",
    r"\b(mapfile|readarray|coproc|BASHPID|EPOCHSECONDS)\b": "builtins",
    r"\b(declare|local|typeset)\s+-\w*[AgnlU]": "associative arrays, name references",
    r"\[-\d+\]": "negative subscripts",
    r"\$\{[@*]": "${@:2}, which an unset list makes an error in some",
    r"&>>|\|&|;;?&": "redirections, case's fall-through",
    r"\[\[ .*-v ": "[[ -v",
    r"\bwait -n\b|\bglobstar\b|%\([^)]*\)T": "wait -n, globstar, printf's time",
    r"\{\d+\.\.\d+\.\.": "steps of a sequence",
    r"(?<!\+\")\$\{\w+\[@\]\}": "an empty array, unset in its set -u",
}
GNU_ONLY = r"\b(nproc|realpath|readlink -f|tac|shuf|seq|timeout|sed -i|sed -r|xargs -r|date -d)\b"


def code_of(script: str) -> str:
    """Without comments."""
    return re.sub(r"(?m)(^|\s)#.*$", "", script)


def offences(script: str) -> list[str]:
    code = code_of(script)
    return [said for pattern, said in (*NEWER_THAN_BASH_3_2.items(), (GNU_ONLY, "GNU only"))
            if re.search(pattern, code)]


@pytest.mark.parametrize("path", [
    "runner.sh", "fairif.sh", "repair.sh", "stable_diffusion/generation.sh"])
def test_the_scripts_are_for_bash_3_2_and_macos(path):
    assert offences((ROOT / path).read_text()) == []


@pytest.mark.parametrize("line", [
    'QUEUE+=("${*@Q}")', "echo ${name,,}", "mapfile -t lines", "declare -A rows", "echo ${a[-1]}",
    'rows "${@:3}"', "run &>> log", "wait -n", 'python "${MORE[@]}"', "threads=$(nproc)",
    "printf '%(%s)T'", "for i in {1..9..2}; do :; done", "local -n row=$1", "echo ${x@Q}",
])  # fmt: skip
def test_newer_lines_are_found(line):
    assert offences(line)
    assert offences('run ${MORE[@]+"${MORE[@]}"}; echo "${name##* }" "$@" | sed -E s/a/b/') == []


def test_it_is_short_and_every_function_can_be_asked_for():
    both = RUNNER + FAIRIF_SH
    functions = set(re.findall(r"(?m)^([\w-]+)\(\) \{", both))
    (names,) = re.findall(r'EXPERIMENTS="([^"]*)"', RUNNER)
    helpers = {"pair", "train", "run", "show", "after", "images", "prompts", "on_demo", "debiasing",
               "edits", "grids", "demo_fairif", "digits", "in_memory", "influences", "compare",
               "gap"}
    assert functions == set(names.split()) | helpers
    assert not re.findall(r"(?m)^\s+[\w-]+\(\) ", both)  # no function within a function
    bodies = re.findall(r"(?ms)^[\w-]+\(\) \{(?:  #[^\n]*)?\n(.*?)^\}$", both)
    assert len(bodies) > 20 and max(body.count("\n") for body in bodies) <= 15
    assert RUNNER.count("\n") <= 270 and max(map(len, both.splitlines())) <= 100
