"""train.py from flags to tables, on a tiny data set: every method, restarts, wrong input."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import train
from datasets.loader import Loader
from models import METHODS
from models.backbones import BACKBONES
from models.experiment import complete, prepare
from models.method import Method
from models.selection import resolve_k
from utils import records
from utils.config import Config
from utils.engine import fit
from utils.errors import UserError
from utils.files import write_array
from utils.recipe import Recipe
from utils.records import fingerprint
from utils.run import Run, claim, exclusive

SHORT = ["--pretrain-epochs", "1", "--finetune-epochs", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The small network can be asked for, and no figures are drawn."""
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)


def flags(data: Path, results: Path, *more) -> list[str]:
    """train.py's flags for the small network and one epoch of each stage."""
    return tiny.flags(data, results, "--backbone", "tiny", *SHORT, *more)


@pytest.fixture(scope="module")
def results(data) -> Path:
    """Where the runs of every method end up, so that they share the pre-trained model."""
    return data / "results"


def refused(capsys, arguments: list[str]) -> str:
    """What the command prints, which has to be one sentence and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert "Traceback" not in captured.err
    message = captured.err.strip().splitlines()[-1]
    assert "error: " in message
    return message


# --- every method --------------------------------------------------------------------------------


RUN = tiny.runnable(METHODS)


# Images that go forward and backward in one epoch each of pre-training (24) and what follows; the
# synthetic sets hold 24 each, the mean gradients of three sets are 72, the control's epochs four.
PASSES = {
    "erm": 24, "synthetic_only": 24, "data_supplementation": 48, "full_finetuning": 48,
    "linear_probing": 48, "lora": 48, "erm_longer": 120, "aim_fair": 120, "random_mask": 120,
    "update_fc": 48, "given_mask": 48, "cvar_dro": 24, "lff": 48, "eiil": 48, "maple": 24 + 3 * 24,
    "diga": 24 + 2 * 24 + 24, "fairsmote": 24 + 32,  # 3, 9, 9, 3 filled up to 36, in batches of 8
}


@pytest.mark.parametrize("name", [*RUN, "aim_fair_cosine", "synthetic_only_plain"])
def test_every_method_runs_and_resumes(name, data, results, monkeypatch, capsys):
    method, seen = METHODS[name], {True: set(), False: set()}
    epoch = Loader.epoch

    def spied(self, k):
        for batch in epoch(self, k):
            seen[self.train].update(batch[3].tolist())
            yield batch

    monkeypatch.setattr(Loader, "epoch", spied)
    arguments = flags(data, results, "--no-tables", *tiny.quick(name))
    train.main(arguments)
    granted = {"none": set(), "validation": {False}, "train": {False, True}}[method.uses_attributes]
    for training, attributes in seen.items():
        # the pre-trained model can have been made by an earlier test: then its loader is not seen
        assert training in granted or attributes <= {-1}
    assert -1 in seen[False]  # the test set was read, without its protected labels

    folder = results / "tiny" / name / "seed100"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["test"]["group_count"]) == {"0_0", "0_1", "1_0", "1_1"}
    assert sum(metrics["test"]["group_count"].values()) == 16
    assert 0 <= metrics["test"]["acc"] <= 1
    assert 0 <= metrics["validation"]["acc"] <= 1
    assert metrics["passes"] == PASSES.get(name, metrics["passes"]) > 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["method"], config["seed"], config["size"]) == (name, 100, 24)
    assert config["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert metrics["selected_epoch"] == log[-1]["kept"]
    assert (folder / "done").exists()
    assert not [path for path in folder.rglob("*") if path.name in ("state.pt", "model.pt")]
    saved = torch.load(folder / "classifier.pt", weights_only=True)
    assert saved["backbone"] == "tiny"
    assert (folder / "train.csv").read_text().count("\n") == 24 + 1

    # the same command again: nothing is trained, nothing is written
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(Loader, "epoch", None)
    train.main(arguments)
    assert f"{name}/seed100: finished, reused" in capsys.readouterr().out
    stamps[folder / ".lock"] = (folder / ".lock").stat().st_mtime_ns
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_run_is_in_the_tables(data, results):
    """Of all methods, where the test above has run."""
    trained(data, results, "aim_fair")
    train.main(flags(data, results, "--methods", "erm"))
    setting = results / "tiny"
    names = {done.parents[1].name for done in setting.glob("*/seed100/done")}
    assert {"erm", "aim_fair"} <= names
    page = (setting / "report.html").read_text()
    for name in names:
        assert f"| {name} " in (setting / "summary.md").read_text()
        assert f"\n{name},1," in (setting / "summary.csv").read_text()
        assert f"<td>{name}</td>" in page


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].overrides])
def test_every_variant_changes_flags_of_the_fine_tuning_or_the_data_it_learns_from(name):
    known = {f.name: f for f in fields(Config)}
    for key, value in METHODS[name].overrides.items():
        assert known[key].metadata["finetune"]  # the pre-trained model is shared
        assert type(value) is type(known[key].default)


def trained(data: Path, results: Path, name: str) -> Path:
    """The finished run folder of a method, made by the test above where that has run."""
    folder = results / "tiny" / name / "seed100"
    if not (folder / "done").exists():
        train.main(flags(data, results, *tiny.quick(name)))
    return folder


def test_the_mask_decides_what_moves(data, results):
    folder = trained(data, results, "aim_fair")
    mask = json.loads((folder / "mask.json").read_text())
    assert mask["k"] == resolve_k(0.887, 38)
    assert len(mask["tensors"]) == len(mask["delta1"]) == len(mask["delta2"]) == 38
    assert 2 * mask["k"] - 38 <= sum(mask["tensors"].values()) <= mask["k"] < 38
    before = torch.load(pretrained_folder(results) / "model.pt", weights_only=True)
    after = torch.load(folder / "classifier.pt", weights_only=True)["model"]
    for name, chosen in mask["tensors"].items():
        assert torch.equal(before[name], after[name]) != chosen, name


def pretrained_folder(results: Path) -> Path:
    """The one pre-trained model that the runs of every method share."""
    (folder,) = (results / "tiny" / "shared").glob("pretrain_*")
    return folder


def test_a_deleted_result_is_made_again_and_is_the_same(data, results):
    folder = trained(data, results, "erm")
    first = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()
    train.main(flags(data, results, "--methods", "erm"))
    assert (folder / "metrics.json").read_bytes() == first


def test_half_a_run_is_not_copied(data, results, capsys):
    """A run of the same configuration in another setting, whose metrics were deleted."""
    folder = trained(data, results, "erm")
    arguments = flags(data, results, "--methods", "erm", "--setting", "tiny/copy")
    first = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()
    train.main(arguments)
    (folder / "metrics.json").write_bytes(first)
    copy = results / "tiny" / "copy" / "erm" / "seed100"
    assert (copy / "metrics.json").read_bytes() == first
    assert "copied" not in capsys.readouterr().out
    (copy / "metrics.json").unlink()  # now the other one is whole
    train.main(arguments)
    assert (copy / "metrics.json").read_bytes() == first
    assert "erm/seed100, copied" in capsys.readouterr().out


# --- stale results -------------------------------------------------------------------------------

# A changed value of every flag on which numbers depend: a new flag must be added here or be
# declared as one that changes no result.
CHANGED = {
    "target": ["Male", "--protected", "Smiling"],
    "protected": ["Smiling", "--target", "Male"],
    "dataset": None,  # see test_another_data_set_and_device_are_another_configuration
    "size": ["20"],
    "minority": ["0.5"],
    "rule": ["random"],
    "data_seed": ["1"],
    "blind": None,  # of tabular data: tests/test_in_memory.py
    "val": ["none"],
    "best_epoch": ["class-accuracy"],
    "test_size": ["12"],
    "prompt_set": ["plain"],
    "synthetic_ratio": ["1.2"],
    "synthetic_biased_ratio": ["0.5"],
    "synthetic_minority": ["0.5"],
    "start": None,  # see test_start.py, as for mask
    "mask": None,
    "mean": ["0.4"],
    "std": ["0.25"],
    "backbone": ["resnet34"],
    "pretrained": ["imagenet"],
    "image_size": ["24"],
    "min_crop": ["0.5"],
    "batch_size": ["4"],
    "optimizer": ["adam"],
    "pretrain_epochs": ["2"],
    "pretrain_lr": ["0.02"],
    "finetune_epochs": ["2"],
    "finetune_lr": ["0.01"],
    "pretrain_milestone": ["5"],
    "finetune_milestone": ["5"],
    "gamma": ["0.01"],
    "momentum": ["0.8"],
    "weight_decay": ["0.01"],
    "top_k": ["20"],
    "criterion": ["cosine"],
    "batch_norm": ["freeze"],
    "device": None,
    "precision": ["bf16"],
}


# What the pre-trained model does not depend on.
LATER = {
    "finetune_epochs", "finetune_lr", "finetune_milestone", "top_k", "criterion", "batch_norm",
    "prompt_set", "synthetic_ratio", "synthetic_biased_ratio", "synthetic_minority", "mask",
}  # fmt: skip


def test_every_flag_is_known_to_the_table_above():
    flags = {f.name: f.metadata for f in fields(Config)}
    assert flags.keys() == vars(train.parser().parse_args(["--methods", "erm"])).keys()
    assert {name for name, said in flags.items() if said["result"]} == CHANGED.keys()
    assert {name for name, said in flags.items() if said["finetune"]} == LATER
    # these are in the configuration by other means: the folder's name, the files' digests, --set
    beside = {"methods", "seeds", "data_root", "synthetic_root", "set"}
    assert not any(flags[name]["result"] for name in beside)


@pytest.mark.parametrize("flag", [flag for flag, value in CHANGED.items() if value])
def test_a_changed_flag_never_reuses_a_result(flag, data, results, capsys):
    trained(data, results, "aim_fair")
    change = [f"--{flag.replace('_', '-')}", *CHANGED[flag]]
    message = refused(capsys, flags(data, results, "--methods", "aim_fair", *change))
    assert "aim_fair/seed100 holds another run" in message
    assert f"{flag} was " in message
    assert "--setting" in message


class Claimed(Exception):
    """The folder of the pre-trained model that a run asks for."""


@pytest.mark.parametrize("flag", [flag for flag, value in CHANGED.items() if value])
def test_a_changed_flag_takes_another_pretrained_model(flag, data, results, tmp_path, monkeypatch):
    def stop(self, name, config, *files):
        raise Claimed(f"{name}_seed{self.seed}_{fingerprint({**config, 'seed': self.seed})}")

    trained(data, results, "aim_fair")
    monkeypatch.setattr(Run, "shared_stage", stop)
    change = [f"--{flag.replace('_', '-')}", *CHANGED[flag]]
    store = ["--store-dir", str(results / "store")]
    with pytest.raises(Claimed) as asked:
        train.main(flags(data, tmp_path, "--methods", "aim_fair", *store, *change))
    same = str(asked.value) == pretrained_folder(results).name
    assert same == (flag in LATER)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in RUN for option in METHODS[name].defaults]
)
def test_a_changed_hyper_parameter_never_reuses_a_result(name, option, data, results, capsys):
    trained(data, results, name)
    used = METHODS[name].defaults | tiny.QUICK.get(name, {})
    change = {option: next(v for v in METHODS[name].ranges[option] if v != used[option])}
    message = refused(capsys, flags(data, results, *tiny.quick(name, **change)))
    assert f"{name}/seed100 holds another run ({option} was {used[option]!r}" in message


@pytest.mark.parametrize("change", [["--dataset", "demo"], ["--device", "cuda:0"]])
def test_another_data_set_and_device_are_another_configuration(change, data, results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    command = flags(data, results, "--methods", "erm")
    before, after = (
        complete(train.parse([*command, *more]))
        for more in ([], change)
    )
    for finetune in (True, False):
        assert before.identity(finetune=finetune) != after.identity(finetune=finetune)


def test_flags_of_the_fine_tuning_do_not_touch_erm(data, results, capsys):
    trained(data, results, "erm")
    more = ["--finetune-lr", "0.5", "--top-k", "3", "--batch-norm", "freeze", "--workers", "2"]
    train.main(flags(data, results, "--methods", "erm", *more))
    assert "erm/seed100: finished, reused" in capsys.readouterr().out


def test_flags_of_the_fine_tuning_are_the_controls_too(data, results, capsys):
    folder = trained(data, results, "erm_longer")
    more = ["--methods", "erm_longer", "--finetune-lr", "0.5"]
    assert "finetune_lr was 0.02 and is now 0.5" in refused(capsys, flags(data, results, *more))
    mask = json.loads((folder / "mask.json").read_text())["tensors"]
    assert all(mask.values())  # all of them move, on the real images
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["pretrain"] + ["finetune"] * 4


def copied(data: Path, to: Path) -> Path:
    """The images and lists, the same but for their times and place."""
    for part in ("celeba", "synthetic", "edits"):
        shutil.copytree(data / part, to / part, copy_function=shutil.copyfile)
    return to


def swap_png(copy: Path) -> None:
    # the same number of bytes, another picture: PNG's last bytes check all pixels
    groups = copy / "synthetic" / "Smiling_Male"
    (groups / "0_0" / "00003.png").write_bytes((groups / "1_1" / "00003.png").read_bytes())


def swap_photograph(copy: Path) -> None:
    photographs = copy / "celeba" / "img_align_celeba"
    (photographs / "000002.jpg").write_bytes((photographs / "000009.jpg").read_bytes())


def change_attribute(copy: Path) -> None:
    path = copy / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("000080.jpg 1", "000080.jpg -1"))


def drop_validation_image(copy: Path) -> None:
    path = copy / "celeba" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("000049.jpg 1", "000049.jpg 2"))


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (None, None),
        (swap_png, "synthetic images"),
        (swap_photograph, "training"),
        (change_attribute, "test"),
        (drop_validation_image, "test"),
    ],
)
def test_changed_input_is_noticed_and_copies_are_not(
    change, stale, data, results, tmp_path, capsys
):
    trained(data, results, "aim_fair")
    copy = copied(data, tmp_path / "copy")
    arguments = flags(copy, results, "--methods", "aim_fair")
    if change is None:
        train.main(arguments)
        assert "aim_fair/seed100: finished, reused" in capsys.readouterr().out
        return
    change(copy)
    sentence = refused(capsys, arguments)
    assert "samples or their labels are others" in sentence and "was '" not in sentence
    assert stale in sentence.partition("others: ")[2].partition(")")[0]


def test_a_run_without_its_config_is_not_adopted(tmp_path):
    (tmp_path / "mask.json").write_text("{}")
    with pytest.raises(UserError, match="mask.json but no config.json"):
        claim(tmp_path, {"size": 1})


def test_a_new_code_version_reuses_nothing(tmp_path, monkeypatch):
    assert not claim(tmp_path, {"size": 1})
    (tmp_path / "done").touch()
    assert claim(tmp_path, {"size": 1})
    monkeypatch.setattr(records, "CODE_VERSION", records.CODE_VERSION + 1)
    with pytest.raises(UserError, match="code version changed"):
        claim(tmp_path, {"size": 1})


def test_notes_change_without_changing_the_run(tmp_path):
    claim(tmp_path, {"size": 1}, {"paper_table": "3"})
    (tmp_path / "done").touch()
    assert claim(tmp_path, {"size": 1}, {"paper_table": "4"})
    assert json.loads((tmp_path / "config.json").read_text())["paper_table"] == "4"
    assert claim(tmp_path, {"size": 1}, {"paper_table": "4"})


class Taught(Method):
    """ERM after a stage that no file lists."""

    stages = ("teacher", "train")
    lessons = 0

    @classmethod
    def teacher(cls, run):
        with run.stage("teacher", "lesson.npy") as stage:
            if not stage.finished:
                cls.lessons += 1
                write_array(stage.folder / "lesson.npy", np.zeros(1))
        if run.config.workers == 2:
            raise UserError("stopped between the stages")


def test_a_stage_of_any_name_is_resumed_and_never_reused_for_another_configuration(
    data, results, monkeypatch, capsys
):
    monkeypatch.setitem(METHODS, "taught", Taught)
    command = flags(data, results, "--methods", "taught")
    assert "between the stages" in refused(capsys, [*command, "--workers", "2"])
    folder = results / "tiny" / "taught" / "seed100"
    assert (folder / "teacher" / "lesson.npy").exists()
    for wrong in (["--pretrain-lr", "0.02"], ["--seeds", "100", "--image-size", "24"]):
        assert "holds another run" in refused(capsys, [*command, *wrong])
    lessons = Taught.lessons
    train.main(command)
    assert Taught.lessons == lessons  # the finished stage was not computed again
    assert (folder / "done").exists()
    shutil.rmtree(results / "tiny" / "taught")


def test_a_second_run_in_a_folder_waits(tmp_path, capsys):
    def give_up():
        raise TimeoutError

    (tmp_path / ".model.pt.123.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"the user's own")
    with exclusive(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".mine.tmp"]
        with pytest.raises(TimeoutError), exclusive(tmp_path, give_up):
            raise AssertionError("two runs in one folder")
    assert "another run works here" in capsys.readouterr().err
    with exclusive(tmp_path, give_up):
        pass


def test_two_data_workers_change_no_bit(data, results, tmp_path):
    first = trained(data, results, "erm")
    again = tmp_path / "results"
    store = ["--store-dir", str(results / "store"), "--workers", "2"]
    train.main(flags(data, again, "--methods", "erm", *store))
    second = again / "tiny" / "erm" / "seed100"
    for name in ("classifier.pt", "metrics.json", "train.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(("more", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_a_process_takes_as_many_threads_as_it_is_given(more, threads, data, tmp_path, monkeypatch):
    """One where nothing is said, whatever the environment holds."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    prepare(train.parse(flags(data, tmp_path, "--methods", "erm", *more)))
    assert asked == [threads]


# --- the best epoch ------------------------------------------------------------------------------


class Scripted(Method):
    """Its weight counts the epochs, and its validation accuracy after each is given."""

    right = (2, 3, 3, 1)  # of four images

    def update(self, batch):
        self.optimizer.step()  # no gradient, no change; the schedule wants to have seen it
        with torch.no_grad():
            self.model.weight += 1
        return torch.tensor(self.loss)

    def predict(self, x):
        return torch.where(torch.arange(4) < self.right[int(self.model.weight) - 1], 1.0, -1.0)


def scripted(ties: str, loss: float = 0.5) -> Method:
    method = Scripted(nn.Linear(1, 1, bias=False), Recipe(epochs=4, lr=1, ties=ties))
    nn.init.zeros_(method.model.weight)
    method.loss = loss
    return method


class OneBatch:
    """A loader of one batch of four images of class 1."""

    device = "cpu"

    def __init__(self):
        self.table = type("Table", (), {"y": torch.ones(4).numpy()})

    def __len__(self):
        return 1

    def epoch(self, k):
        yield torch.arange(4), torch.zeros(4, 1), torch.ones(4), torch.full((4,), -1)


@pytest.mark.parametrize(
    ("ties", "validation", "kept"), [("later", True, 3), ("earlier", True, 2), ("later", False, 4)]
)
def test_which_epoch_is_kept(ties, validation, kept, tmp_path):
    log = fit(scripted(ties), OneBatch(), OneBatch() if validation else None, tmp_path, "stage")
    assert log[-1]["kept"] == kept
    accuracies = [0.5, 0.75, 0.75, 0.25] if validation else [None] * 4
    assert [row.get("val_acc") for row in log] == accuracies
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == kept
    (tmp_path / "log.jsonl").unlink()  # a kill can come before it is written
    (tmp_path / "model.pt").unlink()
    fit(scripted(ties), OneBatch(), OneBatch() if validation else None, tmp_path, "stage")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == kept
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(("best_by", "kept"), [("accuracy", 1), ("class-accuracy", 2)])
def test_an_epoch_can_be_kept_by_the_mean_of_the_classes(best_by, kept, tmp_path):
    """Three images of class 1 and one of class 0: the first epoch calls all of them 1, the second
    all but the first 0."""
    class Unbalanced(Scripted):
        right = (4, 1)  # called 1

    images = OneBatch()
    images.table.y[3] = 0
    recipe = Recipe(epochs=2, lr=1, ties="earlier", best_by=best_by)
    method = Unbalanced(nn.Linear(1, 1, bias=False), recipe)
    nn.init.zeros_(method.model.weight)
    method.loss = 0.5
    log = fit(method, OneBatch(), images, tmp_path, "stage")
    assert [row["val_acc"] for row in log] == [0.75, 0.5]
    assert [row["val_class_acc"] for row in log] == pytest.approx([0.5, (1 / 3 + 1) / 2])
    assert log[-1]["kept"] == kept
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == kept


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(loss, tmp_path):
    with pytest.raises(UserError, match="stage: the loss became (nan|inf) in epoch 1"):
        fit(scripted("later", loss), OneBatch(), None, tmp_path, "stage")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_finite_is_no_prediction(tmp_path):
    method = scripted("later")
    method.predict = lambda x: torch.full((4,), torch.nan)
    with pytest.raises(UserError, match="not finite"):
        fit(method, OneBatch(), OneBatch(), tmp_path, "stage")


def test_a_damaged_record_is_named(tmp_path):
    mask, log = tmp_path / "mask.json", tmp_path / "log.jsonl"
    for text in ("{}", "[]", '{"tensors": '):
        mask.write_text(text)
        with pytest.raises(UserError, match="mask.json is damaged; delete the folder"):
            records.read_record(mask, "tensors")
    for text in ('{"epoch": 1}\n{"epo', "3\n"):
        log.write_text(text)
        with pytest.raises(UserError, match="log.jsonl is damaged; delete the folder"):
            records.read_log(log)


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK\3\4 half")
    with pytest.raises(UserError, match="state.pt is damaged .* delete it"):
        fit(scripted("later"), OneBatch(), None, tmp_path, "stage")


# --- wrong input ---------------------------------------------------------------------------------

WRONG_FLAGS = [
    (["--methods", "aimfair"], "--methods aimfair is unknown; choose from erm"),
    (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    (["--finetune", "3"], "unrecognized arguments"),
    (["--seeds", "-1"], "-1 must be at least 0"),
    (["--seeds", "x"], "'x' is not a whole number"),
    (["--top-k", "0"], "must be above 0"),
    (["--top-k", "63"], "from 1 to 62"),
    (["--top-k", "40.5"], "no whole number"),
    (["--top-k", "0.001"], "at least one"),
    (["--criterion", "l2"], "choose from absolute, cosine"),
    (["--batch-size", "1"], "at least 2"),
    (["--batch-size", "25"], "fewer than a batch: lower --batch-size 25"),
    (["--batch-size", "eight"], "'eight' is not a whole number"),
    (["--eval-batch-size", "0"], "at least 1"),
    (["--size", "0"], "at least 1"),
    (["--size", "1000"], "group 0_0 needs 125 and has 12"),
    (["--minority", "1.5"], "at most 1"),
    (["--rule", "last"], "invalid choice"),
    (["--data-seed", "-1"], "at least 0"),
    (["--val", "test"], "invalid choice"),
    (["--test-size", "10"], "multiple of 4, not 10"),
    (["--test-size", "400"], "group 0_0 needs 100 and has 4"),
    (["--target", "Nose"], "has no attribute 'Nose'; it has: Smiling, Male, Young"),
    (["--protected", "Smiling"], "both 'Smiling'"),
    (["--data-root", "nowhere"], "there is no folder nowhere"),
    (["--dataset", "imagenet"], "choose from celeba"),
    (["--synthetic-root", "nowhere"], "nowhere/Smiling_Male/"),
    (["--synthetic-ratio", "9"], "group 0_0 needs 54 and has 14"),
    (["--synthetic-ratio", "0"], "must be above 0"),
    (["--synthetic-ratio", "0.01"], "multiple of 4, not 0"),
    (["--synthetic-minority", "-0.1"], "at least 0"),
    (["--backbone", "resnet19"], "choose from resnet18"),
    (["--pretrained", "missing.pth"], "--pretrained missing.pth cannot be read"),
    (["--image-size", "8"], "at least 16"),
    (["--backbone", "timm:resnet19"], "--backbone timm:resnet19 is unknown to timm; choose from"),
    (["--backbone", "torchvision:vit"], "unknown to torchvision"),
    (["--backbone", "timm:vit_tiny_patch16_224", "--pretrained", "none"], "--image-size 224"),
    (["--start", "missing.pt"], "--start missing.pt does not exist"),
    (["--mean", "0.1", "0.2"], "--mean takes one number or three"),
    (["--mean", "2"], "at most 1"),
    (["--std", "0"], "above 0"),
    (["--mask", "missing.json"], "--mask is for --methods given_mask"),
    (["--methods", "given_mask"], "needs --mask"),
    (["--methods", "given_mask", "--mask", "missing"], "--mask missing cannot be read"),
    (["--pretrain-epochs", "0"], "at least 1"),
    (["--finetune-epochs", "1.5"], "'1.5' is not a whole number"),
    (["--pretrain-lr", "nan"], "nan must be above 0"),
    (["--finetune-lr", "0"], "must be above 0"),
    (["--finetune-lr", "inf"], "at most 100"),
    (["--pretrain-milestone", "0"], "at least 1"),
    (["--finetune-milestone", "0"], "at least 1"),
    (["--gamma", "0"], "must be above 0"),
    (["--momentum", "2"], "at most 1"),
    (["--weight-decay", "-1"], "at least 0"),
    (["--batch-norm", "off"], "invalid choice"),
    (["--device", "gpu"], "--device gpu is none of auto, cpu, cuda"),
    (["--device", "cuda:99"], "--device cuda:99 is not on this machine"),
    (["--precision", "fp8"], "invalid choice"),
    (["--workers", "0"], "at least 1"),
    (["--paper-table", "99"], "--paper-table 99"),
    (["--name", "x"], "--name names one run"),
    (["--methods", "erm", "--name", ""], "--name"),
    (["--methods", "erm", "--name", "../x"], "--name must be a plain folder name"),
    (["--methods", "erm", "--name", "shared"], "--name 'shared'"),
    (["--setting", ""], "--setting must be"),
    (["--setting", "../x"], "--setting must be"),
    (["--results", "/dev/null/results"], "/dev/null/results"),
    (["--store-dir", "/dev/null/store"], "/dev/null/store"),
]


@pytest.mark.parametrize(
    ("wrong", "sentence"), WRONG_FLAGS, ids=[" ".join(wrong) for wrong, _ in WRONG_FLAGS]
)
def test_a_wrong_flag_is_one_sentence(wrong, sentence, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = tiny.flags(data, tmp_path / "results", *SHORT)
    if "--methods" not in wrong:
        arguments += ["--methods", "erm", "aim_fair"]
    assert sentence in refused(capsys, [*arguments, *wrong])
    assert not list(tmp_path.rglob("state.pt"))
    assert not list(tmp_path.rglob("metrics.json"))


def test_generated_images_are_asked_for_by_name(data, tmp_path, capsys):
    arguments = tiny.flags(data, tmp_path, "--methods", "aim_fair")
    at = arguments.index("--synthetic-root")
    del arguments[at : at + 2]
    assert "--synthetic-root is missing" in refused(capsys, arguments)


class Shouting:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def weights_of_another_network(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3)}, path)


def weights_in_a_list(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def truncated_weights(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:5000])


def weights_with_code(path: Path) -> None:
    torch.save({"conv1.weight": Shouting(path.with_name("shout"))}, path)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (weights_of_another_network, "does not fit resnet18"),
        (weights_in_a_list, "does not fit resnet18"),
        (truncated_weights, "is cut off"),
        (weights_with_code, "is not a weights file"),
        (Path.touch, "is not a weights file"),
    ],
)
def test_wrong_weights_are_named(write, sentence, data, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    write(path)
    more = ["--methods", "erm", "--pretrained", str(path), "--store-dir", str(data / "store")]
    message = refused(capsys, tiny.flags(data, tmp_path / "results", *more))
    assert str(path) in message
    assert sentence in message
    assert not (tmp_path / "shout").exists()


def test_a_nan_loss_stops_and_the_folder_can_be_used_again(data, results, tmp_path, capsys):
    weights = tiny.Network().state_dict()
    weights["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    first = trained(data, results, "erm")
    # in another setting, or the finished run of the same configuration would be copied
    arguments = flags(data, results, "--methods", "erm", "--setting", "nan")
    message = refused(capsys, [*arguments, "--pretrained", str(tmp_path / "nan.pth")])
    assert "pretrain: the loss became nan in epoch 1; lower the learning rate" in message
    train.main(arguments)  # nothing was computed there, so nothing stands in the way
    again = results / "nan" / "erm" / "seed100"
    assert (again / "classifier.pt").read_bytes() == (first / "classifier.pt").read_bytes()


def test_an_empty_mask_stops_and_the_folder_can_be_used_again(data, results, capsys):
    first = trained(data, results, "aim_fair")
    arguments = flags(data, results, "--methods", "aim_fair", "--setting", "mask")
    assert "the mask is empty" in refused(capsys, [*arguments, "--top-k", "1"])
    folder = results / "mask" / "aim_fair" / "seed100"
    assert not (folder / "mask.json").exists()
    train.main(arguments)
    assert (folder / "mask.json").read_bytes() == (first / "mask.json").read_bytes()


def test_an_image_that_cannot_be_decoded_stops_before_training(data, tmp_path, capsys):
    copy = copied(data, tmp_path / "data")
    name = "000070.jpg"  # of the test partition; its first and last bytes are a JPEG's
    (copy / "celeba" / "img_align_celeba" / name).write_bytes(b"\xff\xd8\xffnoise\xff\xd9")
    message = refused(capsys, flags(copy, tmp_path / "r", "--methods", "erm"))
    assert name in message
    assert not (tmp_path / "r" / "tiny" / "shared").exists()


def test_help_names_every_flag_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for action in train.parser()._actions:
        assert action.help, action.dest
        assert action.option_strings[-1] in text


class WithDropout(tiny.Network):
    """A network that draws random numbers in training, also for the mask's gradients."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def test_a_repaired_model_is_the_same_whatever_its_process_did_before(data, tmp_path, monkeypatch):
    """ERM trained just now, or found: a network with dropout draws the same numbers after it."""
    monkeypatch.setitem(BACKBONES, "dropout", WithDropout)
    tiny.without_pictures(monkeypatch)
    rows = ("aim_fair", "full_finetuning", "tensor_effect", "fairif", "ltgc")
    found = {}
    for name, commands in (("once", [rows]), ("each", [("erm",), *((row,) for row in rows)])):
        for methods in commands:
            train.main(tiny.flags(
                data, tmp_path / name, "--backbone", "dropout", "--seeds", 1, "--no-tables",
                "--methods", *methods, "--pretrain-epochs", 1, "--finetune-epochs", 1,
                "--top-k", 30))
        found[name] = {row: torch.load(tmp_path / name / "tiny" / row / "seed1" / "classifier.pt")
                       ["model"] for row in rows}
    for row in rows:
        for key, value in found["once"][row].items():
            assert torch.equal(value, found["each"][row][key]), (row, key)
