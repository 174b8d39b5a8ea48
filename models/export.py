"""A trained classifier as others take it: safetensors, a model card, and a program where asked for.

    python -m models.export results/demo/aim_fair/seed100 --out exported --export onnx torchscript

The folder is in the Hugging Face hub's format: model.safetensors, config.json and README.md, whose
numbers are those of the run's metrics.json; models.evaluate, models.predict and train.py --start
take it as it is. The program takes float [B, 3, S, S], RGB in [0, 1], and gives the probability of
1, [B]: mean, standard deviation and sigmoid are part of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path: python models/export.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.evaluate import add_network_flags, to_stderr
from utils.errors import UserError, exit_cleanly
from utils.files import check_replaceable, read_json, write_atomic
from utils.imports import heavy_imports
from utils.options import ArgumentParser, path
from utils.records import read_record

if TYPE_CHECKING:
    from models.checkpoints import Classifier

RECORDED = ("dataset", "positive", "test_size", "data_seed",  # that name the test images
            "precision")  # and how the run computed on them
PROGRAMS = {"torchscript": "model.ts", "onnx": "model.onnx"}


def settings_of(given: Classifier, said: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds. said: what the source recorded, see `models.checkpoints.recorded`."""
    own = {"backbone": given.backbone, "image_size": given.image_size, "mean": list(given.mean),
           "std": list(given.std)}
    return own | {key: given.about[key] for key in ("target", "protected") if key in given.about} \
        | {key: said[key] for key in RECORDED if said.get(key) is not None}


def tensors_of(given: Classifier, settings: Mapping[str, Any]) -> bytes:
    """model.safetensors: the tensors, with what they need to be used as the file's metadata."""
    from safetensors.torch import save

    about = {key: json.dumps(value) for key, value in settings.items()}
    state = {name: part.contiguous() for name, part in given.model.state_dict().items()}
    return save(state, metadata={"format": "pt", **about})


def is_exported(folder: Path) -> bool:
    """Whether there is nothing in the folder, or what this command wrote."""
    if not folder.is_dir():
        return False
    said = read_json(folder / "config.json")
    own = isinstance(said, dict) and {"backbone", "image_size", "mean", "std"} <= said.keys()
    return not any(folder.iterdir()) or (
        own and "fingerprint" not in said and (folder / "model.safetensors").is_file())


def exported(
    source: Path, out: Path, *, programs: tuple[str, ...] = (), before: Path | None = None,
    **network,
) -> list[Path]:
    """Write the folder `out` from a run folder or a checkpoint; the files.

    before: the run of the model that was repaired, for the card. network: as of `classifier`.
    Everything is made before the first file is written. Raises UserError for a folder that holds
    anything else.
    """
    from models.card import card_of
    from models.checkpoints import classifier, file_of, recorded
    from models.programs import program_of

    check_replaceable("--out", out, is_exported)
    given = classifier(source, say=to_stderr, **network)
    said = recorded(source)
    settings = settings_of(given, said)
    runs = [file_of(source, "CHECKPOINT").parent if "fingerprint" in said else None]
    records = [{name: read_record(run / f"{name}.json") for name in ("config", "metrics")
                if run and (run / f"{name}.json").is_file()}
               for run in (*runs, *([before] if before else []))]
    weights = ["model.safetensors", *(PROGRAMS[kind] for kind in programs)]
    card = card_of(settings, weights, *records)
    content = {"model.safetensors": tensors_of(given, settings),
               "config.json": json.dumps(settings, indent=2) + "\n"}
    content |= {PROGRAMS[kind]: program_of(given, kind) for kind in programs}
    for name, data in {**content, "README.md": card}.items():
        write_atomic(out / name, data)
    return [out / name for name in (*content, "README.md")]


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    p = ArgumentParser(prog="python -m models.export", description=__doc__.split("\n")[0])
    p.add_argument("checkpoint", type=path, metavar="CHECKPOINT",
                   help="the folder of a finished run, or a weights file")
    p.add_argument("--out", type=path, required=True, metavar="FOLDER")
    p.add_argument("--export", nargs="+", default=[], choices=tuple(PROGRAMS),
                   help="also as a program that runs without this repository")
    p.add_argument("--before", type=path, metavar="RUN",
                   help="the run of the model before the repair, for the card")
    add_network_flags(p)
    args = p.parse_args(arguments)
    if args.before and not (args.before / "metrics.json").is_file():
        raise UserError(f"--before {args.before} holds no metrics.json: give a finished run")
    with heavy_imports():
        import models.programs  # noqa: F401 - torch, whose import may be interrupted
    for file in exported(
        args.checkpoint, args.out, programs=tuple(dict.fromkeys(args.export)), before=args.before,
        backbone=args.backbone, image_size=args.image_size, mean=args.mean, std=args.std,
    ):
        print(file)


if __name__ == "__main__":
    main()
