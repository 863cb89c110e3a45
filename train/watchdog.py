"""A run that makes no progress ends itself, and shows where each of its threads stands."""

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable
from types import TracebackType

from train.last_words import end, say

HUNG = 5
"""Exit code of a run that made no progress."""

PATIENCE = 4
"""How many times the limit all that is not a step may take: a program for a pod can compile for
half an hour, and samples are made without a word from inside."""


class Watchdog:
    """A thread that ends the process when it was not told for too long that the run is alive.

    As a context manager it watches while the block runs; outside of it, nothing is watched.
    """

    def __init__(
        self, minutes: float | None, last_words: Callable[[str], None] = lambda text: None
    ) -> None:
        """Set up; nothing is watched before the block starts.

        Args:
            minutes: the longest time without a step; None watches nothing.
            last_words: told why the process ends, right before it does.
        """
        self._limit = None if minutes is None else 60 * minutes
        self._last_words = last_words
        self._told = (time.monotonic(), 0, "starting", PATIENCE)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self, step: int) -> None:
        """Say that so many steps are done, and that the next one is under way."""
        self._told = (time.monotonic(), step, "a step", 1)

    def doing(self, step: int, what: str) -> None:
        """Say that something else began, or got on: it may take `PATIENCE` times as long.

        Args:
            step: how many steps are done.
            what: such as "evaluation", for the message.
        """
        self._told = (time.monotonic(), step, what, PATIENCE)

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            self.doing(0, "starting")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        every = min(self._limit / 4, 5.0)
        try:
            while not self._over.wait(every):
                # Should a thread hang with the interpreter's lock, this one never runs again: then
                # a timer that needs no lock shows the stacks, and ends the process with 1.
                faulthandler.dump_traceback_later(PATIENCE * self._limit + 60, exit=True, file=2)
                told, step, what, patience = self._told
                silent = time.monotonic() - told
                if silent > patience * self._limit:
                    self._expire(silent, step, what)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _expire(self, silent: float, step: int, what: str) -> None:
        text = f"no progress for {_duration(silent)}: step {step}, {what}"
        say(f"\n{text}; the stacks of all threads:")
        faulthandler.dump_traceback(file=2, all_threads=True)
        with contextlib.suppress(Exception):
            self._last_words(text)
        end(
            HUNG,
            f"{text}; ended. The same command goes on from the newest checkpoint; "
            "faults.hang_minutes sets the limit",
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
