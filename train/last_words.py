"""End this process at once, from any thread and whatever the others do."""

import contextlib
import os
from typing import NoReturn

_SHOW_CURSOR = "\x1b[?25h"
"""Progress bars hide it."""


def say(text: str) -> None:
    """Write a line past Python's and Rich's locks, which a thread that hangs may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def end(code: int, text: str) -> NoReturn:
    """Say why, and end. Nothing is closed or saved: that may be just what hangs."""
    say(f"{_SHOW_CURSOR if os.isatty(2) else ''}{text}")
    os._exit(code)
