"""A classifier as a program that runs without this repository: TorchScript or ONNX."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from models.checkpoints import Classifier
from utils.errors import UserError

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


def program_of(given: Classifier, kind: str) -> bytes:
    """The content of a file of TorchScript or ONNX, which gives what the network gives. Raises
    UserError where it cannot be made."""
    program, side = Program(given), given.image_size
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = program(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = (_torchscript if kind == "torchscript" else _onnx)(program, x)
        except ImportError as error:
            raise UserError(f"--export {kind} needs another package ({error}): pip install onnx "
                            "onnxscript, or leave it out") from None
        except Exception as error:  # noqa: BLE001 - a compiler refuses in many ways
            raise UserError(f"--export {kind}: {given.backbone} cannot be written so "
                            f"({' '.join(str(error).split())[:200]}); leave it out") from None
        if kind == "torchscript":
            found = torch.jit.load(io.BytesIO(made))(torch.cat([x, x]))[:2].detach()
            if float((found - expected).abs().max()) > CLOSE:
                raise UserError(f"--export {kind}: the program differs from the network; leave it "
                                "out")
    return made


def _torchscript(program: Program, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(program, x, check_trace=False), buffer)
    return buffer.getvalue()


def _onnx(program: Program, x: Tensor) -> bytes:
    import onnx  # noqa: F401 - said before the work where it is missing
    import onnxscript  # noqa: F401

    made = torch.onnx.export(
        program, (x,), input_names=["image"], output_names=["score"], dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},))
    return made.model_proto.SerializeToString()
