"""Several seeds of ResNet-18 trained together, as stacked parameters, against one by one.

    python tests/benchmarks/seeds.py [--quick] [--seeds 2 4] [--backbone resnet18_quarter]

Together: torch.func's vmap over the stacked weights, gradients and batch-norm statistics of the
seeds, each with a batch of its own (convolutions become grouped ones), and one SGD over the stacks.
One by one: models/method.py in turn. Both from the same weights and batches; prints images/s in
all, the ratio, and how far the weights are apart after the steps, relative to how far they moved.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from paired import in_turn, machine, print_table, ratio  # noqa: E402

from models.backbones import build  # noqa: E402
from models.method import Method, bce  # noqa: E402
from utils.recipe import Recipe  # noqa: E402

RECIPE = Recipe(epochs=1, lr=0.01)


class Together:
    """ERM of several networks at once; `update` takes x [S, B, 3, H, W] and y [S, B]."""

    def __init__(self, models: list[torch.nn.Module]):
        self.parameters, self.buffers = stack_module_state(models)
        self.network = copy.deepcopy(models[0]).to("meta").train()
        self.optimizer = RECIPE.make_optimizer(self.parameters.values())
        self.gradients = vmap(grad_and_value(self.loss))

    def loss(self, parameters, buffers, x, y) -> torch.Tensor:
        def network(x):
            return functional_call(self.network, (parameters, buffers), (x,))

        return bce(network, x, y)

    def update(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One step of every seed; the losses [S]."""
        gradients, losses = self.gradients(self.parameters, self.buffers, x, y)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        return losses


def apart(alone: list[torch.nn.Module], together: Together, start: list[dict]) -> float:
    """|weights alone - weights together| / |weights alone - start|, over all seeds."""
    moved = difference = 0.0
    for seed, model in enumerate(alone):
        weights = dict(model.named_parameters())
        for name, old in start[seed].items():
            moved += (weights[name] - old).square().sum().item()
            difference += (weights[name] - together.parameters[name][seed]).square().sum().item()
    return (difference / moved) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18_quarter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--double", action="store_true", help="float64: is it the same algorithm?")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    flags = parser.parse_args()
    if flags.quick:
        flags.seeds, flags.image_size, flags.batch_size = [2], 32, 4
        flags.steps, flags.repeats = 2, 1
    torch.set_default_dtype(torch.float64 if flags.double else torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine(device), flags.backbone, f"{flags.image_size} px, batch {flags.batch_size}\n",
          sep=", ")
    rows = []
    for seeds in flags.seeds:
        torch.manual_seed(0)
        models = [build(flags.backbone).to(device) for _ in range(seeds)]
        start = [{name: p.detach().clone() for name, p in m.named_parameters()} for m in models]
        x = torch.randn(seeds, flags.batch_size, 3, flags.image_size, flags.image_size,
                        device=device)
        y = torch.randint(0, 2, (seeds, flags.batch_size), device=device)
        together = Together(models)
        last = torch.channels_last
        methods = [Method(model.to(memory_format=last), RECIPE) for model in models]
        batches = [(None, part.contiguous(memory_format=last), labels, None)
                   for part, labels in zip(x, y)]

        def alone(methods=methods, batches=batches) -> None:
            for method, batch in zip(methods, batches):
                method.train_mode()
                for _ in range(flags.steps):
                    method.update(batch)

        def stacked(together=together, x=x, y=y) -> None:
            for _ in range(flags.steps):
                together.update(x, y)

        alone()
        stacked()
        distance = apart(models, together, start)
        times = in_turn({"alone": alone, "together": stacked}, flags.repeats, device)
        count = seeds * flags.batch_size * flags.steps
        rates = {name: count / statistics.median(taken) for name, taken in times.items()}
        rows.append([f"{seeds} seeds", rates["alone"], rates["together"],
                     ratio(times, "together", "alone"), f"{distance:.1e}"])
    print_table(["", "one by one, images/s", "together", "times", "weights apart"], rows)


if __name__ == "__main__":
    main()
