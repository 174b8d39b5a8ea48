"""Files from the web: resumed where they broke off, and whole and right or not there at all."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from utils.progress import progress

TRIES = 4  # of a connection that breaks; each goes on from the last byte
TIMEOUT = 60  # seconds without a byte
BLOCK = 2**20
KAGGLE = "https://www.kaggle.com/api/v1/datasets/download"  # without an account, as one zip file
DRIVE = "https://drive.usercontent.google.com/download"
BROKEN = (ConnectionError, TimeoutError, http.client.HTTPException)


class SourceError(Exception):
    """A source does not give the file: what it gives in its place, in one clause."""


def fetch(url: str, path: Path, *, md5: str | None = None) -> Path:
    """Download to `path`, by way of <path>.part, from which a later call goes on.

    Raises SourceError for an HTTP error, a page in the place of a file, a file that stays too short
    and another md5 than the given one; the part is kept where going on makes sense.
    """
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            if _receive(url, part):
                break
        except BROKEN as error:
            cause = f"breaks off ({type(error).__name__})"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer
                part.unlink(missing_ok=True)
                cause = "has another length than before"
                continue
            raise SourceError(f"{url} answers {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise SourceError(f"{url} cannot be reached ({error.reason})") from None
        else:
            cause = "ends too soon"
        if attempt == TRIES - 1:
            size = part.stat().st_size if part.is_file() else 0
            raise SourceError(f"{url} {cause} after {size} bytes, which are kept")
    if md5 is not None and (found := digest(part, "md5")) != md5:
        part.unlink()
        raise SourceError(f"{url} gives another file (md5 {found}, expected {md5})")
    os.replace(part, path)
    return path


def _receive(url: str, part: Path) -> bool:
    """Append to `part` what it lacks; whether it is then whole."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise SourceError(f"{url} gives a page in place of the file: its quota is used up, or "
                              "it asks for a login")
        if start and answer.status != 206:
            start = 0  # the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = progress(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True)
        with open(part, "ab" if start else "wb") as file, bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size == total


def digest(path: Path, kind: str) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def kaggle(handle: str, folder: Path) -> Path:
    """The zip file of a Kaggle data set, "owner/name"."""
    return fetch(f"{KAGGLE}/{handle}", folder / f"{handle.split('/')[1]}.zip")


def drive(number: str, name: str, folder: Path, md5: str | None = None) -> Path:
    """A file that is shared on Google Drive, by its id."""
    return fetch(f"{DRIVE}?id={number}&export=download&confirm=t", folder / name, md5=md5)


def hub(
    repo: str, patterns: Iterable[str], folder: Path, *, kind: str = "dataset"
) -> list[Path]:
    """The files of a Hugging Face repository that a pattern matches, sorted by name.

    What the hub says of a file, its sha256 (LFS) and size, is held against what arrived. kind:
    "dataset" or "model". HF_ENDPOINT names a mirror of the whole hub. Raises SourceError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        api = HfApi(endpoint=endpoint)
        info = api.repo_info(repo, repo_type=kind, files_metadata=True)
        wanted = sorted((file for file in info.siblings if any(
            fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)),
            key=lambda file: file.rfilename)
        if not wanted:
            raise SourceError(f"{repo} has no file like {', '.join(patterns)}")
        paths = []
        for file in wanted:
            paths.append(Path(api.hf_hub_download(
                repo, file.rfilename, repo_type=kind, revision=info.sha, local_dir=folder)))
            _compare(repo, file, paths[-1])
        return paths
    except SourceError:
        raise
    except Exception as error:  # the hub's errors, and those of the client that it uses
        ours = isinstance(error, OSError) and error.errno is not None  # the disk's
        if ours or not isinstance(error, (HfHubHTTPError, OSError, *BROKEN)) and (
                type(error).__module__.partition(".")[0].rstrip("0123456789") != "httpx"):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{repo} cannot be had ({first[:200]})") from None


def _compare(repo: str, file, path: Path) -> None:
    size = path.stat().st_size
    expected = file.lfs.sha256 if file.lfs else None
    if file.size is not None and size != file.size:
        cause = f"{size} bytes, expected {file.size}"
    elif expected and (found := digest(path, "sha256")) != expected:
        cause = f"sha256 {found}, expected {expected}"
    else:
        return
    path.unlink()
    raise SourceError(f"{repo} gives another {file.rfilename} ({cause})")
