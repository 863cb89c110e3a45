"""Errors of Orbax in a few words, and off stderr: it prints hundreds of lines of what it raises."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_ORPHAN = "Event loop is closed"
"""What a write or read says that ends after the others of its checkpoint failed."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Orbax's abandoned tasks print, hundreds of lines for a damaged file, off stderr."""
    before = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = sys.excepthook = lambda *_: None
    try:
        yield
    except Exception:
        # The tasks of the other arrays fail or are thrown away just after the first.
        time.sleep(0.1)
        gc.collect()
        raise
    finally:
        sys.unraisablehook, sys.excepthook = before


@contextmanager
def without_orphans() -> Iterator[None]:
    """Keep off stderr what writes tell that outlive their failed checkpoint."""
    before = sys.unraisablehook, sys.excepthook

    def unraisable(report: Any) -> None:
        if str(report.exc_value) != _ORPHAN:
            before[0](report)

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if str(error) != _ORPHAN:
            before[1](kind, error, trace)

    sys.unraisablehook, sys.excepthook = hooks = unraisable, uncaught
    try:
        yield
    finally:
        if (sys.unraisablehook, sys.excepthook) == hooks:
            sys.unraisablehook, sys.excepthook = before


def all_text(error: BaseException | None) -> str:
    """The messages of an error and its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


_PLAIN_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
)


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    text = all_text(error)
    for words in _PLAIN_WORDS:
        if words in text:
            return words.lower()
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]
