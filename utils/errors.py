"""A user's mistake is one sentence on stderr and exit code 2; other errors keep their traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


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

    Ctrl-C ends with 130: whatever a command had written, the same command goes on from there.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
