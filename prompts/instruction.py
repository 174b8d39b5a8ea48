"""The instruction that asks a language model for the prompts of one group.

Source: AIM-Fair, section 3: "{Task}, {Number of Prompts}, {Target Attribute}, {Protected
Attribute}, {Other Detailed Descriptions}, and {Prompt Format}"; the wording of each part is that of
the supplement, section 7, for CelebA and for UTKFace, except where a comment says otherwise.
"""

from __future__ import annotations

import re

from utils.errors import UserError

STARTS_WITH = "Portrait face photo of a"
CLIP_TOKENS = 77  # the text encoder's limit, with start and end token

# How an attribute's values 0 and 1 are worded for the language model.
VALUES = {
    "Smiling": ("not smiling", "smiling"),
    "Male": ("female", "male"),
    "Young": ("old", "young"),
    "Female": ("male", "female"),
    # UTKFace's other classes; the supplement does not say how p = 0 was worded.
    "White": ("non-White (Black, Asian, Indian or of another ethnicity)", "White"),
}
# How a prompt is to say them, without a negation: what a picture of the value shows.
SEEN = VALUES | {
    "Smiling": ("serious, frowning, pensive or of a neutral expression", "smiling"),
    "Young": ("old or elderly", "young"),
    "White": ("Black, Asian, Indian or of another ethnicity, named", "White"),
}
ATTRIBUTES = {"celeba": ("Smiling", "Male", "Young"), "utkface": ("Female", "White")}

CELEBA_OTHERS = (
    "5 o'clock shadow",
    "arched eyebrows",
    "attractive",
    "bags under eyes",
    "bald",
    "bangs",
    "big lips",
    "big nose",
    "black hair",
    "blurry",
    "brown hair",
    "bushy eyebrows",
    "chubby",
    "double chin",
    "eyeglasses",
    "goatee",
    "grey hair",
    "heavy makeup",
    "high cheekbones",
    "mouth slightly open",
    "moustache",
    "narrow eyes",
    "no beard",
    "oval face",
    "pale skin",
    "pointy nose",
    "receding hairline",
    "rosy cheeks",
    "sideburns",
    "straight hair",
    "wavy hair",
    "wearing earrings",
    "wearing a hat",
    "wearing lipstick",
    "wearing necklace",
    "wearing necktie",
    "young",
)
UTKFACE_OTHERS = (
    "Include details about facial expressions, hairstyles, and any other distinguishing features "
    "that can help in generating a realistic image. And also contain age start from 1 and end at "
    "100."
)
HEAD_POSES = (
    "Additionally, each prompt should include a variety of head poses, such as slight tilts, "
    "turns, and different head orientations (e.g., head turned slightly left, tilted upward, "
    "facing slightly downward) to ensure diversity in the generated image angles."
)
IMAGE_PART = {"celeba": "head", "utkface": "face"}


def check_attributes(dataset: str, target: str, protected: str) -> None:
    """Raise UserError unless both attributes are known for the dataset and differ."""
    known = ATTRIBUTES[dataset]
    for flag, attribute in (("--target", target), ("--protected", protected)):
        if attribute not in known:
            raise UserError(
                f"{flag} {attribute} has no wording for {dataset}; choose one of "
                f"{', '.join(known)}, or give words of your own with {flag}-words"
            )
    if target == protected:
        raise UserError(f"--target and --protected are both {target}; choose two attributes")


def other_descriptions(dataset: str, target: str, protected: str, head_poses: bool) -> str:
    """The part {Other Detailed Descriptions}: other attributes, or ages, and head poses.

    CelebA's list goes without "young" where that is the target or the protected attribute, as it
    would contradict the groups of old people. The supplement has the sentence on head poses for
    CelebA only; head_poses adds it for UTKFace, too.
    """
    if dataset == "celeba":
        taken = {target.lower(), protected.lower()}
        others = [other for other in CELEBA_OTHERS if other not in taken]
        text = (
            "Each prompt should also consider some of the following attributes: "
            f"{', '.join(others[:-1])}, and {others[-1]}."
        )
    else:
        text = UTKFACE_OTHERS
    return f"{text} {HEAD_POSES}" if head_poses else text


def instruction(
    dataset: str,
    target: str,
    protected: str,
    group: tuple[int, int],
    number: int,
    head_poses: bool = False,
    starts_with: str = STARTS_WITH,
) -> str:
    """The paper's instruction for one group (y, a), put together from its parts.

    dataset: "celeba" or "utkface". target, protected: names in ATTRIBUTES[dataset]. Raises
    UserError for an unknown attribute.
    """
    check_attributes(dataset, target, protected)
    task = "diverse text prompts for human face attributes that always include"
    target_value, protected_value = VALUES[target][group[0]], VALUES[protected][group[1]]
    others = other_descriptions(dataset, target, protected, head_poses)
    prompt_format = (
        f'The prompts should be for a "{starts_with}," ensuring the image only contains the '
        f"{IMAGE_PART[dataset]} part."
    )
    return (
        f"Generate {number} {task} {target_value} and {protected_value}. {others} {prompt_format}"
    )


def answer_format(
    dataset: str,
    target: str,
    protected: str,
    group: tuple[int, int],
    head_poses: bool,
    starts_with: str = STARTS_WITH,
) -> str:
    """The rules of prompts/check.py in words for the model; not in the paper.

    They also ask for variety, without which a model fills one pattern with other words.
    """
    values = [
        f"{SEEN[attribute][value]} (never as {VALUES[attribute][1 - value]})"
        for attribute, value in ((target, group[0]), (protected, group[1]))
    ]
    rules = [
        f'starts with the words "{starts_with}"',
        f"names the person in plain words as {values[0]} and as {values[1]}",
        'says what is seen and never what is not: no "not smiling", "unsmiling" or "not young"',
        "has an idea of its own, as if it described one real person, and shares few words with the "
        "others",
        f"goes on after these words in its own way: no three words after \"{starts_with}\" serve "
        "more than a few prompts",
        "is one English sentence of at most 40 words, different from every other prompt",
    ]
    if head_poses:  # slight ones, as the supplement asks for
        rules.append(
            "names one head pose, a slight tilt or turn or a straight look in ever other words and "
            "without any fixed order, and no full profile"
        )
    if dataset == "utkface":
        rules.append(
            'names the age in figures, as in "a 34-year-old", and says the ethnicity before the '
            'noun, as in "White woman"'
        )
    listed = "; ".join(rules)
    together = "Together they name skin, hair texture and headwear of many kinds"
    if dataset == "celeba":
        together += ", and each of the attributes above that suits the person at least once"
    return (
        f"Each prompt {listed}. {together}. Answer with nothing but a JSON object of the form "
        '{"prompts": ["...", "..."]}.'
    )


def set_name(number: int, head_poses: bool) -> str:
    """The name of a contextual set: contextual_<number> or contextual_head_poses_<number>."""
    return f"contextual_head_poses_{number}" if head_poses else f"contextual_{number}"


def parse_set(name: str) -> tuple[int, bool] | None:
    """(prompts per group, whether each names a head pose) from a set's name, else None."""
    if name == "plain":
        return 1, False
    match = re.fullmatch(r"contextual_(head_poses_)?([1-9]\d*)", name)
    return (int(match[2]), match[1] is not None) if match else None
