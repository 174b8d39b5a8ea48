"""bash runner.sh repair: the guided path, its page and what it hands on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from refusals import refused

import train
from models import export, repair
from utils.reporting import plots

ROOT = Path(__file__).resolve().parents[1]
RECORDER = f"""#!/usr/bin/env bash
[ "$1" != -c ] || exec {sys.executable} "$@"
printf '%s\\x1f' "$@" >> "$RECORD"; printf '\\n' >> "$RECORD"
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny.with_network(monkeypatch)


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(data) -> Path:
    """A setting whose rows start from a given model, and its page."""
    results = data / "results"
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_network(patch)
        patch.setattr(plots, "draw_all", lambda *_: [])  # the page has its own figure
        given = tiny.flags(data, results, "--backbone", "tiny", "--methods", "erm", "--no-tables",
                           "--setting", "given", "--pretrain-epochs", 15, "--pretrain-lr", 0.05)
        train.main(given)
        train.main(tiny.flags(data, results, "--methods", "erm", "aim_fair", "--start",
                              results / "given" / "erm" / "seed100"))
        repair.main([str(results / "tiny"), "--data-root", str(data / "celeba"), "--store-dir",
                     str(results / "store"), "--device", "cpu", "--bootstrap", "500"])
    return results / "tiny"


def test_the_page_shows_both_models(setting):
    page = (setting / "repair.html").read_text()
    runs = {name: json.loads((setting / name / "seed100" / "metrics.json").read_text())["test"]
            for name in ("erm", "aim_fair")}
    found = json.loads((setting / "repair.json").read_text())
    for name, side in (("erm", "before"), ("aim_fair", "after")):
        assert {key: found["models"][side][key] for key in runs[name]} == runs[name]
        for metric in ("acc", "wst", "eo_worst"):
            assert f"{100 * runs[name][metric]:.2f} [" in page
    mask = json.loads((setting / "aim_fair" / "seed100" / "mask.json").read_text())["tensors"]
    assert f"{sum(mask.values())} of {len(mask)} parameter tensors" in page
    assert page.count("<img ") == 1 + 8  # the figure, and sheets of four groups each
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # one file, whole by itself
    for title in ("Result", "Groups", "Scores", "Mask", "Images", "Limits"):
        assert f'<section id="{title.lower()}">' in page


def test_the_verdict_is_printed_and_few_images_are_said(setting, data, capsys):
    repair.main([str(setting), "--data-root", str(data / "celeba"), "--device", "cpu",
                 "--store-dir", str(data / "results" / "store"), "--bootstrap", "100"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Accuracy: ") and said[3].endswith("repair.html")
    assert "fewer than 30 images" in (setting / "repair.html").read_text()


def test_the_verdict_says_what_the_images_can_tell():
    before, after = ({"acc": 0.9, "wst": 0.6, "eo_worst": 0.3},
                     {"acc": 0.91, "wst": 0.8, "eo_worst": 0.1})
    sentences = repair.verdict(before, after, {
        "acc": {"difference": 0.01, "interval": [-0.01, 0.03]},
        "wst": {"difference": 0.2, "interval": [0.1, 0.3]},
        "eo_worst": {"difference": -0.2, "interval": [-0.3, -0.1]}})
    assert "cannot tell" in sentences[0]
    assert sentences[1].endswith("better.") and sentences[2].endswith("better.")
    worse = repair.verdict(after, before, {
        name: {"difference": -0.2 if name != "eo_worst" else 0.2,
               "interval": [-0.3, -0.1] if name != "eo_worst" else [0.1, 0.3]} for name in before})
    assert all(sentence.endswith("worse.") for sentence in worse)


def test_wrong_flags_are_one_sentence(setting, data, tmp_path, capsys):
    for wrong, names in (([tmp_path], "erm/seed100"), ([setting, "--row", "lora"], "lora/seed100"),
                         ([setting, "--seed", "3"], "seed3"), ([], "FOLDER"),
                         ([setting, "--data-root", "nowhere"], "nowhere"),
                         ([setting], "--data-root is missing: give the folder of --dataset celeb")):
        refused(capsys, repair.main, wrong, names=names, out=tmp_path)


# --- the shell's path ----------------------------------------------------------------------------


PROMPTS = {"set": "plain", "target": "smiling", "protected": "male",
           "cells": dict.fromkeys(("0_0", "0_1", "1_0", "1_1"), ["a face"])}


def called(
    folder: Path, *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    python = folder / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    names = ("CHECKPOINT", "DATASET", "DATA", "TARGET", "PROTECTED", "MODEL", "PROMPTS", "OUT",
             "SYNTHETIC", "SEEDS", "SEED", "NAME", "ROW", "ROWS", "EXPORT",
             "METHODS", "SETTING", "LAUNCHER", "SAMPLER", "SIZE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        ["bash", str(ROOT / "runner.sh"), "repair", *words], capture_output=True, text=True,
        check=False, cwd=cwd, env={**clean, "PYTHON": str(python), "RECORD": str(folder / "record"),
                          "RESULTS": str(folder / "results"), **environment})


def recorded(
    folder: Path, *words: str, cwd: Path | None = None, **environment: str
) -> list[list[str]]:
    done = called(folder, *words, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f")[:-1] for line in (folder / "record").read_text().splitlines()]


def test_the_demo_trains_a_model_and_repairs_it(tmp_path):
    lines = recorded(tmp_path)
    first, measured, second = (
        train.parse(line[1:]) for line in lines if line[0] == "train.py")
    assert (measured.methods, measured.start) == (("erm",), second.start)
    assert (first.methods, first.seeds, first.dataset) == (("erm",), (100,), "demo")
    assert second.start == first.results / first.setting / "erm" / "seed100"
    assert (second.size, second.target, second.protected) == (1500, "Smiling", "Male")
    assert second.methods[0] == "erm" and "aim_fair" in second.methods
    made = [line for line in lines if line[0].endswith("generate.py")]
    assert len(made) == 2 and made[0] == made[1]  # the second finds the first one's images
    assert [line[1] for line in lines if line[0] == "-m"] == ["models.repair", "models.export"]


def test_ones_own_model_and_photographs(tmp_path):
    prompts = tmp_path / "own.json"
    prompts.write_text(json.dumps(PROMPTS))
    own = {"CHECKPOINT": "model.pt", "DATA": "photographs", "TARGET": "smiling", "MODEL": "sd",
           "PROTECTED": "male", "PROMPTS": str(prompts), "DATASET": "celeba", "EXPORT": "onnx"}
    flags = ["--backbone", "timm:resnet50", "--mean", "0.485", "0.456", "0.406"]
    measured, generated, trained, page, handed = recorded(tmp_path, *flags, **own)
    args = train.parse(trained[1:])
    first = train.parse(measured[1:])  # what is wrong with model or data shows before the images
    assert first.methods == ("erm",) and first.no_tables and first.setting == args.setting
    assert generated[generated.index("--seed") + 1] == "42"
    assert (args.start, args.data_root) == (Path("model.pt"), Path("photographs"))
    assert (args.target, args.protected, args.prompt_set) == ("smiling", "male", "plain")
    assert (args.backbone, args.mean) == ("timm:resnet50", (0.485, 0.456, 0.406))
    assert generated[generated.index("--model") + 1] == "sd"
    assert generated[generated.index("--prompts") + 1] == str(prompts)
    assert handed[-2:] == ["--export", "onnx"] and "--before" in handed
    assert page[2] == str(args.results / args.setting)
    assert export.main.__module__ == handed[1]


def test_another_attempt_and_another_folder(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(PROMPTS))
    own = {"CHECKPOINT": "model.pt", "DATA": "photographs", "TARGET": "smiling", "MODEL": "a/hub",
           "PROTECTED": "male", "PROMPTS": "own.json", "NAME": "trial", "SEED": "7",
           "RESULTS": "results"}
    lines = recorded(tmp_path, cwd=tmp_path, **own)
    *_, trained, page, handed = lines
    args = train.parse(trained[1:])
    assert (args.start, args.data_root) == (tmp_path / "model.pt", tmp_path / "photographs")
    assert args.setting == "trial" and args.seeds == (7,)
    assert page[2] == str(tmp_path / "results" / "trial") == str(args.results / "trial")
    assert handed[-1] == "torchscript" and str(tmp_path / "results/trial/repaired") in handed
    (generated,) = (line for line in lines if line[0].endswith("generate.py"))
    assert generated[generated.index("--model") + 1] == "a/hub"
    assert generated[generated.index("--seed") + 1] == "42"  # another repair, the same images


def test_help_says_how_and_starts_nothing(tmp_path):
    done = called(tmp_path, "--help")
    assert done.returncode == 0 and "CHECKPOINT=model.pt" in done.stdout
    assert not (tmp_path / "record").exists()


OWN = {"CHECKPOINT": "m.pt", "DATA": "d", "TARGET": "t", "PROTECTED": "p", "MODEL": "x",
       "PROMPTS": str(ROOT / "prompts/Smiling_Male_plain.json")}


@pytest.mark.parametrize(("given", "said"), [
    (OWN | {"ROW": "aimfair"}, "ROW=aimfair is none of ROWS=erm"),
    (OWN | {"EXPORT": "onxx"}, "EXPORT=onxx is neither torchscript nor onnx"),
    (OWN, "is of Smiling and Male, not of t and p; give another file"),
    (OWN | {"PROMPTS": str(ROOT / "README.md")}, "cannot be read as JSON"),
    ({key: value for key, value in OWN.items() if key != "CHECKPOINT"}, "CHECKPOINT= is missing"),
    ({"words": ["--setting", "x"]}, "--setting is given by NAME="),
    ({"CHECKPOINT": "model.pt"}, "DATA= is missing"),
    ({"CHECKPOINT": "m.pt", "DATA": "d", "TARGET": "t", "PROTECTED": "p", "MODEL": "x"},
     "PROMPTS= is missing"),
    ({"CHECKPOINT": "m.pt", "DATA": "d", "TARGET": "t", "PROTECTED": "p", "MODEL": "x",
      "PROMPTS": "nowhere.json"}, "no PROMPTS=nowhere.json"),
])  # fmt: skip
def test_what_is_missing_is_named(given, said, tmp_path):
    done = called(tmp_path, *given.get("words", ()),
                  **{key: value for key, value in given.items() if key != "words"})
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "record").exists()
