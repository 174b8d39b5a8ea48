"""Edit the spurious attribute of training images to a random degree, for DiGA.

    python -m stable_diffusion.edit --model demo --prompts prompts/Smiling_Male_plain.json \\
        --list results/demo/erm/seed100/train.csv --images data/demo/faces_*/img_align_celeba \\
        --out data/edits_demo
    python train.py --methods diga --edits data/edits_demo ...

The paper (Zhang et al., CVPR 2024) edits with a StyleGAN2 trained on the biased set, inverted by
e4e, along a direction found without group labels. This editor uses a text-to-image model, image to
image (SDEdit): an image is noised to a random degree, the strength, and denoised under a prompt for
the image's own target label and a protected value: half of an image's edits show each. The image's
protected label is never read, but the prompts do name the spurious attribute.

Writes <out>/manifest.csv first (path, source, protected, degree, prompt, seed, model, settings),
then <out>/images/*.png. An edit costs (LOW + HIGH) / 2 of an image of generate.py on average.

Interrupted; rerun the same command to resume. Several processes (torchrun, SLURM, --shard i/n)
share the work as those of generate.py do.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

if not __package__:  # started by its path: python stable_diffusion/edit.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from stable_diffusion import generate, manifest
from stable_diffusion.prompt_set import PromptSet, read_prompts
from stable_diffusion.shares import share
from utils.errors import UserError, exit_cleanly, is_systems
from utils.files import write_atomic
from utils.options import ArgumentParser, path
from utils.progress import progress

COLUMNS = ("path", "source", "protected", "degree", "prompt", "seed", "model", "settings")
MINIMUM = 2  # edits per image: DiGA learns from pairs of opposite protected values


@dataclass(frozen=True)
class Edit:
    """One edit to be made: the source's latents, noised, go through the last `noised` steps."""

    path: str  # relative to the manifest
    source: str  # relative to --images
    protected: int  # the value, 0 or 1, that the prompt says
    prompt: str
    seed: int
    noised: int


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command; the sampler flags are those of generate.py."""
    parser = ArgumentParser(
        prog="python -m stable_diffusion.edit", description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to edit")
    what.add_argument("--model", default="demo", help="as for generate.py (default: demo)")
    what.add_argument("--model-config", metavar="ID", help="as for generate.py")
    what.add_argument("--prompts", required=True, type=path,
                      help="a prompt file of prompts/, such as Smiling_Male_plain.json")
    what.add_argument("--list", required=True, type=path,
                      help="csv with columns file and y, such as a run folder's train.csv")
    what.add_argument("--images", required=True, type=path, help="folder of these files")
    what.add_argument("--out", required=True, type=path, help="folder of the edited images")
    what.add_argument("--edits-per-image", type=generate._whole(MINIMUM, 1000), default=4,
                      metavar="N", help="even, half of each protected value (default: 4)")
    what.add_argument("--degrees", type=_degree, nargs=2, default=(0.4, 0.9),
                      metavar=("LOW", "HIGH"), help="share of the noise, drawn from this range for "
                      "each edit (default: 0.4 0.9)")
    what.add_argument("--seed", type=generate._whole(0, 2**63 - 1), default=42, help="default: 42")
    generate._add_sampler_flags(parser)
    args = parser.parse_args(arguments)
    if args.edits_per_image % 2:
        raise UserError(f"--edits-per-image {args.edits_per_image} must be even, half per value")
    if args.degrees[0] > args.degrees[1]:
        raise UserError(f"--degrees {args.degrees[0]} {args.degrees[1]}: give the lower one first")
    return args


def _degree(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0 and at most 1")
    return value


def read_sources(path: Path, images: Path) -> list[tuple[str, int]]:
    """(file, y) of every row of a csv list.

    Raises UserError for a list that cannot be read, labels other than 0 and 1, and files that are
    missing, outside `images` or share a name.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [(row["file"], int(row["y"])) for row in csv.DictReader(file, strict=True)]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        if is_systems(error):
            raise
        raise UserError(
            f"--list {path} cannot be read ({type(error).__name__}: {error}); it needs the columns "
            "file and y, as in a run folder's train.csv"
        ) from None
    names = [file for file, _ in rows]
    wrong = [name for name in names
             if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if not rows or wrong or any(y not in (0, 1) for _, y in rows):
        raise UserError(
            f"--list {path} must list files inside --images, with y 0 or 1 "
            f"({wrong[0] if wrong else f'{len(rows)} rows'}); give a run folder's train.csv"
        )
    if len({PurePosixPath(name).name for name in names}) < len(names):
        raise UserError(f"--list {path}: two files have the same name; rename one of them")
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise UserError(
            f"--images {images} lacks {len(missing)} of the {len(names)} images of {path} "
            f"({missing[0]}, ...); give the folder that holds them"
        )
    return rows


def plan(
    sources: Sequence[tuple[str, int]], prompts: PromptSet, copies: int, seed: int,
    noised: tuple[int, int],
) -> list[Edit]:
    """`copies` edits of every source (file, y), in that order.

    Even ones are of protected value 0, odd ones of 1. The prompt, of that group, the number of
    steps (uniform from noised[0] to noised[1]) and the noise depend on seed, prompt set, file and
    number of the edit only.
    """
    rows = []
    for number, (file, y) in enumerate(sources):
        for copy in range(copies):
            own = ("edit", prompts.name, prompts.pair, file, copy, seed)
            text, steps, noise = (manifest.derive_seed(part, *own) for part in "vsn")
            texts = prompts.groups[y, copy % 2]
            rows.append(Edit(
                f"images/{number:06d}_{copy}.png", file, copy % 2, texts[text % len(texts)], noise,
                noised[0] + steps % (noised[1] - noised[0] + 1),
            ))  # fmt: skip
    return rows


def write_manifest(path: Path, rows: Sequence[Edit], steps: int, model: str, settings: dict):
    """Write the manifest; UserError where there is one already, for other edits."""
    text = json.dumps(settings, sort_keys=True)
    table = [
        dict(zip(COLUMNS, (row.path, row.source, str(row.protected), f"{row.noised / steps:.4f}",
                           row.prompt, str(row.seed), model, text), strict=True))
        for row in rows
    ]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    if not path.exists():
        if any((path.parent / "images").glob("*.png")):
            raise UserError(
                f"{path.parent} holds images but no manifest.csv to say what they are; give "
                "another --out or delete it"
            )
        write_atomic(path, buffer.getvalue())
        return
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            old = manifest.same_model(list(csv.DictReader(file)), model)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({error}); delete {path.parent}") from None
    if old == table:
        return
    differ = sorted({key for before, now in zip(old, table) for key in COLUMNS
                     if before.get(key) != now[key]})
    what = f"another {', '.join(differ)}" if differ else f"{len(old)} edits, not {len(table)}"
    if old and "settings" in differ:
        what += f" ({'; '.join(manifest._settings_difference(old[0]['settings'], text))})"
    raise UserError(
        f"{path} was written for {what}; give another --out or delete the folder {path.parent}"
    )


class Editor:
    """Batches of edits with one loaded pipeline, image to image."""

    def __init__(self, sampler, steps: int, height: int, width: int):
        """sampler: pipeline.Sampler. steps: of the whole schedule. height, width: in pixels."""
        from diffusers import StableDiffusionImg2ImgPipeline

        from stable_diffusion.pipeline import check_precision

        self.sampler, self.steps, self.size = sampler, steps, (width, height)
        self.pipe = StableDiffusionImg2ImgPipeline.from_pipe(
            sampler.pipe, dtype=sampler.dtype  # or it turns the shared networks into fp32
        )
        check_precision(sampler.pipe, sampler.dtype)
        self.pipe.set_progress_bar_config(disable=True)

    def edit(self, rows: Sequence[Edit], images: Path):
        """uint8 [B, H, W, 3] on the device; all rows must have the same `noised`."""
        import torch

        strength = min(1.0, (rows[0].noised + 0.5) / self.steps)  # diffusers rounds steps down
        text = torch.stack([self.sampler.embed(row.prompt) for row in rows])
        latents = self.pipe(
            image=torch.stack([self._read(images / row.source) for row in rows]),
            prompt_embeds=text, negative_prompt_embeds=self.sampler.embed("").expand_as(text),
            strength=strength, num_inference_steps=self.steps, guidance_scale=self.sampler.guidance,
            generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
            output_type="latent",
        ).images
        with torch.inference_mode():
            return self.sampler._decode(latents)

    def _read(self, path: Path):
        """float32 [3, H, W] in [0, 1], resized to the model's size, aspect not kept."""
        import numpy as np
        import torch
        from PIL import Image

        try:
            with Image.open(path) as image:
                image = image.convert("RGB").resize(self.size, Image.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a broken file
            if is_systems(error):
                raise
            raise UserError(f"{path} cannot be read ({error}); copy it again") from None
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def cut_batches(rows: Sequence[Edit], size: int) -> list[list[Edit]]:
    """Batches of one strength each. Cut from the plan, not from what is missing, so that an edit
    shares its batch with the same others, and has the same bits, after a restart."""
    batches = []
    for noised in sorted({row.noised for row in rows}):
        same = [row for row in rows if row.noised == noised]
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def edit(args: argparse.Namespace) -> int:
    """Make what this process's share still lacks; returns how many edits are missing in all."""
    prompts = read_prompts(args.prompts)
    sources = read_sources(args.list, args.images)
    index, world = share(args.shard)
    args.images_per_group = len(sources) * args.edits_per_image  # no batch is larger than that
    sampler, settings, batch_size, saved = generate._build_sampler(args)
    from stable_diffusion.pipeline import check_lengths  # torch, loaded by now
    from stable_diffusion.writer import remove_leftovers, write_batches

    check_lengths(prompts, sampler.pipe.tokenizer, args.prompts)
    steps = settings["steps"]
    low, high = (min(steps, max(1, round(degree * steps))) for degree in args.degrees)
    rows = plan(sources, prompts, args.edits_per_image, args.seed, (low, high))
    try:
        (args.out / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written ({error.strerror}); give another "
                        "folder") from None
    write_manifest(args.out / "manifest.csv", rows, steps, args.model, settings)
    batches = [batch for number, batch in enumerate(cut_batches(rows, batch_size))
               if number % world == index]
    remove_leftovers(args.out, batches)
    todo = [batch for batch in batches
            if any(not (args.out / row.path).exists() for row in batch)]
    total, left = sum(map(len, batches)), sum(map(len, todo))
    print(f"{args.out}: {left} of {total} edits to make with {args.model} on {sampler.device}, "
          f"{low} to {high} of {steps} steps, batches of {batch_size}", flush=True)
    editor = Editor(sampler, steps, settings["height"], settings["width"])
    sampler.embed_all(row.prompt for batch in todo for row in batch)
    with progress(total=total, initial=total - left, unit="img", smoothing=0.1) as bar:
        write_batches(lambda rows: editor.edit(rows, args.images), sampler.device, todo, args.out,
                      saved, batch_size, bar)
    missing = sum(not (args.out / row.path).exists() for row in rows)
    print(f"{missing} of the {len(rows)} edits are still to be made" if missing else
          f"all {len(rows)} edits exist; train with train.py --edits {args.out}")
    return missing


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m stable_diffusion.edit`."""
    edit(parse_arguments(arguments))


if __name__ == "__main__":
    main()
