"""At least thirty seeded SIGKILLs from generation to tables, then compared byte by byte.

    pytest -m slow tests/test_kills.py      (3 minutes on one core)

Its short version is in test_training.py. fork_server.py says where a kill can hit.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import tiny
from fork_server import STAGES, ForkServer, count

from models import METHODS

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


@pytest.mark.slow
def test_thirty_kills_change_no_byte(server, tiny_pipeline_dir, tmp_path):
    data, prompts = tiny.make(tmp_path / "data"), tmp_path / "Smiling_Male_plain.json"
    sets = {"dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male"}
    prompts.write_text(json.dumps(sets | {"cells": GROUPS}))
    folder = tmp_path / "run"
    commands = pipeline(tiny_pipeline_dir, prompts, data, folder)

    status, events = server.run(*commands)
    assert status == 0, server.printed()
    expected = end_state(folder)
    kinds = {Path(path).name for path in expected[0]}
    assert {"00000.png", "manifest.csv", "balanced.csv", "biased.csv", "mask.json", "metrics.json",
            "classifier.pt", "model.pt", "summary.csv"} <= kinds  # fmt: skip
    assert len(expected[1]) >= 3

    rng, hits = random.Random(2024), Counter()
    for _ in range(CHAINS):
        shutil.rmtree(folder)
        for stage in STAGES:
            left = count(events, stage)  # at least this much, but for what is not written again
            for _ in range(PER_STAGE):
                at = rng.randint(1, max(1, left * 3 // 4))
                status, _ = server.run(*commands, stage=stage, kill_at=at)
                # A kill that would come too late lets the pipeline end: no hit.
                assert status in (0, -signal.SIGKILL), (stage, at, server.printed())
                hits[stage] += status != 0
                left -= at
        status, _ = server.run(*commands)
        assert status == 0, server.printed()
        assert end_state(folder) == expected, hits
        if hits.total() >= KILLS and min(hits[stage] for stage in STAGES) >= PER_STAGE:
            break
    print(f"{hits.total()} kills survived: {dict(hits)}")
    assert hits.total() >= KILLS
    assert min(hits[stage] for stage in STAGES) >= PER_STAGE, hits
    assert "Traceback" not in server.printed()


@pytest.mark.slow
def test_every_method_survives_kills(server, tmp_path):
    """Those of two stages, two networks or more random numbers hold other states than ERM's."""
    data, rng, hits = tiny.make(tmp_path / "data"), random.Random(5), 0

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
