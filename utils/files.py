"""Whole files or none: written under a temporary name in the same folder, flushed, renamed."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.errors import UserError, is_systems

try:
    import fcntl
except ImportError:  # native Windows
    fcntl = None

# Not the program's fault: permissions, a read-only disk, a size limit, a file in a folder's place.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EEXIST)

# What a file system answers to a call that it does not have; 524 is Linux's own ENOTSUPP.
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, 524)
UNLOCKED: set[str] = set()  # folders whose file system has no locks
_SEEKING = threading.Lock()  # without pwrite: a file has one position for all threads


def is_plain_name(name: str) -> bool:
    """Whether a name from a file list or flag stays in its folder: no separator, no `..`, not
    empty."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    On any exception the temporary file is removed and `path` stays as it was. A full disk, a size
    limit and a folder that may not be written raise UserError. The name holds the process id, so
    two processes never share a temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while writing {path}; make room and start the same command again"
            ) from None
        ours = {str(temporary), *map(str, path.parents), str(path), "None"}
        if error.errno in REFUSED and str(error.filename) in ours:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); mend that or choose another folder, "
                "and start the same command again"
            ) from None
        raise
    finally:
        with suppress(OSError):  # a folder that cannot be made cannot hold a leftover either
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:  # Windows flushes only what is open for writing
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def lock(file: IO, waiting: str, check: Callable[[], None]) -> None:
    """Take the lock of an open file; where another process holds it, say `waiting` and wait.

    The lock belongs to the open file, which child processes do not inherit (PEP 446), so a killed
    process leaves none. `check` is called while waiting and may raise. Where there are no locks
    (Windows; Lustre and NFS as they are often mounted) that is said once and the work continues.
    """
    waited = False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) if fcntl else _unlocked(file)
        except BlockingIOError:
            if not waited:
                print(waiting, file=sys.stderr)
            waited = True
            check()
            time.sleep(0.5)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return _unlocked(file)


def _unlocked(file: IO) -> None:
    folder = os.path.dirname(os.path.abspath(file.name))
    if not UNLOCKED:
        print(
            f"{folder}: there are no file locks here; take care that no two runs write to one "
            "folder at once",
            file=sys.stderr,
        )
    UNLOCKED.add(folder)


def remove_leftovers(folder: str | Path, name: str = "*") -> None:
    """Remove what killed runs left half written of `name`; only while no other process writes it.

    Where there are no locks another process may: all is left.
    """
    here = os.path.abspath(folder)
    if any(here == unlocked or here.startswith(unlocked + os.sep) for unlocked in UNLOCKED):
        return
    for path in Path(folder).glob(f".{name}.*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def reserve(descriptor: int, start: int, nbytes: int) -> None:
    """Take the space before the work, so that a full disk stops here, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, start, nbytes)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at that byte of the file; other threads may do so at the same time.

    Not through a map: on a full disk a store into mapped memory kills the process (SIGBUS).
    """
    if hasattr(os, "pwrite"):
        written = os.pwrite(descriptor, data, offset)
    else:  # Windows
        with _SEEKING:
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, data)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_atomic(path: str | Path, data: bytes | memoryview | str) -> None:
    """Write bytes or UTF-8 text so that a reader sees the old file or the whole new one.

    A file's name that is no UTF-8 is written byte by byte (read it with "surrogateescape").
    """
    text = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def has_header(line: str) -> Callable[[Path], bool]:
    """A test for `check_replaceable`: whether a table's first line is this one."""

    def test(path: Path) -> bool:
        try:
            with open(path, encoding="utf-8") as file:
                return file.readline(len(line) + 2).rstrip("\n") == line
        except (OSError, ValueError):
            return False

    return test


def check_replaceable(flag: str, path: Path | None, own: Callable[[Path], bool]) -> None:
    """Raise UserError where `path`, given by `flag`, exists and is not the command's own earlier
    output, which `own` knows by its content: what users made themselves is never replaced."""
    if path is not None and os.path.lexists(path) and not own(path):
        raise UserError(f"{flag} {path} exists and was not written by this command: give another "
                        "name, or move it away")


def write_json(path: str | Path, value) -> None:
    """Write indented JSON atomically; NaN is written as null, which every JSON reader takes."""
    write_atomic(path, json.dumps(_without_nan(value), indent=2) + "\n")


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy, atomically."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def read_array(path: Path, shape: tuple[int | None, ...], dtype: type = np.float64) -> np.ndarray:
    """An array of that type and shape, None for any length, that a stage left in its own folder.

    Raises UserError where the file is missing, damaged or holds another array.
    """
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        if is_systems(error):
            raise
        array = None
    if (
        array is None or array.dtype != dtype or array.ndim != len(shape)
        or any(wanted not in (None, size) for wanted, size in zip(shape, array.shape))
    ):
        raise UserError(f"{path} is damaged; delete the folder {path.parent}: it is made again")
    return array


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
