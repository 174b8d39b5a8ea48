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
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from models.card import card_of
from models.checkpoints import Classifier, classifier, file_of
from models.evaluate import add_network_flags
from utils.errors import UserError, exit_cleanly
from utils.files import atomic_path, write_atomic, write_json
from utils.options import ArgumentParser, path
from utils.records import read_record

PROGRAMS = {"torchscript": "model.ts", "onnx": "model.onnx"}
CLOSE = 1e-4  # a program's probabilities may differ by so much from the network's


class Program(nn.Module):
    """float [B, 3, S, S], RGB in [0, 1] -> probability of 1, float [B]."""

    def __init__(self, given: Classifier):
        super().__init__()
        self.model = given.model.float().eval()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(given, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)[:, 0].sigmoid()


def write_safetensors(given: Classifier, file: Path) -> None:
    """The tensors, with what they need to be used as the file's metadata, atomically."""
    from safetensors.torch import save_file

    about = {key: json.dumps(value) for key, value in settings_of(given).items()}
    state = {name: part.contiguous() for name, part in given.model.state_dict().items()}
    with atomic_path(file) as temporary:
        save_file(state, temporary, metadata={"format": "pt", **about})


def settings_of(given: Classifier) -> dict:
    own = {"backbone": given.backbone, "image_size": given.image_size, "mean": list(given.mean),
           "std": list(given.std)}
    return own | {key: given.about[key] for key in ("target", "protected") if key in given.about}


def write_program(given: Classifier, kind: str, file: Path) -> None:
    """TorchScript or ONNX, which gives what the network gives. UserError where it cannot be made"""
    program, side = Program(given), given.image_size
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = program(x)
    with atomic_path(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (_torchscript if kind == "torchscript" else _onnx)(program, x, temporary)
        except ImportError as error:
            raise UserError(f"--export {kind} needs another package ({error}): pip install onnx "
                            "onnxscript, or leave it out") from None
        except Exception as error:  # noqa: BLE001 - a compiler refuses in many ways
            raise UserError(f"--export {kind}: {given.backbone} cannot be written so "
                            f"({' '.join(str(error).split())[:200]}); leave it out") from None
        if kind == "torchscript":
            found = torch.jit.load(str(temporary))(torch.cat([x, x]))[:2].detach()
            if float((found - expected).abs().max()) > CLOSE:
                raise UserError(f"--export {kind}: the program differs from the network; leave it "
                                "out")


def _torchscript(program: Program, x: Tensor, file: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(program, x, check_trace=False).save(str(file))


def _onnx(program: Program, x: Tensor, file: Path) -> None:
    import onnx  # noqa: F401 - said before the work where it is missing
    import onnxscript  # noqa: F401

    made = torch.onnx.export(
        program, (x,), input_names=["image"], output_names=["score"], dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},))
    made.save(str(file), external_data=False)


def exported(
    source: Path, out: Path, *, programs: tuple[str, ...] = (), before: Path | None = None,
    **network,
) -> list[Path]:
    """Write the folder `out` from a run folder or a checkpoint; the files.

    before: the run of the model that was repaired, for the card. network: as of `classifier`.
    """
    given = classifier(source, say=lambda line: print(line, file=sys.stderr), **network)
    run = file_of(source, "CHECKPOINT").parent
    records = [{name: read_record(folder / f"{name}.json") for name in ("config", "metrics")
                if (folder / f"{name}.json").is_file()} for folder in (run, before) if folder]
    files = [out / "model.safetensors", out / "config.json", out / "README.md"]
    write_safetensors(given, files[0])
    write_json(files[1], settings_of(given))
    for kind in programs:
        files.append(out / PROGRAMS[kind])
        write_program(given, kind, files[-1])
    names = [file.name for file in files if file.name not in ("config.json", "README.md")]
    write_atomic(files[2], card_of(settings_of(given), names, *records))
    return files


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
    for file in exported(
        args.checkpoint, args.out, programs=tuple(dict.fromkeys(args.export)), before=args.before,
        backbone=args.backbone, image_size=args.image_size, mean=args.mean, std=args.std,
    ):
        print(file)


if __name__ == "__main__":
    main()
