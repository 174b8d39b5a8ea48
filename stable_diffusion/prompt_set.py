"""A prompt file as the image generator reads it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, exit_cleanly
from utils.metrics import GROUPS


@dataclass(frozen=True)
class PromptSet:
    """A prompt file: `groups[(y, a)]` is a non-empty list of prompts."""

    name: str  # plain, contextual_50, ...
    target: str
    protected: str
    groups: dict[tuple[int, int], list[str]]

    @property
    def pair(self) -> str:
        return f"{self.target}_{self.protected}"


def read_prompts(path: str | Path) -> PromptSet:
    """Read a prompt file. Raises UserError naming the file for anything wrong with it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors add a mark
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        found = f" ({path.parent} holds {', '.join(beside)})" if beside else ""
        raise UserError(
            f"--prompts {path} does not exist; give a file of prompts/, or build one with "
            f"python -m prompts.build{found}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompts {path} is not UTF-8 text ({error}); change it to UTF-8"
        ) from None
    except OSError as error:
        raise UserError(
            f"--prompts {path} cannot be read ({error.strerror or error}); give a prompt file, "
            "such as those in prompts/"
        ) from None
    needs = (
        'it needs "set", "target", "protected" and "cells" with lists "0_0", "0_1", "1_0" and "1_1"'
    )
    try:
        content = json.loads(text)
        name, target, protected = (content[key] for key in ("set", "target", "protected"))
        groups = {(y, a): content["cells"][f"{y}_{a}"] for y, a in GROUPS}
    except (ValueError, RecursionError) as error:
        raise UserError(f"--prompts {path} cannot be read as JSON ({error}); {needs}") from None
    except KeyError as error:
        key = error.args[0]
        raise UserError(f'--prompts {path} has no "{key}"; {needs}') from None
    except TypeError:  # a list or a number where an object belongs
        raise UserError(f"--prompts {path} is not a prompt file; {needs}") from None
    for word in (name, target, protected):
        if not isinstance(word, str) or not re.fullmatch(r"[\w-]+", word):
            raise UserError(
                f"--prompts {path}: {word!r} cannot name a folder; use letters, digits, - and _ "
                "for set, target and protected"
            )
    for (y, a), prompts in groups.items():
        texts = isinstance(prompts, list) and all(isinstance(p, str) and p.strip() for p in prompts)
        if not prompts or not texts:
            raise UserError(
                f"--prompts {path}: group {y}_{a} must be a non-empty list of prompts; check the "
                "file with python -m prompts.check"
            )
    return PromptSet(name, target, protected, groups)


@exit_cleanly
def print_set(file: str, target: str, protected: str) -> None:
    """Print the name of the file's prompt set, for repair.sh. Raises UserError as `read_prompts`,
    and where the file is of another pair of attributes."""
    prompts = read_prompts(file)
    if (prompts.target, prompts.protected) != (target, protected):
        raise UserError(f"--prompts {file} is of {prompts.target} and {prompts.protected}, not of "
                        f"{target} and {protected}; give another file, or write one with "
                        f"python -m prompts.build --target {target} --protected {protected}")
    print(prompts.name)
