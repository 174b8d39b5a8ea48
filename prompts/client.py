"""Make an openai client, and name the proxy or certificate setting that prevents it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from utils.errors import UserError

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
FILES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")
REMEDIES = {
    **dict.fromkeys(PROXIES, "give it an address such as http://host:port, or unset it"),
    **dict.fromkeys(FILES, "give it a file that can be read, or unset it"),
    **dict.fromkeys(HEADERS, "give it plain letters, or unset it"),
}


def make_client(**settings) -> openai.OpenAI:
    """openai.OpenAI(**settings). Raises UserError naming the environment variable that prevents it.

    The variable is found by unsetting all of them and restoring those that do no harm. Proxies and
    headers are not quoted, as they may hold a password.
    """
    for name in HEADERS:
        if not re.fullmatch(r"[ -~\n\t]*" if name.endswith("HEADERS") else r"[ -~]*",
                            os.environ.get(name, "")):  # fmt: skip
            raise UserError(f"{name} holds characters that a header cannot have; {REMEDIES[name]}")
    try:
        return openai.OpenAI(**settings)
    except Exception as error:  # noqa: BLE001 - httpx, ssl and the file system raise their own
        names = [name for known in (*PROXIES, *FILES) for name in (known, known.lower())]
        present = [name for name in names if name in os.environ]
        guilty = present if _works_without(present, settings) else []
        for name in present:  # restore what does no harm
            if _works_without(others := [other for other in guilty if other != name], settings):
                guilty = others
        if not guilty:
            raise
        reason = ""
        if isinstance(error, ImportError):  # a proxy of a kind that needs a package
            reason = f" ({str(error).split('. ')[0]})"
        if guilty[0].upper() in FILES:
            reason = f" ({os.environ[guilty[0]]}: {getattr(error, 'strerror', None) or error})"
        raise UserError(
            f"{' and '.join(guilty)} in the environment cannot be used{reason}; "
            f"{REMEDIES[guilty[0].upper()]}"
        ) from None


def _works_without(names: list[str], settings: dict) -> bool:
    with _unset(names):
        try:
            openai.OpenAI(**settings).close()
        except Exception:  # noqa: BLE001 - as above
            return False
    return True


@contextmanager
def _unset(names: list[str]) -> Iterator[None]:
    """The environment without these variables."""
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)
