"""Which value of an attribute a prompt names: the words for both values, and negations.

Words in `names` settle the value (a "woman" is female). Words in `hints` only contradict it: "her"
is a fault in a prompt for a man, but a pronoun alone does not name the sex. The prompts of a group
must name its value, and neither name nor hint at the other.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple


class Words(NamedTuple):
    """Regular expressions for whole words of lower-case text; index 0 and 1 are the values."""

    names: tuple[str, str]
    hints: tuple[str, str]
    harmless: str  # phrases that have such a word but say nothing about the person
    # "not old" is young; but "not Asian" is not White, and "not frowning" not a smile
    negation_flips: bool = True


_OLD = (
    r"elderly|old|older|senior|aged|ageing|aging|middle[- ]aged|in middle age|mature"
    r"|in (?:his|her|their|the) (?:\w+[- ])?(?:fifties|sixties|seventies|eighties|nineties"
    r"|[5-9]0s)"
)
_YOUNG = (
    r"young|younger|youthful|teen|teens|teenage|teenaged|teenager|adolescent|youngster"
    r"|in (?:his|her|their|the) (?:\w+[- ])?(?:twenties|20s)"
)
_MALE = (
    r"males?|man|men|boys?|gentlem[ae]n|guys?|lads?|schoolboy|businessman|father|dad|grandfather"
    r"|grandpa|uncle|son|brother|husband|groom"
)
_FEMALE = (
    r"females?|wom[ae]n|girls?|lady|ladies|gals?|schoolgirl|businesswoman|mother|mom|mum"
    r"|grandmother|grandma|granny|aunt|daughter|sister|wife|bride|actress"
)
_HE, _SHE = r"he|his|him|himself|mr", r"she|her|hers|herself|mrs|ms"
_SEX_HARMLESS = (
    r"man[- ]buns?|boy[- ]cut|page[- ]boy|cow[- ]boy|news[- ]boy|male[- ]pattern|lady[- ]?like"
    r"|mother[- ]of[- ]pearl"
)
_UNSMILING = r"un-?smiling(?:ly)?|nonsmiling|smileless"
_LOOK = r"(?:expression|face|look|stare|gaze|mouth|countenance|air|mien)"
# Words for faces without a smile, which diffusion models follow better than a negation.
_GRAVE = (
    r"frown\w*|scowl\w*|pout(?:ing|s)?|glower\w*|grimac\w*|sulk\w*|stern|sternly|stern-faced|solemn"
    r"|solemnly|serious|seriously|serious-faced|sullen|sullenly|grim|grimly|grim-faced|glum|grave"
    r"|gravely|deadpan|dour|stoic|stoical|stoically|pensive|pensively|somb(?:re|er)|somb(?:re|er)ly"
    r"|expressionless|impassive|impassively|stone-faced|stony-faced|stony|poker-faced|straight-faced"
    r"|straight faced|unamused|unimpressed|sad|sadly|sorrowful|mournful|melanchol(?:y|ic)"
    r"|morose|brooding|tight-lipped|blank-faced|sober-faced|dejected|gloomy|forlorn|crestfallen"
    rf"|(?:neutral|blank|sober|flat|severe|vacant|unreadable|tense|stiff|bored|weary|downcast|tired"
    rf"|worried|anxious|thoughtful|troubled|guarded|reserved|wary|skeptical|sceptical|distant"
    rf"|faraway|wistful|downturned|inscrutable)(?:,? (?:and )?[\w-]+)? {_LOOK}"
    r"|(?:lips|mouth) (?:\w+ )?(?:pressed|set|pursed|compressed|drawn|clamped|turned down"
    r"|downturned)|(?:pressed|pursed|downturned) lips|corners of (?:his|her|the) mouth turned down"
)
_OTHER_RACES = (
    r"black|asian|indian|hispanic|latin[oax]|latin american|african|african[- ]american|arab"
    r"|arabic|arabian|middle[- ]eastern|chinese|japanese|korean|vietnamese|thai|filipin[oa]"
    r"|indonesian|malaysian|malay|cambodian|mongolian|tibetan|pakistani|bangladeshi|sri lankan"
    r"|nepal[ei]\w*|mexican|brazilian|peruvian|colombian|caribbean|jamaican|cuban|native american"
    r"|indigenous|aboriginal|m[aā]ori|polynesian|pacific islander|samoan|hawaiian|inuit|persian"
    r"|iranian|turkish|kurdish|moroccan|egyptian|ethiopian|somali|nigerian|kenyan|ghanaian"
    r"|afro[- ]\w+|punjabi|bengali|tamil|gujarati|afghan|pashtun|rohingya|burmese|laotian|hmong"
    r"|kazakh|uzbek|uyghur|syrian|lebanese|palestinian|jordanian|iraqi|saudi|yemeni|emirati|omani"
    r"|bedouin|berber|amazigh|tuareg|algerian|tunisian|libyan|sudanese|congolese|senegalese|malian"
    r"|ugandan|tanzanian|rwandan|eritrean|zulu|xhosa|yoruba|igbo|maasai|haitian|dominican"
    r"|puerto rican|guatemalan|salvadoran|honduran|ecuadorian|bolivian|andean|mestiz[oa]|quechua"
    r"|navajo|cherokee|lakota|cree|apache|hopi|fijian|tongan|papuan"
    r"|mixed[- ]race|biracial|multiracial|multiethnic|nonwhite|brown[- ]skinned|dark[- ]skinned"
)

WORDS = {
    "Smiling": Words(
        (
            rf"{_UNSMILING}|{_GRAVE}",
            r"smil(?:e|es|ed|ing|ingly)|grin(?:s|ning)?|beam(?:s|ing)|laugh(?:s|ing|ter)?"
            r"|chuckl(?:e|es|ing)|giggl(?:e|es|ing)",
        ),
        ("", r"smirk\w*|cheerful\w*|tittering|snicker\w*"),
        r"(?:smile|laugh|laughter|frown)[- ]lines?"
        # A sombre tie is not a sombre face.
        r"|(?:somb(?:re|er)|serious|grave|severe|straight|firm|pressed)(?: [\w-]+)?"
        r" (?:tie|necktie|hat|cap|jacket|scarf|coat|suit|collar|dress|blouse|shirt|frames|glasses"
        r"|eyeglasses|spectacles|bun|bob|parting|fringe|bangs|hair|nose|eyebrows|brows|powder)",
        negation_flips=False,
    ),
    "Male": Words((_FEMALE, _MALE), (_SHE, _HE), _SEX_HARMLESS),
    "Female": Words((_MALE, _FEMALE), (_HE, _SHE), _SEX_HARMLESS),
    "Young": Words(
        (_OLD, _YOUNG),
        (
            r"grandmother|grandfather|grandma|grandpa|granny|pensioner|retiree",
            r"child|kid|toddler|baby|infant|girls?|boys?|lads?|schoolboy|schoolgirl",
        ),
        r"old[- ](?:fashioned|school|style|time)|age[- ]old|years?[- ]olds?"
        r"|baby[- ](?:bangs|hairs?|blue|pink|braids|fine)|" + _SEX_HARMLESS,
    ),
    "White": Words(
        (_OTHER_RACES, r"white|caucasian|european"),
        ("", ""),
        # A colour with a feature is that of hair, beard or eyes, not of the person.
        r"(?:white|black)(?: and \w+)?(?:[- ]haired|-(?!skinned)\w+)|(?:white|black) hair",
        negation_flips=False,
    ),
}

# Words that may stand between a negation and what it negates ("without even a hint of a smile").
_BETWEEN = (
    r"(?:(?:a|an|any|the|even|single|slightest|faintest|hint|trace|sign|of|at|all|really|very"
    r"|currently|actually|visibly|being|wearing|showing|big|wide|broad|bright|warm|slight|faint"
    r"|happy|friendly|toothy|longer|so|particularly|especially)\s+)*"
)
_NEGATION = (
    r"(?:(?P<negation>(?:not|no|never|without|neither|nor|hardly|isn't|aren't|non|lacking|lacks)"
    r"(?:\s+|-))" + _BETWEEN + r")?"
)
_PERSON = (
    r"wom[ae]n|m[ae]n|girls?|boys?|lady|ladies|gentlem[ae]n|guys?|persons?|people|adults?"
    r"|teenagers?|teens?|child|children|kids?|toddlers?|bab(?:y|ies)|infants?|newborns?"
    r"|seniors?|centenarian|grandmother|grandfather|mother|father|schoolgirls?|schoolboys?"
    r"|pensioner|individual"
)
_ORIGIN = (
    rf"\b(?:of|with) (?:[\w-]+ ){{0,2}}?({_OTHER_RACES})(?: \w+)? "
    r"(?:descent|heritage|origins?|ancestry|ethnicity|background|roots)\b"
)
_HEAD_ENDS = r"\b(?:with|who|whose|wearing|having|in|showing|featuring|against|sporting|has)\b"


def plain_text(prompt: str) -> str:
    """The prompt in lower case, with straight apostrophes, plain hyphens and single spaces."""
    text = prompt.lower().replace("\u2019", "'")
    text = re.sub(r"[\u2010-\u2013]", "-", text)
    return " ".join(text.split())


def _before_noun(text: str) -> str:
    """The words that describe the person: before the noun, and right before any further one.

    A race word counts only here, so "a woman with white hair" says nothing about her race. Without
    another noun, "female" or "male" is the noun.
    """
    opening = re.split(_HEAD_ENDS, text, maxsplit=1)[0]
    noun = re.search(rf"\b(?:{_PERSON})\b", opening) or re.search(r"\b(?:fe)?males?\b", opening)
    parts = [opening[: noun.start()]] if noun else []
    rest = text[noun.end() :] if noun else text
    for match in re.finditer(rf"((?:[\w-]+ ){{1,3}})(?:{_PERSON}|females?|males?)\b", rest):
        parts.append(re.split(_HEAD_ENDS + r"|\b(?:and|a|an|of|the)\b", match[1])[-1])
    return " . ".join(parts)


def values_named(attribute: str, prompt: str) -> tuple[set[int], dict[int, list[str]]]:
    """The values (0, 1) that `prompt` names, and every word found for each value, hints included.

    attribute: a key of WORDS. Longer expressions win over shorter ones, a negation flips what it
    negates ("without a smile" names Smiling = 0), and a negated hint says nothing.
    """
    words = WORDS[attribute]
    text = re.sub(rf"\b(?:{words.harmless})\b", " ", plain_text(prompt))
    named: set[int] = set()
    found: dict[int, list[str]] = {0: [], 1: []}
    if attribute == "White":
        # "of Asian descent" after the noun contradicts White, but does not name the race.
        found[0] += re.findall(_ORIGIN, text)
        text = _before_noun(text)
    if attribute == "Young":
        for age in ages(prompt):
            if age <= 35 or age >= 50:  # in between, it may be either
                named.add(int(age <= 35))
                found[int(age <= 35)].append(f"age {age}")
        text = re.sub(r"\baged \d+", " ", text)
    for match in _pattern(attribute).finditer(text):
        kind, value = match.lastgroup[0], int(match.lastgroup[1])
        if match["negation"]:
            if kind == "h" or (value == 0 and not words.negation_flips):
                continue
            value = 1 - value
        if kind == "n":
            named.add(value)
        found[value].append(match[0])
    return named, found


@functools.cache
def _pattern(attribute: str) -> re.Pattern:
    """A word of either value, with its negation; the last match group is n0, n1, h0 or h1."""
    names, hints, *_ = WORDS[attribute]
    groups = {"n0": names[0], "n1": names[1], "h0": hints[0], "h1": hints[1]}
    body = "|".join(f"(?P<{name}>{expr})" for name, expr in groups.items() if expr)
    return re.compile(rf"\b{_NEGATION}(?:{body})\b")


def negations(attribute: str, prompt: str) -> list[str]:
    """The phrases that state the attribute by a negation: "not smiling", "unsmiling", "non-White".

    Diffusion models draw what is named, negated or not.
    """
    text = re.sub(rf"\b(?:{WORDS[attribute].harmless})\b", " ", plain_text(prompt))
    return [
        match[0]
        for match in _pattern(attribute).finditer(text)
        if match["negation"]
        or (attribute == "Smiling" and re.fullmatch(_UNSMILING, match[match.lastgroup]))
    ]


_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: value for value, word in enumerate(_UNITS)}
_NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_NUMBERS |= {
    f"{ten}-{unit}": _NUMBERS[ten] + _NUMBERS[unit] for ten in _TENS for unit in _UNITS[1:10]
}
_NUMBERS |= {"hundred": 100, "one-hundred": 100}
_NUMBER = r"(\d{1,3}|" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + r")"


def ages(prompt: str) -> list[int]:
    """The ages in years that a prompt names: "34-year-old", "thirty years old", "aged 34"."""
    text = plain_text(prompt)
    found = re.findall(rf"\b{_NUMBER}[- ]years?[- ]olds?\b", text)
    found += re.findall(rf"\b(?:aged|age|age of|aged about) {_NUMBER}\b", text)
    return [int(word) if word.isdigit() else _NUMBERS[word] for word in found]


_POSE_VERBS = (
    r"raised|lowered|lifted|lifting|bowed|dipped|lean|leaning|leaned|inclined|inclining|angled"
    r"|cocked|thrown back|thrust|upright|straight|level|tucked|rotated|resting|held|tipped|tipping"
    r"|swivelled|bent|bending|drooping|dropped|averted"
)
HEAD_POSE = re.compile(
    r"\btilt(?:ed|ing|s)?\b"
    r"|\bturn(?:ed|ing|s)?\b(?!-up)"
    r"|\b(?:forward-)?facing\b"
    r"|\b(?<!-)(?:looking|gazing|glancing|peering) (?:\w+ )*?(?:up|upwards?|down|downwards?|left"
    r"|right|over|away|sideways|back|ahead|forward|straight|directly|toward|towards|to|at|into)\b"
    r"|\b(?:in|side|quarter|left|right|full|half) profile\b|\bprofile (?:view|pose)\b"
    r"|\bthree[- ]quarter\b|\bfrontal\b|\b(?:side|front|straight-on) (?:view|angle|pose)\b"
    rf"|\b(?:head|chin|face) (?:\w+ ){{0,2}}?(?:{_POSE_VERBS}|(?:up|down)(?:wards?)?)\b"
    rf"|\b(?:{_POSE_VERBS}|upturned|(?:up|down)ward) (?:of )?(?:his |her |the )?"
    r"(?:head|chin|face)\b"
    r"|\b(?:looks?|glances?|turns?|peek\w*|peer\w*|smil\w+|laugh\w*|grin\w*|pouting|back)"
    r" (?:\w+ ){0,2}?(?:over (?:a|one|his|her|the)(?: \w+)? shoulder|up|upwards?|downwards?)\b"
)
