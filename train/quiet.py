"""Keeps off stderr what Orbax prints of errors that it also raises: hundreds of lines each."""

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
