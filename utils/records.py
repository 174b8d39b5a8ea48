"""What run folders record: configurations, digests of their input, logs and the environment."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import devices
from utils.errors import UserError

CODE_VERSION = 1  # raise it when a change of the code changes results: no older stage is reused
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "opencv-python-headless")

RECORD = {"fingerprint", "notes", "environment"}  # what config.json holds beside the configuration


def fingerprint(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of everything a stage's result depends on."""
    text = json.dumps({"code_version": CODE_VERSION, **config}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_digest(paths: Sequence[str], *labels: Sequence[int]) -> str:
    """Digest of images and their labels: name, labels, size and end of every file.

    A PNG ends with a checksum of all its pixels, and another JPEG has nearly always another size,
    so changed images are noticed; copies on another disk, with other times, are the same images.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:  # the wait is the disk's
        for path, end, *row in zip(paths, pool.map(_end, paths), *labels, strict=True):
            text = " ".join([os.path.basename(path), *map(str, row), end])
            digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]


def _end(path: str) -> str:
    """Size and last 64 bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        return f"{size} {file.read(64).hex()}"


@functools.lru_cache
def weights_digest(path: Path, flag: str = "--pretrained") -> str:
    """Content of a weights file, so that another file of the same name is another setting."""
    try:
        with open(path, "rb") as file:
            return "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be read ({error.strerror}); give a weights file"
            + (", imagenet or none" if flag == "--pretrained" else "")
        ) from None


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object of a run folder. UserError where it is damaged or lacks one of `keys`."""
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise UserError(f"{path} is damaged; delete the folder {path.parent}: it is made again")
    return value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The epochs of a log.jsonl, one JSON object a line. UserError where it is damaged."""
    try:
        return [dict(json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError):
        message = f"{path} is damaged; delete the folder {path.parent}: it is made again"
        raise UserError(message) from None


def environment() -> dict[str, Any]:
    """Package versions, commit, machine and command line, for the record."""
    return {"command": sys.argv, **_process(), "gpu": devices.record()}


@functools.cache
def _process() -> dict[str, Any]:
    """What stays the same as long as this process: a later commit is not the code that runs."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "commit": _printed("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "platform": platform.platform(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    name = None
    if sys.platform == "darwin":
        name = _printed("sysctl", "-n", "machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = platform.processor()
    elif os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", errors="replace") as file:  # a line each, the first is enough
            name = next((line.split(":", 1)[1].strip() for line in file
                         if line.startswith("model name")), None)
    return name or platform.machine()


def _printed(*command: str) -> str | None:
    """What a command prints, run in this folder; None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
