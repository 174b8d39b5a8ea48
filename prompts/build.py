"""Ask a language model for a prompt set, check it and write it.

    OPENAI_API_KEY=... python -m prompts.build --target Smiling --protected Male --number 50 \
        --model gpt-4 [--head-poses] [--base-url URL] [--out FILE]

Any endpoint that speaks OpenAI's chat completions will do. Every answer is kept at once in
<FILE>.partial; a start with the same settings goes on from there. The key is read from the
environment only and is taken out of all that is printed or stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from prompts.check import (
    check_cells,
    check_prompt,
    empty_bands,
    load_document,
    needs_ages,
    normalised,
)
from prompts.endpoint import Endpoint, parse_answer
from prompts.instruction import (
    ATTRIBUTES,
    STARTS_WITH,
    answer_format,
    check_attributes,
    instruction,
    parse_set,
    set_name,
)
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.metrics import CELLS
from utils.options import ArgumentParser

ROUNDS = 6  # requests per cell and start; a good model needs one or two


def accept(document: dict, cell: tuple[int, int], prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Add to the cell the prompts that pass the check; return the others, each with its reasons.

    Prompts beyond the set's number are dropped. In UTKFace sets a prompt is refused when the
    places left would no longer do for the ages still missing.
    """
    rules = {key: document[key] for key in ("dataset", "target", "protected", "starts_with")}
    number, _ = parse_set(document["set"])
    kept = document["cells"][f"{cell[0]}_{cell[1]}"]
    seen = {normalised(prompt) for there in document["cells"].values() for prompt in there}
    refused = []
    for prompt in prompts:
        if len(kept) == number:
            break
        reasons = [
            failure.message
            for failure in check_prompt(prompt, cell=cell, set_name=document["set"], **rules)
        ]
        if normalised(prompt) in seen:
            reasons.append("is already there")
        if needs_ages(document["dataset"], document["set"]):
            missing = empty_bands([*kept, prompt])
            if number - len(kept) - 1 < len(missing):
                reasons.append(f"takes a place needed for the ages {_bands(missing)}")
        if reasons:
            refused.append((prompt, "; ".join(reasons)))
        else:
            kept.append(prompt)
            seen.add(normalised(prompt))
    return refused


def _bands(bands: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{low}-{high}" for low, high in bands)


def request(document: dict, cell: tuple[int, int], complaint: str = "") -> str:
    """The message that asks for what the cell still lacks: the instruction, what is there, and
    `complaint`, what was wrong with the last answer."""
    dataset, target, protected = (document[key] for key in ("dataset", "target", "protected"))
    number, head_poses = parse_set(document["set"])
    kept = document["cells"][f"{cell[0]}_{cell[1]}"]
    parts = [
        instruction(dataset, target, protected, cell, number - len(kept), head_poses),
        answer_format(dataset, target, protected, cell, head_poses),
    ]
    if kept:
        parts.append("These prompts are already there, write other ones:\n" + "\n".join(kept))
        if needs_ages(dataset, document["set"]) and (missing := empty_bands(kept)):
            parts.append(f"Ages still missing: {_bands(missing)}.")
    return "\n\n".join([*parts, complaint] if complaint else parts)


def fill_cell(
    document: dict, cell: tuple[int, int], ask: Callable[[str], str], save: Callable[[], None]
) -> None:
    """Ask until the cell is full, at most ROUNDS times, and save after every answer.

    Raises UserError when it is still not full then.
    """
    number, _ = parse_set(document["set"])
    name = f"{cell[0]}_{cell[1]}"
    kept, complaint = document["cells"][name], ""
    for _ in range(ROUNDS):
        if len(kept) == number:
            return
        answer = ask(request(document, cell, complaint))
        prompts = parse_answer(answer)
        refused = accept(document, cell, prompts)
        document["source"]["raw"].append({"cell": name, "answer": answer})
        save()
        print(f"cell {name}: {len(kept)} of {number}, {len(refused)} refused", file=sys.stderr)
        listed = "\n".join(f"{prompt} ({reasons})" for prompt, reasons in refused[:10])
        complaint = f"These prompts of the last answer were refused:\n{listed}" if refused else ""
        if not prompts:
            complaint = "The last answer held no JSON list of prompts."
    if len(kept) < number:
        raise UserError(
            f"after {ROUNDS} requests the model has given only {len(kept)} of {number} usable "
            f"prompts for cell {name}; start again to go on, or try another --model"
        )


def new_document(
    dataset: str, target: str, protected: str, number: int, head_poses: bool, model: str
) -> dict:
    """A prompt file's content with empty cells; its source holds each cell's first message."""
    document = {
        "dataset": dataset,
        "target": target,
        "protected": protected,
        "set": set_name(number, head_poses),
        "starts_with": STARTS_WITH,
        "source": {"model": model, "date": date.today().isoformat(), "instruction": {}, "raw": []},
        "cells": {f"{y}_{a}": [] for y, a in CELLS},
    }
    document["source"]["instruction"] = {f"{y}_{a}": request(document, (y, a)) for y, a in CELLS}
    return document


def resume(document: dict, partial: Path) -> None:
    """Take over what `partial` holds; UserError where it was made with other settings."""
    before = load_document(partial)
    try:
        same = all(before[key] == document[key] for key in ("dataset", "set", "starts_with"))
        same = same and all(before[key] == document[key] for key in ("target", "protected"))
        old, new = before["source"], document["source"]
        same = same and all(old[key] == new[key] for key in ("model", "instruction"))
        if same:
            document["source"] = {key: old[key] for key in ("model", "date", "instruction", "raw")}
            for y, a in CELLS:
                accept(document, (y, a), before["cells"][f"{y}_{a}"])
    except (KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError(
            f"{partial} was begun with other settings; delete it or choose another --out"
        )


def build(document: dict, out: Path, ask: Callable[[str], str]) -> None:
    """Fill every cell, resuming from <out>.partial, and write `out`; see fill_cell for errors."""
    partial = out.with_name(out.name + ".partial")

    def save(path: Path = partial) -> None:
        try:
            write_json(path, document)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); choose another --out"
            ) from None

    if partial.exists():
        resume(document, partial)
    save()  # before the first request is paid for: the folder must be there and writable
    for cell in CELLS:
        fill_cell(document, cell, ask, save)
    if failures := check_cells(document):
        raise UserError(f"{partial} fails the check and is left for you to mend: {failures[0]}")
    save(out)
    partial.unlink()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with --dataset and --out filled in."""
    parser = ArgumentParser(
        prog="python -m prompts.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--target", required=True, help="Smiling, Male, Young, Female or White")
    parser.add_argument("--protected", required=True, help="another of these, of the same dataset")
    parser.add_argument("--number", type=int, default=50, help="prompts per cell (default: 50)")
    parser.add_argument("--head-poses", action="store_true", help="a head pose in every prompt")
    parser.add_argument(
        "--dataset", choices=tuple(ATTRIBUTES), help="default: the one with the target attribute"
    )
    parser.add_argument("--model", required=True, help="the model's name at the endpoint")
    parser.add_argument("--base-url", help="default: OPENAI_BASE_URL, else OpenAI's own")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per request")
    parser.add_argument("--out", type=Path, help="default: prompts/<Target>_<Protected>_<set>.json")
    options = parser.parse_args(arguments)
    if options.number < 1:
        raise UserError(
            f"--number {options.number} is below 1; ask for at least one prompt per cell"
        )
    if not options.timeout > 0:
        raise UserError(f"--timeout {options.timeout:g} is not above 0; give it in seconds")
    if options.dataset is None:
        holding = [name for name, known in ATTRIBUTES.items() if options.target in known]
        options.dataset = holding[0] if holding else "celeba"
    check_attributes(options.dataset, options.target, options.protected)
    if options.out is None:
        name = (
            f"{options.target}_{options.protected}_{set_name(options.number, options.head_poses)}"
        )
        options.out = Path(__file__).parent / f"{name}.json"
    return options


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse_arguments(arguments)
    if options.out.exists():
        raise UserError(f"{options.out} exists; delete it or give --out another file")
    endpoint = Endpoint(options.model, options.base_url, options.timeout)
    document = new_document(
        options.dataset,
        options.target,
        options.protected,
        options.number,
        options.head_poses,
        options.model,
    )
    try:
        build(document, options.out, endpoint.ask)
    except UserError as error:
        raise UserError(endpoint.scrub(str(error))) from None
    print(f"{options.out}: {options.number} prompts in each of the 4 cells")


if __name__ == "__main__":
    main()
