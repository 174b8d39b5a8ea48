"""Downloads against a local server that behaves like each source, in good and bad times."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny
from huggingface_hub import constants
from refusals import refused
from web import serving

from datasets import celeba, check, ci_mnist, download, fairface, sources, utkface
from stable_diffusion import download as model_download
from stable_diffusion.model_files import read_pipeline

NAMES = ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]
COUNTS = {"train": 12, "val": 4, "test": 8}


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    tiny.face(np.random.default_rng(number), number % 2, number // 2 % 2).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def table(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def value(number: int, name: str) -> bool:
    return bool(number >> NAMES.index(name) & 1)


def celeba_files() -> dict[str, bytes]:
    """24 images as Kaggle, Google Drive and the hub hold them."""
    total = sum(COUNTS.values())
    names = [f"{number + 1:06d}.jpg" for number in range(total)]
    part = np.repeat([0, 1, 2], list(COUNTS.values()))
    attributes = pd.DataFrame({name: [2 * value(i, name) - 1 for i in range(total)]
                               for name in NAMES}, index=pd.Index(names, name="image_id"))
    images = {name: jpeg(i) for i, name in enumerate(names)}
    text = "\n".join([str(total), " ".join(NAMES), *(
        f"{name} {' '.join(map(str, row))}" for name, row in zip(names, attributes.to_numpy()))])
    lists = {"list_attr_celeba.txt": text.encode() + b"\n",
             "list_eval_partition.txt": "".join(
                 f"{n} {p}\n" for n, p in zip(names, part)).encode()}
    kaggle = {f"img_align_celeba/img_align_celeba/{n}": data for n, data in images.items()}
    kaggle["list_attr_celeba.csv"] = attributes.to_csv().encode()
    kaggle["list_eval_partition.csv"] = pd.DataFrame(
        {"image_id": names, "partition": part}).to_csv(index=False).encode()
    files = {"/kaggle/jessicali9530/celeba-dataset": zipped(kaggle)}
    drive = {"img_align_celeba.zip": zipped({f"img_align_celeba/{n}": data
                                             for n, data in images.items()}), **lists}
    files |= {f"/drive/{name}": data for name, data in drive.items()}
    for number, name in enumerate(("train", "valid", "test")):
        rows = [{"image": {"bytes": images[names[i]], "path": None}, "celeb_id": i,
                 **{key: value(i, key) for key in NAMES}} for i in np.flatnonzero(part == number)]
        half = len(rows) // 2
        for piece, some in enumerate((rows[:half], rows[half:])):
            files[f"/datasets/flwrlabs/celeba/img_align+identity+attr/{name}-0000{piece}-of-00002"
                  ".parquet"] = table(some)
    return files


@pytest.fixture
def web(monkeypatch, no_pauses):
    """The server, empty; the sources' addresses are its own."""
    with serving({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(sources, "KAGGLE", f"{server.url}/kaggle")
        monkeypatch.setattr(sources, "DRIVE", f"{server.url}/drive")
        yield server


@pytest.fixture
def celeba_web(web, monkeypatch):
    """CelebA's sources, and official numbers that are those of the 24 images."""
    web.files |= celeba_files()
    monkeypatch.setattr(download, "CELEBA_DRIVE", {
        name.removeprefix("/drive/"): (name.removeprefix("/drive/"), hashlib.md5(data).hexdigest())
        for name, data in web.files.items() if name.startswith("/drive/")})
    monkeypatch.setattr(check, "CELEBA_SPLITS", COUNTS)
    monkeypatch.setattr(check, "CELEBA_RANGES", {
        "train": ("000001.jpg", "000012.jpg"), "val": ("000013.jpg", "000016.jpg"),
        "test": ("000017.jpg", "000024.jpg")})
    monkeypatch.setattr(check, "CELEBA_TEST_GROUPS", {("Smiling", "Male"): (2, 2, 2, 2)})
    monkeypatch.setattr(check, "CELEBA_LISTS", {})
    return web


def run(tmp_path, *more) -> None:
    download.main(["celeba", "--root", str(tmp_path / "celeba"), "--accept", *more])


def is_celeba(root) -> bool:
    read = celeba.read_table(root)
    images = celeba.image_folder(root)
    return all(
        (images / f"{i + 1:06d}.jpg").read_bytes() == jpeg(i)
        and all((read[name].iloc[i] == 1) == value(i, name) for name in NAMES)
        for i in range(24)) and not (root / ".download").exists()


@pytest.mark.parametrize("source", ["kaggle", "drive", "hub"])
def test_celeba_from_every_source_in_the_official_layout(source, celeba_web, tmp_path, capsys):
    run(tmp_path, "--source", source)
    assert is_celeba(tmp_path / "celeba")
    out = capsys.readouterr().out
    assert "non-commercial research" in out and "celeba, checked" in out
    asked = len(celeba_web.asked)
    run(tmp_path)
    assert "celeba is there, checked" in capsys.readouterr().out
    assert len(celeba_web.asked) == asked


FAULTS = [  # what kaggle and drive do; what is said of them
    ({"/kaggle/*": ("404", 9)}, {"kaggle": "answers 404"}, "drive"),
    ({"/kaggle/*": ("quota", 9)}, {"kaggle": "gives a page in place of the file"}, "drive"),
    ({"/kaggle/*": ("short", 1)}, {"kaggle": "is no archive"}, "drive"),
    ({"/kaggle/*": ("404", 9), "/drive/*": ("wrong", 9)},
     {"drive": "gives another file (md5 "}, "hub"),
    ({"/kaggle/*": ("404", 9), "/drive/img*": ("quota", 9)},
     {"drive": "its quota is used up"}, "hub"),
]


@pytest.mark.parametrize(("faults", "said", "last"), FAULTS, ids=lambda part: str(part)[:40])
def test_the_next_source_is_tried(faults, said, last, celeba_web, tmp_path, capsys):
    celeba_web.faults = faults
    run(tmp_path)
    printed = capsys.readouterr()
    for words in said.values():
        assert words in printed.err
    assert printed.out.rstrip().endswith("celeba, checked")
    assert f"celeba from {last}\n" in printed.out
    assert is_celeba(tmp_path / "celeba")


def test_a_file_that_is_no_archive_is_asked_for_again(celeba_web, tmp_path, capsys):
    celeba_web.faults = {"/kaggle/*": ("short", 1)}
    arguments = ["celeba", "--root", tmp_path / "celeba", "--accept", "--source", "kaggle"]
    refused(capsys, download.main, arguments, names="is no archive")
    run(tmp_path, "--source", "kaggle")
    assert is_celeba(tmp_path / "celeba")


@pytest.mark.parametrize("fault", ["wrong", "broken", "404"])
def test_a_hub_file_that_is_not_what_the_hub_says(fault, celeba_web, tmp_path, capsys):
    celeba_web.faults = {"/kaggle/*": ("404", 99), "/drive/*": ("404", 99),
                         "*/valid-00001*": (fault, 99)}
    refused(capsys, download.main, ["celeba", "--root", tmp_path / "celeba", "--accept"],
            names="no source gives celeba: kaggle: ")
    assert [entry.name for entry in (tmp_path / "celeba").iterdir()] == [".download"]
    celeba_web.faults, celeba_web.asked = {}, []
    run(tmp_path, "--source", "hub")
    assert is_celeba(tmp_path / "celeba")
    again = [path for path in celeba_web.asked if "train-00000" in path]
    assert len(again) <= 1  # a HEAD at most: it was there


def test_a_broken_connection_is_taken_up_where_it_ended(celeba_web, tmp_path, capsys):
    whole = len(celeba_web.files["/kaggle/jessicali9530/celeba-dataset"])
    celeba_web.faults = {"/kaggle/*": ("broken", 2)}
    run(tmp_path, "--source", "kaggle")
    assert is_celeba(tmp_path / "celeba")
    assert [range_ for _, range_ in celeba_web.ranges] == [
        f"bytes={whole // 2}-", f"bytes={whole // 2 + (whole - whole // 2) // 2}-"]


def test_a_later_start_goes_on_from_what_there_is(celeba_web, tmp_path, capsys):
    celeba_web.faults = {"/kaggle/*": ("broken", sources.TRIES)}
    arguments = ["celeba", "--root", tmp_path / "celeba", "--accept", "--source", "kaggle"]
    refused(capsys, download.main, arguments, names="which are kept")
    ranges = len(celeba_web.ranges)
    run(tmp_path, "--source", "kaggle")
    assert len(celeba_web.ranges) == ranges + 1 and is_celeba(tmp_path / "celeba")


def test_other_data_than_published_are_refused(celeba_web, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "CELEBA_SPLITS", {**COUNTS, "train": 162770})
    sentence = refused(capsys, download.main, ["celeba", "--root", tmp_path / "celeba", "--accept"],
                       names="it is not celeba as published: train images: 12, expected 162770")
    assert all(f"{name}: " in sentence for name in ("kaggle", "drive", "hub"))


def test_terms_and_flags(celeba_web, tmp_path, capsys, monkeypatch):
    root = ["--root", tmp_path / "x"]
    refused(capsys, download.main, ["celeba", *root], names="--accept", out=tmp_path)
    refused(capsys, download.main, ["celeba", *root, "--accept", "--source", "ftp"],
            names="--source ftp is unknown; choose from kaggle, drive, hub", out=tmp_path)
    refused(capsys, download.main, ["imagenet", *root, "--accept"], names="imagenet", out=tmp_path)
    refused(capsys, model_download.main, ["--out", tmp_path / "x"], names="--accept", out=tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "holiday.jpg").write_bytes(jpeg(0))
    refused(capsys, download.main, ["celeba", *root, "--accept"], names="holds holiday.jpg",
            out=tmp_path)
    assert celeba_web.asked == []


@pytest.mark.parametrize(("name", "kind"), [
    ("../../../../evil.jpg", tarfile.REGTYPE), ("/tmp/evil.jpg", tarfile.REGTYPE),
    ("a/../../evil", tarfile.DIRTYPE), ("evil.jpg", tarfile.SYMTYPE), ("evil", tarfile.FIFOTYPE),
])
def test_an_archive_does_not_leave_its_folder(name, kind, web, tmp_path, capsys):
    web.files["/datasets/py97/UTKFace-Cropped/UTKFace.tar.gz"] = tarred({name: b""}, kind)
    refused(capsys, download.main, ["utkface", "--root", tmp_path / "utkface", "--accept"],
            names="UTKFace.tar.gz is damaged")
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil.jpg").exists()


@pytest.mark.parametrize("source", ["hub", "kaggle"])
def test_utkface(source, web, tmp_path, monkeypatch, capsys):
    images = {f"UTKFace/{20 + i}_{i % 2}_{i // 2 % 2}_2017010{i}.jpg.chip.jpg": jpeg(i)
              for i in range(8)}
    web.files["/datasets/py97/UTKFace-Cropped/UTKFace.tar.gz"] = tarred(images)
    web.files["/kaggle/jangedoo/utkface-new"] = zipped(
        {"crop_part1/1_0_0_20170101.jpg": jpeg(9), **images})
    monkeypatch.setattr(check, "UTKFACE_IMAGES", 8)
    monkeypatch.setattr(check, "UTKFACE_WHITE_MEN", 2)
    download.main(["utkface", "--root", str(tmp_path), "--accept", "--source", source])
    read, folder, bad = utkface.read_table(tmp_path)
    assert len(read) == 8 and not bad
    assert {name: (folder / name).read_bytes() for name in read.index} == {
        name.split("/")[1]: data for name, data in images.items()}


@pytest.mark.parametrize("source", ["hub", "hub-2", "drive"])
def test_fairface(source, web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "FAIRFACE_GROUPS", (2, 2, 2, 2))
    drive, csvs = {}, {}
    for part, long, count in (("train", "train", 7), ("val", "validation", 3)):
        numbers, words, lines = [], [], ["file,age,gender,race,service_test"]
        for i in range(count):
            j = i if part == "train" else i + 7
            gender, race = j % 2, 2 + j // 2 % 2 if j < 8 else 0  # the last two are East Asian
            picture = {"bytes": jpeg(j), "path": None}
            numbers.append({"image": picture, "age": 3, "gender": gender, "race": race,
                            "service_test": False})
            named = ("20-29", ("Male", "Female")[gender],
                     ("East Asian", "Indian", "Black", "White")[race])
            words.append({"file": picture, "age": named[0], "gender": named[1], "race": named[2],
                          "service_test": False})
            drive[f"{part}/{i + 1}.jpg"] = jpeg(j)
            lines.append(f"{part}/{i + 1}.jpg,{','.join(named)},False")
        csvs[f"fairface_label_{part}.csv"] = ("\n".join(lines) + "\n").encode()
        web.files[f"/datasets/HuggingFaceM4/FairFace/0.25/{long}-0.parquet"] = table(numbers)
        web.files[f"/datasets/ryanramos/fairface/margin025/{part}-0.parquet"] = table(words)
    for name, number in download.FAIRFACE_DRIVE.items():
        web.files[f"/drive/{number}"] = csvs.get(name) or zipped(drive)
    download.main(["fairface", "--root", str(tmp_path), "--accept", "--source", source])
    read = {part: fairface.read_table(tmp_path, part) for part in ("train", "val")}
    assert [len(part) for part in read.values()] == [7, 1]
    assert read["train"]["Male"].tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert read["train"]["White"].tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert all((tmp_path / name).read_bytes() == data for name, data in drive.items())


@pytest.mark.parametrize("source", ["mirror-1", "hub"])
def test_mnist(source, web, tmp_path, monkeypatch, capsys):
    rng, official, rows = np.random.default_rng(0), {}, {}
    for part, split, count in (("train", "train", 60), ("t10k", "test", 10)):
        digits = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        rows[split] = []
        for digit, label in zip(digits, labels):
            buffer = io.BytesIO()
            tiny.Image.fromarray(digit).save(buffer, "PNG")
            rows[split].append({"image": {"bytes": buffer.getvalue(), "path": None},
                                "label": int(label)})
        for kind, array in (("images-idx3", digits), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            official[f"{part}-{kind}-ubyte.gz"] = gzip.compress(head + array.tobytes())
    web.files |= {f"/mirror/{name}": data for name, data in official.items()}
    web.files |= {f"/datasets/ylecun/mnist/mnist/{split}-0.parquet": table(part)
                  for split, part in rows.items()}
    monkeypatch.setattr(download, "MNIST_MIRRORS", (f"{web.url}/mirror",))
    monkeypatch.setattr(download, "MNIST_MD5", {name: hashlib.md5(data).hexdigest()
                                                for name, data in official.items()})
    monkeypatch.setattr(download, "MNIST_SIZE", (60, 10))
    download.main(["mnist", "--root", str(tmp_path / "a"), "--accept", "--source", source])
    for name, data in official.items():
        assert gzip.decompress((tmp_path / "a" / name).read_bytes()) == gzip.decompress(data)
    assert len(ci_mnist.read(tmp_path / "a", "size").test) == 10
    web.faults = {"/mirror/*": ("wrong", 9)}
    download.main(["mnist", "--root", str(tmp_path / "b"), "--accept"])
    assert "gives another file" in capsys.readouterr().err
    assert (tmp_path / "b" / "t10k-labels-idx1-ubyte.gz").is_file()


def test_the_model(web, tmp_path, tiny_pipeline_dir, capsys):
    import torch

    for file in tiny_pipeline_dir.rglob("*"):
        if file.is_file():
            for mirror in model_download.MIRRORS:
                web.files[f"/{mirror}/{file.relative_to(tiny_pipeline_dir)}"] = file.read_bytes()
    web.files[f"/{model_download.MIRRORS[0]}/unet/diffusion_pytorch_model.bin"] = b"a pickle"
    web.faults = {f"/{model_download.MIRRORS[0]}/unet/*.safetensors": ("wrong", 9)}
    out = tmp_path / "model"
    model_download.main(["--out", str(out), "--accept"])
    printed = capsys.readouterr()
    assert "gives another unet/diffusion_pytorch_model.safetensors (sha256" in printed.err
    assert f"the files of {model_download.MIRRORS[1]}, read" in printed.out
    assert read_pipeline(str(out), torch.float32, "").unet is not None
    assert not list(out.rglob("*.bin")) and not (out / ".download").exists()
    model_download.main(["--out", str(out), "--accept"])
    assert "a model is there, read" in capsys.readouterr().out
    (out / "vae" / "config.json").unlink()
    refused(capsys, model_download.main, ["--out", out, "--accept"], names=f"--out {out} holds")
