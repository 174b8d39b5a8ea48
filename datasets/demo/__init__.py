"""The committed demo faces: faces.zip unpacked once, then read as CelebA is.

README.md beside this file says where the faces come from and what their labels are worth.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from datasets import celeba
from datasets.base import Splits, named
from utils.errors import UserError
from utils.files import is_plain_name

ARCHIVE = Path(__file__).resolve().parent / "faces.zip"
LARGEST = 2**30  # bytes an archive may unpack to; the demo's are about 30 MB


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise UserError for a member that is a link, lies outside the folder, or makes it huge."""
    for member in members:
        parts = PurePosixPath(member.filename).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if (
            not parts
            or member.filename.startswith("/")
            or not all(is_plain_name(part) for part in parts)
            or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        ):
            raise UserError(
                f"{archive} holds '{member.filename}', a link or a path outside its folder, and "
                "was not unpacked; take the archive from the repository again"
            )
    total = sum(member.file_size for member in members)
    if total > LARGEST:
        raise UserError(f"{archive} unpacks to {total} bytes, over {LARGEST}; it was not unpacked")


def _check_is_ours(root: Path) -> None:
    """Raise UserError where root holds what no demo left there: it may be a user's photographs."""
    names = sorted(os.listdir(root)) if root.is_dir() else []
    if others := [name for name in names if not name.startswith(("faces_", "."))]:
        raise UserError(f"{root} holds {named(others, 3)}, and the demo's faces are unpacked into "
                        "a folder of their own only; give --data-root an empty folder or a new "
                        "one, or --dataset folder for your own photographs")


def unpack(root: str | Path = "data/demo", archive: str | Path = ARCHIVE) -> Path:
    """Unpack the archive under root, once, and return the folder (CelebA's layout).

    The folder is named after the archive's content, so a new archive never meets old files, and it
    appears whole or not at all: it is filled under another name and renamed. Nothing is deleted but
    this call's own unfinished folder. Raises UserError for a missing or damaged archive, links,
    paths that leave the folder, a full disk, and a root that holds other things than the demo's.
    """
    root, archive = Path(root), Path(archive)
    if not archive.is_file():
        raise UserError(
            f"{archive} is missing; restore it with 'git checkout -- datasets/demo', or render it "
            "with datasets/demo/build.py"
        )
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = root / f"faces_{digest[:12]}"
    if folder.is_dir():
        return folder
    _check_is_ours(root)
    unfinished = root / f".{folder.name}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as packed:
            _check_members(archive, packed.infolist())
            packed.extractall(unfinished)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first: use its folder
                raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive} is damaged ({error}); restore it with 'git checkout -- datasets/demo'"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while unpacking {archive} to {root}; make room"
            ) from None
        raise UserError(
            f"{archive} cannot be unpacked to {root} ({error.strerror}); choose another folder"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def load(root: str | Path, target: str, protected: str, **settings) -> Splits:
    """`celeba.load` on the demo faces, unpacked under root if they are not there yet."""
    return celeba.load(unpack(root), target, protected, **{"name": "demo", **settings})
