"""Prompts for attributes of your own, faces or not: the words of both values are the user's.

A prompt file of dataset "own" holds them: "words": {attribute: {"0": [phrases], "1": [phrases]}}.
The paper's instruction is kept, with its list of facial attributes replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prompts.attributes import plain_text
from prompts.attributes import values_named as known_values_named
from prompts.instruction import HEAD_POSES, SEEN, VALUES
from utils.errors import UserError

OWN = "own"  # the name under "dataset"
Phrases = tuple[tuple[str, ...], tuple[str, ...]]  # of the value 0 and of the value 1

_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_DENIAL = re.compile(r"^(?:not?|without|non|never)\b", re.IGNORECASE)
_FOLLOWS = re.compile(  # what stands after the noun
    r"^(?:with|without|in|on|at|under|near|beside|behind|before|against|by|from|of|over|who|that"
    r"|\w+ing(?=\s))\b", re.IGNORECASE)
FACE_OTHERS = (
    "Each prompt should also vary age, ethnicity, face shape, skin, hair, expression, clothing, "
    "accessories, light and background, as far as they suit the person."
)
OTHERS = (
    "Each prompt should also vary everything else that such a photo shows: kind, colour, size, "
    "pose, distance, viewpoint, light, weather, season and background."
)


def parse_words(flag: str, texts: Sequence[str]) -> Phrases:
    """The phrases of a flag's two texts, of the value 1 first; "a|b" are several for one value.

    Raises UserError for an empty phrase and for one that both values have.
    """
    one, zero = (tuple(" ".join(part.split()) for part in text.split("|")) for text in texts)
    for phrase in (*one, *zero):
        if not _bare(phrase):
            raise UserError(f"{flag}: a phrase is empty; write words for 1, then words for 0, "
                            "several for one value as 'a man|a boy'")
    if twice := {_bare(phrase) for phrase in one} & {_bare(phrase) for phrase in zero}:
        raise UserError(f"{flag}: both values are called '{min(twice)}'; write two different")
    return zero, one


def denials(words: Mapping[str, Phrases]) -> list[str]:
    """The phrases that say what is not there: a diffusion model tends to draw it all the same."""
    return [phrase for values in words.values() for phrases in values for phrase in phrases
            if _DENIAL.match(phrase)]


def words_of(document: Mapping) -> dict[str, Phrases]:
    """The user's phrases by attribute; {} for the sets of the papers."""
    return {name: (tuple(values["0"]), tuple(values["1"]))
            for name, values in document.get("words", {}).items()}


def words_json(words: Mapping[str, Phrases]) -> dict[str, dict[str, list[str]]]:
    """What `words_of` reads."""
    return {name: {"0": list(zero), "1": list(one)} for name, (zero, one) in words.items()}


def broken_words(document: Mapping) -> list[str]:
    """What is wrong with a document's "words", one line each."""
    words, lines = document.get("words"), []
    attributes = [document["target"], document["protected"]]
    if not isinstance(words, dict) or not set(words) <= set(attributes):
        return ['"words" must hold phrases of its target and protected attribute']
    for name in attributes:
        if name not in words and name in VALUES:
            continue
        values = words.get(name)
        if not (isinstance(values, dict) and sorted(values) == ["0", "1"] and all(
            isinstance(phrases, list) and phrases and all(
                isinstance(phrase, str) and _bare(phrase) for phrase in phrases)
            for phrases in values.values()
        )):
            lines.append(f'"words" must hold lists of phrases for the values "0" and "1" of {name}')
        elif set(map(_bare, values["0"])) & set(map(_bare, values["1"])):
            lines.append(f'"words": both values of {name} have the same phrase')
    return lines


def _bare(phrase: str) -> str:
    """A phrase in lower case without its article: what is looked for in a prompt."""
    return _ARTICLE.sub("", plain_text(phrase))


def values_named(
    attribute: str, prompt: str, words: Mapping[str, Phrases] | None = None
) -> tuple[set[int], dict[int, list[str]]]:
    """As `attributes.values_named`, by the user's phrases where there are any for the attribute.

    A longer phrase wins over a shorter one within it: "no glasses" does not name "glasses".
    """
    if not words or attribute not in words:
        return known_values_named(attribute, prompt)
    value_of = {_bare(phrase): value for value in (0, 1) for phrase in words[attribute][value]}
    longest = sorted(value_of, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
    found: dict[int, list[str]] = {0: [], 1: []}
    for match in pattern.finditer(plain_text(prompt)):
        found[value_of[match[0]]].append(match[0])
    return {value for value in (0, 1) if found[value]}, found


def said(attribute: str, value: int, words: Mapping[str, Phrases] | None = None) -> str:
    """A value in words: the user's, joined by "or", or the paper's."""
    if words and attribute in words:
        return " or ".join(words[attribute][value])
    return VALUES[attribute][value].split(" (")[0]


def instruction(
    pair: tuple[str, str], group: tuple[int, int], number: int, head_poses: bool, starts_with: str,
    words: Mapping[str, Phrases],
) -> str:
    """The paper's instruction with the user's words in the place of CelebA's."""
    face = is_face(starts_with)
    values = [said(attribute, value, words) for attribute, value in zip(pair, group)]
    others = f"{FACE_OTHERS if face else OTHERS} {HEAD_POSES if head_poses else ''}".strip()
    only = ", ensuring the image only contains the head part" if face else ""
    task = "human face attributes" if face else "photographs"
    return (f"Generate {number} diverse text prompts for {task} that always include {values[0]} "
            f'and {values[1]}. {others} The prompts should be for a "{starts_with},"{only}.')


def answer_format(
    pair: tuple[str, str], group: tuple[int, int], head_poses: bool, starts_with: str,
    words: Mapping[str, Phrases],
) -> str:
    """What prompts/check.py will hold the answer to, said to the model."""
    rules = [f'starts with the words "{starts_with}"']
    for attribute, value in zip(pair, group):
        if attribute in words:
            wanted, other = (" or ".join(f'"{_bare(phrase)}"' for phrase in words[attribute][v])
                             for v in (value, 1 - value))
            rules.append(f"contains, word for word, {wanted} and nowhere {other}")
        else:
            rules.append(f"names the person as {SEEN[attribute][value]}")
    rules += [
        "has an idea of its own, and shares few words with the others",
        f'goes on after "{starts_with}" in its own way',
        "is one English sentence of at most 40 words, different from every other prompt",
    ]
    if head_poses:
        rules.append("names one head pose, a slight tilt or turn or a straight look in ever other "
                     "words, and no full profile")
    return (f"Each prompt {'; '.join(rules)}. Answer with nothing but a JSON object of the form "
            '{"prompts": ["...", "..."]}.')


def is_face(starts_with: str) -> bool:
    return bool(re.search(r"\b(?:face|portrait|head)", starts_with.lower()))


_PLAIN = {"Smiling": ("serious", "smiling"), "Male": ("woman", "man"), "Female": ("man", "woman"),
          "White": ("non-White", "White")}


def plain_prompt(
    pair: tuple[str, str], group: tuple[int, int], starts_with: str, words: Mapping[str, Phrases]
) -> str:
    """One prompt of the start and the two values alone: "Photo of a man wearing glasses."

    What has an article is the noun and comes after the adjectives, and what can only follow a noun
    ("wearing ...", "on land") comes last; else the target is first.
    """
    parts = []
    for name, value in zip(pair, group):
        if name in words:
            given = words[name][value][0]
            phrase = _ARTICLE.sub("", given)
            parts.append((bool(_FOLLOWS.match(phrase)), phrase != given, phrase))
        else:
            parts.append((False, name in ("Male", "Female"),
                          _PLAIN.get(name, VALUES[name])[value]))
    text = " ".join(phrase for *_, phrase in sorted(parts, key=lambda part: part[:2]))
    vowel = starts_with.lower().endswith(" a") and text[:1].lower() in "aeiou"
    return f"{starts_with}{'n' if vowel else ''} {text}."
