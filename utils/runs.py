"""Run folders: what configuration they hold, who works in them, whether they are finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_atomic, write_json

CODE_VERSION = 1  # raise it when a change of the code changes results: no older stage is reused
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "opencv-python-headless")

RECORD = {"fingerprint", "notes", "environment"}  # what config.json holds beside the configuration


def fingerprint(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of everything a stage's result depends on."""
    text = json.dumps({"code_version": CODE_VERSION, **config}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_digest(table) -> str:
    """Digest of a table's rows: file sizes and times included, so changed files are noticed."""
    digest = hashlib.sha256()
    for path, y, a in zip(table.paths, table.y.tolist(), table.a.tolist(), strict=True):
        info = os.stat(path)
        row = f"{os.path.basename(path)} {y} {a} {info.st_size} {info.st_mtime_ns}\n"
        digest.update(row.encode())
    return digest.hexdigest()[:16]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Only one process works in the folder; a second one waits. A killed process leaves no lock.

    The lock belongs to the open file, which child processes do not inherit (PEP 446).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another run works here; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder: Path, config: dict[str, Any], notes: dict[str, Any] | None = None) -> bool:
    """Bind a folder to a configuration; True where it is already finished with this one.

    `notes` stand in config.json beside the configuration and change no result. Raises UserError
    where the folder holds another configuration, naming what differs.
    """
    path = folder / "config.json"
    identity = fingerprint(config)
    if path.exists():
        held = json.loads(path.read_text())
        if held.get("fingerprint") != identity:
            beside = RECORD | set(held.get("notes", ()))
            theirs = {key: value for key, value in held.items() if key not in beside}
            changed = [
                f"{key} was {theirs.get(key)!r} and is now {config.get(key)!r}"
                for key in sorted(theirs.keys() | config.keys())
                if theirs.get(key) != config.get(key)
            ] or ["the code version changed"]
            raise UserError(
                f"{folder} holds another run ({'; '.join(changed[:4])}): choose another --setting "
                "or --name, or delete that folder"
            )
        return (folder / "done").exists()
    notes = notes or {}
    record = {"fingerprint": identity, "notes": list(notes), "environment": environment()}
    write_json(path, {**config, **notes, **record})
    return False


def finish(folder: Path, drop: tuple[str, ...] = ("state.pt",)) -> None:
    """Mark a folder finished and drop the files of its own that only an unfinished run needs."""
    write_atomic(folder / "done", "")
    for name in drop:
        (folder / name).unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Package versions, commit, machine and command line, for the record."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
        "platform": platform.platform(),
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
