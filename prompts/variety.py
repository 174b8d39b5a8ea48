"""How varied a prompt set is: openings, words that groups share, attributes, poses; with limits.

Where groups differ only in the target's word, the images vary in little else; and ten openings, or
25 poses in a fixed order, over and over are a small set in a large file. The limits apply to
contextual sets of at least SMALLEST prompts per group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from prompts.attributes import HEAD_POSE, negations, plain_text
from prompts.coverage import HEADWEAR, missing_attributes
from prompts.instruction import parse_set
from utils.metrics import GROUPS

SMALLEST = 10  # prompts per group; with fewer, shares say nothing
COVERING = 25  # prompts per group; from here on every attribute of the list is expected
OPENING_WORDS = 3
LIMITS = {  # the largest value that passes
    "openings": 0.5,
    "overlap": 0.25,
    "best_overlap": 0.4,
    "cycle": 0.5,
}
_STOP = frozenset(
    (*("a", "an", "and", "the", "of", "with", "in", "on", "at", "to", "his", "her", "their", "he"),
     *("she", "they", "who", "whose", "is", "are", "as", "by", "from", "for", "into", "over"),
     *("under", "above", "below", "that", "this", "it", "its", "but", "or", "portrait", "face"),
     *("photo", "wearing", "has"))
)  # fmt: skip
PROFILE = re.compile(
    r"\b(?<!three-quarter )(?<!quarter )(?<!half )(?<!half-)profile\b|\bside[- ]on\b"
    r"|\bside view\b|\bturned (?:all the way|fully|completely|far|sharply|away entirely)\b"
)
_POSE_WORDS = re.compile(
    r"\b(?:tilt|turn|lean|rais|lower|lift|dip|bow|angl|rotat|incl|cock|tuck|fac|look|gaz|glanc"
    r"|drop|level|straight|front|up|down|left|right|back|forward|ahead|away|over|side|shoulder|chin"
    r"|camera|quarter)\w*"
)
CUES = {  # shares for information, without a limit
    "skin": r"skin\w*|\w+-skinned|complexion|freckle[sd]?|wrinkle[sd]?|blemish\w*|acne|pores?"
    r"|moles?|birthmark|tan|tanned|sunburn\w*|scar|weathered|crow's feet|age spots|blush\w*|tone",
    "hair texture": r"curl\w*|wav[ey]\w*|coil\w*|coily|kinky|frizz\w*|wisp\w*|coarse|silky|sleek"
    r"|afro|braid\w*|locs|dreadlocks|cornrows|ringlets|spik\w+|fluffy|glossy|straight hair|tousled"
    r"|twists|wiry|fine hair|thick hair|textured|feathered|crimped",
    "headwear": HEADWEAR,
}


def opening(prompt: str, starts_with: str) -> str:
    """The first OPENING_WORDS words after the agreed start."""
    rest = re.sub(rf"^{re.escape(starts_with.lower())}n?\s", "", plain_text(prompt))
    return " ".join(re.findall(r"[\w'-]+", rest)[:OPENING_WORDS])


def shared_openings(prompts: Sequence[str], starts_with: str) -> int:
    """How many prompts begin as another one does."""
    counts = Counter(opening(prompt, starts_with) for prompt in prompts)
    return sum(count for count in counts.values() if count > 1)


def content_words(prompt: str) -> set[str]:
    """The content words of a prompt, in lower case."""
    return set(re.findall(r"[^\W\d_]+(?:'[a-z]+)?", plain_text(prompt))) - _STOP


def overlap(first: Sequence[str], second: Sequence[str]) -> tuple[float, float]:
    """Mean Jaccard index of the content words of two groups' prompts, in [0, 1].

    Two ways: prompt i with prompt i, and each prompt of `first` with the nearest of `second`.
    """
    words, others = ([content_words(prompt) for prompt in group] for group in (first, second))
    table = [[len(a & b) / max(1, len(a | b)) for b in others] for a in words]
    paired = [row[i] for i, row in enumerate(table) if i < len(row)]
    best = [max(row, default=0.0) for row in table]
    return sum(paired) / max(1, len(paired)), sum(best) / max(1, len(best))


def pose(prompt: str) -> str:
    """The words of direction in those clauses of a prompt that name a head pose."""
    clauses = [c for c in re.split(r"[,;]", plain_text(prompt)) if HEAD_POSE.search(c)]
    return " ".join(word for clause in clauses for word in _POSE_WORDS.findall(clause))


def cycle(poses: Sequence[str], longest: int) -> tuple[float, int]:
    """(share, period): the largest share of poses that recur after `period` prompts, in [0, 1].

    period: at most `longest`.
    """
    shares = [(0.0, 0)]
    for period in range(1, min(longest, len(poses) - 1) + 1):
        same = sum(a == b for a, b in zip(poses, poses[period:]))
        shares.append((same / (len(poses) - period), period))
    return max(shares, key=lambda pair: pair[0])


def measures(document: Mapping) -> dict[str, float]:
    """{name: value} of one prompt file: shares in [0, 1], and counts of prompts or attributes."""
    number, head_poses = parse_set(document["set"])
    groups = {(y, a): document["cells"][f"{y}_{a}"] for y, a in GROUPS}
    prompts = [prompt for group in groups.values() for prompt in group]
    pairs = [overlap(groups[0, a], groups[1, a]) for a in (0, 1)]
    start = document["starts_with"]
    known = {document["target"], document["protected"]} - set(document.get("words", {}))
    shared = [shared_openings(group, start) / max(1, len(group)) for group in groups.values()]
    found = {
        "openings": max(shared),
        "overlap": max(paired for paired, _ in pairs),
        "best_overlap": max(best for _, best in pairs),
        "negations": sum(any(negations(name, p) for name in known) for p in prompts),
        "words": len(set().union(*map(content_words, prompts))),
    }
    if document["dataset"] == "celeba":
        found["missing"] = len(
            missing_attributes(document["target"], document["protected"], groups))
    if head_poses:
        poses = [pose(prompt) for prompt in prompts]
        found["profiles"] = sum(bool(PROFILE.search(plain_text(p))) for p in prompts)
        found["poses"] = len(set(poses))
        found["cycle"] = cycle(poses, number)[0]
    for name, cue in CUES.items():
        named = re.compile(rf"\b(?:{cue})\b")
        found[name] = sum(bool(named.search(plain_text(p))) for p in prompts) / max(1, len(prompts))
    return found


def broken_limits(document: Mapping) -> list[tuple[str, str, str | None]]:
    """(rule, message, group or None) for each limit that a contextual set exceeds."""
    number, head_poses = parse_set(document["set"])
    if document["set"] == "plain" or number < SMALLEST:
        return []
    groups = {(y, a): document["cells"][f"{y}_{a}"] for y, a in GROUPS}
    broken = []
    for (y, a), prompts in groups.items():
        shared = shared_openings(prompts, document["starts_with"])
        if shared > LIMITS["openings"] * len(prompts):
            broken.append((
                "openings",
                f"{shared} of {len(prompts)} prompts begin with the same {OPENING_WORDS} words as "
                f"another; at most {LIMITS['openings']:.0%} may",
                f"{y}_{a}",
            ))  # fmt: skip
    for a in (0, 1):
        for name, value in zip(("overlap", "best_overlap"), overlap(groups[0, a], groups[1, a])):
            if value > LIMITS[name]:
                which = "the same number" if name == "overlap" else "the nearest prompt"
                broken.append((
                    "overlap",
                    f"prompts share {value:.0%} of their words with {which} in group 1_{a}; at "
                    f"most {LIMITS[name]:.0%} may be shared",
                    f"0_{a}",
                ))  # fmt: skip
    if document["dataset"] == "celeba" and number >= COVERING:
        missing = missing_attributes(document["target"], document["protected"], groups)
        if missing:
            broken.append(("coverage", f"no prompt names: {', '.join(missing)}", None))
    if head_poses:
        share, period = cycle([pose(p) for group in groups.values() for p in group], number)
        if share > LIMITS["cycle"]:
            broken.append((
                "cycle", f"{share:.0%} of the head poses recur after {period} prompts; vary their "
                f"order and wording (at most {LIMITS['cycle']:.0%})", None,
            ))  # fmt: skip
    return broken


COLUMNS = (
    *("openings", "overlap", "best_overlap", "missing", "negations", "profiles", "cycle", "poses"),
    *("words", *CUES),
)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The measures of several files as text, one line per file; - where one does not apply."""
    shares = {"openings", "overlap", "best_overlap", "cycle", *CUES}
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>14}" for name in COLUMNS)]
    for name, values in rows.items():
        entries = [
            "-" if column not in values
            else f"{values[column]:.0%}" if column in shares else f"{values[column]:.0f}"
            for column in COLUMNS
        ]  # fmt: skip
        lines.append(f"{name:<{width}}" + "".join(f"{entry:>14}" for entry in entries))
    return "\n".join(lines)
