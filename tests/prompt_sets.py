"""Prompt sets that keep every rule, made of words that no rule knows."""

from __future__ import annotations

import random

from prompts import build
from prompts.coverage import NAMED_BY, OF_ONE_SEX
from prompts.instruction import STARTS_WITH
from utils.metrics import GROUPS

WORDS = [f"{a}{b}" for a in ("ba", "do", "fi", "gu", "ke", "lo") for b in
         ("bim", "dal", "fop", "gin", "kut", "lem", "mov", "nar", "pid", "ros")]  # fmt: skip
POSES = ("head tilted left", "head turned right", "chin raised", "chin lowered", "facing down",
         "head leaning back", "looking up", "head bowed", "face turned left", "looking ahead")
VALUES, PEOPLE = ("stern", "smiling"), ("woman", "man")
NAMED = {  # a plain phrase of each attribute that is not its own name in the list
    "5 o'clock shadow": "a five o'clock shadow", "bags under eyes": "bags under the eyes",
    "big lips": "big, full lips", "mouth slightly open": "mouth slightly open",
    "no beard": "a clean-shaven chin", "wearing necktie": "a silk necktie",
    "wearing necklace": "a gold necklace", "wearing earrings": "small earrings",
    "wearing a hat": "a straw hat", "wearing lipstick": "red lipstick",
}  # fmt: skip
PHRASES = {name: NAMED.get(name, name) for name in NAMED_BY}


def varied(number: int = 20, head_poses: bool = False, attributes: bool = False) -> dict:
    """A Smiling, Male document with `number` prompts per group that share few words.

    attributes: each prompt names one of CelebA's, all in turn.
    """
    document = build.new_document("celeba", "Smiling", "Male", number, head_poses, "m")
    draw = random.Random(3)
    for y, a in GROUPS:
        phrases = [text for name, text in PHRASES.items() if name not in OF_ONE_SEX[1 - a]]
        for i in range(number):
            one, two, three, four = draw.sample(WORDS, 4)
            named = f", {phrases[(i + 25 * y) % len(phrases)]}" if attributes else ""
            pose = f", {draw.choice(POSES)}" if head_poses else ""
            document["cells"][f"{y}_{a}"].append(
                f"{STARTS_WITH} {one} {two} {VALUES[y]} {PEOPLE[a]} {three} {four}{named}{pose}."
            )
    return document
