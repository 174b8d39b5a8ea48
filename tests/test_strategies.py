"""Comparison rows: which images each trains on, which tensors it updates, and what reads them."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import train
from datasets.base import GROUPS, ImageTable, Splits
from datasets.mixing import Data
from models import METHODS
from models.backbones import BACKBONES
from models.experiment import complete
from models.finetune import freeze_all_but
from models.lora import add_lora, is_adapter, merge_lora
from models.ltgc import LTGC, mix_pairs
from models.strategies import STRATEGIES
from utils.errors import UserError
from utils.files import write_json
from utils.recipe import Recipe
from utils.records import RECORD
from utils.reporting import masks
from utils.reporting.best import write_best
from utils.reporting.bias_ratio import main as bias_ratio
from utils.reporting.bias_ratio import minority_share
from utils.reporting.results import Results
from utils.reporting.tables import write_summary
from utils.run import Run

ROOT = Path(__file__).resolve().parents[1]
REAL = {(0, 0): 2, (0, 1): 9, (1, 0): 8, (1, 1): 1}
SETTINGS = SimpleNamespace(
    synthetic_ratio=0.8, synthetic_biased_ratio=1.0, synthetic_minority=0.3
)


def table(name: str, counts: dict) -> ImageTable:
    """Rows that are labels only; no image is opened."""
    rows = [(f"/{name}/{y}{a}/{i}", y, a) for (y, a), n in counts.items() for i in range(n)]
    paths, y, a = zip(*rows, strict=True)
    return ImageTable(name, list(paths), np.array(y), np.array(a))


def make_data(real: dict = REAL, pool: int = 9, seed: int = 1) -> Data:
    splits = Splits(table("real", real), None, table("test", dict.fromkeys(GROUPS, 1)))
    return Data(splits, table("pool", dict.fromkeys(GROUPS, pool)), SETTINGS, seed)


# --- training sets -------------------------------------------------------------------------------


def test_supplementation_is_all_real_and_all_balanced_synthetic():
    data = make_data()
    assert data.supplemented.paths == data.real.paths + data.synthetic_balanced.paths
    assert data.synthetic_balanced.counts() == dict.fromkeys(GROUPS, 4)
    assert data.supplemented.counts() == {group: REAL[group] + 4 for group in GROUPS}


def test_repairing_fills_the_minority_groups_and_only_those(capsys):
    data = make_data()
    assert data.repaired.paths[:20] == data.real.paths
    filling = data.repaired.take(range(20, len(data.repaired)))
    assert filling.counts() == {(0, 0): 7, (0, 1): 0, (1, 0): 1, (1, 1): 8}
    assert len(set(filling.paths)) == 16
    assert all(path.startswith(f"/pool/{y}{a}/")
               for path, y, a in zip(filling.paths, filling.y, filling.a, strict=True))
    assert make_data(seed=2).repaired.paths != data.repaired.paths
    capsys.readouterr()
    assert len(make_data(pool=7).repaired) == 20 + 7 + 1 + 7
    assert capsys.readouterr().err.splitlines() == [
        "data repairing lacks 8 images of group 1_1 and gets the 7 that were generated"
    ]
    with pytest.raises(UserError, match="protected labels are not all known"):
        make_data({(0, -1): 3, (1, 1): 1}).repaired  # noqa: B018


TABLES = {  # row: the lists a run folder holds; all others learn from train and synthetic_balanced
    "erm": ["train"],
    "erm_longer": ["train"],
    "data_supplementation": ["train", "supplemented"],
    "data_repairing": ["train", "repaired"],
    "ltgc": ["train", "repaired"],
    "aim_fair": ["train", "synthetic_balanced", "synthetic_biased"],
    "random_mask": ["train", "synthetic_balanced", "synthetic_biased"],
}


@pytest.mark.parametrize("name", [
    *(name for name, row in STRATEGIES.items() if not row.overrides), "ltgc",
])
def test_every_row_says_which_images_and_labels_it_uses(name):
    data, row = make_data(), METHODS[name]
    tables = row.tables(data)
    assert list(tables) == TABLES.get(name, ["train", "synthetic_balanced"])
    assert tables["train"] is data.real
    # filling up minority groups of real images needs their protected labels; nothing else does
    needs = tables.keys() & {"repaired"}
    assert row.uses_attributes == ("train" if needs else "none")


@pytest.mark.parametrize(("flags", "epochs", "milestone"), [
    ([], 13, 13),  # the paper's: 10 epochs and three mean gradients; the rate stays constant
    (["--finetune-epochs", "5", "--synthetic-ratio", "0.8", "--synthetic-biased-ratio", "0.4"],
     7, 14),  # 4 + 1 + 0.4 + 0.8 training sets are 6.2 of its epochs
    (["--finetune-epochs", "10", "--finetune-milestone", "5", "--synthetic-ratio", "2"], 24, 12),
])  # fmt: skip
def test_the_control_has_as_many_passes_as_aim_fair(flags, epochs, milestone):
    config = train.parse(["--methods", "erm_longer", *flags])
    recipe = STRATEGIES["erm_longer"].recipe_of(config)
    assert recipe == replace(config.finetune, epochs=epochs, milestone=milestone)


# --- tensors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """ResNet-18's tensors without numbers."""
    with torch.device("meta"):
        return BACKBONES["resnet18"](None)


def chosen(name: str, model: nn.Module, seed: int = 1) -> list[str]:
    mask = STRATEGIES[name].tensors.mask(model, SimpleNamespace(seed=seed, config=None))
    assert list(mask["tensors"]) == [n for n, _ in model.named_parameters()]
    return [tensor for tensor, updated in mask["tensors"].items() if updated]


BLOCKS = {"stem": 3, "layer1": 12, "layer2": 15, "layer3": 15, "layer4": 15, "fc": 2}


@pytest.mark.parametrize("block", BLOCKS)
def test_sub_tuning_updates_or_freezes_one_block(block, resnet):
    updated, rest = chosen(f"update_{block}", resnet), chosen(f"freeze_{block}", resnet)
    starts = ("conv1.", "bn1.") if block == "stem" else (f"{block}.",)
    assert all(tensor.startswith(starts) for tensor in updated)
    assert len(updated) == BLOCKS[block]
    assert sorted(updated + rest) == sorted(chosen("full_finetuning", resnet))
    assert len(chosen("full_finetuning", resnet)) == 62


def test_linear_probing_updates_the_last_layer(resnet):
    assert chosen("linear_probing", resnet) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(("share", "number"), [(40, 25), (55, 34), (70, 43), (85, 53)])
def test_random_selection_has_the_papers_sizes(share, number, resnet):
    first = chosen(f"random_{share}", resnet, seed=1)
    assert len(first) == number
    assert first == chosen(f"random_{share}", resnet, seed=1)
    assert first != chosen(f"random_{share}", resnet, seed=2)


def test_block_rows_name_the_blocks_a_vit_has():
    vit = BACKBONES["vit_small_patch32"](None)
    assert vit(torch.zeros(1, 3, 48, 48)).shape == (1, 1)  # 48 is padded to 64
    assert len(chosen("full_finetuning", vit)) == 152
    assert chosen("linear_probing", vit) == ["head.weight", "head.bias"]
    with pytest.raises(UserError, match="no block layer1; .*stem, blocks.0, .*, head: "):
        chosen("update_layer1", vit)
    flags = ["--methods", "freeze_stem", "update_layer1", "--backbone", "vit_small_patch32"]
    with pytest.raises(UserError, match="update_layer1: vit_small_patch32 has no block layer1; "):
        complete(train.parse(flags))
    complete(train.parse([*flags, "--backbone", "resnet50"]))
    imagenet = vit.state_dict()
    imagenet |= {"head.weight": torch.ones(1000, 384), "head.bias": torch.ones(1000)}
    loaded = BACKBONES["vit_small_patch32"](imagenet)
    assert loaded.head.weight.shape == (1, 384)
    assert torch.equal(loaded.cls_token, vit.cls_token)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """results/tiny with one epoch of aim_fair, random_mask and lora, and a copy in tiny/again."""
    root = tiny.make(tmp_path_factory.mktemp("strategies"))
    short = ["--pretrain-epochs", "1", "--finetune-epochs", "1", "--top-k", "40", "--no-tables",
             "--backbone", "resnet18_quarter"]
    flags = tiny.flags(root, root / "results", *short)
    train.main([*flags, "--methods", "aim_fair", "random_mask", "lora"])
    train.main([*flags, "--methods", "aim_fair", "--setting", "tiny/again", "--name", "first"])
    return root / "results" / "tiny"


def mask_of(setting: Path, name: str) -> dict[str, bool]:
    return json.loads((setting / name / "seed100" / "mask.json").read_text())["tensors"]


def test_random_mask_is_as_large_as_aim_fairs_and_another(trained):
    ours, random = mask_of(trained, "aim_fair"), mask_of(trained, "random_mask")
    assert sum(ours.values()) == sum(random.values()) < 62
    assert ours != random


def test_lora_moves_only_weight_matrices_and_the_last_layer(trained):
    updated = {name for name, moved in mask_of(trained, "lora").items() if moved}
    assert updated >= {"fc.weight", "fc.bias", "conv1.lora_B.default.weight"}
    assert len(updated) == 2 + 2 * 20  # two matrices for each of ResNet-18's 20 convolutions
    folder = trained / "lora" / "seed100"
    after = torch.load(folder / "classifier.pt", weights_only=True)["model"]
    shared = list((trained / "shared").glob("*/model.pt"))
    assert len(shared) == 1  # tiny/again shares it too
    before = torch.load(shared[0], weights_only=True)
    assert after.keys() == before.keys()  # merged: an ordinary ResNet-18 again
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parameters = {name for name in moved if "running" not in name and "num_batches" not in name}
    assert parameters == {n for n in before if before[n].ndim == 4} | {"fc.weight", "fc.bias"}
    change = (after["layer4.1.conv2.weight"] - before["layer4.1.conv2.weight"]).flatten(1)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 8


def step(model: nn.Module, x: torch.Tensor) -> None:
    """Two steps of SGD on all that is not frozen: B is zero before the first."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        F.softplus(-model(x)).mean().backward()
        optimizer.step()


def with_lora(name: str, seed: int, drawn: int = 0) -> tuple[nn.Module, nn.Module]:
    """(a backbone, its copy with LoRA of that seed after `drawn` other random numbers)."""
    torch.manual_seed(0)
    base = BACKBONES[name](None).eval()
    copy = deepcopy(base)
    torch.rand(drawn)
    state = torch.get_rng_state()
    add_lora(copy, seed, rank=4, alpha=8.0)
    assert torch.equal(torch.get_rng_state(), state)  # training goes on as without LoRA
    return base, copy


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch32"])
def test_lora_starts_at_the_model_and_merges_into_it(name):
    base, model = with_lora(name, 3)
    given = base.state_dict()
    head = [n for n, _ in base.named_parameters() if n.startswith(("fc.", "head."))]
    layers = {n for n, part in base.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    layers -= {"fc", "head"}
    matrices = {n for n, _ in model.named_parameters() if is_adapter(n)}
    assert matrices == {f"{n}.lora_{m}.default.weight" for n in layers for m in "AB"}
    freeze_all_but(model, matrices | set(head))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), base(x))  # B is zero
    step(model, x)
    for key, value in model.state_dict().items():
        name_before = key.replace(".base_layer.", ".")
        if name_before in given and name_before not in head:
            assert torch.equal(value, given[name_before]), key  # frozen until the merge
    resumed = with_lora(name, 4)[1]
    resumed.load_state_dict(model.state_dict())
    with torch.no_grad():
        trained = model(x)
        assert torch.equal(resumed(x), trained)
        assert (trained - base(x)).abs().max() > 1e-3
        merge_lora(model)
        plain = BACKBONES[name](None).eval()
        plain.load_state_dict(model.state_dict())  # the backbone's own tensors, no others
        torch.testing.assert_close(plain(x), trained, atol=1e-5, rtol=1e-5)
    moved = {n for n, p in plain.named_parameters() if not torch.equal(p, given[n])}
    assert moved == {f"{n}.weight" for n in layers} | set(head)


def test_loras_first_matrices_follow_the_seed_alone():
    first, again, other = (
        {n: p for n, p in with_lora("resnet18", *seed)[1].named_parameters() if "lora_A" in n}
        for seed in ((3, 0), (3, 5), (4, 0))
    )
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_a_row_of_another_table_is_copied_not_trained(trained, capsys):
    copy, first = trained / "again" / "first" / "seed100", trained / "aim_fair" / "seed100"
    for name in ("metrics.json", "mask.json", "log.jsonl", "classifier.pt", "train.csv", "done"):
        assert (copy / name).read_bytes() == (first / name).read_bytes(), name
    other = trained / "again" / "other" / "seed100"
    config = json.loads((first / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in RECORD}
    run = Run(other, None, None, 100, trained / "shared", identity=config | {"top_k": 41})
    with run.open() as finished:
        assert not finished and run.adopt(trained) is None
    assert not (other / "done").exists()


# --- LTGC ----------------------------------------------------------------------------------------


def test_mixing_pairs_by_hand():
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(4, 1, 1, 1)
    y, generated = torch.tensor([0, 1, 1, 0]), torch.tensor([False, True, True, False])
    share, order = torch.tensor([0.5, 0.25, 0.5, 0.5]), torch.tensor([0.9, 0.0, 0.0, 0.1])
    # reals in the order of `order`: 3, 0; generated 1 gets the second, generated 2 the first
    mixed, partner_y, share = mix_pairs(x, y, generated, share, order)
    assert share.tolist() == [1, 0.25, 0.5, 1]
    assert mixed.flatten().tolist() == [1, 0.25 * 10 + 0.75 * 1, 0.5 * 100 + 0.5 * 1000, 1000]
    assert partner_y[1:3].tolist() == [0, 0]
    only = mix_pairs(x, y, torch.ones(4, dtype=torch.bool), share, order)
    assert torch.equal(only[0], x) and only[2].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_ltgc_weighs_the_generated_part(weight):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    x, y = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 1, 0])
    method = LTGC(model, Recipe(1, 0.1), real=2, options={"alpha": 1.0, "generated_weight": weight})
    torch.manual_seed(5)
    share, order = torch.distributions.Beta(1.0, 1.0).sample((4,)), torch.rand(4)
    first, second = (0, 1) if order[0] < order[1] else (1, 0)
    total = 0.0
    for own, other in ((0, None), (1, None), (2, first), (3, second)):  # rows 2, 3: generated
        s = 1.0 if other is None else float(share[own])
        partner = own if other is None else other
        logit = model((s * x[own] + (1 - s) * x[partner])[None]).item()
        part = 1.0 if other is None else weight * s
        total += part * cross_entropy(logit, y[own]) + (1 - s) * cross_entropy(logit, y[partner])
    torch.manual_seed(5)
    measured = method.update((torch.arange(4), x, y, torch.full((4,), -1)))
    assert float(measured) == pytest.approx(total / 4, rel=1e-5)


def cross_entropy(logit: float, label: torch.Tensor) -> float:
    p = 1 / (1 + np.exp(-logit))
    return -np.log(p if label == 1 else 1 - p)


# --- the bias ratio from the error set -----------------------------------------------------------


def test_bias_ratio_finds_the_planted_minority(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 20000)
    minority = rng.random(20000) < 0.1
    right = rng.random(20000) < np.where(minority, 0.05, 0.995)
    logits = np.where(right == (y == 1), 1.0, -1.0) * rng.random(20000)
    assert minority_share(logits, y) == pytest.approx(0.1, abs=0.008)
    with pytest.raises(ValueError, match="3 logits for 2"):
        minority_share(np.zeros(3), np.zeros(2))

    folder = tmp_path / "jtt" / "seed100"
    (folder / "reference").mkdir(parents=True)
    np.save(folder / "reference" / "logits.npy", np.array([1.0, -1.0, -1.0, 1.0]))
    (folder / "train.csv").write_text("file,y,a\na,1,0\nb,0,0\nc,1,0\nd,1,0\n")
    bias_ratio([str(tmp_path / "jtt")])
    assert "--synthetic-minority 0.25" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        bias_ratio([str(tmp_path)])
    assert stop.value.code == 2
    assert "give the folder of a JTT row" in capsys.readouterr().err
    (tmp_path / "erm" / "seed100").mkdir(parents=True)
    (tmp_path / "erm" / "seed100" / "config.json").write_text('{"method": "erm"}')
    with pytest.raises(SystemExit) as stop:
        bias_ratio([str(tmp_path / "erm")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "is a row of erm" in error and "delete" not in error
    logits, table = folder / "reference" / "logits.npy", folder / "train.csv"
    for path, damage in ((logits, b"no array"), (logits, b""), (table, b""), (table, b"file,a\n"),
                         (table, b"file,y,a\n")):
        whole = path.read_bytes()
        path.write_bytes(damage)
        with pytest.raises(SystemExit) as stop:
            bias_ratio([str(tmp_path / "jtt")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and str(folder) in error
        path.write_bytes(whole)


# --- the best of several rows --------------------------------------------------------------------


def write_run(setting: Path, row: str, seed: int, validation: float | None, **config) -> None:
    """A finished run with 80, 90, 70 and 60 of 100 right in the four groups."""
    groups = dict(zip(["0_0", "0_1", "1_0", "1_1"], [0.8, 0.9, 0.7, 0.6], strict=True))
    test = dict.fromkeys(("acc", "std", "eo_mean", "eo_worst", "ad", "aod", "eod"), 0.75)
    test |= {"wst": 0.6, "group_acc": groups, "group_count": dict.fromkeys(groups, 100)}
    write_json(setting / row / f"seed{seed}" / "metrics.json", {
        "test": test, "validation": None if validation is None else {"acc": validation},
    })
    write_json(setting / row / f"seed{seed}" / "config.json", {"seed": seed, **config})


def test_the_best_row_is_chosen_on_validation(tmp_path):
    accuracy = {"random_40": (0.9, 0.7), "random_55": (0.7, 0.95), "random_70": (0.95, 0.7)}
    for row, values in accuracy.items():
        for seed, value in zip((100, 200), values, strict=True):
            write_run(tmp_path, row, seed, value)
    for _ in range(2):  # again: an earlier selection is replaced
        chosen = write_best(tmp_path, list(accuracy), "best_random", None)
        assert chosen == dict.fromkeys((100, 200), "random_55")  # 0.825, as random_70, but first
    for seed in (100, 200):
        folder = tmp_path / "best_random" / f"seed{seed}"
        source = tmp_path / "random_55" / f"seed{seed}"
        assert (folder / "metrics.json").read_bytes() == (source / "metrics.json").read_bytes()
    text = write_summary(tmp_path)
    assert (
        "best_random is random_55, chosen of 3 rows (random_40, random_55, random_70): highest val"
        in text
    )
    assert text == (tmp_path / "summary.md").read_text()

    write_run(tmp_path, "without", 100, None)
    write_run(tmp_path, "short", 100, 0.5)
    for rows, name, message in (
        (["random_40", "random_55"], "random_40", "is a run and no earlier selection"),
        (["nothing"], "best", "has no row nothing"),
        (["without"], "best", "--val none"),
        (["random_40", "short"], "best", "different seeds"),
    ):
        with pytest.raises(UserError, match=message):
            write_best(tmp_path, rows, name, None)


# --- masks over seeds ----------------------------------------------------------------------------


def test_overlap_of_masks_by_hand(tmp_path):
    names = ["a", "b", "c", "d"]
    for seed, chosen_names in ((1, "ab"), (2, "bc"), (3, "ab")):
        mask = {name: name in chosen_names for name in names}
        write_run(tmp_path, "aim_fair", seed, None)
        write_json(tmp_path / "aim_fair" / f"seed{seed}" / "mask.json", {"tensors": mask})
    results = Results(tmp_path)
    one, two, three = results.tensors("aim_fair")
    assert masks.jaccard(one, two) == pytest.approx(1 / 3)
    assert masks.jaccard(one, three) == 1
    assert masks.section(results).frame.to_numpy().tolist() == [[
        "aim_fair", "3", "2 of 4", "0.56", "0.39", "1", "1",
    ]]  # (1/3 + 1 + 1/3) / 3; by chance (1 * 1 + 4 * 1/3 + 1 * 0) / 6
    text = write_summary(tmp_path)
    assert "## Selected tensors" in text and "aim_fair, frozen in every seed: d" in text


@pytest.mark.parametrize(("one", "other"), [(1, 1), (2, 4), (5, 3), (6, 6)])
def test_overlap_by_chance_is_the_mean_over_all_pairs_of_masks(one, other):
    overlaps = [
        len(set(a) & set(b)) / len(set(a) | set(b))
        for a in combinations(range(6), one) for b in combinations(range(6), other)
    ]
    assert masks.jaccard_by_chance(6, one, other) == pytest.approx(np.mean(overlaps))
