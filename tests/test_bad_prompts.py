"""Prompt files that are wrong, and some that only look wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_sets import varied
from refusals import refused

from prompts import build
from prompts import check as prompts_check
from stable_diffusion import generate
from stable_diffusion.prompt_set import read_prompts
from utils.errors import UserError

FOLDER = Path(prompts_check.__file__).parent
NAME = "Smiling_Male_contextual_25.json"


def with_groups(change: Callable[[dict], None]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        document = json.loads(text)
        change(document["cells"])
        return json.dumps(document)

    return apply


def with_field(**fields) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **fields})


LONG = "Portrait face photo of a smiling woman with " + "very long and wavy " * 30 + "hair."
# What is done to the file; the rule by which prompts.check lists it (exit code 1), None where it
# cannot even be read; whether generate.py refuses it, which looks at form, not at wording.
PROMPT_FILES: dict[str, tuple] = {
    "broken JSON": (lambda s: s[:-40], None, True),
    "empty": (lambda s: "", None, True),
    "binary": (lambda s: b"\xff\xfe\x00\x80", None, True),
    "nested without end": (lambda s: "[" * 100_000, None, True),
    "a list": (lambda s: "[]", "file", True),
    "a number": (lambda s: "7", "file", True),
    "null": (lambda s: "null", "file", True),
    "no groups": (with_field(cells=None), "groups", True),
    "groups in a list": (with_field(cells=[]), "groups", True),
    "a group too few": (with_groups(lambda c: c.pop("1_0")), "groups", True),
    "a group too many": (with_groups(lambda c: c.update({"2_0": []})), "groups", False),
    "an empty group": (with_groups(lambda c: c.update({"1_0": []})), "groups", True),
    "a group that is text": (with_groups(lambda c: c.update({"1_0": "a face"})), "groups", True),
    "a prompt that is a number": (with_groups(lambda c: c["1_0"].append(7)), "groups", True),
    "an empty prompt": (with_groups(lambda c: c["1_0"].__setitem__(3, " ")), "start", True),
    "a prompt too few": (with_groups(lambda c: c["1_0"].pop()), "groups", False),
    "a prompt twice": (
        with_groups(lambda c: c["1_0"].__setitem__(3, c["1_0"][2])), "unique", False),
    "an over-long prompt": (with_groups(lambda c: c["1_0"].__setitem__(3, LONG)), "tokens", False),
    "swapped groups": (
        with_groups(lambda c: c.update({"1_0": c["0_1"], "0_1": c["1_0"]})), "target", False),
    "a mislabelled prompt": (
        with_groups(lambda c: c["1_0"].__setitem__(3, c["1_1"][3])), "protected", False),
    "a set that is a path": (with_field(set="../../elsewhere"), "file", True),
    "a target that is a list": (with_field(target=["Smiling"]), "file", True),
    "a target with a blank": (with_field(target="Big Nose"), "file", True),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPT_FILES)
def test_check_of_a_wrong_prompt_file(case, tmp_path, capsys):
    change, rule, _ = PROMPT_FILES[case]
    for name in (NAME, NAME.replace("25", "50")):
        shutil.copy(FOLDER / name, tmp_path / name)
    path = tmp_path / NAME
    after = change(path.read_text())
    path.write_bytes(after.encode() if isinstance(after, str) else after)
    if rule is None:
        refused(capsys, prompts_check.main, [path], names=str(path), out=tmp_path)
        return
    assert prompts_check.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(f"[{rule}]" in line for line in lines), lines


@pytest.mark.parametrize("case", [c for c, (_, _, unusable) in PROMPT_FILES.items() if unusable])
def test_generation_from_a_wrong_prompt_file(case, tiny_pipeline_dir, tmp_path, capsys):
    path = tmp_path / NAME
    after = PROMPT_FILES[case][0]((FOLDER / NAME).read_text())
    path.write_bytes(after.encode() if isinstance(after, str) else after)
    arguments = [
        "--model", tiny_pipeline_dir, "--prompts", path, "--out", tmp_path / "images",
        "--images-per-group", 5, "--device", "cpu",
    ]  # fmt: skip
    refused(capsys, generate.main, arguments, names=str(path), out=tmp_path)


def test_the_longer_set_may_be_broken_too(tmp_path, capsys):
    shutil.copy(FOLDER / NAME, tmp_path / NAME)
    for text in ("[]", "{}", '{"cells": []}'):
        (tmp_path / NAME.replace("25", "50")).write_text(text)
        assert prompts_check.main([str(tmp_path / NAME)]) == 1
        assert "[prefix]" in capsys.readouterr().out


def test_a_mark_and_windows_line_ends_are_fine(tmp_path, capsys):
    text = json.dumps(varied(25, attributes=True), indent=1).replace("\n", "\r\n")
    (tmp_path / NAME).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert prompts_check.main([str(tmp_path / NAME)]) == 0
    assert len(read_prompts(tmp_path / NAME).groups[1, 1]) == 25


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cells": {}}'])
def test_a_broken_partial_file(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    out = tmp_path / "Smiling_Male_contextual_4.json"
    out.with_name(f"{out.name}.partial").write_text(text)
    arguments = ["--target", "Smiling", "--protected", "Male", "--number", "4", "--model", "m"]
    arguments += ["--base-url", "http://127.0.0.1:9/v1", "--out", out]
    refused(capsys, build.main, arguments, names=f"{out.name}.partial", out=tmp_path)


CAUSES = {  # what stands at the path: the cause that both readers must name
    "nothing": (lambda path: None, ("does not exist",) * 2),
    "a folder": (lambda path: path.mkdir(), ("Is a directory",) * 2),
    "UTF-16": (lambda path: path.write_text("{}", encoding="utf-16"), ("is not UTF-8 text",) * 2),
    "Latin 1": (lambda path: path.write_bytes(b'{"set": "\xe9"}'), ("is not UTF-8 text",) * 2),
    "half of it": (lambda path: path.write_text('{"set": '), ("cannot be read as JSON",) * 2),
    "no end": (lambda path: path.write_text("[" * 100_000), ("recursion",) * 2),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_cause_is_the_real_one(case, tmp_path, capsys):
    path = tmp_path / NAME
    make, (checked, read) = CAUSES[case]
    make(path)
    assert checked in refused(capsys, prompts_check.main, [path], names=str(path))
    with pytest.raises(UserError, match=read) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / NAME
    path.write_text(json.dumps({"set": "plain", "target": "Smiling", "protected": "Male"}))
    with pytest.raises(UserError, match='has no "cells"'):
        read_prompts(path)


@pytest.mark.parametrize(("files", "cause"), [
    ({}, "holds neither"),
    ({"vocab.json": "{"}, "holds neither"),
    ({"tokenizer.json": "{"}, "cannot be read"),
    ({"vocab.json": "{", "merges.txt": "a b"}, "cannot be read"),
])  # fmt: skip
def test_a_tokenizer_that_is_none(files, cause, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=cause) as error:
        prompts_check.tokenizer_count(tmp_path)
    assert "--tokenizer" in str(error.value)


@pytest.mark.parametrize(("change", "cause"), [
    (lambda d: d["source"].update(model="another"), r"other settings \(model\)"),
    (lambda d: d.update(set="contextual_5"), r"other settings \(set\)"),
    (lambda d: d["cells"].update({"0_0": [7]}), "is damaged"),
    (lambda d: d["source"].update(raw=["x"]), "is damaged"),
    (lambda d: d.update(cells={}), "is damaged"),
])  # fmt: skip
def test_a_partial_file_that_cannot_be_taken_over(change, cause, tmp_path):
    document = build.new_document("celeba", "Smiling", "Male", 4, False, "m")
    partial = json.loads(json.dumps(document))
    partial["source"]["raw"] = [{"cell": "0_0", "answer": "no prompts"}]
    change(partial)
    path = tmp_path / "a.partial"
    path.write_text(json.dumps(partial))
    with pytest.raises(UserError, match=cause):
        build.resume(document, path)
