"""Command lines: flags whose mistakes are one sentence, and `--set NAME=VALUE ...`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a mistake raises UserError: one sentence, without the usage of every flag."""

    def error(self, message: str):
        raise UserError(f"{message}; {self.prog} --help explains every flag")


def path(text: str) -> Path:
    """A flag's path with ~ and $VARIABLES filled in: the shell leaves them in --out=~/images.

    An empty one is refused, and a ~ or variable that stands for nothing: the files would lie in
    this folder, or in one named $SCRATCH.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; give one (is a shell variable unset?)")
    filled = os.path.expandvars(os.path.expanduser(text))
    unset = re.match(r"~[^/\\]*", filled) or re.search(r"\$(\w+|\{\w+\})", filled)
    if unset and not os.path.exists(text):
        raise argparse.ArgumentTypeError(
            f"{unset[0]} in {text} stands for nothing here; set it or give the path without it"
        )
    return Path(filled)


def check_device(device: str, *, here: bool = True) -> None:
    """Raise UserError unless `device` is auto, cpu, cuda or cuda:N, and (`here`) is there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device} is none of auto, cpu, cuda and cuda:N")
    if not here or device in ("auto", "cpu"):
        return
    import torch  # seconds, which the commands without a device need not wait

    if int(device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device} is not on this machine; use --device cpu")


def check_compiler() -> None:
    """Raise UserError where torch.compile would find no C++ compiler or none of Python's headers,
    which its kernels (on a GPU Triton's launcher) include, long after the start."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler: install g++, or start without --compile")
    headers = Path(sysconfig.get_path("include", "nt" if os.name == "nt" else "posix_prefix"))
    if not (headers / "Python.h").exists():
        raise UserError(f"--compile needs Python's headers, and {headers} has no Python.h: install "
                        "python3-dev (or this version's), or start without --compile")


def options_of(pairs: Sequence[str], methods: Mapping[str, Any]) -> dict[str, dict]:
    """{method: the hyper-parameters that --set gives it} from NAME=VALUE and METHOD.NAME=VALUE.

    methods: name -> what has `defaults` and `ranges`. Raises UserError as `parse_options`, for
    NAME=VALUE with several methods and for a method that is not run.
    """
    by_method: dict[str, list[str]] = {name: [] for name in methods}
    for pair in pairs:
        method, dot, _ = pair.partition("=")[0].rpartition(".")
        if dot:
            if method not in by_method:
                raise UserError(f"--set {pair}: {method} is none of --methods {' '.join(methods)}")
            by_method[method].append(pair[len(method) + 1 :])
        elif len(methods) > 1:
            raise UserError(
                f"--set {pair} speaks of one method of several: write METHOD.{pair}"
            )
        else:
            by_method[next(iter(methods))].append(pair)
    return {
        name: parse_options(own, name, methods[name].defaults, methods[name].ranges)
        for name, own in by_method.items()
    }


def parse_options(pairs: Sequence[str], method: str, defaults: Mapping, ranges: Mapping) -> dict:
    """The values that `pairs` ("NAME=VALUE") give, each in the type of its default.

    ranges: name -> (lowest, highest) value, both allowed; of a word, those it may be. Raises
    UserError for text without "=", a name that the method does not have or that is given twice, a
    value of another type or out of range.
    """
    values: dict = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write NAME=VALUE without blanks")
        if name not in defaults:
            known = ", ".join(f"{key} ({value})" for key, value in defaults.items()) or "none"
            raise UserError(f"--set {name}: {method} has no such hyper-parameter; it has: {known}")
        if name in values:
            raise UserError(f"--set {name} is given twice")
        kind = type(defaults[name])
        if kind is str:
            if text not in ranges[name]:
                raise UserError(f"--set {pair}: {name} of {method} must be one of "
                                f"{', '.join(ranges[name])}")
            values[name] = text
            continue
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise UserError(f"--set {pair}: {name} of {method} must be {wanted}") from None
        low, high = ranges[name]
        if not low <= value <= high:
            raise UserError(f"--set {pair}: {name} of {method} must lie between {low} and {high}")
        values[name] = value
    return values
