"""Generate the synthetic images of one prompt file.

    python -m stable_diffusion.generate --model demo --out data/synthetic --images-per-group 300 \\
        --prompts prompts/Smiling_Male_contextual_50.json

Writes <out>/<set>/<Target>_<Protected>/<y>_<a>/<number>.png. manifest.csv comes first and lists
every image that is to be made; balanced.csv and biased.csv, the paper's two synthetic sets, come
when all of them exist. These two are for other programs: train.py draws its own sets from the
manifest.

Interrupted; rerun the same command to resume. Several processes (torchrun, accelerate, srun,
mpirun, a job array, or --shard i/n: see shares.py) share the work through the file system alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # started by its path: python stable_diffusion/generate.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stable_diffusion import manifest
from stable_diffusion.manifest import Row
from stable_diffusion.prompt_set import read_prompts
from stable_diffusion.shares import share
from utils.devices import generation_precision
from utils.errors import UserError, exit_cleanly
from utils.imports import heavy_imports
from utils.options import ArgumentParser, check_compiler, path
from utils.progress import Bar, progress


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command; sampler settings default to the paper's, or to the demo model's."""
    parser = ArgumentParser(
        prog="python -m stable_diffusion.generate",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--model",
        default="demo",
        help="demo, a hub id, a diffusers folder, or one .ckpt/.safetensors file (default: demo)",
    )
    what.add_argument(
        "--model-config", metavar="ID", help="hub id or folder that gives a single "
        "checkpoint file its tokenizer and architecture (default: SD 2.1-base's)")
    what.add_argument("--prompts", required=True, type=path, help="a prompt file of prompts/")
    what.add_argument("--out", required=True, type=path, help="root folder of the images")
    what.add_argument(
        "--images-per-group",
        "--images-per-cell",
        type=_whole(1, 100_000),
        default=300,
        metavar="N",
        help="images of each of the four groups (y, a); the paper: 10500 (default: 300)",
    )
    what.add_argument(
        "--groups",
        nargs="+",
        choices=[f"{y}_{a}" for y, a in manifest.GROUPS],
        help="make only these groups now; the plan stays the same",
    )
    what.add_argument(
        "--seed", type=_whole(0, 2**63 - 1), default=42, help="default: 42, as the release's"
    )
    _add_sampler_flags(parser)
    _add_set_flags(parser)
    args = parser.parse_args(arguments)
    for size in (args.balanced_per_group, args.biased_majority, args.biased_minority):
        if size is not None and size > args.images_per_group:
            raise UserError(
                f"balanced.csv or biased.csv cannot take {size} images of a group when "
                f"--images-per-group is {args.images_per_group}; raise --images-per-group or lower "
                "the other number"
            )
    return args


def _add_sampler_flags(parser: ArgumentParser) -> None:
    how = parser.add_argument_group("sampler (default: the paper's, or the demo model's)")
    how.add_argument("--scheduler", choices=("ddim", "dpmsolver++"), help="paper: ddim (eta 0)")
    how.add_argument("--steps", type=_whole(1, 1000), help="paper: 50")
    how.add_argument("--guidance", type=_scale, help="classifier-free guidance scale; paper: 9")
    how.add_argument("--height", type=_whole(8, 4096), help="in pixels (default: the model's)")
    how.add_argument("--width", type=_whole(8, 4096), help="in pixels (default: the model's)")
    how.add_argument(
        "--image-size",
        type=_whole(1, 4096),
        help="side of the saved image in pixels (default: the model's, at most 224)",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="default: bf16 on a GPU that has it, else fp16; fp32 on a CPU",
    )
    speed.add_argument(
        "--batch-size",
        type=_whole(1, 4096),
        help="images at once; best if it divides --images-per-group (default: 28, demo: 50)",
    )
    speed.add_argument(
        "--decode-batch",
        type=_whole(1, 4096),
        help="images decoded at once, a divisor of the batch (default: all, on a CPU 10)",
    )
    speed.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile UNet and VAE: minutes at the start; it prints from how many images "
        "that pays",
    )
    speed.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    speed.add_argument(
        "--shard",
        metavar="I/N",
        help="this process's share of the batches "
        "(default: from torchrun, accelerate, srun, MPI, or a SLURM, Grid Engine or AWS array)",
    )


def _add_set_flags(parser: ArgumentParser) -> None:
    sets = parser.add_argument_group(
        "balanced.csv and biased.csv (default: the paper's numbers "
        "scaled from 10500 to --images-per-group)"
    )
    sets.add_argument("--balanced-per-group", type=_whole(1), metavar="N", help="paper: 5000")
    sets.add_argument(
        "--biased-majority", type=_whole(1), metavar="N", help="groups 0_1 and 1_0; paper: 9000"
    )
    sets.add_argument(
        "--biased-minority", type=_whole(1), metavar="N", help="groups 0_0 and 1_1; paper: 1000"
    )


def _whole(low: int, high: int | None = None):
    """An argparse type: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range; it must be {limits}")
        return value

    return convert


def _scale(text: str) -> float:
    """An argparse type: a guidance scale; far above the paper's 9 the latents overflow."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100; give one")
    return value


def _build_sampler(args: argparse.Namespace):
    """Load the model; returns (sampler, settings, batch size, saved size in pixels)."""
    with heavy_imports():  # after the flags are checked
        from stable_diffusion import model_files, pipeline

    demo = model_files.is_demo(args.model)
    defaults = pipeline.DEMO_DEFAULTS if demo else pipeline.PAPER_DEFAULTS

    def setting(name: str):
        return defaults[name] if getattr(args, name) is None else getattr(args, name)

    device = pipeline.pick_device(args.device)
    precision = args.precision or generation_precision(str(device))
    pipe = pipeline.load_pipeline(
        args.model,
        scheduler=setting("scheduler"),
        precision=precision,
        device=str(device),
        config=args.model_config or model_files.PAPER_MODEL,
    )
    factor = pipe.vae_scale_factor
    # The UNet halves the latent once per level but the last, so a side must divide that often.
    multiple = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    own = pipe.unet.config.sample_size * factor
    height, width = args.height or own, args.width or own
    for flag, pixels in (("--height", height), ("--width", width)):
        if pixels % multiple:
            raise UserError(f"{flag} {pixels} must be a multiple of {multiple} for this model")
    saved = args.image_size or min(max(height, width), 224)
    batch_size = min(setting("batch_size"), args.images_per_group)
    if args.compile:
        check_compiler()
    if args.decode_batch and batch_size % args.decode_batch:
        raise UserError(
            f"--decode-batch {args.decode_batch} must divide the batch size, {batch_size}"
        )
    sampler = pipeline.Sampler(
        pipe,
        steps=setting("steps"),
        guidance=setting("guidance"),
        height=height,
        width=width,
        decode_batch=args.decode_batch,
    )
    settings = {name: setting(name) for name in ("scheduler", "steps", "guidance")}
    settings |= {"precision": precision, "height": height, "width": width, "image_size": saved}
    settings |= {"seed": args.seed, "weights": pipeline.weights_fingerprint(pipe)}
    return sampler, settings, batch_size, saved


def make_images(
    sampler, batches: Sequence[Sequence[Row]], folder: Path, size: int, batch_size: int, bar: Bar
) -> None:
    """Generate the batches and write their images."""
    from stable_diffusion.writer import write_batches

    sampler.embed_all(row.prompt for batch in batches for row in batch)

    def draw(rows: Sequence[Row]):
        return sampler.sample([row.prompt for row in rows], [row.seed for row in rows])

    write_batches(draw, sampler.device, batches, folder, size, batch_size, bar)


def _own_batches(
    rows: Sequence[Row], batch_size: int, index: int, world: int, groups: Sequence[str] | None
) -> Iterator[list[Row]]:
    for number, batch in enumerate(manifest.cut_batches(rows, batch_size)):
        if number % world == index and (not groups or f"{batch[0].y}_{batch[0].a}" in groups):
            yield batch


def generate(args: argparse.Namespace) -> int:
    """Make what this process's share still lacks; returns how many images are missing in all."""
    prompts = read_prompts(args.prompts)
    index, world = share(args.shard)
    rows = manifest.plan(prompts, args.images_per_group, args.seed)
    folder = args.out / prompts.name / prompts.pair
    sampler, settings, batch_size, saved = _build_sampler(args)
    from stable_diffusion.demo_captions import warn_of
    from stable_diffusion.pipeline import check_lengths  # torch, loaded by now
    from stable_diffusion.writer import remove_leftovers

    warn_of(args.model, (prompts.target, prompts.protected))
    check_lengths(prompts, sampler.pipe.tokenizer, args.prompts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {args.out} cannot be written ({error.strerror}); give another folder"
        ) from None
    listed = manifest.write_manifest(folder, rows, args.model, settings)
    own = list(_own_batches(rows, batch_size, index, world, args.groups))
    remove_leftovers(folder, own)
    there = manifest.existing(folder)
    todo = [batch for batch in own if any(row.path not in there for row in batch)]
    total, left = sum(map(len, own)), sum(map(len, todo))
    part = f"share {index} of {world}, " if world > 1 else ""
    print(
        f"{folder}: {part}{left} of {total} images to make with {args.model} on {sampler.device}, "
        f"{settings['scheduler']} {settings['steps']} steps, guidance {settings['guidance']:g}, "
        f"{settings['precision']}, batches of {batch_size}",
        flush=True,
    )
    if args.compile and todo:
        from stable_diffusion.compilation import compile_and_say

        print(compile_and_say(sampler, batch_size, left), flush=True)
    with progress(total=total, initial=total - left, unit="img", smoothing=0.1) as bar:
        make_images(sampler, todo, folder, saved, batch_size, bar)
    missing = manifest.finish(
        folder,
        args.seed,
        balanced=args.balanced_per_group,
        majority=args.biased_majority,
        minority=args.biased_minority,
    )
    if missing:
        print(f"{missing} of the {len(listed)} images in {folder} are still to be made")
    else:
        print(f"all {len(listed)} images exist; wrote {folder}/balanced.csv and biased.csv")
    return missing


@exit_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m stable_diffusion.generate`."""
    generate(parse_arguments(arguments))


if __name__ == "__main__":
    main()
