"""Find the prompts in a language model's answer, whatever is written around them.

Every candidate for the list is collected: each list in each JSON value, even in one that is cut
off; all complete strings; a list in plain lines. The candidate with the most usable prompts wins,
so a draft, a note or a cut-off end does not hide a good list.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress

MOST_VALUES = 500  # places in one answer at which a JSON value is tried
DEPTH = 2  # JSON inside a string of JSON inside a string
# A complete string in the place of a value: not a key, nor the end of a quotation in a sentence.
_STRING = re.compile(r'[\[{,:\n]\s*("(?:[^"\\]|\\.){0,2000}")(?!\s*:)', re.S)
_MARK = re.compile(r"^\s*(?:\W{0,4}(?:prompt )?#?\d{1,3}\W{1,4}|[-*\u2022])\s+", re.I)
_QUOTES = " \t\"'`*_,;\u201c\u201d\u2018\u2019"


def best_prompts(text: str, usable: Callable[[list[str]], int]) -> list[str]:
    """The candidate with the most usable prompts; among equals the shortest, then the last.

    usable: counts the prompts of a candidate that would be accepted. Where no candidate has any,
    the longest list of texts in JSON, which may be what the model meant, or [] without one.
    """
    best, rank = [], (1, -len(text))
    for texts in dict.fromkeys(map(tuple, candidates(text))):
        if (there := (usable(list(texts)), -len(texts))) >= rank:
            best, rank = list(texts), there
    lists = itertools.chain.from_iterable(map(_lists, _values(text)))
    return best or max(lists, key=len, default=[])


def candidates(text: str, depth: int = DEPTH) -> Iterator[list[str]]:
    """Every list of texts in an answer, with single spaces; those after </think> come last."""
    thoughts, mark, answer = text.rpartition("</think>")
    for part in (thoughts, answer) if mark else (text,):
        for texts in _candidates(part, depth):
            if texts := [" ".join(item.split()) for item in texts if item.strip()]:
                yield texts


def _candidates(text: str, depth: int) -> Iterator[list[str]]:
    yield from _lines(text)
    strings = list(_complete(text))
    yield strings  # of an array that is cut off, or of JSON with a mistake
    everything: list[str] = []
    for value in _values(text):
        yield from _lists(value)
        everything += [item for item in _walk(value) if isinstance(item, str)]
    yield everything  # one object per line, or one list per group
    if depth:
        for string in {*strings, *everything} - {text}:
            if "\n" in string.strip() or string.lstrip()[:1] in ("[", "{"):
                yield from _candidates(string, depth - 1)


def _complete(text: str) -> Iterator[str]:
    """The complete JSON strings in a text, except those with a wrong escape."""
    for match in _STRING.finditer("\n" + text):
        with suppress(ValueError):
            yield json.loads(match[1], strict=False)


def _values(text: str) -> Iterator[list | dict]:
    """The outermost JSON arrays and objects in a text, in order."""
    decoder, position = json.JSONDecoder(strict=False), 0
    begin = re.compile(r"[\[{]")
    for _ in range(MOST_VALUES):
        if not (match := begin.search(text, position)):
            return
        position = match.start()
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
        else:
            yield value


def _walk(value) -> Iterator:
    """A JSON value and all values inside it, in order, without recursion."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict | list):
            waiting += reversed(list(value.values() if isinstance(value, dict) else value))


def _lists(value) -> Iterator[list[str]]:
    """The lists of texts in a JSON value: [text], {name: text}, [{"prompt": text}], [[text]]."""
    for inner in _walk(value):
        if isinstance(inner, dict):
            yield [item for item in inner.values() if isinstance(item, str)]
        if isinstance(inner, list):
            yield [item for item in inner if isinstance(item, str)]
            objects = [item for item in inner if isinstance(item, dict)]
            for key in dict.fromkeys(itertools.chain.from_iterable(objects)):
                yield [item[key] for item in objects if isinstance(item.get(key), str)]


def _lines(text: str) -> Iterator[list[str]]:
    """All lines, and those of a numbered or bulleted list, without bullets and quotes.

    A line that is cut off is left out: it opens a quote and does not close it, or it is the last
    and has no end mark, unlike the one before.
    """
    quotes = re.compile(r'(?<!\\)"')
    lines = [x for x in text.splitlines() if x.strip() and len(quotes.findall(x)) % 2 == 0]
    ends = [line.rstrip(_QUOTES)[-1:] in tuple(".!?") for line in lines]
    if len(lines) > 1 and ends[-2] and not ends[-1]:
        lines.pop()
    marked = [line for line in lines if _MARK.match(line)]
    for chosen in (lines, marked):
        yield [_MARK.sub("", line).strip(_QUOTES) for line in chosen]
