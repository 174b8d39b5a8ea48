"""What keeps training fast: no wait for the device in a step, no work for frozen tensors, compiled
networks where they can be used, seeds side by side."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from datasets import resident
from datasets.base import ImageTable
from datasets.loader import Loader
from models.debiasing.cvar_dro import CVaRDRO
from models.debiasing.diga import BYOL, DiGA, encoder_of
from models.debiasing.eiil import EIIL
from models.debiasing.lff import LfF
from models.debiasing.maple import MAPLE
from models.fairif.baselines import ARL, DOMIND, CFair, FairSMOTE
from models.fairif.method import FairIF
from models.finetune import freeze_all_but
from models.ltgc import LTGC
from models.method import Method, bce
from utils import options
from utils.errors import UserError
from utils.gradients import mean_gradients
from utils.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SIZE = 8  # images of a batch
RECIPE = Recipe(epochs=1, lr=0.1)
ENVIRONMENTS = np.arange(SIZE) % 2

# name -> a method over a network; everything beside it has the network's device.
MAKE = {
    "erm": lambda net: Method(net, RECIPE),
    "cvar_dro": lambda net: CVaRDRO(net, RECIPE, options=CVaRDRO.defaults),
    "eiil": lambda net: EIIL(net, RECIPE, options=EIIL.defaults, environments=ENVIRONMENTS),
    "lff": lambda net: LfF(
        net, RECIPE, options=LfF.defaults, biased=deepcopy(net), y=ENVIRONMENTS
    ),
    "maple": lambda net: MAPLE(net, RECIPE, options=MAPLE.defaults, environments=ENVIRONMENTS),
    "ltgc": lambda net: LTGC(net, RECIPE, options=LTGC.defaults, real=SIZE // 2),
    "byol": lambda net: BYOL(
        *encoder_of(net), RECIPE, options=DiGA.defaults | {"hidden": 8, "projection": 4}
    ),
    "diga": lambda net: DiGA(
        net, RECIPE, options=DiGA.defaults,
        encoder={k: v for k, v in net.state_dict().items() if not k.startswith("fc.")},
    ),
    "fairif": lambda net: FairIF(net, RECIPE, weights=np.ones(SIZE)),
    "cfair": lambda net: CFair(
        net, RECIPE, options=CFair.defaults, by_class=torch.ones(SIZE), by_group=torch.ones(SIZE)
    ),
    "domind": lambda net: DOMIND(net, RECIPE, options=DOMIND.defaults),
    "arl": lambda net: ARL(net, RECIPE, options=ARL.defaults | {"warm_up": 1}),
    "fairsmote": lambda net: FairSMOTE(
        net, RECIPE, options=FairSMOTE.defaults, share=np.zeros(SIZE, np.float32)
    ),
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Refuses copies to the device for which the host would wait.

    The device is `meta`, on which torch itself refuses what needs a value: .item(), `if tensor`,
    indexing by a mask, a copy to the host.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            moved = torch.device(kwargs.get("device") or "cpu").type != "cpu"
            assert not moved or kwargs.get("non_blocking"), "the host waits for a copy"
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(monkeypatch):
    """Leaves out what only a GPU has: the fused optimiser, pinned memory, autocast."""
    sgd = torch.optim.SGD
    monkeypatch.setattr(Method, "precision", lambda self, x: nullcontext())
    monkeypatch.setattr(torch.optim, "SGD", lambda p, fused, **rest: sgd(p, **rest))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    # MAPLE's optimiser has no kernel for `meta`: whether its own step waits is not seen here
    monkeypatch.setattr(torch.optim.SparseAdam, "step", lambda self: None)


def batch(device: str = "cpu", size: int = SIZE) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 3, 32, 32, generator=generator)
    y = torch.arange(size) % 2
    return tuple(part.to(device) for part in (torch.arange(size), x, y, torch.full((size,), -1)))


@pytest.mark.parametrize("name", list(MAKE))
def test_no_step_waits_for_the_device(name, on_meta):
    method = MAKE[name](tiny.Network().to("meta"))
    given = batch("meta")
    method.train_mode()
    with NoWaiting():
        total = method.update(given)
        total = total + method.update(given)  # as the engine adds them up
        if name != "byol":  # only ever trained
            method.predict(given[1])
    assert total.device.type == "meta"


def test_what_waits_is_refused(on_meta):
    class Waits(Method):
        def update(self, batch):
            loss = super().update(batch)
            return loss if loss > 0 else -loss

    class Copies(Method):
        def update(self, batch):
            return super().update(batch) * torch.rand(1).to(batch[1].device)

    given = batch("meta")
    for kind, error in ((Waits, RuntimeError), (Copies, AssertionError)):
        method = kind(tiny.Network().to("meta"), RECIPE)
        with NoWaiting(), pytest.raises(error):
            method.update(given)


@pytest.mark.parametrize("room", [True, False])
def test_no_batch_waits_for_the_device(room, on_meta, tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(9)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + 8 * (i % 2), 40)).save(path)
    table = ImageTable("t", paths, np.zeros(9), np.zeros(9))
    monkeypatch.setattr(resident, "free_memory", lambda device: 2**40 if room else None)
    loader = Loader(table, 3, image_size=32, train=True, device="meta", store_dir=tmp_path)
    batches = loader.epoch(0)
    next(batches)  # an epoch's numbers are sent there once, before its first batch
    with NoWaiting():
        shapes = [x.shape for _, x, _, _ in batches]
    assert shapes == [(3, 3, 32, 32)] * 2


class Convolutions(TorchDispatchMode):
    """Which gradients each backward of a convolution computed: (of its input, of its weight)."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("fc.weight", []),
        ("layer4.bn2.weight", []),
        # conv2's gradient by its weight, and by its input towards conv1
        ("layer4.conv1.weight", [(True, False), (False, True)]),
        # and on to layer3, through both branches of layer4
        ("layer3.bn2.bias", [(True, False)] * 3),
    ],
)
def test_the_backward_pass_stops_at_the_first_unfrozen_tensor(chosen, expected):
    model = tiny.Network()
    freeze_all_but(model, {chosen})
    method = Method(model, RECIPE)
    method.train_mode()
    with Convolutions() as counted:
        method.update(batch())
    assert counted.seen == expected
    computed = [name for name, p in model.named_parameters() if p.grad is not None]
    assert computed == [chosen]


def test_gradients_are_taken_in_the_trainings_precision():
    model, data = tiny.Network(), [batch(size=6), batch(size=8)]
    wide, narrow = (
        mean_gradients(model, data, bce, count=2, name="test", autocast=autocast)
        for autocast in (None, torch.bfloat16)
    )
    seen = []
    hook = model.fc.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    mean_gradients(model, data, bce, count=2, name="test", autocast=torch.bfloat16)
    hook.remove()
    assert seen == [torch.bfloat16] * 2
    assert all(gradient.dtype == torch.float32 for gradient in narrow.values())
    a, b = (torch.cat([g.flatten() for g in part.values()]) for part in (wide, narrow))
    assert 0 < (a - b).norm() / a.norm() < 0.4  # a random network's few values round far apart


# --- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch) -> list[torch.Size]:
    """torch.compile without its slow C++ part; the input shapes for which something was traced."""
    shapes, compile_ = [], torch.compile

    def backend(graph, inputs):
        shapes.append(next(i.shape for i in inputs if i.shape[-3:] == (3, 32, 32)))
        return graph

    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: compile_(model, dynamic=dynamic, backend=backend)
    )
    return shapes


@pytest.mark.parametrize("name", ["erm", "lff", "eiil"])
def test_compiled_training_is_the_same(name, traced, monkeypatch):
    def trained(compiled: bool) -> tuple[list, torch.Tensor]:
        torch.manual_seed(0)
        original = Method.__init__
        with monkeypatch.context() as patch:
            patch.setattr(
                Method, "__init__",
                lambda self, *a, **k: original(self, *a, **(k | {"compiled": compiled})),
            )  # fmt: skip
            method = MAKE[name](tiny.Network())
        assert (method.network is not method.model) == compiled
        for size in (SIZE, SIZE):
            method.train_mode()
            method.update(batch(size=size))
        logits = [method.predict(batch(size=size)[1]) for size in (SIZE, SIZE, 3)]
        return method.state_dict()["model"], torch.cat(logits)

    (plain, expected), (weights, logits) = trained(False), trained(True)
    torch.testing.assert_close(logits, expected)
    assert list(weights) == list(plain)  # a checkpoint does not tell
    # a shape for steps (LfF trains two networks) and one for predictions; none for the last batch
    assert len(traced) >= 2
    assert {shape[0] for shape in traced} == {SIZE}


def test_a_missing_compiler_is_said_before_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--compile needs a C"):
        options.check_compiler()
    monkeypatch.undo()
    monkeypatch.setattr(options.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(options.sysconfig, "get_path", lambda *_: str(tmp_path))
    with pytest.raises(UserError, match="has no Python.h: install python3-dev"):
        options.check_compiler()
    (tmp_path / "Python.h").touch()
    options.check_compiler()


IMPORTS = """
import gc
from utils.imports import heavy_imports

with heavy_imports():
    assert not gc.isenabled()
    import torch
print(gc.isenabled(), gc.get_freeze_count() > 10**5)
with heavy_imports():
    print(gc.isenabled())
"""


def test_no_garbage_is_looked_for_while_torch_is_imported():
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, text=True, check=True,
                          capture_output=True)
    assert done.stdout.split() == ["True", "True", "True"]
