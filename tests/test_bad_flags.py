"""Every flag out of range, for every command: one sentence that names it, and no file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from refusals import refused
from test_debiasing import test_the_command_line_names_the_mistake as set_flag_test
from test_training import WRONG_FLAGS

import train
from datasets import check
from prompts import build
from prompts import check as prompts_check
from stable_diffusion import audit, correlate, generate
from utils.reporting import __main__ as reporting

GROUPS = {f"{y}_{a}": ["a face", "another face"] for y in (0, 1) for a in (0, 1)}
PROMPTS = {
    "dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male", "cells": GROUPS,
}  # fmt: skip


def flags_of(main, capsys) -> set[str]:
    """The long flags that --help lists."""
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    return set(re.findall(r"--[a-z][a-z-]*", text.split("\n\n", 1)[0])) - {"--help"}


# --- generation ----------------------------------------------------------------------------------

GENERATE = [
    (["--model", ""], "--model"),
    (["--model", "."], "--model"),
    (["--model-config", "./none", "--model", "file.safetensors"], "--model-config"),
    (["--prompts", ""], "--prompts"),
    (["--prompts", "."], "--prompts"),
    (["--out", "file"], "--out"),
    (["--out", ""], "--out"),
    (["--images-per-group", "-1"], "--images-per-group"),
    (["--images-per-group", "100001"], "--images-per-group"),
    (["--groups", "0_2"], "--groups"),
    (["--groups"], "--groups"),
    (["--seed", "-1"], "--seed"),
    (["--seed", str(2**63)], "--seed"),
    (["--seed", "1.5"], "--seed"),
    (["--scheduler", ""], "--scheduler"),
    (["--steps", "0"], "--steps"),
    (["--steps", "1001"], "--steps"),
    (["--guidance", "nan"], "--guidance"),
    (["--guidance", "inf"], "--guidance"),
    (["--guidance", "-1"], "--guidance"),
    (["--guidance", "strong"], "--guidance"),
    (["--height", "0"], "--height"),
    (["--width", "18"], "--width"),
    (["--width", "4097"], "--width"),
    (["--image-size", "0"], "--image-size"),
    (["--precision", "fp8"], "--precision"),
    (["--batch-size", "0"], "--batch-size"),
    (["--batch-size", "1e3"], "--batch-size"),
    (["--decode-batch", "0"], "--decode-batch"),
    (["--decode-batch", "4"], "--decode-batch"),
    (["--compile=yes"], "--compile"),
    (["--device", "cuda:99"], "--device"),
    (["--device", ""], "--device"),
    (["--device", "meta"], "--device"),
    (["--shard", "1/0"], "--shard"),
    (["--shard", "-1/2"], "--shard"),
    (["--shard", "one"], "--shard"),
    (["--balanced-per-group", "0"], "--balanced-per-group"),
    (["--biased-majority", "6"], "biased.csv"),
    (["--biased-minority", "-2"], "--biased-minority"),
]


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "Smiling_Male_plain.json"
    path.write_text(json.dumps(PROMPTS))
    return path


def generation(model: Path, prompts: Path, out: Path) -> list[str]:
    fixed = ["--model", model, "--prompts", prompts, "--out", out, "--images-per-group", 5]
    return [str(flag) for flag in [*fixed, "--steps", 2, "--batch-size", 2, "--device", "cpu"]]


@pytest.mark.parametrize(("wrong", "names"), GENERATE, ids=[" ".join(w) for w, _ in GENERATE])
def test_generate(wrong, names, tiny_pipeline_dir, prompt_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("file", "file.safetensors"):
        Path(name).write_text("in the way")
    arguments = [*generation(tiny_pipeline_dir, prompt_file, tmp_path / "out"), *wrong]
    refused(capsys, generate.main, arguments, names=names, out=tmp_path)


def test_every_flag_of_generate_is_in_the_table(capsys):
    assert flags_of(generate.main, capsys) == {wrong[0].split("=")[0] for wrong, _ in GENERATE}


@pytest.mark.parametrize("environment", [
    {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"},
    {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "two"},
])  # fmt: skip
def test_generate_in_a_broken_environment(
    environment, tiny_pipeline_dir, prompt_file, tmp_path, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = generation(tiny_pipeline_dir, prompt_file, tmp_path)
    refused(capsys, generate.main, arguments, names="--shard", out=tmp_path)


# --- training ------------------------------------------------------------------------------------

TRAIN = [  # beside WRONG_FLAGS
    (["--seeds"], "--seeds"),
    (["--methods", "diga", "--edits", "nowhere"], "--edits"),
    (["--seeds", str(2**31 + 1)], "--seeds"),
    (["--methods"], "--methods"),
    (["--set", "alpha"], "--set"),
    (["--set", "=1"], "--set"),
    (["--results", "file"], "--results"),
    (["--data-root", "file"], "file"),
    (["--prompt-set", "nowhere", "--synthetic-root", "."], "nowhere"),
    (["--data-seed", "1e3"], "--data-seed"),
    (["--size", str(10**10)], "--size"),
    (["--size", "1000"], "--size"),
    (["--size", "every"], "--size"),
    (["--size", "all", "--rule", "random"], "--rule"),
    (["--positive", "male"], "--positive"),
    (["--dataset", "folder"], "--target"),
    (["--dataset", "folder", "--target", "Smiling"], "--protected"),
    (["--size", "all", "--minority", "0.2"], "--minority"),
    (["--minority", "nan"], "--minority"),
    (["--test-size", "-4"], "--test-size"),
    (["--test-size", "10"], "--test-size"),
    (["--test-size", "400"], "--test-size"),
    (["--synthetic-ratio", "inf"], "--synthetic-ratio"),
    (["--synthetic-ratio", "9"], "--synthetic-ratio"),
    (["--synthetic-ratio", "0.01"], "--synthetic-ratio"),
    (["--synthetic-minority", "nan"], "--synthetic-minority"),
    (["--pretrained", ""], "--pretrained"),
    (["--pretrained", "."], "--pretrained"),
    (["--image-size", "2049"], "--image-size"),
    (["--batch-size", str(2**21)], "--batch-size"),
    (["--eval-batch-size", "-1"], "--eval-batch-size"),
    (["--pretrain-lr", "-0.1"], "--pretrain-lr"),
    (["--finetune-epochs", "0"], "--finetune-epochs"),
    (["--momentum", "nan"], "--momentum"),
    (["--weight-decay", "inf"], "--weight-decay"),
    (["--gamma", "-1"], "--gamma"),
    (["--optimizer", "newton"], "--optimizer"),
    (["--blind"], "--blind"),
    (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
    (["--top-k", "nan"], "--top-k"),
    (["--top-k", "-3"], "--top-k"),
    (["--device", "cuda:"], "--device"),
    (["--workers", "-1"], "--workers"),
    (["--threads", "0"], "--threads"),
    (["--best-epoch", "worst-group"], "--best-epoch"),
    (["--min-crop", "0"], "--min-crop"),
    (["--min-crop", "1.1"], "--min-crop"),
    (["--synthetic-biased-ratio", "nan"], "--synthetic-biased-ratio"),
    (["--paper-row", "AIM-Fair", "--methods", "erm", "aim_fair"], "--paper-row"),
    (["--paper-row", "Nobody", "--paper-table", "33"], "--paper-table"),
    (["--jobs", "0"], "--jobs"),
    (["--baseline", "nobody"], "--baseline"),
    (["--finetune-milestone", "0"], "--finetune-milestone"),
    (["--pretrain-milestone", "0"], "--pretrain-milestone"),
    (["--no-tables=3"], "--no-tables"),
    (["--edits", "nowhere", "--methods", "diga"], "nowhere"),
    (["--setting", "/tmp/x"], "--setting"),
    (["--setting", "a//b"], "--setting"),
    (["--methods", "erm", "--name", "submitit"], "--name 'submitit'"),
    (["--methods", "update_layer1", "--backbone", "vit_small_patch32"], "update_layer1"),
    (["--methods", "erm", "fairif", "--val", "none"], "--val none"),
    (["--methods", "full_interpolated", "--val", "none"], "--val none"),
    (["--methods", "counterweighted", "--set", "others=1.5"], "others=1.5"),
    (["--launcher", "pbs"], "--launcher"),
    (["--search", "nowhere.toml"], "--search nowhere.toml"),
    (["--search", "."], "--search ."),
    (["--slurm", "time=60"], "--slurm"),
    (["--slurm", "time", "--launcher", "slurm"], "--slurm time"),
    (["--tensorboard=yes"], "--tensorboard"),
    (["--compile=yes"], "--compile"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("wrong", "names"), TRAIN, ids=[" ".join(w) for w, _ in TRAIN])
def test_train(wrong, names, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    arguments = tiny.flags(data, tmp_path / "results", "--methods", "aim_fair", *wrong)
    refused(capsys, train.main, arguments, names=names, out=tmp_path)


def test_every_flag_of_train_is_in_a_table(capsys):
    (set_table,) = [mark for mark in set_flag_test.pytestmark if mark.name == "parametrize"]
    table = [*WRONG_FLAGS, *TRAIN, *set_table.args[1]]
    covered = {flag.split("=")[0] for wrong, _ in table for flag in wrong if flag[:2] == "--"}
    assert flags_of(train.main, capsys) - {"--list"} <= covered  # which takes nothing


# --- the other commands --------------------------------------------------------------------------

OTHERS = [
    (audit.main, ["--images", "nowhere"], "--images"),
    (audit.main, ["--images", "file"], "--images"),
    (audit.main, ["--images", ".", "--grid", "0"], "--grid"),
    (audit.main, ["--images", ".", "--grid", "1000000"], "--grid"),
    (audit.main, ["--images", "made", "--device", "gpu"], "--device"),
    (audit.main, ["--images", "made", "--judge", "nowhere.pt", "--device", "cpu"], "--judge"),
    (audit.main, ["--images", "made", "--clip", "./none", "--device", "cpu"], "--clip"),
    (audit.main, ["--grid", "2"], "--images"),
    (audit.main, ["--images", "made", "--dataset", "imagenet", "--features", "none.pt"],
     "--features"),
    (audit.main, ["--images", "made", "--photographs", "few"], "--photographs"),
    (correlate.main, ["--metric", "wst"], "--set"),
    (correlate.main, ["--set", "made"], "--set"),
    (check.main, ["--dataset", "imagenet", "--root", "."], "--dataset"),
    (check.main, ["--dataset", "celeba"], "--root"),
    (check.main, ["--dataset", "celeba", "--root", "nowhere"], "nowhere"),
    (check.main, ["--dataset", "celeba", "--root", "file"], "file"),
    (check.main, ["--dataset", "utkface", "--root", "nowhere"], "nowhere"),
    (check.main, ["--dataset", "utkface", "--root", "."], "age_gender_race_date"),
    (check.main, ["--dataset", "demo", "--root", "file"], "file"),
    (check.main, ["--dataset", "utkface", "--root", ".", "--target", "Female", "--protected",
                  "White"], "--target"),
    (check.main, ["--dataset", "celeba", "--root", ".", "--protected", "Male"], "--target"),
    (prompts_check.main, ["nowhere.json"], "nowhere.json"),
    (prompts_check.main, ["."], "."),
    (prompts_check.main, ["--tokenizer", "nowhere"], "--tokenizer"),
    (prompts_check.main, ["--tokenizer", "words"], "--tokenizer"),
    (build.main, ["--target", "Smiling", "--protected", "Male"], "--model"),
    (build.main, ["--target", "Smiling", "--protected", "Male", "--model", "m", "--number", "x"],
     "--number"),
    (build.main, ["--target", "Smiling", "--protected", "Male", "--model", "m", "--timeout", "nan"],
     "--timeout"),
    (build.main, ["--target", "Female", "--protected", "White", "--model", "m", "--dataset",
                  "celeba"], "--target"),
    (build.main, ["--target", "Smiling", "--protected", "Male", "--model", "m", "--out", "."],
     "--out"),
    (build.main, ["--target", "Smiling", "--protected", "Male", "--model", "m", "--base-url",
                  "ftp://user:password@host/v1", "--out", "x.json"], "--base-url"),
    (reporting.main, ["nowhere"], "nowhere"),
    (reporting.main, ["file"], "file"),
    (reporting.main, [], "--docs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("main", "wrong", "names"), OTHERS,
    ids=[f"{main.__module__} {' '.join(wrong)}" for main, wrong, _ in OTHERS],
)  # fmt: skip
def test_other_commands(main, wrong, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    Path("file").write_text("in the way")
    Path("words").mkdir()
    Path("words", "vocab.json").write_text('{"a": "b"')
    Path("words", "merges.txt").write_text("")
    made = Path("made", "plain", "Smiling_Male")
    made.mkdir(parents=True)
    (made / "manifest.csv").write_text("path,y,a\n0_0/00000.png,0,0\n")
    sentence = refused(capsys, main, wrong, names=names, out=tmp_path)
    assert "password" not in sentence
