"""The command line of prompts.build: which pair, in whose words, and where the set is written."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from prompts import own
from prompts.instruction import ATTRIBUTES, STARTS_WITH, VALUES, check_attributes, set_name
from utils.errors import UserError
from utils.options import ArgumentParser, path


def parse_arguments(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The command line, with --dataset, --subject and --out filled in and `words`: the user's
    phrases by attribute."""
    parser = ArgumentParser(prog="python -m prompts.build", description=description)
    parser.add_argument("--target", required=True, help="Smiling, Male, Young, Female, White, or "
                        "a name of your own, as in your metadata, with --target-words")
    parser.add_argument("--protected", required=True, help="another of these, of the same dataset")
    for flag in ("target", "protected"):
        parser.add_argument(
            f"--{flag}-words", nargs=2, metavar=("ONE", "ZERO"), help=f"how prompts say that "
            f"{flag} is 1 and that it is 0, 'a man|a boy' for several; any attribute")
    parser.add_argument("--subject", help="how every prompt begins, of words of your own (default: "
                        f"'{STARTS_WITH}')")
    parser.add_argument("--number", type=int, help="prompts per group (default: 50)")
    parser.add_argument(
        "--head-poses", action="store_true", help="a head pose in every prompt (paper: CelebA only)"
    )
    parser.add_argument(
        "--dataset", choices=(*ATTRIBUTES, own.OWN), help="default: the one with the target "
        "attribute; own with words of your own"
    )
    parser.add_argument("--model", help="the model's name at the endpoint")
    parser.add_argument("--plain", action="store_true", help="ask no model: one prompt a group, of "
                        "the words for its values")
    parser.add_argument("--base-url", help="default: OPENAI_BASE_URL, else OpenAI's own")
    parser.add_argument("--timeout", type=float, help="seconds per request (default: 300)")
    parser.add_argument(
        "--no-json-mode", action="store_true", help="never ask for response_format: it is given up "
        "by itself where the endpoint fails or answers without use because of it",
    )
    parser.add_argument("--out", type=path, help="default: prompts/<Target>_<Protected>_<set>.json")
    options = parser.parse_args(arguments)
    if (options.model is None) != options.plain:
        raise UserError("--model is missing: give the name of a language model, or --plain"
                        if options.model is None else "--plain asks no --model; leave out one")
    if options.plain:
        _check_plain(options)
    options.number = 50 if options.number is None else options.number
    options.timeout = 300 if options.timeout is None else options.timeout
    if options.number < 1:
        raise UserError(
            f"--number {options.number} is below 1; ask for at least one prompt per group"
        )
    if not options.timeout > 0:
        raise UserError(f"--timeout {options.timeout:g} is not above 0; give it in seconds")
    _fill_in(options)
    if options.out is None:
        name = "plain" if options.plain else set_name(options.number, options.head_poses)
        options.out = Path(__file__).parent / f"{options.target}_{options.protected}_{name}.json"
    return options


def _check_plain(options: argparse.Namespace) -> None:
    """Raise UserError for flags of a language model's set beside --plain."""
    given = {"--number": options.number is not None, "--head-poses": options.head_poses,
             "--base-url": options.base_url is not None,
             "--timeout": options.timeout is not None, "--no-json-mode": options.no_json_mode}
    for flag in (flag for flag, there in given.items() if there):
        raise UserError(f"--plain writes one prompt a group and asks no model; leave out {flag}")


def _fill_in(options: argparse.Namespace) -> None:
    """dataset, subject and words; UserError for a pair that cannot be put into words."""
    given = {flag: getattr(options, f"{flag}_words") for flag in ("target", "protected")}
    mine = any(given.values()) or options.subject is not None or options.dataset == own.OWN
    options.words = {getattr(options, flag): own.parse_words(f"--{flag}-words", texts)
                     for flag, texts in given.items() if texts}
    if mine and options.dataset not in (None, own.OWN):
        raise UserError(f"--dataset {options.dataset} has the papers' words; leave out --dataset, "
                        "or --target-words, --protected-words and --subject")
    if not mine:
        if options.dataset is None:
            holding = [name for name, known in ATTRIBUTES.items() if options.target in known]
            options.dataset = holding[0] if holding else "celeba"
        check_attributes(options.dataset, options.target, options.protected)
    else:
        options.dataset = own.OWN
    subject = STARTS_WITH if options.subject is None else options.subject
    options.subject = " ".join(subject.split())
    if not options.subject:
        raise UserError("--subject is empty; give the words with which every prompt begins")
    for flag in given:
        name = getattr(options, flag)
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"--{flag} '{name}' names a folder of images: use letters, digits, - "
                            "and _, and rename that column of your metadata")
        if mine and name not in options.words and name not in VALUES:
            raise UserError(f"--{flag} {name} has no words: give --{flag}-words, those of 1 and "
                            "those of 0")
    if options.target == options.protected:
        raise UserError(f"--target and --protected are both {options.target}; choose two "
                        "attributes")
