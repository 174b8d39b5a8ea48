"""runner.sh: every line of every experiment is one that the program takes; none is carried out."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import train
from models import backbones, tsne
from stable_diffusion import grids
from utils.reporting.tables import paper_row

ROOT = Path(__file__).resolve().parents[1]
RECORDER = """#!/usr/bin/env bash
[ "$2" != utils.job_array ] || cat > "$RECORD.lines"
printf '%s\\x1f' "$@" >> "$RECORD"; printf '\\n' >> "$RECORD"
"""
EXPERIMENTS = [
    *(f"table{number}" for number in range(1, 12)), "bias-ratio", "rates", "figure1", "figure2",
    "figure4", "figure5", "figure6", "figure7", "figure8",
]
FAIRIF = {
    "demo": ("table5", "table6", "table11", "figure2", "strategies"),
    "celeba": ("table5", "table6", "table11", "figure2", "strategies"),
    "fairface": ("table5", "table6", "table11", "figure2"),
    "utkface": ("strategies",),
}
ROWS = {
    "table5": {"erm", "cfair", "domind", "arl", "fairsmote", "influence", "fairif",
               "fairif_shuffled"},
    "table11": {"erm", "fairif_100", "fairif_50", "fairif_25", "fairif_10",
                "fairif_shuffled"},
    "figure2": {"fairif"},
    "strategies": {"erm", "full_finetuning", "aim_fair", "fairif", "fairif_shuffled"},
}


def called(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """runner.sh with a python that only notes its arguments in folder/record."""
    python = folder / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    (folder / "record").unlink(missing_ok=True)
    return subprocess.run(
        ["bash", str(ROOT / "runner.sh"), *words], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHON": str(python), "RECORD": str(folder / "record"),
             "LAUNCHER": "true", "SEEDS": "100 200", **environment},
    )  # fmt: skip


def recorded(folder: Path, *words: str, **environment: str) -> list[list[str]]:
    """The python commands of one experiment, each as its arguments."""
    done = called(folder, *words, **environment)
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f")[:-1] for line in (folder / "record").read_text().splitlines()]


@pytest.mark.parametrize("setting", ["demo", "celeba", "utkface"])
def test_every_line_of_the_runner_is_taken(setting, tmp_path):
    paper_only_for_celeba = {"table1", "table2", "table5", "table6", "table8", "table9", "table11"}
    lines = []
    for name in EXPERIMENTS:
        if setting == "utkface" and name in paper_only_for_celeba:
            continue
        lines += [(name, line) for line in recorded(tmp_path, name, SETTING=setting)]
    rows: dict[str, set[str]] = {}
    for line in (line for _, line in lines if line[0] == "train.py"):
        # flags, hyper-parameters and, where the paper's table is named, that it has the row
        args = train.complete(train.parser().parse_args(line[1:]))
        rows.setdefault(args.setting, set()).update([args.name] if args.name else args.methods)
        assert args.paper_table is None or setting != "demo"
    assert sum(map(len, rows.values())) > 40
    words = [line for _, line in lines if line[0] == "-m"]
    (panels,) = (tsne.parser().parse_args(line[2:]) for line in words if line[1] == "models.tsne")
    assert set(panels.rows) <= rows[str(panels.setting).removeprefix("results/")]
    assert panels.data_root.name == setting
    images = [grids.parser().parse_args(line[2:]) for line in words if line[1].endswith(".grids")]
    pair = ("Female", "White") if setting == "utkface" else ("Smiling", "Male")
    assert [(args.target, args.protected) for args in images] == [pair, pair]
    assert [args.cells for args in images] == [[(1, 1)], None]  # Figure 4, Figure 7
    for line in (line for _, line in lines if line[:2] == ["-m", "utils.reporting.best"]):
        command = dict(zip(line[3:7:2], line[4:8:2], strict=True))
        assert set(line[8:]) <= rows[line[2].removeprefix("results/")]
        if command["--paper-row"] and setting != "demo":
            pair = ("Female", "White") if setting == "utkface" else ("Smiling", "Male")
            assert paper_row("4", command["--paper-row"], setting, *pair)["wst"] > 80


@pytest.mark.parametrize(("setting", "name"),
                         [(setting, name) for setting, names in FAIRIF.items() for name in names])
def test_every_fairif_line_of_the_runner_is_taken(setting, name, tmp_path):
    rows = set()
    for line in recorded(tmp_path, f"fairif-{name}", SETTING=setting):
        if line[0] != "train.py":
            continue
        args = train.complete(train.parser().parse_args(line[1:]))
        assert args.setting.endswith(f"/fairif-{name}")
        rows.update([args.name] if args.name else args.methods)
        if setting in ("celeba", "fairface") and name != "strategies":
            assert args.backbone.endswith("_h128") and args.pretrain_lr == 2e-4
            assert (args.pretrain_epochs, args.milestone, args.batch_size) == (50, 50, 128)
            assert (args.pretrained == "imagenet") == (name == "table6")
        weighs = any(method.startswith("fairif") for method in args.methods)
        assert (setting == "demo" and weighs) == ("curvature_images" in args.options)
    networks = ("resnet18",) if setting == "demo" else backbones.RESNETS
    pairs = {f"{method}_{network}" for network in networks
             for method in ("erm", "fairif", "fairif_shuffled")}
    assert rows == ROWS.get(name, pairs)


def seeds_of(line: list[str]) -> list[int]:
    return train.parser().parse_args(line[1:]).seeds


def test_the_papers_settings_take_ten_seeds_and_the_demo_three(tmp_path):
    ten = list(range(100, 1001, 100))
    assert [seeds_of(line) for line in recorded(tmp_path, "celeba", SEEDS="")] == [ten]
    (line,) = recorded(tmp_path, "celeba", "Young", "Male", "--top-k", "50")
    args = train.parser().parse_args(line[1:])
    assert (args.target, args.protected, args.top_k) == ("Young", "Male", 50)
    assert seeds_of(recorded(tmp_path, "table9", SEEDS="")[0]) == [100, 200, 300]
    assert seeds_of(recorded(tmp_path, "table9", SEEDS="", SETTING="celeba")[0]) == ten


def test_further_flags_reach_every_training(tmp_path):
    lines = recorded(tmp_path, "fairif-strategies", "--tensorboard", "--seeds", "7")
    trained = [train.parser().parse_args(line[1:]) for line in lines if line[0] == "train.py"]
    assert len(trained) == 3
    assert all(args.tensorboard and args.seeds == [7] for args in trained)
    refused = called(tmp_path, "judge", "--tensorboard")
    assert refused.returncode == 2 and "no further flags: --tensorboard" in refused.stderr
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize("flags", [["--launcher", "slurm"], ["--launcher=slurm"]])
@pytest.mark.parametrize("name", ["table2", "table4", "figure1", "figure6", "fairif-table11"])
def test_slurm_is_given_an_experiment_as_one_job_array(name, flags, tmp_path):
    environment = {"SETTING": "celeba", "RESULTS": "my 'own' results"}
    alone = recorded(tmp_path, name, **environment)
    array = [*flags, "--slurm", "partition=gpu"]
    together = recorded(tmp_path, name, *array, **environment, JOBS="2")
    assert together == [["-m", "utils.job_array"]]
    lines = list(map(shlex.split, (tmp_path / "record.lines").read_text().splitlines()))
    assert lines == [line + array * (line[0] == "train.py") for line in alone]
    assert len(lines) > 2


def test_a_line_is_printed_so_that_it_can_be_pasted(tmp_path):
    done = called(tmp_path, "table7", SETTING="celeba")
    (printed, *_) = [line for line in done.stderr.splitlines() if "aim_fair_2x" in line]
    before = (tmp_path / "record").read_text().splitlines()
    subprocess.run(["bash", "-c", printed.removeprefix("$ ")], check=True,
                   env={**os.environ, "RECORD": str(tmp_path / "record")})
    again = (tmp_path / "record").read_text().splitlines()
    assert again[:-1] == before
    assert again[-1] in before and "AIM-Fair 2x synthetic" in again[-1]


def test_the_demo_draws_the_pair_that_is_asked_for(tmp_path):
    generation = {"LAUNCHER": str(tmp_path / "python")}
    files = {("Smiling", "Young"): "Smiling_Young", ("Male", "Smiling"): "Smiling_Male"}
    for pair, file in files.items():
        environment = {"TARGET": pair[0], "PROTECTED": pair[1], **generation}
        first = recorded(tmp_path, "table9", **environment)[0]
        assert first[1] == "stable_diffusion.generate"
        assert first[first.index("--prompts") + 1] == (
            f"prompts/{file}_contextual_head_poses_50.json"
        )
