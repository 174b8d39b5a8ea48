"""Benchmark 2c: is it bf16's rounding that changes a model's figures?

    python tests/benchmarks/rounding.py [--quick] [--seeds 100 200 ... 1000] [--results results]

The demo's ERM, in fp32 and again with every weight and every layer's output rounded to bf16,
forward and backward, as under autocast; batch norm's statistics, sums and updates stay in fp32. So
the rounding is seen alone, on any processor. Writes results/demo/rounding with the paired
difference; finished runs are reused. About 3 minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from models.backbones import BACKBONES  # noqa: E402

PLAIN, ROUNDED = "resnet18_quarter", "resnet18_quarter_rounded"
DEMO = [  # as runner.sh trains the demo's ERM
    "--dataset", "demo", "--target", "Smiling", "--protected", "Male", "--image-size", "64",
    "--pretrained", "none", "--min-crop", "0.4", "--batch-size", "32", "--pretrain-lr", "0.02",
    "--best-epoch", "class-accuracy", "--precision", "fp32", "--device", "cpu",
]  # fmt: skip


class Round(torch.autograd.Function):
    """To the nearest bf16 number and back, values and gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.bfloat16().float()


to = Round.apply


class RoundedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return to(F.conv2d(to(x), to(self.weight), None, self.stride, self.padding))


class RoundedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return to(F.linear(to(x), to(self.weight), to(self.bias)))


def rounded(weights: dict | None) -> nn.Module:
    """The demo's network with the roundings of autocast."""
    model = BACKBONES[PLAIN](weights)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = RoundedConv
        elif isinstance(layer, nn.Linear):
            layer.__class__ = RoundedLinear
        elif isinstance(layer, nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
            layer.register_forward_hook(lambda layer, given, out: to(out))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(100, 1001, 100)])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--no-tables", action="store_true", help="train these seeds alone")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    given = parser.parse_args()
    BACKBONES[ROUNDED] = rounded
    size, epochs = ("100", "1") if given.quick else ("1500", "24")
    flags = [
        *DEMO, "--size", size, "--pretrain-epochs", epochs, "--pretrain-milestone",
        "1" if given.quick else "18", "--data-root", str(given.data / "demo"), "--store-dir",
        str(given.data / "store"), "--results", str(given.results), "--setting", "demo/rounding",
        "--methods", "erm", "--seeds", *map(str, given.seeds),
    ]  # fmt: skip
    train.main([*flags, "--backbone", PLAIN, "--no-tables"])
    last = ["--no-tables"] if given.no_tables else ["--baseline", "erm"]
    train.main([*flags, "--backbone", ROUNDED, "--name", "erm_rounded", *last])


if __name__ == "__main__":
    main()
