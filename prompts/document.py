"""Read a prompt file, and check that it has the fields that the other rules need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from prompts.instruction import ATTRIBUTES, STARTS_WITH, parse_set
from prompts.own import OWN, broken_words
from utils.errors import UserError
from utils.metrics import GROUPS

# The paper writes "Portrait face photo of a" for both; its release "Face photo of a" for UTKFace.
AGREED_STARTS = {"celeba": (STARTS_WITH,), "utkface": (STARTS_WITH, "Face photo of a")}


class Failure(NamedTuple):
    """One broken rule. group: such as "0_1", None where the whole file is at fault.
    number: the prompt's, from 1, None where the whole group is.
    """

    rule: str
    message: str
    group: str | None = None
    number: int | None = None
    prompt: str | None = None

    def __str__(self) -> str:
        where = "" if self.group is None else f"group {self.group} "
        where += "" if self.number is None else f"prompt {self.number} "
        text = "" if self.prompt is None else f': "{self.prompt}"'
        return f"{where}[{self.rule}] {self.message}{text}"


def check_fields(document: dict) -> list[Failure]:
    """Failures that make the other rules pointless: of fields, set name or groups."""
    if not isinstance(document, dict):
        return [Failure("file", "is not a JSON object")]
    failures = []
    for key in ("dataset", "target", "protected", "set", "starts_with"):
        if not isinstance(document.get(key), str):
            failures.append(Failure("file", f'"{key}" is missing or not a text'))
    if failures:
        return failures
    own, known = document["dataset"] == OWN, ATTRIBUTES.get(document["dataset"])
    if known is None and not own:
        return [Failure("file", f'"dataset" is none of {", ".join((*ATTRIBUTES, OWN))}')]
    for key in ("target", "protected"):
        if not own and document[key] not in known:
            failures.append(Failure("file", f'"{key}" is none of {", ".join(known)}'))
    if own:
        failures += [Failure("file", line) for line in broken_words(document)]
    if document["target"] == document["protected"]:
        failures.append(Failure("file", '"target" and "protected" are the same attribute'))
    if parse_set(document["set"]) is None:
        failures.append(
            Failure("file", '"set" is none of plain, contextual_<n>, contextual_head_poses_<n>')
        )
    if own and not document["starts_with"].strip():
        failures.append(Failure("file", '"starts_with" is empty'))
    elif not own and document["starts_with"] not in AGREED_STARTS[document["dataset"]]:
        agreed = " or ".join(f'"{words}"' for words in AGREED_STARTS[document["dataset"]])
        failures.append(Failure("file", f'"starts_with" is not {agreed}'))
    source = document.get("source")
    if not isinstance(source, dict) or not {"model", "date", "instruction"} <= source.keys():
        failures.append(Failure("file", '"source" does not say model, date and instruction'))
    groups = document.get("cells")
    names = [f"{y}_{a}" for y, a in GROUPS]
    if not isinstance(groups, dict) or sorted(groups) != names:
        failures.append(Failure("groups", f'"cells" must hold {", ".join(names)} and nothing else'))
    else:
        failures += [
            Failure("groups", "must be a list of texts", group)
            for group, prompts in groups.items()
            if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts)
        ]
    return failures


def load_document(path: str | Path) -> dict:
    """The JSON of a prompt file. Raises UserError where it is missing, unreadable or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows editors add a mark
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; give a prompt file, such as those in prompts/"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); change it to UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); give a prompt file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); correct or rebuild it") from None
