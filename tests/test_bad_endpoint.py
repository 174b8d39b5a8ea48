"""A language model that misbehaves, a key that must not get out, and a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest
import tiny
from refusals import contents, refused
from test_prompts import KEY, ask, server  # noqa: F401 - server is a fixture

import train
from datasets import demo
from datasets.base import ImageTable
from datasets.image_store import open_store
from prompts import build
from stable_diffusion import audit, generate
from utils.errors import exit_cleanly
from utils.reporting import __main__ as reporting

# --- the endpoint --------------------------------------------------------------------------------


def reply(text: str, status: int = 200, kind: str = "application/json", **headers):
    """What the server answers to every request."""

    def respond(handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.send_header("retry-after-ms", "1")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text.encode())

    return respond


def message(content, **choice) -> str:
    return json.dumps({
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, **choice}],
    })  # fmt: skip


HALF = '{"prompts": ["Portrait face photo of a woman who looks stern and'
ANSWERS = {  # beside those of test_prompts: answer, part of the sentence
    "half a JSON body": (reply(message("x")[:60]), "did not answer with a chat completion"),
    "an empty body": (reply(""), "did not answer with a chat completion"),
    "a list": (reply("[]"), "did not answer with a chat completion"),
    "a number": (reply("7"), "did not answer with a chat completion"),
    "no choices": (reply('{"choices": []}'), "did not answer with a chat completion"),
    "null choices": (reply('{"choices": null}'), "did not answer with a chat completion"),
    "a choice that is text": (reply('{"choices": ["x"]}'), "did not answer with"),
    "null for an answer": (reply(message(None)), "only 0 of 4 usable prompts"),
    "a refusal": (reply(message("I cannot.", finish_reason="content_filter")), "only 0 of 4"),
    "a list for an answer": (reply(message([{"type": "text"}])), "only 0 of 4"),
    "half a list of prompts": (reply(message(HALF, finish_reason="length")), "only 0 of 4"),
    "prompts that are numbers": (reply(message('{"prompts": [1, 2]}')), "only 0 of 4"),
    "always the same prompt": (reply(message(json.dumps({"prompts": [
        "Portrait face photo of a woman who looks stern."] * 9}))), "only 1 of 4"),
    "an error without words": (reply("", 500), "failed (500)"),
    "an overloaded server": (reply("{}", 529), "failed (529)"),
    "a rate limit in HTML": (reply("<html>slow down", 429, "text/html"), "429"),
    "a redirect to itself": (reply("", 307, Location="/v1/chat/completions"), "--base-url"),
    "not even text": (reply("\udcff".encode("utf-8", "surrogatepass").decode("latin1")), "did not"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_a_wrong_answer(case, server, tmp_path, capsys, monkeypatch):  # noqa: F811
    respond, part = ANSWERS[case]
    monkeypatch.setattr(server.RequestHandlerClass, "do_POST", respond)
    out = tmp_path / "Smiling_Male_contextual_4.json"
    arguments = ["--target", "Smiling", "--protected", "Male", "--number", 4, "--model", "m"]
    arguments += ["--base-url", server.url, "--out", out]
    capsys.readouterr()
    sentence = refused(capsys, build.main, arguments, names=part)
    assert not out.exists()
    # what the endpoint gave before is kept for the next start, whole
    if "usable prompts" not in sentence:  # no answer: the next start may have other words
        assert not list(tmp_path.iterdir())
        return
    assert [path.name for path in tmp_path.iterdir()] == [f"{out.name}.partial"]
    partial = (tmp_path / f"{out.name}.partial").read_text()
    assert json.loads(partial)["target"] == "Smiling"
    assert KEY not in partial + sentence


def test_more_prompts_than_asked_for_are_left_out(server, tmp_path, capsys, monkeypatch):  # noqa: F811
    many = [f"Portrait face photo of a stern woman with {n} freckles." for n in range(9)]
    steps = iter([message(json.dumps({"prompts": many}))])
    monkeypatch.setattr(
        server.RequestHandlerClass, "do_POST",
        lambda handler: reply(next(steps, message("no")))(handler),
    )  # fmt: skip
    out = tmp_path / "Smiling_Male_contextual_4.json"
    code, _, err = ask(server, out, capsys)
    assert code == 2
    assert "only 0 of 4 usable prompts for group 0_1" in err
    groups = json.loads(out.with_name(f"{out.name}.partial").read_text())["cells"]
    assert groups["0_0"] == many[:4]


def test_nobody_listens(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    arguments = ["--target", "Smiling", "--protected", "Male", "--number", 4, "--model", "m"]
    address = "http://user:password@127.0.0.1:9/v1"
    arguments += ["--base-url", address, "--out", tmp_path / "a.json"]
    assert "password" not in refused(capsys, build.main, arguments, names="127.0.0.1:9")


# --- the key -------------------------------------------------------------------------------------


def test_the_key_is_in_nothing_that_any_command_leaves(
    server, tiny_pipeline_dir, tmp_path, capsys, monkeypatch  # noqa: F811
):
    """Prompts, images and a run folder made in a shell that holds the key, and what was printed."""
    out = tmp_path / "prompts" / "Smiling_Male_contextual_2.json"
    out.parent.mkdir()
    server.script = [429, "echo", "short", 500]
    code, *printed = ask(server, out, capsys, number=2)
    assert code == 0
    document = json.loads(out.read_text())
    document["cells"] = {group: ["a face"] for group in document["cells"]}  # short for a tiny model
    out.write_text(json.dumps(document))
    made = ["--model", tiny_pipeline_dir, "--prompts", out, "--out", tmp_path / "images"]
    made += ["--images-per-group", 2, "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    generate.main([str(flag) for flag in made])
    audit.main(["--images", str(tmp_path / "images"), "--grid", "1", "--device", "cpu"])
    data = tiny.make(tmp_path / "data")
    tiny.without_pictures(monkeypatch)
    short = ["--methods", "erm", "--pretrain-epochs", 1, "--image-size", 16]
    train.main(tiny.flags(data, tmp_path / "results", *short))
    printed += capsys.readouterr()
    assert (tmp_path / "results" / "tiny" / "erm" / "seed100" / "done").exists()
    assert not any(KEY in text for text in printed)
    held = [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert held == []


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """No file may grow beyond 600 bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def noise(path: Path) -> ImageTable:
    from PIL import Image

    pixels = os.urandom(3 * 40 * 40)
    Image.frombytes("RGB", (40, 40), pixels).save(path)
    return ImageTable("noise", [str(path)], [0], [0])


def write_runs(folder: Path) -> None:
    from utils.files import write_json
    from utils.metrics import fairness_metrics, to_json

    metrics = to_json(fairness_metrics([0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]))
    for seed in (1, 2):
        write_json(folder / "erm" / f"seed{seed}" / "metrics.json", {"test": metrics})


def writers(tmp_path: Path, pipeline: Path) -> dict:
    """Commands that write: name -> (main, arguments), their inputs made beforehand."""
    prompts = tmp_path / "prompts.json"
    groups = {f"{y}_{a}": ["a face"] for y in (0, 1) for a in (0, 1)}
    prompts.write_text(json.dumps(
        {"set": "plain", "target": "Smiling", "protected": "Male", "cells": groups}))
    write_runs(tmp_path / "setting")
    table = noise(tmp_path / "noise.png")
    images = ["--model", pipeline, "--prompts", prompts, "--out", tmp_path / "out",
              "--images-per-group", 2, "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    prompt_flags = ["--target", "Smiling", "--protected", "Male", "--number", 2, "--model", "m",
                    "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "out" / "p.json"]
    return {
        "generate": (generate.main, images),
        "build": (build.main, prompt_flags),
        "reporting": (reporting.main, [tmp_path / "setting"]),
        "store": (exit_cleanly(lambda _: open_store(table, tmp_path / "out")), []),
        "demo": (exit_cleanly(lambda _: demo.unpack(tmp_path / "out")), []),
    }  # fmt: skip


WRITERS = ("generate", "build", "reporting", "store", "demo")


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_cannot_be_written_whole(
    command, tiny_pipeline_dir, tmp_path, capsys, monkeypatch, request
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    main, arguments = writers(tmp_path, tiny_pipeline_dir)[command]
    room = request.getfixturevalue("small_disk")
    refused(capsys, main, arguments, names=str(tmp_path), out=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    room()
    if command != "build":  # there is no endpoint to go on with
        main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [name for name in WRITERS if name != "demo"])
def test_a_disk_found_full_when_it_is_flushed(
    command, tiny_pipeline_dir, tmp_path, capsys, monkeypatch
):
    """Network and thin-provisioned disks report it late, in fsync."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    main, arguments = writers(tmp_path, tiny_pipeline_dir)[command]

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        sentence = refused(capsys, main, arguments, names=str(tmp_path), out=tmp_path)
    assert "the disk is full" in sentence
    assert "make room" in sentence
    if command != "build":
        main([str(argument) for argument in arguments])


@pytest.mark.parametrize("written", [1, 4, 8, 10])
def test_generation_goes_on_when_there_is_room_again(
    written, tiny_pipeline_dir, tmp_path, capsys, monkeypatch
):
    """The disk is full after so many files: manifest, 8 images, balanced.csv, biased.csv."""
    main, arguments = writers(tmp_path, tiny_pipeline_dir)["generate"]
    main([str(argument) for argument in arguments])
    unbroken = contents(tmp_path / "out")
    assert len(unbroken) == 11
    shutil.rmtree(tmp_path / "out")
    sync, left, lock = os.fsync, [written], threading.Lock()

    def full_soon(descriptor):
        with lock:
            left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_soon)
        refused(capsys, main, arguments, names=str(tmp_path / "out"))
    kept = contents(tmp_path / "out")
    assert len(kept) == written
    assert kept.items() <= unbroken.items()
    main([str(argument) for argument in arguments])
    assert contents(tmp_path / "out") == unbroken
