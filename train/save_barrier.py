"""Where several processes wait for each other while a checkpoint is written."""

import itertools
import time
from typing import Any

from genjax.parallel.processes import coordination

_POLL_SECONDS = (0.01, 0.25)
"""Between two looks of process 0 for the others: at first, and at most."""

_barriers = itertools.count()
"""Numbers the barriers of a process; the same in all, which open checkpoints in one order."""


class SaveBarrier:
    """All processes go on with a checkpoint, or none does.

    Orbax lets every process wait for the others before it commits a checkpoint, and once more at
    the end of each save, failed or not. A process that could not write its part skips to the end,
    so with Orbax's own barriers the others would wait for it in another place until a timeout of
    minutes. Here each process tells where it waits. Process 0 looks once all wait, and if they do
    not wait in the same place the save has failed everywhere.

    Give it to Orbax as the function that waits; see `ocp.AsyncOptions`.
    """

    def __init__(self) -> None:
        here = coordination()
        self._store: Any = here.client
        self._index, self._count = int(here.process_id), int(here.num_processes)
        self._prefix = f"genjax/saves/{next(_barriers)}/"
        self._number = 0
        self._failed = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Wait until all processes wait.

        Args:
            key: the place where this process waits.
            timeout_ms: milliseconds to wait at most.

        Raises:
            OtherProcessFailed: another one skipped this place.
            RuntimeError: the time is over.
        """
        # After a failure each process finds its own way to the end of the save.
        if self._store is None or self._failed:
            return
        here = f"{self._prefix}{self._number}/"
        self._store.key_value_set(f"{here}at/{self._index}", key)
        if self._index == 0:
            verdict = self._judge(here, timeout_ms / 1000)
            self._store.key_value_set(f"{here}verdict", verdict)
            # All are here, so all have read the one before.
            self._store.key_value_delete(f"{self._prefix}{self._number - 1}/")
        else:
            verdict = self._store.blocking_key_value_get(f"{here}verdict", timeout_ms)
        self._number += 1
        if verdict != "go":
            self._failed = True
            # At the end of a save, where its value is set, there is nothing left to stop.
            if "set_value" not in key:
                raise OtherProcessFailed

    def _judge(self, here: str, seconds: float) -> str:
        end, pause = time.monotonic() + seconds, _POLL_SECONDS[0]
        while True:
            places = [place for _, place in self._store.key_value_dir_get(f"{here}at/")]
            if len(places) == self._count:
                return "go" if len(set(places)) == 1 else "failed"
            if time.monotonic() > end:
                return "failed"
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS[1])

    def reset(self) -> None:
        """Start afresh after a failed save, in all processes once none waits any more."""
        self._failed = False


class OtherProcessFailed(RuntimeError):
    """Another process could not write its part of a checkpoint."""

    def __init__(self) -> None:
        super().__init__("another process could not write its part")
