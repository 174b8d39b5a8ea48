"""What every refusal of a user's mistake has in common, for the tables of bad input."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# A remedy says what to do, or what would have been right.
REMEDY = re.compile(
    r"\b(?:give|choose|choose from|check|copy|correct|delete|download|lower|make|mend|name|put|"
    r"raise|remove|replace|restore|start|take|train|unset|unzip|use|wait|write|generate|change|"
    r"it has|it needs|is none of|leave out|must be|must lie|must divide|must hold|ask for|takes)\b"
    # argparse's own
    r"|are required|expected .*argument|invalid (?:int|float) value|is not a (?:whole )?number"
    r"|ignored explicit argument"
)
# Of a run folder that computed nothing: it is bound anew by the next start.
NOT_WORK = {".lock", "config.json", "train.csv"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, but for what NOT_WORK names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_WORK and path.suffix != ".lock"
    }


def refused(
    capsys, main: Callable, arguments: Sequence, *, names: str, out: Path | None = None
) -> str:
    """The one sentence a command prints for a user's mistake, exit code 2.

    `names`: the file or flag that the sentence has to name. `out`: a folder in which the command
    must leave nothing new, whole or half. Asserts a remedy and that there is no traceback.
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
    assert REMEDY.search(sentence), sentence
    assert (contents(out) if out and out.is_dir() else {}) == before
    return sentence
