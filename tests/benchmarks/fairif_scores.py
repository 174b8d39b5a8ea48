"""Cost of FairIF's influence scores: `python tests/benchmarks/fairif_scores.py [adult] [resnet18]`.

adult: both gaps' scores of all 45,222 rows, logistic regression, one core, from the trained
model to the scores (gap gradients, exact inverse Hessian, forward mode), beside per-sample
gradients by vmap(grad) as captum's and torch-influence's. Wanted: under 1 s.
resnet18: the same along two given directions on 64 x 64 images, per sample, beside a forward and
backward pass of one sample. Wanted: at most twice that. Times are processor seconds, best of three.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import tabular  # noqa: E402
from models import backbones  # noqa: E402
from models.fairif.fairif import BLOCK, as_batches  # noqa: E402
from models.fairif.hessian import chosen_parameters, flatten  # noqa: E402
from models.fairif.influence import influence, loss_derivatives  # noqa: E402
from models.fairif.networks import logistic_regression  # noqa: E402
from models.fairif.relaxation import Relaxation  # noqa: E402
from models.fairif.training import fit_to_convergence  # noqa: E402


def best(work, repeats: int = 3) -> float:
    """Fewest processor seconds of a call."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def per_sample_gradients(model, x, y, vectors):
    """vector^T grad l_i by explicit per-sample gradients, in blocks of 4,096 samples."""
    parameters = chosen_parameters(model)

    def loss(p, one, label):
        logit = torch.func.functional_call(model, p, (one[None],)).squeeze()
        return F.binary_cross_entropy_with_logits(logit, label)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    parts = []
    for some, labels in zip(x.split(4096), y.to(x).split(4096)):
        found = gradients(parameters, some, labels)
        parts.append(vectors @ torch.cat([g.flatten(1) for g in found.values()], dim=1).T)
    return torch.cat(parts, dim=1)


def adult() -> None:
    table = tabular.load("adult")
    val = tabular.split(table, 0).val
    spread = table.x.std(axis=0)
    x = torch.from_numpy((table.x - table.x.mean(axis=0)) / spread)
    y, a = torch.from_numpy(table.y), torch.full((len(table),), -1)
    model = logistic_regression(x.shape[1]).double()
    weights = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
    fit_to_convergence(model, x, y, weights, l2=1e-3, tolerance=1e-5)
    train = as_batches(x, y, a, BLOCK)
    held = as_batches(*(torch.from_numpy(part) for part in (val.x, val.y, val.a)))

    def scores():
        return influence(
            model, train, held, Relaxation("sigmoid", 0.3), method="exact", damping=1e-3
        )

    vectors = torch.randn(2, x.shape[1] + 1, dtype=torch.float64)
    ours = loss_derivatives(model, train, vectors)
    worst = (ours - per_sample_gradients(model, x, y, vectors)).abs().max() / ours.abs().max()
    print(
        f"Adult, {len(y)} rows: all scores {best(scores):.3f} s; of it forward mode "
        f"{best(lambda: loss_derivatives(model, train, vectors)):.3f} s, the same by per-sample "
        f"gradients {best(lambda: per_sample_gradients(model, x, y, vectors)):.3f} s "
        f"(relative difference {worst:.1e})"
    )


def resnet18(samples: int = 32) -> None:
    torch.manual_seed(0)
    model = backbones.build("resnet18").eval()
    x, y = torch.randn(samples, 3, 64, 64), torch.arange(samples) % 2
    batches = as_batches(x, y, torch.full_like(y, -1))
    vectors = torch.randn(2, len(flatten(chosen_parameters(model))))

    def one_by_one():
        for i in range(samples):
            logit = model(x[i : i + 1]).squeeze(1)
            F.binary_cross_entropy_with_logits(logit, y[i : i + 1].float()).backward()

    both, plain = best(lambda: loss_derivatives(model, batches, vectors)), best(one_by_one)
    print(
        f"ResNet-18 at 64 px: both directions {1000 * both / samples:.1f} ms a sample, forward and "
        f"backward {1000 * plain / samples:.1f} ms, ratio {both / plain:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or ["adult", "resnet18"]
    for name in chosen:
        {"adult": adult, "resnet18": resnet18}[name]()
