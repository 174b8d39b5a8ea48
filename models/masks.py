"""--mask FILE: the tensors to be fine-tuned, as a person or another run has chosen them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from models.selection import Rule, mask_of
from utils.errors import UserError


def chosen_by(path: Path, names: Sequence[str]) -> set[str]:
    """Those of the tensors' names that a file selects.

    The file is a mask.json of a run ({"tensors": {name: updated or not}}), a JSON list of names or
    globs (layer4.*), or text with one of them a line, # before a remark. Raises UserError for a
    file that is none of these, for a name or glob that no tensor has, and for an empty choice.
    """
    patterns = _patterns(path)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--mask {path}: no tensor of the backbone is called {pattern}; they "
                            f"are {', '.join(names[:3])}, ...: change that line")
    if not patterns:
        raise UserError(f"--mask {path} selects no tensor: name at least one")
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _patterns(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "no text"
        raise UserError(f"--mask {path} cannot be read ({said}); give a mask.json or a list of "
                        "tensors") from None
    if text.lstrip()[:1] not in ("{", "["):
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [line for line in lines if line]
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            content = [name for name, chosen in content["tensors"].items() if chosen]
    except (ValueError, KeyError, AttributeError):
        content = None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(f"--mask {path} is neither a mask.json nor a list of names: give one of "
                        "these")
    return content


GIVEN = Rule(lambda names, _gradients, config, _seed: mask_of(
    names, chosen_by(config.mask, names), "given"))
