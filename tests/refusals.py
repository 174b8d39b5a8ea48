"""What every refusal of a user's mistake has in common, for the tables of bad input."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])

# Every sentence that a test has seen, read by a person: what is wrong, where, what to do. A new or
# changed one is added by REFUSALS=write pytest -n 0, and is part of the change that is reviewed.
GOLDEN = Path(__file__).parent / "golden" / "refusals.txt"
NEW: set[str] = set()
FOLDER = ""  # in which pytest makes those of this process' tests: conftest.py says where
# Of a run folder that computed nothing: it is bound anew by the next start.
NOT_WORK = {".lock", "config.json", "train.csv"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, but for what NOT_WORK names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_WORK and path.suffix != ".lock"
    }


def plain(sentence: str) -> str:
    """The sentence without what differs between runs: temporary folders, digests, numbers, long
    lists, a library's own words."""
    sentence = re.sub(rf"\S*{re.escape(FOLDER)}/[^/\s:;,)']+", "TMP", sentence)
    sentence = re.sub(r"(choose from|it has:) .*", r"\1 ...", sentence.replace(ROOT, "ROOT")
                      .replace(str(Path.home()), "HOME"))
    library = r"(cannot be loaded \(\w+: ).*?(; its tokenizer|\); give)"
    sentence = re.sub(library, r"\1...\2", sentence)
    sentence = re.sub(r"; (python -m )?\S+ --help", "; COMMAND --help", sentence)
    return re.sub(r"\d+", "#", re.sub(r"\b[0-9a-f]{32,}\b", "DIGEST", sentence))


def known(sentence: str) -> None:
    """Assert that the sentence is one of GOLDEN's; REFUSALS=write makes it one at the end."""
    if os.environ.get("REFUSALS") == "write":
        if not NEW:
            atexit.register(write)  # not now: a test may forbid files of that size
        NEW.add(plain(sentence))
        return
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert plain(sentence) in lines, f"not in {GOLDEN}: {plain(sentence)}"


def write() -> None:
    lines = {*GOLDEN.read_text(encoding="utf-8").splitlines(), *NEW}
    GOLDEN.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def refused(
    capsys, main: Callable, arguments: Sequence, *, names: str, out: Path | None = None
) -> str:
    """The one sentence a command prints for a user's mistake, exit code 2.

    `names`: the file or flag that the sentence has to name. `out`: a folder in which the command
    must leave nothing new, whole or half. Asserts that GOLDEN has the sentence and that there
    is no traceback.
    """
    before = contents(out) if out and out.is_dir() else {}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert "Traceback" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if "error: " in line]
    assert len(lines) == 1, printed.err
    assert printed.err.rstrip().endswith(lines[0]), printed.err
    sentence = lines[0].split("error: ", 1)[1]
    assert names in sentence
    known(sentence)
    assert (contents(out) if out and out.is_dir() else {}) == before
    return sentence
