"""Runs that are killed, stopped or out of room end in the same bytes, from generation to tables.

A kill in every stage; with `pytest -m slow tests/test_kills.py` (3 minutes on one core) at least
thirty, and two of every method. fork_server.py says where a kill can hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import tiny
from fork_server import STAGES, ForkServer, count

from models import METHODS
from utils.preemption import PREEMPTED

KILLS = 30
PER_STAGE = 3  # in a chain of kills and restarts
CHAINS = 4  # at most
GROUPS = {
    "0_0": ["a face", "an old face"],
    "0_1": ["his face"],
    "1_0": ["her smile", "a smile"],
    "1_1": ["his smile"],
}


@pytest.fixture(scope="module")
def server():
    # pipeline: generate.py imports it late, and here that would be once a restart
    server = ForkServer("train", "stable_diffusion.generate", "stable_diffusion.pipeline")
    yield server
    server.close()


def pipeline(model: Path, prompts: Path, data: Path, folder: Path) -> list[list[str]]:
    """The two commands of runner.sh, from prompts to tables, all within `folder`."""
    generate = [
        "--model", model, "--prompts", prompts, "--out", folder / "images", "--device", "cpu",
        "--images-per-group", tiny.SYNTHETIC, "--steps", 2, "--batch-size", 4,
    ]  # fmt: skip
    train = tiny.flags(
        data, folder / "results", "--backbone", "tiny", "--methods", "aim_fair",
        "--synthetic-root", folder / "images", "--prompt-set", "plain",
    )  # fmt: skip
    return [["stable_diffusion.generate", *map(str, generate)], ["train", *train]]


def end_state(folder: Path) -> tuple[dict, list]:
    """({file: digest}, digests of the image stores, whose names hold their images' times)."""
    state = tiny.end_state(folder)
    stores = [path for path in state if path.startswith("results/store/")]
    return state, sorted(state.pop(path) for path in stores)


@pytest.fixture(scope="module")
def commands(data, tiny_pipeline_dir, tmp_path_factory):
    """Those of a pipeline in a folder."""
    prompts = tmp_path_factory.mktemp("prompts") / "Smiling_Male_plain.json"
    sets = {"dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male"}
    prompts.write_text(json.dumps(sets | {"cells": GROUPS}))
    return lambda folder: pipeline(tiny_pipeline_dir, prompts, data, folder)


@pytest.fixture(scope="module")
def unbroken(server, commands, tmp_path_factory) -> tuple[tuple, Counter]:
    """(end state, events) of a pipeline that nobody interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, events = server.run(*commands(folder))
    assert status == 0, server.printed()
    expected = end_state(folder)
    figures = ("training_curves", "accuracy_against_eo", "selected_tensors_aim_fair")
    names = {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")}
    names |= {"00000.png", "manifest.csv", "balanced.csv", "biased.csv", "mask.json",
              "metrics.json", "classifier.pt", "model.pt", "summary.csv"}
    assert names <= {Path(path).name for path in expected[0]}
    assert len(expected[1]) >= 3
    return expected, events


def test_killed_in_every_stage_it_ends_in_the_same_bytes(server, commands, unbroken, tmp_path):
    expected, events = unbroken
    rng = random.Random(7)
    for stage in STAGES:
        # A restart has a few events less than the first run: it need not write what is there.
        at = rng.randint(1, max(1, count(events, stage) * 3 // 4))
        status, _ = server.run(*commands(tmp_path), stage=stage, kill_at=at)
        assert status == -signal.SIGKILL, (stage, at, events, server.printed())
    assert server.run(*commands(tmp_path))[0] == 0, server.printed()
    assert end_state(tmp_path) == expected


@pytest.mark.slow
def test_thirty_kills_change_no_byte(server, commands, unbroken, tmp_path):
    expected, events = unbroken
    rng, hits = random.Random(2024), Counter()
    for chain in range(CHAINS):
        folder = tmp_path / str(chain)
        for stage in STAGES:
            left = count(events, stage)  # at least this much, but for what is not written again
            for _ in range(PER_STAGE):
                at = rng.randint(1, max(1, left * 3 // 4))
                status, _ = server.run(*commands(folder), stage=stage, kill_at=at)
                # A kill that would come too late lets the pipeline end: no hit.
                assert status in (0, -signal.SIGKILL), (stage, at, server.printed())
                hits[stage] += status != 0
                left -= at
        status, _ = server.run(*commands(folder))
        assert status == 0, server.printed()
        assert end_state(folder) == expected, hits
        if hits.total() >= KILLS and min(hits[stage] for stage in STAGES) >= PER_STAGE:
            break
    print(f"{hits.total()} kills survived: {dict(hits)}")
    assert hits.total() >= KILLS
    assert min(hits[stage] for stage in STAGES) >= PER_STAGE, hits
    assert "Traceback" not in server.printed()


def trained(data: Path, results: Path) -> list[str]:
    """AIM-Fair without generation and tables, two epochs of each stage."""
    rows = ["--backbone", "tiny", "--methods", "aim_fair", "--no-tables"]
    return ["train", *tiny.flags(data, results, *rows)]


@pytest.fixture(scope="module")
def alone(server, data) -> tuple[dict, Counter]:
    """(end state, events) of that, uninterrupted."""
    status, events = server.run(trained(data, data / "alone"))
    assert status == 0, server.printed()
    return tiny.end_state(data / "alone"), events


def test_preempted_and_out_of_room_it_ends_in_the_same_bytes(server, data, alone):
    state, events = alone
    results = data / "preempted"
    # Files may grow to one and a half classifiers: enough for the decoded images, too little for a
    # training state, which holds the weights three times. So a full disk stops a run, too.
    run = data / "alone" / "tiny" / "aim_fair" / "seed100"
    room = (run / "classifier.pt").stat().st_size * 3 // 2
    assert server.run(trained(data, results), fsize=room)[0] == 2, server.printed()
    assert "state.pt cannot be written (File too large)" in server.printed()
    # SIGTERM after some of a stage's gradients, again and again while there are several left; the
    # mask starts from its first gradient each time.
    stopped = 0
    for stage in ("pre-training", "mask", "fine-tuning"):
        left = count(events, stage, "gradient")
        assert left > 1
        while left > 1:
            at = left // 2
            status, _ = server.run(
                trained(data, results), stage=stage, kind="gradient", kill_at=at, signal="SIGTERM"
            )
            assert status == PREEMPTED, (stage, at, server.printed())
            left, stopped = left - at if stage != "mask" else 0, stopped + 1
    printed = server.printed()
    assert printed.count("SIGTERM: interrupted; rerun the same command to resume") == stopped
    assert "pretrain: saved in epoch 1 after step" in printed
    assert "finetune: saved in epoch 1 after step" in printed
    assert "Traceback" not in printed
    assert server.run(trained(data, results))[0] == 0, server.printed()
    assert tiny.end_state(results) == state


def test_a_second_run_waits_and_a_killed_one_leaves_no_lock(server, data, alone):
    state, events = alone
    results = data / "twice"
    half = {"stage": "pre-training", "kill_at": count(events, "pre-training") // 2}
    status, _ = server.run(trained(data, results), signal="SIGSTOP", **half)
    assert status == -signal.SIGSTOP  # it is still there and holds its folders
    holder, before = server.pid, tiny.end_state(results)
    status, _ = server.run(trained(data, results), kind="sleep", kill_at=1, signal="SIGTERM")
    assert status == PREEMPTED  # while it waited
    assert "aim_fair/seed100: another run works here; waiting for it" in server.printed()
    assert tiny.end_state(results) == before
    os.kill(holder, signal.SIGKILL)
    assert server.run(reap=holder)[0] == -signal.SIGKILL
    status, seen = server.run(trained(data, results))
    assert status == 0, server.printed()
    assert count(seen, kind="sleep") == 0
    assert tiny.end_state(results) == state


@pytest.mark.slow
def test_every_method_survives_kills(server, data, tmp_path):
    """Those of two stages, two networks or more random numbers hold other states than ERM's."""
    rng, hits = random.Random(5), 0

    def run(name: str, results: Path, **request) -> tuple[int, Counter]:
        arguments = tiny.flags(data, results, "--backbone", "tiny", *tiny.quick(name))
        store = ["--store-dir", str(tmp_path / "store")]
        return server.run(["train", *arguments, *store], figures=False, **request)

    for name in tiny.runnable(METHODS):
        status, events = run(name, tmp_path / "unbroken")
        assert status == 0, (name, server.printed())
        for left in (count(events), count(events) // 2):
            status, _ = run(name, tmp_path / "killed", kill_at=rng.randint(1, left * 3 // 4))
            assert status in (0, -signal.SIGKILL), (name, server.printed())
            hits += status != 0
        status, _ = run(name, tmp_path / "killed")
        assert status == 0, (name, server.printed())
        states = [tiny.end_state(tmp_path / kind) for kind in ("unbroken", "killed")]
        assert states[0] == states[1], name
    print(f"{hits} kills survived by {len(METHODS)} methods")
    assert hits >= len(METHODS)
