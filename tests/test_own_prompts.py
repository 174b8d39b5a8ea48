"""Prompts in the user's own words: of faces or not, written, checked, drawn and trained on."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image, ImageDraw
from refusals import refused

import train
from prompts import build, check
from stable_diffusion import generate

BIRDS = ["--target", "waterbird", "--target-words", "a waterbird|a gull", "a landbird",
         "--protected", "water", "--protected-words", "on water", "on land",
         "--subject", "Photo of a"]
GLASSES = ["--target", "Glasses", "--target-words", "wearing glasses", "without glasses",
           "--protected", "Male", "--protected-words", "a man", "a woman"]
KINDS = ("grey", "small", "young", "tired", "resting", "wet", "noisy", "lonely", "old", "shy")


@pytest.mark.parametrize(("flags", "groups"), [
    (BIRDS, ["Photo of a landbird on land.", "Photo of a landbird on water.",
             "Photo of a waterbird on land.", "Photo of a waterbird on water."]),
    (GLASSES, ["Portrait face photo of a woman without glasses.",
               "Portrait face photo of a man without glasses.",
               "Portrait face photo of a woman wearing glasses.",
               "Portrait face photo of a man wearing glasses."]),
    ([*GLASSES[:3], "in glasses", "bare-eyed", "--protected", "Male", "--subject", "A photo of a"],
     ["A photo of a bare-eyed woman.", "A photo of a bare-eyed man.",
      "A photo of a woman in glasses.", "A photo of a man in glasses."]),
    (["--target", "old", "--target-words", "an elderly person", "a young person", "--protected",
      "mood", "--protected-words", "smiling", "serious"],
     ["Portrait face photo of a serious young person.",
      "Portrait face photo of a smiling young person.",
      "Portrait face photo of a serious elderly person.",
      "Portrait face photo of a smiling elderly person."]),
], ids=["birds", "glasses", "one known attribute", "adjectives"])
def test_the_plain_set_needs_no_model(flags, groups, tmp_path, capsys):
    pair = f"{flags[1]}_{flags[flags.index('--protected') + 1]}"
    out = tmp_path / f"{pair}_plain.json"
    build.main([*flags, "--plain", "--out", str(out)])
    assert list(json.loads(out.read_text())["cells"].values()) == [
        [text] for text in groups]
    assert ("'without glasses' says what is not there" in capsys.readouterr().err) == (
        "without glasses" in flags)
    assert check.main([str(out)]) == 0
    document = json.loads(out.read_text())
    document["cells"]["0_1"], document["cells"]["1_0"] = (
        document["cells"]["1_0"], document["cells"]["0_1"])
    out.write_text(json.dumps(document))
    assert check.main([str(out)]) == 1
    said = capsys.readouterr().out
    assert "group 0_1 prompt 1 [target]" in said and "group 1_0 prompt 1 [protected]" in said


def test_a_longer_phrase_wins_and_a_part_of_a_word_is_none(tmp_path, capsys):
    out = tmp_path / "Hat_Male_plain.json"
    build.main(["--target", "Hat", "--target-words", "a hat", "no hat", "--protected", "Male",
                "--protected-words", "a man", "a woman", "--plain", "--out", str(out)])
    assert check.main([str(out)]) == 0  # "no hat" is no hat, and a woman no man
    document = json.loads(out.read_text())
    document["cells"]["1_1"] = ["Portrait face photo of a man who likes what he sees."]
    out.write_text(json.dumps(document))
    assert check.main([str(out)]) == 1
    assert "does not name Hat=1 (a hat)" in capsys.readouterr().out


class Birds(BaseHTTPRequestHandler):
    """A language model that reads the words it must use out of what it is asked."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][0]["content"]
        self.server.asked.append(message)
        bird = "waterbird" if 'word for word, "waterbird" or "gull"' in message else "landbird"
        place = "on water" if 'word for word, "on water"' in message else "on land"
        wrong = {"landbird": "gull", "waterbird": "landbird"}[bird]
        texts = [f"Photo of a {kind} {bird} {place}, {chr(97 + i) * 4}{bird[:2]} {chr(98 + i) * 5}."
                 for i, kind in enumerate(KINDS)]
        texts = [f"Photo of a {wrong} {place}.", f"A {bird} {place}.", *texts]
        content = json.dumps({"prompts": texts})
        choice = {"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": content}}
        answer = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                             "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Birds)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_asked_in_the_same_words(model, tmp_path, capsys):
    out = tmp_path / "waterbird_water_contextual_8.json"
    build.main([*BIRDS, "--number", "8", "--model", "m", "--out", str(out),
                "--base-url", f"http://127.0.0.1:{model.server_address[1]}/v1"])
    document = json.loads(out.read_text())
    assert all(len(prompts) == 8 for prompts in document["cells"].values())
    assert check.main([str(out)]) == 0
    assert len(model.asked) == 4 and all("face" not in message for message in model.asked)
    assert "always include a landbird and on land" in model.asked[0]


@pytest.mark.parametrize(("flags", "names"), [
    (["--target", "Glasses", "--protected", "Male", "--subject", "A face of a", "--plain"],
     "--target Glasses has no words: give --target-words"),
    (["--target", "Glasses", "--protected", "Male", "--plain"], "--target Glasses"),
    ([*BIRDS[:7], "--protected-words", "a man", " | ", "--plain"], "--protected-words"),
    ([*BIRDS[:7], "--protected-words", "a man", "the man", "--plain"], "both values are called"),
    ([*BIRDS[:5], "--plain"], "--protected"),
    ([*BIRDS, "--subject", " ", "--plain"], "--subject"),
    ([*BIRDS, "--target", "water bird", "--plain"], "--target 'water bird'"),
    ([*BIRDS, "--protected", "waterbird", "--plain"], "both waterbird"),
    ([*BIRDS, "--dataset", "celeba", "--plain"], "--dataset celeba"),
    ([*BIRDS], "--model is missing"),
    ([*BIRDS, "--plain", "--model", "m"], "--plain asks no --model"),
    ([*BIRDS, "--plain", "--number", "5"], "leave out --number"),
    ([*BIRDS, "--plain", "--head-poses"], "leave out --head-poses"),
    ([*BIRDS, "--plain", "--base-url", "http://localhost"], "leave out --base-url"),
], ids=str)
def test_a_mistaken_flag_is_one_sentence(flags, names, tmp_path, capsys):
    refused(capsys, build.main, [*flags, "--out", tmp_path / "x.json"], names=names, out=tmp_path)


@pytest.mark.parametrize(("words", "said"), [
    ({}, 'phrases for the values "0" and "1" of waterbird'),
    ({"waterbird": {"0": ["a"], "1": []}}, "of waterbird"),
    ({"waterbird": {"0": ["gull"], "1": ["a gull"]}}, "have the same phrase"),
    ({"land": {"0": ["x"], "1": ["y"]}}, "phrases of its target and protected"),
    (None, "phrases of its target and protected"),
])
def test_a_file_with_wrong_words_fails(words, said, tmp_path, capsys):
    out = tmp_path / "waterbird_water_plain.json"
    build.main([*BIRDS, "--plain", "--out", str(out)])
    document = json.loads(out.read_text())
    document["words"] = words if not words else {**document["words"], **words}
    out.write_text(json.dumps(document))
    capsys.readouterr()
    assert check.main([str(out)]) == 1
    assert said in capsys.readouterr().out


def bird(draw: np.random.Generator, water: int, place: int) -> Image.Image:
    """A triangle or a disc on blue or green: no face."""
    image = Image.new("RGB", (32, 32), [(60, 120, 60), (60, 60, 160)][place])
    x, y = draw.integers(6, 14, 2).tolist()
    shape = [(x, y + 12), (x + 6, y), (x + 12, y + 12)] if water else [x, y, x + 12, y + 12]
    pen = ImageDraw.Draw(image)
    (pen.polygon if water else pen.ellipse)(shape, fill=(230, 220, 200))
    return image


def test_birds_from_prompts_to_a_repaired_model(tmp_path, tiny_pipeline_dir, monkeypatch):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)
    root, rng, rows = tmp_path / "birds", np.random.default_rng(0), []
    root.mkdir()
    for number in range(120):
        water, place = number % 2, number // 2 % 2
        bird(rng, water, place).save(root / f"{number}.png")
        rows.append((f"{number}.png", water, place))
    pd.DataFrame(rows, columns=["image_id", "waterbird", "water"]).to_csv(
        root / "metadata.csv", index=False)
    prompts = tmp_path / "waterbird_water_plain.json"
    build.main([*BIRDS, "--plain", "--out", str(prompts)])
    generate.main(["--model", str(tiny_pipeline_dir), "--prompts", str(prompts), "--steps", "1",
                   "--out", str(tmp_path / "synthetic"), "--images-per-group", "24",
                   "--image-size", "32", "--device", "cpu"])
    train.main([str(flag) for flag in [
        "--dataset", "folder", "--data-root", root, "--target", "waterbird", "--protected", "water",
        "--size", 40, "--minority", 0.2, "--synthetic-minority", 0.2, "--prompt-set", "plain",
        "--synthetic-root", tmp_path / "synthetic", "--methods", "erm", "aim_fair",
        "--results", tmp_path / "results", "--setting", "birds", "--store-dir", tmp_path / "store",
        "--backbone", "tiny", "--pretrained", "none", "--image-size", 32, "--batch-size", 8,
        "--pretrain-epochs", 1, "--finetune-epochs", 1, "--device", "cpu"]])
    run = tmp_path / "results/birds/aim_fair/seed100"
    assert json.loads((run / "metrics.json").read_text())["test"]["group_count"] == {
        "0_0": 6, "0_1": 6, "1_0": 6, "1_1": 6}
    assert "waterbird" in (Path(tmp_path) / "results/birds/report.html").read_text()
