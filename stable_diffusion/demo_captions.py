"""Captions and tokenizer of the demo text-to-image model.

A caption states an image's labels in the wording of the committed contextual prompts, and adds
phrases that no label covers (hair, glasses, head pose). So the model learns which words matter and
which do not, and contextual prompts are written in its language.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prompts.attributes import values_named

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
ATTRIBUTES = ("Smiling", "Male", "Young")
PAIRS = (("Smiling", "Male"), ("Smiling", "Young"), ("Young", "Male"))
MAX_TOKENS = 77  # CLIP's context length
VOCABULARY = 2000

NOUNS = {
    (1, 1): ("man", "male", "guy", "gentleman", "male person"),
    (1, 0): ("old man", "elderly man", "older male", "senior man", "older gentleman"),
    (0, 1): ("woman", "female", "lady", "female person"),
    (0, 0): ("old woman", "elderly woman", "older female", "senior woman", "older lady"),
}  # (Male, Young) -> nouns; half of the young ones get the adjective
SMILE = (
    "smiling {}", "{} with a smile", "{} with a bright smile", "{} smiling warmly", "grinning {}",
    "laughing {}", "beaming {}", "{} with a wide grin", "cheerful {}, smiling",
)
# What can be seen, not what is missing: diffusion models do not follow negations.
NO_SMILE = (
    "{} with a neutral expression", "serious {}", "frowning {}", "stern {}", "solemn {}",
    "pensive {}", "stoic {}", "expressionless {}", "grave {}", "sullen {}", "scowling {}",
    "sad {}", "{} with a blank expression", "straight-faced {}", "deadpan {}", "sombre {}",
    "unamused {}", "pouting {}", "grim {}", "{} looking serious", "{} with lips pressed together",
)
DISTRACTORS = (
    "black hair", "brown hair", "blond hair", "wavy hair", "straight hair", "bangs", "short hair",
    "long hair", "wearing a hat", "wearing eyeglasses", "wearing earrings", "wearing a necklace",
    "wearing a necktie", "pale skin", "rosy cheeks", "high cheekbones", "an oval face", "big nose",
    "a pointy nose", "big lips", "narrow eyes", "bushy eyebrows", "arched eyebrows", "chubby face",
    "double chin", "bags under the eyes", "attractive", "head turned slightly left",
    "head turned slightly right", "head tilted to one side", "facing slightly downward",
    "head tilted upward", "looking straight ahead", "soft light", "slightly blurry",
)


class Captions:
    """Draws captions for labels (Smiling, Male, Young), each 0 or 1."""

    def __init__(self, folder: Path = PROMPTS):
        self.prompts: list[str] = []
        for target, protected in PAIRS:
            for path in sorted(folder.glob(f"{target}_{protected}_*.json")):
                groups = json.loads(path.read_text(encoding="utf-8"))["cells"]
                self.prompts += [prompt for group in groups.values() for prompt in group]
        self.prompts = sorted(set(self.prompts))
        # A prompt of Smiling/Young may say "man", so it is a caption only of faces that it fits.
        self.fitting = {
            labels: [p for p in self.prompts if not _contradicts(p, labels)]
            for labels in itertools.product((0, 1), repeat=3)
        }

    def draw(self, smiling: int, male: int, young: int, rng: np.random.Generator) -> str:
        """One caption: with chance 1/2 a committed prompt that fits the labels, else a new one."""
        if rng.random() < 0.5:
            fitting = self.fitting[smiling, male, young]
            return fitting[rng.integers(len(fitting))]
        nouns = NOUNS[male, young]
        noun = nouns[rng.integers(len(nouns))]
        if young and rng.random() < 0.5:
            noun = "young " + noun
        patterns = SMILE if smiling else NO_SMILE
        pattern = patterns[rng.integers(len(patterns))]
        extras = rng.choice(len(DISTRACTORS), size=rng.integers(0, 5), replace=False)
        words = [pattern.format(noun)] + [DISTRACTORS[i] for i in extras]
        return "Portrait face photo of a " + ", ".join(words) + "."


def warn_of(model: str, names: Sequence[str]) -> None:
    """One sentence on stderr where the demo model is asked for attributes that it has not learned:
    it draws faces all the same, of which nobody knows the labels."""
    from stable_diffusion import model_files  # torch, which a caption does not need

    known = {name.lower() for name in (*ATTRIBUTES, "Female")}
    unknown = [name for name in names if name.lower() not in known]
    if unknown and model_files.is_demo(model):
        print(f"warning: the demo model has learned {', '.join(ATTRIBUTES)} alone and may not draw "
              f"{' and '.join(unknown)}: look at the images before you train on them, or give "
              "another --model", file=sys.stderr)


def _contradicts(prompt: str, labels: tuple[int, int, int]) -> bool:
    for attribute, value in zip(ATTRIBUTES, labels, strict=True):
        _, found = values_named(attribute, prompt)
        if found.get(1 - value):
            return True
    return False


def train_tokenizer(captions: Captions):
    """A CLIPTokenizer whose byte-level BPE is learned from the prompts and from drawn captions."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = np.random.default_rng(0)
    text = list(captions.prompts)
    text += [captions.draw(*rng.integers(0, 2, 3), rng) for _ in range(4000)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={special[0]: 0, special[1]: 1}, merges=[])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, show_progress=False, special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), end_of_word_suffix="</w>",
    )
    blank.backend_tokenizer.train_from_iterator(text, trainer)
    model = json.loads(blank.backend_tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)
