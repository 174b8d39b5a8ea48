"""Which settings a summary names beside a row."""

from __future__ import annotations

import json

import tiny

import train
from utils.reporting.row_settings import lines, row_settings

COMMON = {"size": 24, "seed": 100, "fingerprint": "0", "environment": {}, "real_list": "1"}


def test_rows_are_named_by_what_sets_them_apart():
    rows = {
        "erm": COMMON,  # without fine-tuning: no rate to differ in
        "aim_fair": COMMON | {"finetune_lr": 0.06, "criterion": "absolute"},
        "random_40": COMMON | {"finetune_lr": 0.06, "criterion": "absolute", "method": "random_40"},
        "cosine": COMMON | {"finetune_lr": 0.06, "criterion": "cosine", "paper_row": "x",
                            "notes": ["paper_row", "paper_table"], "paper_table": "4"},
        "jtt": COMMON | {"upweight": 10, "lr": 1, "defaults_changed": {"upweight": 50},
                         "notes": ["defaults_changed"]},
        "best": COMMON | {"size": 9, "selected": {"row": "random_40"}},
        "half": COMMON | {"size": 12, "test_size": None, "real_list": "2", "seed": 200},
    }  # fmt: skip
    assert row_settings(rows) == {
        "cosine": {"criterion": "cosine"},
        "jtt": {"upweight": "10 (default 50)"},
        "half": {"size": "12"},
    }
    rows["best"]["selected"] |= {"from": ["random_40", "random_55"], "rule": "by lot"}
    assert lines(rows) == [
        "Settings of cosine: criterion cosine.",
        "Settings of jtt: upweight 10 (default 50).",
        "Settings of half: size 12.",
        "best is random_40, chosen of 2 rows (random_40, random_55): by lot.",
    ]


def test_without_a_usual_value_every_row_names_its_own():
    rows = {f"k{k}": COMMON | {"top_k": k} for k in (40, 45)}
    assert row_settings(rows) == {"k40": {"top_k": "40"}, "k45": {"top_k": "45"}}
    assert row_settings({"one": COMMON | {"top_k": 40}}) == {}


def test_who_sees_protected_labels_is_said():
    rows = {"erm": "none", "fairif": "validation", "cfair": "train", "domind": "train"}
    configs = {row: COMMON | {"uses_attributes": seen} for row, seen in rows.items()}
    assert lines(configs) == [
        "Protected labels are seen in training: of the validation images by fairif; "
        "of the training images by cfair, domind."
    ]
    assert "by no row" in lines({"erm": configs["erm"]})[0]
    assert lines({"old": COMMON}) == []
    assert row_settings(configs) == {}


def test_set_is_printed_under_the_table(tmp_path, monkeypatch, capsys):
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)
    data = tiny.make(tmp_path / "data")
    flags = tiny.flags(data, tmp_path / "r", "--backbone", "tiny", "--pretrain-epochs", "1")
    train.main([*flags, "--methods", "cvar_dro", "--set", "alpha=0.5"])
    path = tmp_path / "r" / "tiny" / "cvar_dro" / "seed100" / "config.json"
    held = json.loads(path.read_text())
    line = f"Settings of cvar_dro: alpha 0.5 (default {held['defaults_changed']['alpha']})."
    assert line in capsys.readouterr().out
    html = (tmp_path / "r" / "tiny" / "report.html").read_text()
    assert line in html
    assert "Protected labels are seen in training: by no row." in html
    assert "defaults_changed" not in html
    # a run of before this note was kept gets it, and is not made again
    del held["defaults_changed"]
    path.write_text(json.dumps(held | {"notes": []}))
    train.main([*flags, "--methods", "cvar_dro", "--set", "alpha=0.5"])
    printed = capsys.readouterr().out
    assert "finished, reused" in printed
    assert line in printed
