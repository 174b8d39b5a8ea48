"""Captions and tokenizer of the demo text-to-image model.

A caption says what an image's labels say, in the wording of the committed contextual prompts, plus
phrases that the labels know nothing about (hair, glasses, head pose). The model thus learns which
words matter and to let the others pass, and contextual prompts are in its language.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from prompts.attributes import values_named
from utils.errors import UserError

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
}  # (Male, Young) -> nouns; the young ones get their adjective half of the time
SMILE = (
    "smiling {}", "{} with a smile", "{} with a bright smile", "{} smiling warmly", "grinning {}",
    "laughing {}", "beaming {}", "{} with a wide grin", "cheerful {}, smiling",
)
# What is seen, not what is missing: diffusion models follow negations badly.
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
            files = sorted(folder.glob(f"{target}_{protected}_*.json"))
            if not files:
                raise UserError(f"no prompt files {target}_{protected}_*.json in {folder}")
            for path in files:
                cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
                self.prompts += [prompt for cell in cells.values() for prompt in cell]
        self.prompts = sorted(set(self.prompts))
        # A prompt of Smiling/Young may say "man": it is a caption only of faces it does not belie.
        self.fitting = {
            labels: [p for p in self.prompts if not _contradicts(p, labels)]
            for labels in itertools.product((0, 1), repeat=3)
        }

    def draw(self, smiling: int, male: int, young: int, rng: np.random.Generator) -> str:
        """One caption: half of the time a committed prompt that fits the labels, else a new one."""
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


def _contradicts(prompt: str, labels: tuple[int, int, int]) -> bool:
    for attribute, value in zip(ATTRIBUTES, labels, strict=True):
        _, found = values_named(attribute, prompt)
        if found.get(1 - value):
            return True
    return False


def train_tokenizer(captions: Captions):
    """A CLIPTokenizer whose byte-level BPE was learned on the prompts and composed captions."""
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
