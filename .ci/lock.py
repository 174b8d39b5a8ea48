"""Print the exact versions of what requirements.txt needs, as they are installed here.

    python .ci/lock.py > requirements.lock
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Exact versions of requirements.txt and all that they need: python .ci/lock.py > requirements.lock
# Python {version[0]}.{version[1]} on {platform}; elsewhere, or with another CUDA, install
# requirements.txt.
"""


def wanted() -> list[Requirement]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    texts = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


def closure() -> dict[str, str]:
    """{name: version} of every package that an installation has, by name."""
    found: dict[str, str] = {}
    waiting = [(requirement.name, requirement.extras) for requirement in wanted()]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (key := (canonicalize_name(name), frozenset(extras))) in seen:
            continue
        seen.add(key)
        package = metadata.distribution(name)
        found[canonicalize_name(name)] = package.version
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")
            ):
                waiting.append((needed.name, needed.extras))
    return found


if __name__ == "__main__":
    print(HEAD.format(version=sys.version_info, platform=sys.platform), end="")
    for name, version in sorted(closure().items()):
        print(f"{name}=={version.partition('+')[0]}")
