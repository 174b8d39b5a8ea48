"""Odd images that are fine give the right pixels; bad ones are named before anything is written."""

from __future__ import annotations

import io
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image
from refusals import refused

import train
from datasets import celeba, check
from datasets.base import bad_images
from datasets.decoding import UPRIGHT
from datasets.image_store import open_store
from stable_diffusion import audit

HEIGHT, WIDTH = 40, 24  # upright


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: smooth, so that JPEG keeps it, and without any symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [5 * y + 40, 4 * x + 3 * y, 230 - 6 * x]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def data(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "data"))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, depth: int = 1, colour: int = 0) -> bytes:
    """A PNG by hand, whatever its header claims."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb() -> bytes:
    """64 million white pixels in about 10 kB; Pillow decodes it with a warning."""
    return png(8000, 8000, (b"\0" + b"\xff" * 1000) * 8000)


# --- fine images: the pixels that training sees --------------------------------------------------


def turned(orientation: int, kind: str) -> Callable[[np.ndarray], bytes]:
    """The photo stored as a camera held askew stores it, with the EXIF tag that says so."""
    undo = {1: None, **UPRIGHT}[orientation]
    inverse = {
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    }.get(undo, undo)
    exif = Image.Exif()
    exif[0x0112] = orientation

    def make(pixels: np.ndarray) -> bytes:
        image = Image.fromarray(pixels)
        options = {"exif": exif, **({"quality": 97} if kind == "JPEG" else {})}
        return encoded(image.transpose(inverse) if inverse is not None else image, kind, **options)

    return make


def deep_png(pixels: np.ndarray) -> bytes:
    deep = pixels[..., ::-1].astype(np.uint16) * 256 + 200  # OpenCV's order is BGR
    return cv2.imencode(".png", deep)[1].tobytes()


def transparent_palette(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE)
    return encoded(image, "PNG", transparency=bytes([0] * 8 + [255] * 248))


def hidden_alpha(pixels: np.ndarray) -> bytes:
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    return encoded(Image.fromarray(np.concatenate([pixels, alpha], axis=2)), "PNG")


def of(kind: str, mode: str = "RGB", **options) -> Callable[[np.ndarray], bytes]:
    return lambda pixels: encoded(Image.fromarray(pixels).convert(mode), kind, **options)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def grey_deep(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", grey(pixels)[..., 0].astype(np.uint16) * 257)[1].tobytes()


# name -> (file, largest mean difference from the photo in grey levels, what the photo becomes)
FINE: dict[str, tuple] = {
    "16-bit colour PNG": (deep_png, 0, None),
    "16-bit grey PNG": (grey_deep, 0, grey),
    "grey PNG with alpha": (of("PNG", "LA"), 0, grey),
    "invisible pixels": (hidden_alpha, 0, None),
    "palette": (of("PNG", "P", optimize=True), 25, None),
    "palette with transparency": (transparent_palette, 6, None),
    "palette GIF": (of("GIF"), 25, None),
    "one-bit PNG": (of("PNG", "1"), 128, grey),
    "grey JPEG": (of("JPEG", "L", quality=97), 2, grey),
    "CMYK JPEG": (of("JPEG", "CMYK", quality=97), 3, None),
    "progressive JPEG": (of("JPEG", quality=97, progressive=True), 3, None),
    "lossless WebP": (of("WEBP", lossless=True), 0, None),
    "BMP": (of("BMP"), 0, None),
    "camera's MPO": (of("MPO", quality=97), 3, None),
    "JPEG with padding": (lambda p: of("JPEG", quality=97)(p) + b"\0" * 100, 3, None),
    **{f"EXIF {n} in a PNG": (turned(n, "PNG"), 0, None) for n in range(1, 9)},
    **{f"EXIF {n} in a JPEG": (turned(n, "JPEG"), 3, None) for n in (1, 3, 6, 8)},
}


def test_odd_images_give_the_right_pixels(photo, tmp_path):
    """All of them under names ending in .jpg, from CelebA's lists to the store."""
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    attributes, parts = [str(len(FINE)), "Smiling Male"], []
    for number, (make, _, _) in enumerate(FINE.values()):
        name = f"{number:06d}.jpg"
        (folder / name).write_bytes(make(photo))
        attributes.append(f"{name} {2 * (number % 2) - 1} {2 * (number // 2 % 2) - 1}")
        parts.append(f"{name} {0 if number < len(FINE) - 4 else 2}")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    splits = celeba.partitions(tmp_path, "Smiling", "Male")
    paths = splits.train.paths + splits.test.paths
    assert bad_images(paths) == {}
    wrong = {}
    for table in (splits.train, splits.test):
        store = open_store(table, tmp_path / "store")
        for row, path in enumerate(table.paths):
            kind = list(FINE)[int(Path(path).stem)]
            _, tolerance, becomes = FINE[kind]
            expected = (becomes(photo) if becomes else photo).astype(int)
            seen = store.image(row)
            assert seen.shape == (HEIGHT, WIDTH, 3), kind
            difference = np.abs(seen - expected).mean()
            if difference > tolerance:
                wrong[kind] = difference
    assert wrong == {}


def test_one_pixel_is_an_image(tmp_path, source):
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "dot.png")
    table = celeba.partitions(source / "celeba", "Smiling", "Male").test.take([0])
    table = type(table)("dot", [str(tmp_path / "dot.png")], table.y, table.a)
    assert open_store(table, tmp_path / "store").image(0).tolist() == [[[7, 8, 9]]]


# --- bad images ----------------------------------------------------------------------------------


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def shouting_eps(path: Path) -> bytes:
    """PostScript that would write a file: Pillow hands EPS to Ghostscript."""
    return (
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
        f"({path}) (w) file closefile showpage\n%%EOF\n"
    ).encode()


BAD: dict[str, Callable[[bytes], bytes]] = {  # from a whole JPEG's bytes
    "zero bytes": lambda whole: b"",
    "half a JPEG": lambda whole: whole[: len(whole) // 2],
    "a JPEG without its end": lambda whole: whole[:-20],
    "noise between a JPEG's ends": lambda whole: whole[:3] + b"noise" * 20 + whole[-2:],
    "half a PNG": lambda whole: of("PNG")(np.zeros((32, 32, 3), np.uint8))[:60],
    "a PNG with a wrong checksum": lambda whole: png(8, 8, b"\0\0" * 8)[:-20] + b"x" * 20,
    "text": lambda whole: b"not a photograph\n",
    "a web page": lambda whole: b"<!DOCTYPE html><html><body>404</body></html>",
    "SVG": lambda whole: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>',
    "a git-lfs pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "an archive": lambda whole: b"PK\x03\x04" + whole,
    "an animated GIF": lambda whole: animation("GIF"),
    "an animated PNG": lambda whole: animation("PNG"),
    "an animated WebP": lambda whole: animation("WEBP"),
    "a decompression bomb": lambda whole: bomb(),
    "a header that claims 3.6 billion pixels": lambda whole: png(60000, 60000, b"\0"),
    "no pixels": lambda whole: png(0, 0, b""),
    "floating point": lambda whole: encoded(Image.new("F", (32, 32)), "TIFF"),
}


def spoil(path: Path, kind: str) -> None:
    path.write_bytes(BAD[kind](path.read_bytes()))


@pytest.mark.parametrize("kind", BAD)
def test_train_on_a_bad_photograph(kind, data, tmp_path, capsys):
    name = "000070.jpg"  # of the test partition, which is read last
    spoil(data / "celeba" / "img_align_celeba" / name, kind)
    more = ["--methods", "erm", "--store-dir", data / "store"]
    arguments = tiny.flags(data, tmp_path / "results", *more)
    sentence = refused(capsys, train.main, arguments, names=name, out=tmp_path / "results")
    assert "80 images" not in sentence  # those that are used, not all that are listed
    assert not (tmp_path / "results" / "tiny" / "shared").exists()


@pytest.mark.parametrize("kind", ["zero bytes", "an animated PNG", "a decompression bomb"])
def test_train_on_a_bad_synthetic_image(kind, data, tmp_path, capsys):
    spoil(data / "synthetic" / "Smiling_Male" / "1_0" / "00003.png", kind)
    arguments = tiny.flags(data, tmp_path / "results", "--methods", "aim_fair")
    refused(capsys, train.main, arguments, names="00003.png", out=tmp_path / "results")


def test_a_photograph_that_is_a_folder(data, tmp_path, capsys):
    path = data / "celeba" / "img_align_celeba" / "000070.jpg"
    path.unlink()
    path.mkdir()
    arguments = tiny.flags(data, tmp_path / "results", "--methods", "erm")
    refused(capsys, train.main, arguments, names="000070.jpg", out=tmp_path / "results")


def test_the_check_names_every_bad_photograph(data, capsys):
    """Exit code 1: the lists can be used, single images cannot."""
    names = {}
    for number, kind in enumerate(kind for kind in BAD if "JPEG's ends" not in kind):
        names[f"{number + 1:06d}.jpg"] = kind
        spoil(data / "celeba" / "img_align_celeba" / f"{number + 1:06d}.jpg", kind)
    arguments = ["--dataset", "celeba", "--root", str(data / "celeba")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow would warn of a bomb while it decodes it
        assert check.main(arguments) == 1
    out = capsys.readouterr().out
    assert {kind for name, kind in names.items() if name not in out} == set()


@pytest.mark.parametrize("kind", [kind for kind in BAD if "JPEG" not in kind])
def test_the_audit_of_a_bad_image(kind, data, capsys):
    """Exit code 1 and the file's name: it is to be deleted and generated again."""
    folder = data / "synthetic" / "Smiling_Male"
    files = sorted(folder.glob("*/*.png"))
    rows = [f"{p.parent.name}/{p.name},{p.parent.name.replace('_', ',')}" for p in files]
    (folder / "manifest.csv").write_text("path,y,a\n" + "\n".join(rows) + "\n")
    spoil(files[5], kind)
    with pytest.raises(SystemExit) as end:
        audit.main(["--images", str(data / "synthetic"), "--grid", "2", "--device", "cpu"])
    printed = capsys.readouterr()
    assert end.value.code == 1
    assert f"unreadable: {files[5]}" in printed.out
    assert "Traceback" not in printed.err


def test_no_image_file_starts_a_program(data, tmp_path, capsys, monkeypatch):
    """PostScript under an image's name is refused, not interpreted."""
    shout = tmp_path / "shout"
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: shout.touch())
    path = data / "celeba" / "img_align_celeba" / "000070.jpg"
    path.write_bytes(shouting_eps(shout))
    arguments = tiny.flags(data, tmp_path / "results", "--methods", "erm")
    refused(capsys, train.main, arguments, names="000070.jpg", out=tmp_path / "results")
    assert audit.unreadable([path]) == [path]
    assert not shout.exists()
