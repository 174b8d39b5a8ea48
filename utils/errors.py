"""A user's mistake is one sentence on stderr and exit code 2; other errors keep their traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

SYSTEMS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
           errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN)  # fmt: skip


class UserError(Exception):
    """The user can mend this: the message names the file or flag and the remedy."""


def reason(error: Exception) -> str:
    """The first line of what a reader raised, to be quoted in a UserError.

    Where torch refuses a file that is more than tensors it advises how to execute it all the same:
    that advice is left out.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    refused = line.startswith("Weights only load failed")
    return "it is no file of plain tensors" if refused else line


def exit_cleanly(main: Callable) -> Callable:
    """Wrap a command's main so that a UserError prints `error: <sentence>` and exits with 2.

    So does what the operating system refuses: a disk that fails, a folder that may not be read.
    Ctrl-C ends with 130: rerun the same command to resume from what it had written.
    A reader that stops early (`| head`) ends it with 141, as the shell's own commands. What the
    terminal cannot show of a file's name is printed as an escape.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except UserError as error:
            _refuse(str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _is_stdout_closed():
                raise SystemExit(141) from None
            if error.errno is None:  # a library's own
                raise
            _refuse(system_reason(error))
        except KeyboardInterrupt:
            print("\nInterrupted; rerun the same command to resume.", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def is_systems(error: BaseException) -> bool:
    """Whether it says that the operating system refused: no right, a failing disk, too many open
    files. What the file holds is then not known, and to copy or delete it would not help."""
    return isinstance(error, OSError) and error.errno in SYSTEMS


def system_reason(error: OSError) -> str:
    """What the operating system said of which file, as a sentence with what to do."""
    files = " and ".join(os.fsdecode(file) for file in (error.filename, error.filename2)
                         if isinstance(file, str | bytes | os.PathLike))
    said = error.strerror or type(error).__name__
    what = f"{files}: {said}" if files else f"the operating system refused: {said}"
    return f"{what}; mend that and start the same command again"


def _refuse(sentence: str) -> NoReturn:
    print("error:", " ".join(sentence.split()), file=sys.stderr)  # one line
    raise SystemExit(2) from None


def _is_stdout_closed() -> bool:
    """Whether nobody reads stdout; what is still buffered for it is then thrown away."""
    try:
        print(flush=True)
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
