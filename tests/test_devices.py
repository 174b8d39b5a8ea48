"""What a GPU would show, as far as a CPU can: devices, memory, precision and checkpoints."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from refusals import refused

import train
from datasets import resident
from datasets.base import ImageTable
from datasets.image_store import open_store
from datasets.loader import Loader
from models.debiasing.eiil import group_means
from models.debiasing.lff import LfF
from models.debiasing.maple import environment_risk
from models.experiment import complete
from models.fairif.baselines.influence import loss_gradient
from models.fairif.hessian import inverse_hvp
from models.fairif.influence import influence, predict
from models.fairif.method import gradient_norm
from models.fairif.relaxation import Relaxation
from models.method import Method
from stable_diffusion import edit, generate, pipeline
from utils import devices, launcher
from utils.engine import Progress, fit, moved, save_torch
from utils.errors import UserError
from utils.recipe import Recipe
from utils.records import environment

ROOT = Path(__file__).resolve().parents[1]
META = torch.device("meta")
RECIPE = Recipe(epochs=1, lr=0.1)


# --- which device --------------------------------------------------------------------------------


def test_a_gpu_that_torch_cannot_use_is_no_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "gpu_files", lambda: ["/dev/nvidia0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert devices.automatic() == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UserError, match="/dev/nvidia0 is here but torch .* cannot use it"):
        devices.automatic()
    config = train.parse(tiny.flags(tmp_path, tmp_path, "--methods", "erm", "--device", "auto"))
    with pytest.raises(UserError, match="or start with --device cpu"):
        complete(config)
    with pytest.raises(UserError, match="/dev/nvidia0 is here"):
        pipeline.pick_device("auto")
    monkeypatch.setattr(devices, "gpu_files", lambda: [])
    assert devices.automatic() == "cpu"


def test_each_process_of_a_launcher_takes_its_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in range(6):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.pick("auto")
    assert taken == ["cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    # an event is recorded on the current GPU: of images copied from another one it says nothing
    assert devices.pick("cuda:2") == "cuda:2" and taken[-1] == "cuda:2"
    assert devices.pick("cpu") == "cpu"


def test_the_device_is_printed_and_recorded(monkeypatch):
    assert devices.describe("cpu", "bf16") == "device: cpu, bf16"
    assert environment()["gpu"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")
    for capability, tf32 in (((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        assert environment()["gpu"]["name"] == "Card"
        assert environment()["gpu"]["tf32"] == tf32
        with devices.ieee():
            assert not devices.tf32("cuda")
    assert devices.describe("cuda", "fp32") == "device: cuda (Card), fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert devices.describe("cuda", "fp32").endswith("fp32 with TF32 convolutions")


SLOT = """
import os, pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(folder / name).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
until = time.monotonic() + 60
while len(list(folder.iterdir())) < int(sys.argv[3]):
    assert time.monotonic() < until
    time.sleep(0.02)
"""


def test_the_ordinary_tests_see_no_gpu():
    assert not torch.cuda.is_available()


def test_jobs_are_spread_over_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.gpus() == ["5", "GPU-b"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.gpus() == ["0", "1"]
    run = [sys.executable, "-c", SLOT, str(tmp_path)]
    # three at once on two GPUs: all three start before one ends
    launcher.in_parallel([[*run, str(i), "3"] for i in range(3)], 3, ["5", "GPU-b"])
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["5", "5", "GPU-b"]
    config = complete(train.parse(["--methods", "erm", "--device", "cpu"]))
    assert launcher.gpus_of(config) == []
    assert launcher.gpus_of(replace(config, device="cuda")) == ["0", "1"]  # all that there are
    assert launcher.gpus_of(replace(config, device="cuda:1")) == []  # the one that was named


JOB = """
import os, pathlib, time
def main(arguments):
    folder, name = pathlib.Path(arguments[0]), arguments[1]
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    busy = folder / f"busy {gpu}"
    busy.mkdir()  # two on one GPU would meet here
    time.sleep(0.5)
    busy.rmdir()
    (folder / name).write_text(str(gpu))
"""


def test_local_jobs_have_a_gpu_each_and_wait_for_it(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "job_of_test.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    tasks = [launcher.Task("job_of_test", "main", [str(out), str(i)]) for i in range(4)]
    jobs = launcher.submit("local", [], tasks, tasks[0], tmp_path / "logs", "n", ["3", "7"])
    launcher.wait(jobs)
    assert sorted(path.read_text() for path in out.iterdir()) == ["3", "3", "7", "7"]


# --- precision -----------------------------------------------------------------------------------


def test_precision_is_what_the_hardware_has(monkeypatch):
    for known, precision in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"),
                             ({"avx512_f": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert devices.training_precision("cpu", in_memory=False) == precision
        assert devices.training_precision("cpu", in_memory=True) == "fp32"
        assert devices.generation_precision("cpu") == "fp32"
    asked = []
    for native in (True, False):  # an A100 and a T4, which says yes where emulation counts
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported",
            lambda including_emulation=True, native=native: asked.append(1) or (
                native or including_emulation),
        )
        assert devices.training_precision("cuda", in_memory=False) == ("bf16" if native else "fp32")
        assert devices.generation_precision("cuda:1") == ("bf16" if native else "fp16")
    assert asked


def test_rows_of_other_precisions_never_share_a_table(tmp_path, monkeypatch, capsys):
    data = tiny.make(tmp_path / "data")
    tiny.with_network(monkeypatch)

    def flags(*more) -> list[str]:
        return tiny.flags(data, tmp_path / "r", "--backbone", "tiny", "--pretrain-epochs", 1,
                          "--no-tables", *more)

    train.main(flags("--methods", "erm"))
    assert capsys.readouterr().out.startswith("device: cpu, fp32\n")
    bf16 = flags("--methods", "cvar_dro", "--precision", "bf16")
    sentence = refused(capsys, train.main, bf16, names="--precision")
    assert "erm/seed100 was trained in fp32, this command trains in bf16" in sentence
    named = flags("--methods", "erm", "--precision", "bf16", "--name", "erm_again")
    refused(capsys, train.main, named, names="--precision")
    other = flags("--methods", "cvar_dro", "--target", "Male", "--protected", "Smiling")
    sentence = refused(capsys, train.main, other, names="--setting")
    assert "erm/seed100 has target Smiling, this command Male" in sentence
    # one that a GPU trained with TF32 is another one
    path = tmp_path / "r" / "tiny" / "erm" / "seed100" / "config.json"
    held = json.loads(path.read_text())
    held["device"], held["environment"]["gpu"] = "cuda", {"tf32": True}
    path.write_text(json.dumps(held))
    sentence = refused(capsys, train.main, flags("--methods", "cvar_dro"), names="--device")
    assert "was trained in fp32 with TF32 convolutions" in sentence
    train.main(flags("--methods", "cvar_dro", "--setting", "other"))


class Watching(torch.nn.Module):
    """A linear layer that notes how float32 is rounded while it computes."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen = torch.nn.Linear(3, 1), []

    def forward(self, x):
        self.seen.append((torch.backends.cudnn.conv.fp32_precision,
                          torch.backends.cuda.matmul.fp32_precision))
        return self.fc(x)


def test_influences_are_computed_without_tf32():
    torch.manual_seed(0)
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    model, x = Watching(), torch.randn(8, 3)
    y, a = torch.arange(8) % 2, torch.arange(8) // 2 % 2
    batches = [(torch.arange(8), x, y, a)]
    influence(model, batches, batches, Relaxation("sigmoid", 0.3), damping=0.1)
    inverse_hvp(model, batches, torch.ones(1, 4), damping=0.1)
    predict(model, batches)
    gradient_norm(model, batches, 0.1)
    loss_gradient(model, batches)
    assert len(model.seen) > 7 and set(model.seen) == {("ieee", "ieee")}
    assert before == (torch.backends.cudnn.conv.fp32_precision,
                      torch.backends.cuda.matmul.fp32_precision)
    assert before != ("ieee", "ieee")


def test_two_risks_that_bf16_would_round_alike_stay_apart():
    losses, environments = torch.tensor([0.600, 0.602] * 4), torch.tensor([0, 1] * 4)
    with torch.autocast("cpu", torch.bfloat16):
        means = group_means(losses, environments, 2)
        variance = environment_risk(losses, environments)
    assert means.dtype == torch.float32
    assert float(means[1] - means[0]) == pytest.approx(0.002, rel=1e-3)
    assert float(variance) == pytest.approx(0.001**2, rel=1e-2)


def test_convolutions_in_tf32_are_compared_with_a_product_in_tf32(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import paired

    matmul, seen = torch.backends.cuda.matmul, []
    before = matmul.fp32_precision
    monkeypatch.setattr(
        paired, "seconds",
        lambda work, device: seen.append(matmul.fp32_precision) or 1.0)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    paired.peak_flops(torch.device("cpu"), torch.float32, side=8)
    with devices.ieee():
        paired.peak_flops(torch.device("cpu"), torch.float32, side=8)
    assert seen == ["tf32"] * 5 + ["ieee"] * 5 and matmul.fp32_precision == before


# --- generation ----------------------------------------------------------------------------------


def test_editing_leaves_the_shared_networks_in_their_precision(tiny_pipeline_dir):
    pipe = pipeline.load_pipeline(str(tiny_pipeline_dir), precision="bf16", device="cpu")
    sampler = pipeline.Sampler(pipe, steps=2, guidance=3.0, height=16, width=16)
    edit.Editor(sampler, 2, 16, 16)
    kinds = {getattr(pipe, part).dtype for part in ("unet", "vae", "text_encoder")}
    assert kinds == {torch.bfloat16}


def test_networks_of_another_precision_are_refused(tiny_pipeline_dir, monkeypatch):
    read = pipeline.read_pipeline  # diffusers before 0.40 ignored dtype=
    monkeypatch.setattr(
        pipeline, "read_pipeline", lambda model, dtype, config: read(model, torch.float32, config))
    with pytest.raises(UserError, match=r"unet torch.float32 and not torch.bfloat16, .* pip"):
        pipeline.load_pipeline(str(tiny_pipeline_dir), precision="bf16", device="cpu")
    wanted = re.search(r"^diffusers>=(\d+)\.(\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert (int(wanted[1]), int(wanted[2])) >= (0, 40)


def test_prompts_are_embedded_before_the_first_step(tiny_pipeline_dir, tmp_path, monkeypatch):
    prompts = {"dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male",
               "cells": {f"{y}_{a}": [f"face {y}", f"man {a} {y}"] for y in (0, 1) for a in (0, 1)}}
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    events = []
    embed, sample = pipeline.Sampler.embed, pipeline.Sampler.sample

    def watched(self, texts, seeds):
        events.append("sample")
        return sample(self, texts, seeds)

    def embedding(self, prompt):
        if prompt not in self.embeddings:
            events.append("embed")
        return embed(self, prompt)

    monkeypatch.setattr(pipeline.Sampler, "sample", watched)
    monkeypatch.setattr(pipeline.Sampler, "embed", embedding)
    generate.main([
        "--model", str(tiny_pipeline_dir), "--prompts", str(tmp_path / "p.json"), "--out",
        str(tmp_path / "o"), "--images-per-cell", "4", "--steps", "1", "--batch-size", "2",
        "--device", "cpu",
    ])
    assert events.count("sample") == 8 and events.count("embed") == 7  # and the empty one
    assert events.index("sample") == 7


# --- images on the device ------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path) -> ImageTable:
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + 8 * (i % 2), 40), (20 * i, 0, 0)).save(path)
    return ImageTable("faces", paths, np.arange(8) % 2, np.zeros(8))


@pytest.fixture
def memory(monkeypatch) -> dict[str, int]:
    """The free memory of `meta`, which plays the GPU."""
    free = {"bytes": 10**9}
    resident.forget(META)
    monkeypatch.setattr(
        resident, "free_memory",
        lambda device: free["bytes"] - resident.held(device) if device == META else None)
    yield free
    resident.forget(META)


def test_images_stay_on_the_device_from_stage_to_stage(table, memory, tmp_path):
    store = open_store(table, tmp_path)
    first = [weakref.ref(part) for part in resident.upload(store, META)[0]]
    gc.collect()
    assert resident.held(META) == store.nbytes  # though no loader holds them
    again = resident.upload(open_store(table, tmp_path), META)[0]
    assert [part is old() for part, old in zip(again, first)] == [True] * 2


def test_images_that_nobody_uses_make_room(table, memory, tmp_path):
    parts = [open_store(table.take(rows), tmp_path, pools=[table])
             for rows in (range(4), range(4, 8))]
    memory["bytes"] = int(1.5 * parts[0].nbytes / resident.ROOM)
    in_use = resident.upload(parts[0], META)
    assert resident.upload(parts[1], META) is None  # the first one is in use
    assert resident.held(META) == parts[0].nbytes
    del in_use
    assert resident.upload(parts[1], META) is not None
    assert resident.held(META) == parts[1].nbytes


def test_memory_that_torch_holds_in_reserve_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert resident.free_memory(torch.device("cuda")) == 140
    assert resident.free_memory(torch.device("cpu")) is None


@pytest.mark.parametrize("why", ["no room", "out of memory"])
def test_without_room_threads_feed_the_device(why, table, memory, tmp_path, monkeypatch, capsys):
    pinned_by = []
    if why == "no room":
        memory["bytes"] = 1000
    else:
        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory",
        lambda self: pinned_by.append(threading.current_thread().name) or self)
    loader = Loader(table, 4, image_size=32, train=True, device="meta", store_dir=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(
        torch.Tensor, "pin_memory",
        lambda self: pinned_by.append(threading.current_thread().name) or self)
    assert loader.workers == min(8, devices.cores())
    said = capsys.readouterr().err
    assert f"have no room on meta beside the training; {loader.workers} threads feed it" in said
    assert [tuple(x.shape) for _, x, _, _ in loader.epoch(0)] == [(4, 3, 32, 32)] * 2
    assert len(pinned_by) == 8 and all(name.startswith("loader") for name in pinned_by)


WAITS = """
import sys, time, pathlib, numpy, torch
sys.path.insert(0, sys.argv[1])
from datasets import resident
from datasets.image_store import ImageStore
folder, me = pathlib.Path(sys.argv[2]), sys.argv[3]
asked = []
def slow(device):
    asked.append(device)
    if len(asked) > 1:  # the first one: whether it is a GPU at all
        busy = folder / "busy"
        busy.mkdir()  # two processes at once would meet here
        time.sleep(1)
        busy.rmdir()
    return 10**9
resident.free_memory = slow
(folder / me).touch()
while len(list(folder.glob("p*"))) < 2:
    time.sleep(0.01)
array = numpy.zeros((2, 4, 4, 3), numpy.uint8)
store = ImageStore([pathlib.Path("f")], [array], numpy.zeros(2, int), numpy.arange(2))
resident.upload(store, torch.device("cpu"))
"""


def test_two_processes_ask_for_memory_one_after_the_other(tmp_path, monkeypatch, capsys):
    arguments = [str(ROOT), str(tmp_path)]
    other = subprocess.Popen([sys.executable, "-c", WAITS, *arguments, "p1"],
                             stderr=subprocess.PIPE, text=True)
    monkeypatch.setattr(sys, "argv", ["-c", *arguments, "p2"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(resident, "free_memory", resident.free_memory)  # to be put back
    exec(WAITS, {})
    said = capsys.readouterr().err + other.communicate(timeout=120)[1]
    assert other.returncode == 0, said
    assert "waiting for another run that sends images" in said


# --- checkpoints ---------------------------------------------------------------------------------


def steps(state) -> set[str]:
    """Device types of the optimisers' step counters anywhere in a state."""
    if isinstance(state, dict):
        own = {state["step"].device.type} if isinstance(state.get("step"), torch.Tensor) else set()
        return own.union(*(steps(part) for part in state.values()))
    return set()


def test_a_resumed_adam_counts_on_the_cpu(tmp_path):
    def method(device: str) -> LfF:
        networks = [tiny.Network().to(device) for _ in range(2)]
        return LfF(networks[0], RECIPE, options=LfF.defaults, biased=networks[1],
                   y=np.arange(8) % 2)

    here = method("cpu")
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    here.train_mode()
    total = here.update((torch.arange(8), x, y, y))
    Progress(step=1, total=total).save(tmp_path / "state.pt", here, "cpu")
    there = method("meta")
    at = Progress.resumed(tmp_path / "state.pt", there, META)
    assert at.total.device == META and there.averages.device == META
    for optimiser in (there.optimizer, there.biased.optimizer):
        state = optimiser.state_dict()["state"]
        assert steps(state) == {"cpu"}
        assert {part["exp_avg"].device.type for part in state.values()} == {"meta"}


def test_files_hold_tensors_of_the_cpu(tmp_path, monkeypatch):
    value = {"a": torch.zeros(2), "b": [torch.ones(1), {"c": 3}]}
    assert moved(value, "cpu") is value  # and so the same bytes
    elsewhere = moved(value, "meta")
    assert elsewhere["b"][0].device == META and value["a"].device.type == "cpu"
    saved = []
    monkeypatch.setattr(torch, "save", lambda value, file: saved.append(value) or file.write(b"x"))
    real = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to",
        lambda self, device: torch.zeros(self.shape) if self.device == META else real(self, device))
    save_torch(tmp_path / "w.pt", elsewhere)
    assert saved[0]["a"].device.type == saved[0]["b"][0].device.type == "cpu"
    assert saved[0]["b"][1] == {"c": 3}


class Batches:
    """A loader of one fixed batch."""

    device, table = torch.device("cpu"), None

    def __len__(self) -> int:
        return 1

    def epoch(self, k: int):
        yield torch.arange(4), torch.ones(4, 3, 32, 32), torch.arange(4) % 2, torch.zeros(4)


def test_an_epoch_is_saved_at_most_once_a_minute(tmp_path, monkeypatch):
    every = train.parse(["--methods", "erm"]).checkpoint_seconds
    assert every >= 60
    saved = []
    save = Progress.save
    monkeypatch.setattr(
        Progress, "save", lambda self, path, *more: saved.append(path) or save(self, path, *more))
    fit(Method(tiny.Network(), Recipe(epochs=3, lr=0.1)), Batches(), None, tmp_path, "s",
        every=every)
    assert not saved and (tmp_path / "model.pt").exists()
