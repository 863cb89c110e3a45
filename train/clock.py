"""Wall time of a run over its interruptions, and the speed of its steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Clock:
    """Measures steps between two readings; evaluation, samples and saves do not count."""

    def __init__(self, step: int, seconds_before: float) -> None:
        """Start at `step`, after `seconds_before` of earlier sessions of the run."""
        self._step = step
        self._began = self._since = time.perf_counter()
        self._before = seconds_before

    def seconds(self) -> float:
        """Wall time of the run in seconds, summed over its sessions."""
        return self._before + time.perf_counter() - self._began

    def read(self, step: int) -> float | None:
        """Seconds a step since the last reading; None where no step was timed."""
        now = time.perf_counter()
        steps = step - self._step
        step_time = (now - self._since) / steps if steps > 0 else None
        self._step, self._since = step, now
        return step_time

    def restart(self, step: int) -> None:
        """Begin to time anew: the steps up to `step` were not ordinary ones (compilation)."""
        self._step, self._since = step, time.perf_counter()

    @contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Leave out what is done inside; the steps on their way are waited for and do count."""
        jax.block_until_ready(state)
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - stopped
