"""The editor of DiGA's pairs: what it makes, the same after a restart, and wrong input."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import ImageTable
from datasets.edits import load_edits
from stable_diffusion import edit
from stable_diffusion.prompt_set import PromptSet

STEPS = 6
GROUPS = {"0_0": ["her face"], "0_1": ["his face"], "1_0": ["her smile"], "1_1": ["his smile", "m"]}
PROMPTS = {
    "dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male", "cells": GROUPS,
}  # fmt: skip
FILES = [("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 1)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a prompt file, three photographs of any shape and their list."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "plain.json").write_text(json.dumps(PROMPTS))
    rng = np.random.default_rng(0)
    for file, _ in FILES:
        pixels = rng.integers(0, 256, (20, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 40)).save(folder / file)
    rows = "".join(f"{file},{y}\n" for file, y in FILES)  # no protected label: it is not needed
    (folder / "train.csv").write_text("file,y\n" + rows)
    return folder


@pytest.fixture
def command(tiny_pipeline_dir, inputs):
    def flags(out: Path, *more) -> list[str]:
        fixed = ["--model", tiny_pipeline_dir, "--prompts", inputs / "plain.json", "--list",
                 inputs / "train.csv", "--images", inputs, "--out", out, "--steps", STEPS,
                 "--batch-size", 2, "--device", "cpu", "--degrees", 0.1, 1,
                 "--edits-per-image", 2]  # fmt: skip
        return [str(flag) for flag in [*fixed, *more]]

    return flags


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def refused(capsys, flags: list[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        edit.main(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_edits_are_made_resumed_and_read_by_diga(command, tmp_path, monkeypatch, capsys):
    out, calls, embedded = tmp_path / "out", Counter(), []
    run = edit.Editor.edit

    def counted(self, rows, images):
        handle = self.pipe.unet.register_forward_hook(lambda *_: calls.update([rows[0].noised]))
        embedded.append(len(self.sampler.embeddings))
        pixels = run(self, rows, images)
        handle.remove()
        calls[f"batches of {rows[0].noised}"] += 1
        assert len({row.noised for row in rows}) == 1
        assert len(rows) == 2  # short batches are filled up
        return pixels

    monkeypatch.setattr(edit.Editor, "edit", counted)
    edit.main(command(out))
    for noised in range(1, STEPS + 1):  # as many steps are run as the degree says
        assert calls[noised] == noised * calls[f"batches of {noised}"]
    rows = list(csv.DictReader((out / "manifest.csv").read_text().splitlines()))
    assert tuple(rows[0]) == edit.COLUMNS
    assert set(embedded) == {len({row["prompt"] for row in rows}) + 1}  # before the first batch
    assert [row["source"] for row in rows] == ["a.jpg"] * 2 + ["b.jpg"] * 2 + ["c.jpg"] * 2
    smiles = dict(FILES)
    for row in rows:  # the target stays, and the manifest says the side
        assert row["prompt"] in GROUPS[f"{smiles[row['source']]}_{row['protected']}"]
        with Image.open(out / row["path"]) as image:
            assert image.size == (16, 16)
    made = files_of(out)
    assert len(made) == len(set(made.values())) == 7  # six images, the manifest, nothing else

    table = ImageTable("real", [f"/elsewhere/{file}" for file, _ in FILES], [0, 1, 1], [0, 1, 0])
    edits = load_edits(out, table)
    assert [Path(path).name for path in edits.paths] == [Path(row["path"]).name for row in rows]
    assert edits.a.tolist() == [int(row["protected"]) for row in rows] == [0, 1] * 3

    # killed: some images are missing, one is half written
    for row in rows[1:4]:
        (out / row["path"]).unlink()
    name = Path(rows[1]["path"]).name
    (out / "images" / f".{name}.{2**22 + 1}.tmp").write_bytes(b"half")
    edit.main(command(out))
    assert files_of(out) == made

    # in two shares
    for share in ("0/2", "1/2"):
        edit.main(command(tmp_path / "shared", "--shard", share))
    assert files_of(tmp_path / "shared") == made

    for flags, words in [
        (["--steps", "5"], "steps was 6, now it is 5"),
        (["--seed", "7"], "another"),
        (["--edits-per-image", "4"], "another --out"),
        (["--degrees", "0.1", "0.2"], "another degree"),
    ]:
        assert words in refused(capsys, command(out, *flags))
    assert files_of(out) == made
    (out / "manifest.csv").unlink()
    assert "no manifest.csv" in refused(capsys, command(out))


def test_an_edit_keeps_more_of_its_image_the_less_it_is_noised(tiny_pipeline_dir, inputs):
    from stable_diffusion.pipeline import Sampler, load_pipeline

    pipe = load_pipeline(str(tiny_pipeline_dir), device="cpu")
    sampler = Sampler(pipe, steps=20, guidance=3.0, height=16, width=16)
    editor = edit.Editor(sampler, 20, 16, 16)
    source = editor._read(inputs / "b.jpg")[None] * 2 - 1
    with torch.inference_mode():  # what the autoencoder alone makes of it
        latents = pipe.vae.encode(source).latent_dist.mode() * pipe.vae.config.scaling_factor
        plain = sampler._decode(latents).float()
    distances = []
    for noised in (1, 10, 20):
        rows = [edit.Edit("", "b.jpg", 1, "his smile", seed, noised) for seed in range(4)]
        distances.append(float((editor.edit(rows, inputs).float() - plain).abs().mean()))
    assert distances[0] < distances[1] < distances[2]


def test_degrees_are_uniform_and_independent_of_other_images():
    prompts = PromptSet("plain", "Smiling", "Male", {
        tuple(map(int, group.split("_"))): texts for group, texts in GROUPS.items()})
    many = [(f"{i}.jpg", i % 2) for i in range(2000)]
    rows = edit.plan(many, prompts, 2, 42, (3, 6))
    counts = Counter(row.noised for row in rows)
    assert counts.keys() == {3, 4, 5, 6}
    assert all(900 < count < 1100 for count in counts.values())  # 1000 each; 3.6 sigma
    men = [row.prompt in (*GROUPS["0_1"], *GROUPS["1_1"]) for row in rows]
    assert men == [False, True] * 2000 == [row.protected == 1 for row in rows]
    assert len({row.seed for row in rows}) == len(rows)
    alone = edit.plan(many[1999:], prompts, 2, 42, (3, 6))
    assert [(r.prompt, r.seed, r.noised) for r in alone] == [
        (r.prompt, r.seed, r.noised) for r in rows[-2:]]
    assert edit.plan(many, prompts, 2, 43, (3, 6))[0] != rows[0]


@pytest.mark.parametrize(("flags", "words"), [
    (["--degrees", "0.5", "0.2"], "lower one first"),
    (["--degrees", "0", "0.5"], "above 0"),
    (["--degrees", "0.5", "nan"], "above 0"),
    (["--edits-per-image", "1"], "from 2"),
    (["--edits-per-image", "3"], "--edits-per-image 3 must be even"),
    (["--list", "missing.csv"], "--list missing.csv cannot be read"),
    (["--images", "nowhere"], "3 of the 3 images"),
    (["--prompts", "none.json"], "--prompts none.json"),
    (["--out", ""], "--out: the path is empty"),
    (["--out", "/dev/null/edits"], "--out"),
    (["--steps", "0"], "from 1"),
    (["--model", "./missing.ckpt"], "--model ./missing.ckpt"),
])
def test_a_wrong_flag_is_one_sentence(flags, words, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, command(tmp_path / "out", *flags))
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(("text", "words"), [
    ("file,a\na.jpg,1\n", "needs the columns file and y"),
    ("file,y\na.jpg,2\n", "with y 0 or 1"),
    ("file,y\n", "0 rows"),
    ("file,y\n../a.jpg,1\n", "../a.jpg"),
    ("file,y\n/a.jpg,1\n", "/a.jpg"),
    ("file,y\na.jpg,1\nx/a.jpg,1\n", "same name"),
])
def test_a_wrong_list_is_named(text, words, command, tmp_path, capsys):
    path = tmp_path / "list.csv"
    path.write_text(text)
    assert words in refused(capsys, command(tmp_path / "out", "--list", path))


def test_a_broken_image_is_named(command, inputs, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "list.csv").write_text("file,y\na.jpg,1\n")
    flags = command(tmp_path / "out", "--list", tmp_path / "list.csv", "--images", tmp_path)
    assert "a.jpg cannot be read" in refused(capsys, flags)
