"""Paths mean the same however a command is started: ~, variables, another folder."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.options import path

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("text", "wanted"), [
    ("~/images", "{home}/images"),
    ("$SCRATCH/images", "{home}/scratch/images"),
    ("${SCRATCH}/a b", "{home}/scratch/a b"),
    ("a/~b", "a/~b"),
    ("./~", "~"),
    ("100$", "100$"),
])
def test_a_path_flag_is_filled_in_as_a_shell_would(text, wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", f"{tmp_path}/scratch")
    assert path(text) == Path(wanted.format(home=tmp_path))


@pytest.mark.parametrize("text", ["", "  ", "$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}/x",
                                  "~no_such_user/x"])
def test_a_path_that_stands_for_nothing_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(argparse.ArgumentTypeError):
        path(text)
    if text.strip():  # a folder of that very name is meant
        Path(text).mkdir(parents=True)
        assert path(text) == Path(text)


def test_generation_takes_paths_from_where_it_is_started(tmp_path):
    (tmp_path / "home").mkdir()
    prompts = ROOT / "prompts" / "Smiling_Male_plain.json"
    (tmp_path / "own.json").write_bytes(prompts.read_bytes())
    env = {**os.environ, "HOME": str(tmp_path / "home"), "OUT": "~/faces", "PROMPTS": "own.json",
           "IMAGES_PER_GROUP": "1", "SAMPLER": "--steps 1", "PYTHON": sys.executable}
    done = subprocess.run(["bash", str(ROOT / "stable_diffusion/generation.sh")], cwd=tmp_path,
                          env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "home/faces/plain/Smiling_Male").rglob("*.png"))) == 4
    assert {file.name for file in tmp_path.iterdir()} == {"home", "own.json"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")
def test_scripts_are_checked_out_with_line_feeds(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "-c", "core.autocrlf=true", "clone", "-q", "--depth", "1",
                    f"file://{ROOT}", str(clone)], check=True)
    for pattern in ("**/*.sh", "prompts/*.json", "**/paper_tables/*",
                    "stable_diffusion/**/*.json"):
        files = [file for file in clone.glob(pattern) if file.is_file()]
        assert files
        assert [file for file in files if b"\r\n" in file.read_bytes()] == []
