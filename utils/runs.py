"""Run folders: what configuration they hold, who works in them, whether they are finished."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic_path, lock, remove_leftovers, write_atomic, write_json

CODE_VERSION = 1  # raise it when a change of the code changes results: no older stage is reused
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "opencv-python-headless")

RECORD = {"fingerprint", "notes", "environment"}  # what config.json holds beside the configuration
# What a run has computed; reference/ and byol/ are the first stages of two-stage methods.
WORK = ("state.pt", "mask.json", "model.pt", "metrics.json", "reference", "byol", "done")


def fingerprint(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of everything a stage's result depends on."""
    text = json.dumps({"code_version": CODE_VERSION, **config}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_digest(table) -> str:
    """Digest of a table's rows: name, labels, size and end of every file.

    A PNG ends with a checksum of all its pixels, and another JPEG has nearly always another size,
    so changed images are noticed; copies on another disk, with other times, are the same images.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:  # the wait is the disk's
        ends = pool.map(_end, table.paths)
        for path, y, a, end in zip(
            table.paths, table.y.tolist(), table.a.tolist(), ends, strict=True
        ):
            digest.update(f"{os.path.basename(path)} {y} {a} {end}\n".encode())
    return digest.hexdigest()[:16]


def _end(path: str) -> str:
    """Size and last 64 bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        return f"{size} {file.read(64).hex()}"


def weights_digest(path: Path) -> str:
    """Content of a weights file, so that another file of the same name is another setting."""
    try:
        with open(path, "rb") as file:
            return "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(
            f"--pretrained {path} cannot be read ({error.strerror}); give a weights file, imagenet "
            "or none"
        ) from None


@contextmanager
def exclusive(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only one process works in the folder; a second one waits. A killed process leaves no lock.

    `check` is called while waiting and may raise. What a killed run left half written is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be written ({error.strerror}); name another --results"
        ) from None
    with file:
        lock(file, f"{folder}: another run works here; waiting for it", check)
        remove_leftovers(folder)
        yield


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


def claim(folder: Path, config: dict[str, Any], notes: dict[str, Any] | None = None) -> bool:
    """Bind a folder to a configuration; True where it is already finished with this one.

    `notes` stand in config.json beside the configuration and change no result. A folder in which
    another configuration computed nothing (it stopped at a wrong flag) is bound anew. Raises
    UserError where it holds another configuration's work, naming what differs.
    """
    path, notes = folder / "config.json", notes or {}
    identity = fingerprint(config)
    work = [name for name in WORK if (folder / name).exists()]
    if work and not path.exists():
        raise UserError(
            f"{folder} holds {work[0]} but no config.json, so nobody knows of which run: delete "
            "that folder or choose another --setting or --name"
        )
    if work:
        held = read_record(path)
        beside = RECORD | set(held.get("notes", ()))
        if held.get("fingerprint") != identity:
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
        if {key: held[key] for key in held.get("notes", ())} != notes:
            write_json(path, {**config, **notes, "fingerprint": identity, "notes": list(notes),
                              "environment": held.get("environment")})
        return (folder / "done").exists()
    record = {"fingerprint": identity, "notes": list(notes), "environment": environment()}
    write_json(path, {**config, **notes, **record})
    return False


def adopt(
    folder: Path, root: Path, drop: tuple[str, ...], results: tuple[str, ...] = ()
) -> Path | None:
    """Copy into a claimed folder the results of a finished run of the same configuration.

    Such a run has the same seed and lies anywhere below `root`: another table has asked for it
    before. `drop`: as for `finish`. `results`: files without which a run is not taken, for they
    were deleted to be made again. Returns the run it took, or None.
    """
    identity = read_record(folder / "config.json")["fingerprint"]
    for path in sorted(root.glob(f"**/{folder.name}/config.json")):
        twin = path.parent
        if twin == folder or not all((twin / name).exists() for name in ("done", *results)):
            continue
        if read_record(path).get("fingerprint") != identity:
            continue
        for source in sorted(twin.iterdir()):
            if source.is_file() and source.name not in (*drop, "config.json", ".lock", "done"):
                with atomic_path(folder / source.name) as temporary:
                    shutil.copyfile(source, temporary)
        finish(folder, drop)
        return twin
    return None


def finish(folder: Path, drop: tuple[str, ...] = ("state.pt",)) -> None:
    """Mark a folder finished and drop the files of its own that only an unfinished run needs.

    Called again on a finished folder it drops what a kill between the two kept it from dropping.
    """
    if not (folder / "done").exists():
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
