"""Check prompt files: python -m prompts.check [FILES]; without files, every .json in prompts/.

Failures are listed by prompt and the exit code is 1 if there are any. The rules:

- file      the file's fields are there and its name agrees with them
- groups    the four groups, each with the number of prompts that the set's name says
- prefix    contextual_25 is the first half of contextual_50 where both are there
- start     a prompt starts with the set's agreed words ("a" may go on as "an")
- target    it names the target value of its group and not the opposite one
- protected the same for the protected attribute
- negation  it says both by what is seen, not by a denial ("not smiling"; contextual sets; words of
            your own, which the file holds under "words", are taken as they are)
- unique    it is in the file once, whatever its capitals and punctuation
- tokens    it fits the 77 tokens of CLIP's text encoder, start and end token included
- pose      it names a head pose (sets with head_poses in their name)
- profile   the pose is no full profile, as slight turns are asked for (the same sets)
- age       it names one age from 1 to 100 (contextual UTKFace sets)
- ages      a group's ages are spread: at least one in each of AGE_BANDS (contextual UTKFace sets
            with at least as many prompts per group as there are bands)
- openings, overlap, coverage, cycle   what variety.py asks of a contextual set as a whole
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

if not __package__:  # started by its path: python prompts/check.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prompts.attributes import HEAD_POSE, ages, negations, plain_text
from prompts.document import Failure, check_fields, load_document
from prompts.instruction import CLIP_TOKENS, STARTS_WITH, parse_set
from prompts.own import Phrases, said, values_named, words_of
from prompts.variety import PROFILE, broken_limits, measures, table
from utils.errors import UserError, exit_cleanly, reason
from utils.metrics import GROUPS
from utils.options import ArgumentParser, path

PROMPTS = Path(__file__).parent
# "Age start from 1 and end at 100": the ends within five years, every decade between them.
AGE_BANDS = ((1, 5), (6, 15), (16, 25), (26, 35), (36, 45), (46, 55), (56, 65), (66, 75))
AGE_BANDS += ((76, 85), (86, 94), (95, 100))

# CLIP's own cut into words, figures and runs of punctuation, before byte pairs are merged.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|(?:[^\w\s]|_)+")


def estimate_tokens(prompt: str) -> int:
    """An upper estimate of CLIP's token count, start and end token included; needs no vocabulary.

    For a word one token for every three bytes begun, for figures and marks one a byte. Compared
    with CLIP's byte pairs on 2,016 prompts of such sets, it is at least 4 tokens above the true
    count of every one and 1.6 times it on average. It can be too low for a rare short word ("jowls"
    takes 3) or an acronym, which the common words around it make up for.
    """
    pieces = [(p.isalpha(), len(p.encode())) for p in _PIECES.findall(prompt.lower())]
    return 2 + sum(-(-size // 3) if word else size for word, size in pieces)


def tokenizer_count(folder: str | Path) -> Callable[[str], int]:
    """The exact count by a CLIP tokenizer in a local folder; UserError where there is none."""
    remedy = "name a CLIP tokenizer's folder, or leave the flag out for the estimate"
    files = {file.name for file in Path(folder).glob("*")}
    if not ({"vocab.json", "merges.txt"} <= files or "tokenizer.json" in files):
        # transformers would make an empty tokenizer of an empty folder
        raise UserError(
            f"--tokenizer {folder} holds neither vocab.json and merges.txt nor tokenizer.json; "
            f"{remedy}"
        )
    try:
        from transformers import CLIPTokenizer  # seconds to import, and only needed here
    except ImportError as error:
        raise UserError(
            f"--tokenizer needs a package that cannot be imported ({error}); install "
            "requirements.txt, or leave the flag out for the estimate"
        ) from None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # noqa: BLE001 - the tokenizers' parser raises plain Exception
        raise UserError(
            f"--tokenizer {folder} cannot be read ({reason(error)}); {remedy}"
        ) from None
    return lambda prompt: len(tokenizer(prompt)["input_ids"])


def _attribute_failures(
    rule: str, attribute: str, value: int, prompt: str, words: Mapping[str, Phrases]
) -> list[Failure]:
    named, found = values_named(attribute, prompt, words)
    failures = []
    if value not in named:
        failures.append(
            Failure(rule, f"does not name {attribute}={value} ({said(attribute, value, words)})")
        )
    if found[1 - value]:
        listed = ", ".join(f'"{word}"' for word in dict.fromkeys(found[1 - value]))
        failures.append(Failure(rule, f"{listed} says {attribute}={1 - value}, not {value}"))
    return failures


def check_prompt(
    prompt: str,
    *,
    dataset: str,
    target: str,
    protected: str,
    group: tuple[int, int],
    set_name: str,
    starts_with: str = STARTS_WITH,
    words: Mapping[str, Phrases] | None = None,
    count_tokens: Callable[[str], int] = estimate_tokens,
) -> list[Failure]:
    """The rules that one prompt of group (y, a) breaks by itself (without uniqueness and spread).

    words: the user's phrases by attribute, which may say what they like in the way of a denial.
    """
    words = words or {}
    _, head_poses = parse_set(set_name)
    failures = []
    if not re.match(re.escape(starts_with) + r"n?\s", prompt):
        failures.append(Failure("start", f'does not start with "{starts_with}"'))
    failures += _attribute_failures("target", target, group[0], prompt, words)
    failures += _attribute_failures("protected", protected, group[1], prompt, words)
    if set_name != "plain":
        for attribute in (name for name in (target, protected) if name not in words):
            if denied := negations(attribute, prompt):
                listed = ", ".join(f'"{phrase}"' for phrase in denied)
                failures.append(Failure("negation", f"{listed} is a denial; say what is seen"))
    if (tokens := count_tokens(prompt)) > CLIP_TOKENS:
        failures.append(Failure("tokens", f"takes up to {tokens} of CLIP's {CLIP_TOKENS} tokens"))
    if head_poses and not HEAD_POSE.search(plain_text(prompt)):
        failures.append(Failure("pose", "names no head pose"))
    if head_poses and (found := PROFILE.search(plain_text(prompt))):
        failures.append(Failure("profile", f'"{found[0]}" is more than a slight turn'))
    if dataset == "utkface" and set_name != "plain":
        named = ages(prompt)
        if len(named) != 1 or not 1 <= named[0] <= 100:
            failures.append(Failure("age", f"must name one age from 1 to 100, it names {named}"))
    return failures


def normalised(prompt: str) -> str:
    """What makes two prompts the same: their words, without capitals and punctuation."""
    return " ".join(re.findall(r"\w+", plain_text(prompt)))


def empty_bands(prompts: Sequence[str]) -> list[tuple[int, int]]:
    """The AGE_BANDS in which no prompt names an age."""
    named = [age for prompt in prompts for age in ages(prompt)]
    return [(low, high) for low, high in AGE_BANDS if not any(low <= age <= high for age in named)]


def needs_ages(dataset: str, set_name: str) -> bool:
    """Whether the ages of each group must be spread."""
    return dataset == "utkface" and set_name != "plain" and parse_set(set_name)[0] >= len(AGE_BANDS)


def check_groups(
    document: dict, count_tokens: Callable[[str], int] = estimate_tokens
) -> list[Failure]:
    """Every failure of a prompt file's content (a dict as in the files), by group."""
    failures = check_fields(document)
    if failures:
        return failures
    number, _ = parse_set(document["set"])
    rules = {key: document[key] for key in ("dataset", "target", "protected", "starts_with")}
    rules["words"] = words_of(document)
    first_seen: dict[str, str] = {}
    for y, a in GROUPS:
        group, prompts = f"{y}_{a}", document["cells"][f"{y}_{a}"]
        if len(prompts) != number:
            failures.append(Failure("groups", f"holds {len(prompts)} prompts, not {number}", group))
        for position, prompt in enumerate(prompts, start=1):
            broken = check_prompt(
                prompt, group=(y, a), set_name=document["set"], count_tokens=count_tokens, **rules
            )
            here = f"group {group} prompt {position}"
            if (seen := first_seen.setdefault(normalised(prompt), here)) != here:
                broken.append(Failure("unique", f"is the same as {seen}"))
            failures += [
                failure._replace(group=group, number=position, prompt=prompt) for failure in broken
            ]
        if needs_ages(document["dataset"], document["set"]) and (missing := empty_bands(prompts)):
            bands = ", ".join(f"{low}-{high}" for low, high in missing)
            failures.append(Failure("ages", f"no prompt names an age of {bands}", group))
    return failures + [
        Failure(rule, message, group) for rule, message, group in broken_limits(document)
    ]


def check_file(
    path: str | Path, count_tokens: Callable[[str], int] = estimate_tokens
) -> list[Failure]:
    """Every failure of one prompt file; UserError where it cannot be read as JSON."""
    path = Path(path)
    document = load_document(path)
    failures = check_groups(document, count_tokens)
    if check_fields(document):
        return failures
    expected = f"{document['target']}_{document['protected']}_{document['set']}.json"
    if path.name != expected:
        failures.append(Failure("file", f"by its content its name would be {expected}"))
    longer = path.with_name(expected.replace("contextual_25", "contextual_50"))
    if document["set"] == "contextual_25" and longer.is_file():
        whole = load_document(longer)
        broken = bool(check_fields(whole))
        for group, prompts in document["cells"].items():
            if broken or prompts != whole["cells"][group][:25]:
                failures.append(Failure("prefix", f"is not the first 25 of {longer.name}", group))
    return failures


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the number that the process exits with."""
    parser = ArgumentParser(
        prog="python -m prompts.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "files", nargs="*", type=path, help="prompt files (default: every .json in prompts/)"
    )
    parser.add_argument(
        "--tokenizer", type=path, help="local folder of a CLIP tokenizer, for exact counts"
    )
    parser.add_argument("--measures", action="store_true", help="a table of what is measured")
    options = parser.parse_args(arguments)
    files = options.files or sorted(PROMPTS.glob("*.json"))
    count = tokenizer_count(options.tokenizer) if options.tokenizer else estimate_tokens
    total = 0
    for file in files:
        failures = check_file(file, functools.cache(count))
        total += len(failures)
        for failure in failures:
            print(f"{file}: {failure}")
    if options.measures:
        documents = {Path(file).stem: load_document(file) for file in files}
        print(table({n: measures(d) for n, d in documents.items() if not check_fields(d)}))
    print(f"{len(files)} files checked, {total} failures", file=sys.stderr)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
