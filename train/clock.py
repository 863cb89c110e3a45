"""Wall time of a run over its interruptions: what it went into, and the speed of its steps."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import jax

from train.run_directory import RunDirectory
from train.writers import newest

Spent = Literal[
    "training",
    "startup",
    "compilation",
    "evaluation",
    "samples",
    "saving",
    "input",
    "profiling",
    "lost",
]
"""What a run's wall time goes into.

training: steps whose result was kept; the only useful part
startup: imports, data, initialisation or restoring, up to the first step of each session
compilation: the first call of each compiled step
input: waits for a batch at whose end the devices had nothing left to do
lost: steps that were done again, because a session ended before their checkpoint
"""


def earlier_sessions(run: RunDirectory, step: int) -> dict[str, float]:
    """What the earlier sessions' wall time went into, for a run that goes on after `step`.

    The time of steps after `step` moves from "training" to "lost". What came after the last
    line of a session that was killed is not known, and left out. Call before the log's lines of
    later steps are dropped.
    """
    last = _account(newest(run, "speed", "seconds"))
    kept = _account(newest(run, "speed", "seconds", step))
    training = kept.get("training", 0.0)
    lost = max(last.get("training", 0.0) - training, 0.0)
    return last and {**last, "training": training, "lost": last.get("lost", 0.0) + lost}


def _account(entry: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `Clock.account`; what an entry does not account for was training."""
    if not entry:
        return {}
    others = {
        name.removeprefix("seconds_"): float(value)
        for name, value in entry.items()
        if name.startswith("seconds_")
    }
    return {**others, "training": entry["seconds"] - sum(others.values())}


class Clock:
    """Accounts for the wall time of a run, and measures steps between two readings.

    At each moment the time goes into one thing: start-up until `begin`, training after it, and
    what `spending` says inside of its block.
    """

    def __init__(
        self,
        step: int,
        before: Mapping[str, float] | None = None,
        began: float | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Go on at `step`.

        Args:
            step: the steps done.
            before: what the wall time of earlier sessions went into, of `earlier_sessions`.
            began: when this session began, a reading of `now`; now by default.
            now: the time in seconds.
        """
        self._now = now
        self._step, self._since = step, now()
        self._waited = 0.0
        self._spent: dict[str, float] = dict(before or {})
        self._kind: Spent = "startup"
        self._kind_since = self._since if began is None else began

    def _turn_to(self, kind: Spent) -> None:
        now = self._now()
        self._spent[self._kind] = self._spent.get(self._kind, 0.0) + now - self._kind_since
        self._kind, self._kind_since = kind, now

    def begin(self) -> None:
        """The start-up is over: from here on, time is training."""
        self._turn_to("training")

    @contextmanager
    def spending(self, kind: Spent) -> Iterator[None]:
        """Account for the time inside; also a decorator. An inner block takes its own out."""
        outer = self._kind
        self._turn_to(kind)
        try:
            yield
        finally:
            self._turn_to(outer)

    def move(self, seconds: float, kind: Spent) -> None:
        """Account for time that has just passed as something else than was said."""
        self._spent[self._kind] = self._spent.get(self._kind, 0.0) - seconds
        self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    @contextmanager
    def waiting(self, out_of_work: Callable[[], bool]) -> Iterator[None]:
        """Wait for a batch inside.

        The wait counts where the devices are out of work at its end: while they have some, a
        host that waits keeps nothing from its work.
        """
        began = self._now()
        yield
        if out_of_work():
            waited = self._now() - began
            self._waited += waited
            self.move(waited, "input")

    def account(self) -> dict[str, float]:
        """The wall time so far, as it is logged.

        Returns:
            "seconds", their share of training as "goodput", and of each other thing that
            took any time "seconds_startup", "seconds_lost" and so on.
        """
        self._turn_to(self._kind)
        total = sum(self._spent.values())
        training = self._spent.get("training", 0.0)
        parts = {
            f"seconds_{kind}": round(seconds, 3)
            for kind, seconds in self._spent.items()
            if kind != "training" and round(seconds, 3)
        }
        goodput = round(max(training, 0.0) / total, 4) if total > 0 else 0.0
        return {"seconds": round(total, 3), "goodput": goodput, **parts}

    def read(self, step: int) -> tuple[float, float] | None:
        """Seconds a step since the last reading, and the share of them that was input wait.

        None where no step was timed.
        """
        now = self._now()
        steps, elapsed = step - self._step, now - self._since
        timed = None
        if steps > 0:
            timed = elapsed / steps, min(self._waited / elapsed, 1.0) if elapsed > 0 else 0.0
        self._step, self._since, self._waited = step, now, 0.0
        return timed

    def restart(self, step: int) -> None:
        """Begin to time anew: the steps up to `step` were not ordinary ones (compilation)."""
        self._step, self._since, self._waited = step, self._now(), 0.0

    @contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Leave out what is done inside; the steps on their way are waited for and do count."""
        jax.block_until_ready(state)
        stopped = self._now()
        try:
            yield
        finally:
            self._since += self._now() - stopped
