"""Ask a language model for a prompt set, check it and write it.

    OPENAI_API_KEY=... python -m prompts.build --target Smiling --protected Male --number 50 \
        --model gpt-4 [--head-poses] [--base-url URL] [--out FILE]
    python -m prompts.build --target Glasses --target-words "wearing glasses" "bare-eyed" \
        --protected Male --protected-words "a man" "a woman" --subject "Photo of a" --model gpt-4

The second line is for attributes of your own: the words of 1, then those of 0. With --plain in
place of --model it writes one prompt a group from these words alone.

Any endpoint that speaks OpenAI's chat completions will do, with response_format or without. Every
answer is kept at once in <FILE>.partial; a start with the same settings resumes from there, and
reads the kept answers again. The key is read from the environment only and is taken out of all that
is printed or stored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

if not __package__:  # started by its path: python prompts/build.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prompts import own
from prompts.answers import best_prompts
from prompts.check import (
    check_groups,
    check_prompt,
    empty_bands,
    needs_ages,
    normalised,
)
from prompts.coverage import missing_attributes
from prompts.document import load_document
from prompts.endpoint import Endpoint
from prompts.flags import parse_arguments
from prompts.instruction import (
    STARTS_WITH,
    answer_format,
    instruction,
    parse_set,
    set_name,
)
from prompts.own import words_of
from prompts.variety import LIMITS, SMALLEST, shared_openings
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.metrics import GROUPS

ROUNDS = 6  # requests per group and start; a good model needs one or two


def judge(
    document: dict, group: tuple[int, int], prompts: Sequence[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The prompts that the group would take, and the others, each with its reasons.

    Prompts beyond the set's number are in neither. In UTKFace sets a prompt is refused when the
    places left would no longer do for the ages still missing.
    """
    rules = {key: document[key] for key in ("dataset", "target", "protected", "starts_with")}
    rules["words"] = words_of(document)
    number, _ = parse_set(document["set"])
    kept = list(document["cells"][f"{group[0]}_{group[1]}"])
    before = len(kept)
    seen = {normalised(prompt) for there in document["cells"].values() for prompt in there}
    refused = []
    for prompt in prompts:
        if len(kept) == number:
            break
        reasons = [
            failure.message
            for failure in check_prompt(prompt, group=group, set_name=document["set"], **rules)
        ]
        if normalised(prompt) in seen:
            reasons.append("is already there")
        if number >= SMALLEST and shared_openings([*kept, prompt], document["starts_with"]) > max(
            shared_openings(kept, document["starts_with"]), LIMITS["openings"] * number
        ):
            reasons.append("begins as too many others do")
        if needs_ages(document["dataset"], document["set"]):
            missing = empty_bands([*kept, prompt])
            if number - len(kept) - 1 < len(missing):
                reasons.append(f"takes a place needed for the ages {_bands(missing)}")
        if reasons:
            refused.append((prompt, "; ".join(reasons)))
        else:
            kept.append(prompt)
            seen.add(normalised(prompt))
    return kept[before:], refused


def accept(document: dict, group: tuple[int, int], prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Add to the group the prompts that pass; return the refused ones, each with its reasons."""
    taken, refused = judge(document, group, prompts)
    document["cells"][f"{group[0]}_{group[1]}"] += taken
    return refused


def prompts_in(document: dict, group: tuple[int, int], answer: str) -> list[str]:
    """Of all lists in an answer the one of which the group takes most."""
    return best_prompts(answer, lambda prompts: len(judge(document, group, prompts)[0]))


def _bands(bands: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{low}-{high}" for low, high in bands)


def request(document: dict, group: tuple[int, int], complaint: str = "") -> str:
    """The message that asks for what the group still lacks: the instruction, what is there, and
    `complaint`, what was wrong with the last answer."""
    dataset, target, protected = (document[key] for key in ("dataset", "target", "protected"))
    start = document["starts_with"]
    number, head_poses = parse_set(document["set"])
    kept = document["cells"][f"{group[0]}_{group[1]}"]
    if dataset == own.OWN:
        given, words = ((target, protected), group), words_of(document)
        parts = [own.instruction(*given, number - len(kept), head_poses, start, words),
                 own.answer_format(*given, head_poses, start, words)]
    else:
        parts = [
            instruction(dataset, target, protected, group, number - len(kept), head_poses, start),
            answer_format(dataset, target, protected, group, head_poses, start),
        ]
    if kept:
        parts.append("These prompts are already there, write other ones:\n" + "\n".join(kept))
        if needs_ages(dataset, document["set"]) and (missing := empty_bands(kept)):
            parts.append(f"Ages still missing: {_bands(missing)}.")
        if missing := dataset == "celeba" and missing_attributes(target, protected, {group: kept}):
            parts.append(f"Attributes that none of these names: {', '.join(missing)}.")
    return "\n\n".join([*parts, complaint] if complaint else parts)


def fill_group(
    document: dict, group: tuple[int, int], endpoint: Endpoint, save: Callable[[], None]
) -> None:
    """Ask until the group is full, at most ROUNDS times, and save after every answer.

    After an answer without a usable prompt the endpoint is asked without response_format.
    Raises UserError when the group is still not full then.
    """
    number, _ = parse_set(document["set"])
    name = f"{group[0]}_{group[1]}"
    kept, complaint = document["cells"][name], ""
    for _ in range(ROUNDS):
        if len(kept) == number:
            return
        answer, before = endpoint.ask(request(document, group, complaint)), len(kept)
        prompts = prompts_in(document, group, answer)
        refused = accept(document, group, prompts)
        document["source"]["raw"].append({"cell": name, "answer": answer})
        save()
        print(f"group {name}: {len(kept)} of {number}, {len(refused)} refused", file=sys.stderr)
        if len(kept) == before:
            endpoint.give_up_structure("gave no usable prompt")
        listed = "\n".join(f"{prompt} ({reasons})" for prompt, reasons in refused[:10])
        complaint = f"These prompts of the last answer were refused:\n{listed}" if refused else ""
        if not prompts:
            complaint = "The last answer held no list of prompts."
    if len(kept) < number:
        raise UserError(
            f"after {ROUNDS} requests the model has given only {len(kept)} of {number} usable "
            f"prompts for group {name}; start again to go on, or try another --model"
        )


def new_document(
    dataset: str, target: str, protected: str, number: int, head_poses: bool, model: str, *,
    starts_with: str = STARTS_WITH, words: Mapping[str, own.Phrases] | None = None,
) -> dict:
    """A prompt file's content with empty groups; its source holds each group's first message.

    words: the user's phrases by attribute, of dataset "own".
    """
    document = {
        "dataset": dataset,
        "target": target,
        "protected": protected,
        "set": set_name(number, head_poses),
        "starts_with": starts_with,
        **({"words": own.words_json(words or {})} if dataset == own.OWN else {}),
        "source": {"model": model, "date": date.today().isoformat(), "instruction": {}, "raw": []},
        "cells": {f"{y}_{a}": [] for y, a in GROUPS},
    }
    document["source"]["instruction"] = {f"{y}_{a}": request(document, (y, a)) for y, a in GROUPS}
    return document


def resume(document: dict, partial: Path) -> None:
    """Take over what `partial` holds, its answers read again for prompts that fit a group.

    Without an answer it binds to nothing. UserError for other settings, or no such file.
    """
    before = load_document(partial)
    try:
        old, new = before["source"], document["source"]
        settings = ("dataset", "target", "protected", "set", "starts_with", "words")
        other = [key for key in settings if before.get(key) != document.get(key)]
        other += [key for key in ("model", "instruction") if old[key] != new[key]]
        source = {key: old[key] for key in ("model", "date", "instruction", "raw")}
        answers = [(entry["cell"], entry["answer"]) for entry in source["raw"]]
        groups = {(y, a): before["cells"][f"{y}_{a}"] for y, a in GROUPS}
        items = (*sum(answers, ()), *sum(groups.values(), []))
        whole = all(isinstance(item, str) for item in items)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            f"{partial} is damaged or was not left by this command; delete it, or choose another "
            "--out"
        )
    if not items:
        return
    if other:
        raise UserError(
            f"{partial} was begun with other settings ({', '.join(other)}); delete it or choose "
            "another --out"
        )
    document["source"] = source
    for group, prompts in groups.items():
        accept(document, group, prompts)
    for group in GROUPS:
        for name, answer in answers:
            if name == f"{group[0]}_{group[1]}":
                accept(document, group, prompts_in(document, group, answer))


def build(document: dict, out: Path, endpoint: Endpoint) -> None:
    """Fill every group, resuming from <out>.partial, and write `out`; see fill_group for errors."""
    partial = out.with_name(out.name + ".partial")

    def save(file: Path = partial) -> None:
        try:
            write_json(file, document)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written ({error.strerror}); choose another --out"
            ) from None

    if partial.exists():
        resume(document, partial)
    save()  # before the first request is paid for: the folder must be there and writable
    if not document["source"]["raw"]:  # nothing to resume from, and the words may be corrected
        partial.unlink()
    for group in GROUPS:
        fill_group(document, group, endpoint, save)
    save(out)
    partial.unlink()
    for failure in check_groups(document):  # of the set as a whole: no single prompt is at fault
        print(f"{out}: {failure}", file=sys.stderr)


def plain_document(
    dataset: str, target: str, protected: str, *, starts_with: str,
    words: Mapping[str, own.Phrases],
) -> dict:
    """The plain set: one prompt a group that says the two values and nothing else, of no model."""
    document = new_document(dataset, target, protected, 1, False, "none", starts_with=starts_with,
                            words=words)
    document["set"], document["source"]["raw"] = "plain", []
    for y, a in GROUPS:
        text = own.plain_prompt((target, protected), (y, a), starts_with, words)
        document["cells"][f"{y}_{a}"] = [text]
        document["source"]["instruction"][f"{y}_{a}"] = "the start and the words of both values"
    return document


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse_arguments(arguments, __doc__.split("\n")[0])
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; give it a file name, ending in .json")
    if options.out.exists():
        raise UserError(f"{options.out} exists; delete it or give --out another file")
    given = (options.dataset, options.target, options.protected, options.number)
    own_words = {"starts_with": options.subject, "words": options.words}
    for phrase in own.denials(options.words):
        print(f"warning: '{phrase}' says what is not there, and a diffusion model may draw it all "
              "the same; words for what is seen in its place are safer", file=sys.stderr)
    if options.plain:
        write_json(options.out, plain_document(*given[:3], **own_words))
        print(f"{options.out}: one prompt in each of the 4 groups")
        return
    endpoint = Endpoint(
        options.model, options.base_url, options.timeout, structured=not options.no_json_mode
    )
    document = new_document(*given, options.head_poses, options.model, **own_words)
    try:
        build(document, options.out, endpoint)
    except UserError as error:
        raise UserError(endpoint.scrub(str(error))) from None
    print(f"{options.out}: {options.number} prompts in each of the 4 groups")


if __name__ == "__main__":
    main()
