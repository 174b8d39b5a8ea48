"""Which attributes of the paper's list for CelebA a prompt set never names.

NAMED_BY has a regular expression for each attribute of CELEBA_OTHERS, matched against whole words
in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prompts.attributes import WORDS, plain_text
from prompts.instruction import CELEBA_OTHERS

_HAIR = (
    r"(?:[- ]|[^,.;]{1,40}?[- ])(?:hair\w*|curls|waves|bob|braids?|bun|ponytail|locks|locs|crop"
    r"|pixie|afro|fringe|bangs|mane|ringlets|dreadlocks|cornrows|strands|tresses|coils"
    r"|chignon|topknot|updo|plaits?|pigtails|cut|mop|quiff|buzz cut|curl|coif)"
)
_BROWS = r"(?:\w+ )?(?:eye)?brows?"
HEADWEAR = (
    r"(?:\w+-?)?hats?|caps?|beanie|beret|turban|hijab|head[- ]?scarf|head[- ]?wrap|bandanas?|fedora"
    r"|bonnet|bowler|boater|panama|trilby|cloche|stetson|sombrero|kippah|yarmulke|taqiyah|kufi|fez"
    r"|hood|visor|veil|kerchief|headdress|tam|homburg|headband"
)
NAMED_BY = {
    "5 o'clock shadow": r"(?:5|five)[- ]o'clock shadow|stubbl\w+",
    "arched eyebrows": rf"arch\w* {_BROWS}|brows?[^,.;]* arch\w*",
    "attractive": r"attractive|handsome|beautiful|pretty|good[- ]looking",
    "bags under eyes": r"bags[^,.;]* eyes|bags (?:under|beneath|below)\b.*|under-?eye bags"
    r"|eye bags|baggy eyes|pouch\w*[^,.;]* eyes",
    "bald": r"bald|balding|hairless|shave[dn] (?:head|scalp)",
    "bangs": r"bangs|fringe",
    "big lips": r"(?:big|full|fuller|plump|large|thick|generous)(?:,? \w+)? lips|full-lipped",
    "big nose": r"(?:big|large|broad|wide|prominent|bulbous|strong)(?:,? \w+)? nose",
    "black hair": rf"(?:\w+-)?black{_HAIR}|raven(?:-haired| hair| curls| locks)",
    # the picture, not the background
    "blurry": r"blurry|(?:slightly|faintly) blurred|motion blur|soft[- ]focus",
    "brown hair": rf"(?:\w+-)?(?:brown|chestnut|brunette){_HAIR}|brunette",
    "bushy eyebrows": rf"(?:bushy|thick|heavy|shaggy|dense) {_BROWS}",
    "chubby": r"chubby|chubby-\w+|plump(?! lips)|pudgy|round-cheeked",
    "double chin": r"double chin",
    "eyeglasses": r"(?:eye)?glasses|spectacles|bifocals|\w+-rimmed|\w+ frames",
    "goatee": r"goatee",
    "grey hair": rf"(?:\w+-)?(?:gr[ea]y|silver|gr[ea]ying|salt-and-pepper){_HAIR}",
    "heavy makeup": r"(?:heavy|heavily|bold|dramatic|thick)[^,.;]* (?:make-?up|eyeliner|mascara"
    r"|eye ?shadow|foundation|kohl)|heavily made[- ]up",
    "high cheekbones": r"(?:high|prominent|sharp|pronounced)(?:,? \w+)? cheekbones",
    "mouth slightly open": r"mouth (?:\w+ )*?(?:open|ajar|parted)|lips (?:\w+ )?(?:parted|apart)"
    r"|open[- ]mouthed|parted lips|(?:open|parted) (?:mouth|smile)|part(?:ing)? (?:his|her) lips"
    r"|mouth (?:hanging|slightly|barely|half)[- ]open",
    "moustache": r"mou?stache",
    "narrow eyes": r"narrow(?:ed|ing)?(?:,? [\w-]+)? eyes|eyes narrow\w*|narrow-eyed",
    "no beard": r"no beard|clean[- ]shaven|beardless|smooth[- ]shaven|shaved (?:chin|jaw|cheeks)"
    r"|without a beard|freshly shaven?d?",
    "oval face": r"oval(?:,? \w+)? face|oval-faced",
    "pale skin": r"(?:pale|fair|porcelain|ivory|milky)(?:,? [\w-]+)? (?:skin|complexion)"
    r"|(?:pale|fair|porcelain)-skinned",
    "pointy nose": r"(?:pointy|pointed|sharp|sharply pointed)(?:,? \w+)? nose",
    "receding hairline": r"receding|receded|recedes",
    "rosy cheeks": r"(?:rosy|pink|flushed|ruddy|blushing|reddened|pinkish)(?:,? \w+)? cheek\w*"
    r"|rosy-cheeked|cheeks (?:\w+ )?(?:rosy|pink|flushed|ruddy)",
    "sideburns": r"sideburns?|mutton[- ]chops?",
    "straight hair": rf"(?:\w+-)?straight{_HAIR}|hair (?:\w+ )*?(?:\w+-)?straight",
    "wavy hair": r"wavy|waves",
    "wearing earrings": r"earrings?|ear studs?|studs|hoops|ear cuffs?",
    "wearing a hat": HEADWEAR,
    "wearing lipstick": r"lipstick|lip (?:gloss|colou?r|tint)|painted lips|rouged lips",
    "wearing necklace": r"necklace|pendant|pearls|choker|chain|locket|beads",
    "wearing necktie": r"neckties?|(?:bow[- ]?|knit )?tie",
    "young": WORDS["Young"].names[1],
}
# Expected in the groups of one sex only: value of Male -> attributes.
OF_ONE_SEX = {
    1: {
        "5 o'clock shadow", "bald", "goatee", "moustache", "no beard", "receding hairline",
        "sideburns", "wearing necktie",
    },
    0: {"heavy makeup", "wearing lipstick"},
}  # fmt: skip


def missing_attributes(
    target: str, protected: str, groups: Mapping[tuple[int, int], Sequence[str]]
) -> list[str]:
    """The attributes of CELEBA_OTHERS, other than target and protected, that no prompt names.

    groups: {(y, a): prompts}. Where Male is the target or the protected attribute, an attribute of
    OF_ONE_SEX is looked for in the groups of that sex, and only if there are any.
    """
    place = {target: 0, protected: 1}.get("Male")
    missing = []
    for attribute in CELEBA_OTHERS:
        if attribute in (target.lower(), protected.lower()):
            continue
        sex = next((sex for sex, fitting in OF_ONE_SEX.items() if attribute in fitting), None)
        fitting = [
            prompts
            for group, prompts in groups.items()
            if sex is None or place is None or group[place] == sex
        ]
        named = re.compile(rf"\b(?:{NAMED_BY[attribute]})\b")
        if fitting and not any(named.search(plain_text(p)) for prompts in fitting for p in prompts):
            missing.append(attribute)
    return missing
