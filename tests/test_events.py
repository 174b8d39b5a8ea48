"""--tensorboard: what is read back from the event files is the saved run, once."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny

import train
from utils import events
from utils.errors import UserError
from utils.files import write_json
from utils.run import Run

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} of a TensorBoard run, in the order of its files."""
    held = accumulator.EventAccumulator(str(folder), purge_orphaned_data=False)
    held.Reload()
    return {
        tag: [(event.step, event.value) for event in held.Scalars(tag)]
        for tag in held.Tags()["scalars"]
    }


def rows(count: int, stage: str = "train") -> list[dict]:
    return [
        {"stage": stage, "epoch": k, "loss": 1 / k, "val_acc": 0.5 + k / 100, "lr": 0.1,
         "kept": k, "seconds": 1.0}
        for k in range(1, count + 1)
    ]  # fmt: skip


def expected(log: list[dict], stage: str) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(row["epoch"], pytest.approx(row[name])) for row in log if row["stage"] == stage]
        for name in ("loss", "val_acc", "lr")
    }


def test_a_killed_process_leaves_no_epoch_twice_and_none_out(tmp_path):
    log = rows(5)
    first = events.Events(tmp_path)
    first.epoch(log[:1])
    first.epoch(log[:2])
    assert scalars(tmp_path / "train") == expected(log[:2], "train")  # while it goes on
    # Killed after epoch 3 was saved, before it was logged: nothing of this process is closed.
    second = events.Events(tmp_path)
    second.epoch(log[:4])
    second.epoch(log[:5])
    assert scalars(tmp_path / "train") == expected(log, "train")
    first.close()
    second.close()


def test_an_epoch_without_validation_has_no_accuracy(tmp_path):
    log = [{k: v for k, v in row.items() if k not in ("val_acc", "lr")} for row in rows(2)]
    live = events.Events(tmp_path)
    live.epoch(log[:1])
    live.epoch(log)
    live.close()
    assert scalars(tmp_path / "train") == {"loss": [(1, 1.0), (2, 0.5)]}


@pytest.fixture
def tiny_network(monkeypatch):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)


def test_a_run_and_its_events(tiny_network, tmp_path, monkeypatch, capsys):
    """Logged while it runs, changed by nothing, and made from the saved run where asked later."""
    data = tiny.make(tmp_path / "data")
    flags = ["--backbone", "tiny", "--methods", "full_finetuning", "--no-tables",
             "--store-dir", tmp_path / "s"]
    plain, logged = tmp_path / "plain", tmp_path / "logged"
    train.main(tiny.flags(data, plain, *flags))
    live, whole = [], events.Events.whole

    def before_the_end(self, run):
        live.append(scalars(self.folder / "finetune"))
        whole(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(events.Events, "whole", before_the_end)
        train.main(tiny.flags(data, logged, *flags, "--tensorboard"))
    board = logged / "tiny" / "tensorboard" / "full_finetuning" / "seed100"
    run = logged / "tiny" / "full_finetuning" / "seed100"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["pretrain"] * 2 + ["finetune"] * 2
    assert [row["lr"] for row in log] == [0.01] * 2 + [0.02] * 2
    assert live == [expected(log, "finetune")]
    for stage in ("pretrain", "finetune"):
        assert scalars(board / stage) == expected(log, stage)
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    held = scalars(board)
    for name, value in (("acc", metrics["acc"]), ("group_acc/0_1", metrics["group_acc"]["0_1"])):
        assert held[f"test/{name}"] == [(0, pytest.approx(value))]

    state = tiny.end_state(logged)
    outside = {path: digest for path, digest in state.items() if "/tensorboard/" not in path}
    assert len(outside) < len(state)
    assert outside == tiny.end_state(plain)

    shutil.rmtree(board)
    train.main(tiny.flags(data, logged, *flags, "--tensorboard"))
    assert "finished, reused" in capsys.readouterr().out
    assert scalars(board / "finetune") == expected(log, "finetune")
    assert scalars(board) == held


def test_hyper_parameters_are_shown(tmp_path):
    run = tmp_path / "run"
    write_json(run / "config.json", {"size": 24, "val": "none", "test_size": None,
                                     "environment": {"command": "x"}, "fingerprint": "0"})
    test = {"acc": 0.5, "eod": None, "group_acc": {"0_0": None, "1_1": 1.0}}
    write_json(run / "metrics.json", {"test": test})
    (run / "log.jsonl").write_text(json.dumps(rows(1)[0]) + "\n")
    events.Events(tmp_path / "board").whole(run)
    held = accumulator.EventAccumulator(str(tmp_path / "board"))
    held.Reload()
    assert set(held.Tags()["scalars"]) == {"test/acc", "test/group_acc/1_1"}
    start = held.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for setting in (b"size", b"val", b"test_size"):
        assert setting in start
    assert b"environment" not in start


def test_without_tensorboard_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard, or leave the flag out"):
        events.require_tensorboard()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "board").write_text("in the way")
    run = tmp_path / "run"
    sentence = "board.* cannot be written .* leave out --tensorboard"
    followed = Run(run, None, None, 1, tmp_path)
    with (
        pytest.raises(UserError, match=sentence),
        events.events_of(followed, tmp_path / "board"),
    ):
        followed.observers[-1](rows(1))
