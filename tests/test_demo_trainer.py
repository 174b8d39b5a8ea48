"""The demo model's training loop: a stopped training resumes as if it had not been stopped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stable_diffusion import demo_trainer
from stable_diffusion.demo_trainer import Trainer
from utils.errors import UserError

ROWS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def trainer(folder, loss) -> Trainer:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    return Trainer(folder, torch.nn.Linear(3, 1), loss, groups=np.arange(8) % 2, batch=4, steps=6,
                   lr=0.01, average=0.9, device=torch.device("cpu"))


def squares(modules, rows, generator):
    return (modules(ROWS[rows]) - torch.randn(len(rows), 1, generator=generator)).square().mean()


@pytest.fixture(autouse=True)
def saved_at_every_step(monkeypatch):
    clock = itertools.count(step=1000)
    monkeypatch.setattr(demo_trainer.time, "monotonic", lambda: next(clock))


def test_a_stopped_training_ends_in_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", squares)
    whole.run("x", False, lambda average: None)
    calls = itertools.count()

    def stopped(modules, rows, generator):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return squares(modules, rows, generator)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", stopped).run("x", False, lambda average: None)
    again = trainer(tmp_path / "stopped", squares)
    assert again.step == 3
    again.run("x", False, lambda average: None)
    for one, other in ((whole.modules, again.modules), (whole.average, again.average)):
        assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert not torch.equal(whole.modules.weight, trainer(tmp_path / "new", squares).modules.weight)


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="checkpoint.pt is damaged .*; delete it"):
        trainer(tmp_path, squares)
