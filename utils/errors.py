"""A user's mistake is one sentence on stderr and exit code 2; other errors keep their traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """The user can mend this: the message names the file or flag and the remedy."""


def exit_cleanly(main: Callable) -> Callable:
    """Wrap a command's main so that a UserError prints `error: <sentence>` and exits with 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
