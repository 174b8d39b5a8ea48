"""The cause in a message is the real one: missing rights and failing disks are no damaged files."""

import errno
import os

import pytest
from PIL import Image

import stable_diffusion.grids as grids
from datasets import base, celeba, fairface, synthetic
from stable_diffusion import audit, edit, manifest
from utils.errors import UserError, exit_cleanly
from utils.files import read_array, write_atomic

DENIED = (errno.EACCES, "Permission denied")


@pytest.fixture
def closed(monkeypatch):
    """A function that makes a file or folder unreadable for this user."""
    paths: set[str] = set()

    def guard(module, name):
        original = getattr(module, name)

        def guarded(path=".", *args, **kwargs):
            if str(path) in paths:
                raise PermissionError(*DENIED, str(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(module, name, guarded)

    guard(__import__("builtins"), "open")
    guard(__import__("io"), "open")
    for name in ("scandir", "listdir"):
        guard(os, name)
    return lambda path: paths.add(str(path))


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(3)]


def table(paths):
    return base.ImageTable("three", paths, [0] * len(paths), [0] * len(paths))


def test_a_folder_that_cannot_be_listed_has_no_missing_images(pictures, tmp_path, closed):
    closed(tmp_path)
    with pytest.raises(UserError) as refused:
        base.check_images([table(pictures)], tmp_path)
    assert str(refused.value) == (
        f"the images in {tmp_path} cannot be listed (Permission denied); give yourself the right "
        "to read that folder, or mend its disk")


def test_each_kind_of_image_has_its_own_remedy(pictures, tmp_path, closed, monkeypatch):
    monkeypatch.setattr(base, "MAX_PIXELS", 100)
    closed(pictures[0])
    Image.new("RGB", (40, 4)).save(tmp_path / "wide.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    paths = [*pictures, *(str(tmp_path / name) for name in ("wide.png", "link.png", "none.png"))]
    with pytest.raises(UserError) as refused:
        base.check_images([table(paths)], tmp_path)
    sentence = str(refused.value)
    assert "1 closed (Permission denied) (0.png)" in sentence
    assert "2 missing (none.png, link.png)" in sentence
    assert "1 too large" in sentence
    assert sentence.index("copy these again") < sentence.index("replace what is too large")
    with pytest.raises(UserError) as refused:
        base.check_images([table(pictures)], tmp_path)
    assert "copy these again" not in str(refused.value)
    assert str(refused.value).endswith("right to read what is closed, or mend its disk")


@pytest.mark.parametrize(("name", "read"), [
    ("list.csv", lambda path: edit.read_sources(path, path.parent)),
    ("manifest.csv", manifest.read_table),
    ("manifest.csv", synthetic.read_list),
    ("list_attr_celeba.txt", lambda path: celeba.read_attributes(path)),
    ("fairface_label_val.csv", lambda path: fairface.read_table(path.parent, "val")),
    ("x.npy", lambda path: read_array(path, (None,))),
    ("face.png", lambda path: audit.unreadable([path])),
    ("face.png", grids._square),
])
def test_a_file_without_the_right_to_read_it(name, read, tmp_path, closed, capsys, monkeypatch):
    file = tmp_path / name
    file.write_bytes(b"")
    closed(file)
    read_bytes = type(file).read_bytes

    def guarded(path):
        with open(path, "rb"):
            return read_bytes(path)

    monkeypatch.setattr(type(file), "read_bytes", guarded)
    with pytest.raises(SystemExit) as end:
        exit_cleanly(read)(file)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {file}: Permission denied; mend that and start the same command again")


BOM = b"\xef\xbb\xbf"


def test_lists_saved_with_a_byte_order_mark(pictures, tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(BOM + b"file,y\r\n0.png,1\r\n")
    assert edit.read_sources(path, tmp_path) == [("0.png", 1)]
    path.write_bytes(BOM + b"path,y,a\r\n0_0/0.png,0,0\r\n")
    assert manifest.read_table(path) == [{"path": "0_0/0.png", "y": "0", "a": "0"}]
    assert synthetic.read_list(path) == [("0_0/0.png", 0, 0)]


def test_names_that_are_no_utf8_go_through_lists(tmp_path):
    name = os.fsdecode(b"M\xfcller.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    images = base.ImageTable("one", [str(tmp_path / name)], [1], [0])
    base.save_list(images, tmp_path / "list.csv", tmp_path)
    assert (tmp_path / "list.csv").read_bytes() == b"file,y,a\nM\xfcller.png,1,0\n"
    assert edit.read_sources(tmp_path / "list.csv", tmp_path) == [(name, 1)]
    base.check_images([images], tmp_path)
    write_atomic(tmp_path / name, "text")
    with pytest.raises(UserError, match="1 unreadable"):
        base.check_images([images], tmp_path)


def test_images_of_another_kind_are_not_called_none(tmp_path):
    (tmp_path / "Smiling_Male" / "0_0").mkdir(parents=True)
    (tmp_path / "Smiling_Male" / "0_0" / "a.webp").touch()
    with pytest.raises(UserError, match=r"holds no images \(.png, .jpg, .jpeg\)"):
        synthetic.load_synthetic(tmp_path, "Smiling", "Male", "plain")
