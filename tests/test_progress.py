"""Progress bars: whole lines in a log, redraws on a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import time
from utils import progress
progress.EVERY = {every}
for _ in progress.progress(range(60), desc="work", unit="step", leave={leave}):
    time.sleep(0.01)
bar = progress.progress(total=5, desc="by hand")
for _ in range(5):
    bar.update()
    bar.set_postfix(loss=1.0)
bar.close()
"""


def stderr_of(every: float, leave: bool) -> str:
    script = SCRIPT.format(every=every, leave=leave)
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=60).stderr


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_gets_whole_lines_now_and_then(leave):
    text = stderr_of(0.2, leave)
    assert "\r" not in text
    lines = text.splitlines()
    assert 2 <= len(lines) <= 5  # of 60 steps in 0.6 s
    assert all(re.match(r"work: +\d+%.* \d+/60 \[", line) for line in lines)
    assert " 60/60 [" in lines[-1]


def test_what_is_over_soon_says_nothing():
    assert stderr_of(60, True) == ""


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_sees_redraws():
    import pty
    import termios

    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    subprocess.run([sys.executable, "-c", SCRIPT.format(every=60, leave=True)], cwd=ROOT,
                   stderr=follower, check=True, timeout=60)
    os.close(follower)
    read = []
    with suppress(OSError):  # the end, on Linux
        while part := os.read(leader, 2**16):
            read.append(part)
    os.close(leader)
    text = b"".join(read).decode()
    assert text.count("\rwork") > 3 and "60/60" in text and "by hand" in text


def test_every_bar_is_of_this_kind():
    rooms = ("datasets", "models", "prompts", "stable_diffusion", "utils")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    users = {str(file.relative_to(ROOT)) for file in files if "tqdm" in file.read_text()}
    assert users == {str(Path("utils/progress.py"))}
