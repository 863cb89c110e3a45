"""Several processes stop at the same moment, whichever of them was asked to."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

from genjax.parallel.processes import coordination
from train.signals import StopRequest

_LOOK_SECONDS = 0.5
"""Between two looks for a request of another process."""

_TRIES = 3

_runs = itertools.count()
"""Numbers the runs of a sweep; the same in all processes, which go through them in one order."""


class AgreedStop(StopRequest):
    """A request that comes up at the same poll in every process.

    All processes go through the same program, so the number of polls is a clock that they share. A
    thread of each learns of a request, tells the others how many polls its process has made, and
    waits to hear theirs. From then on a poll waits until all have told, and the request comes up at
    the first poll that no process has made yet. The threads wait for nothing else, so this cannot
    hang; a process that learns late waits for nobody in the meantime.
    """

    def __init__(self, own: StopRequest) -> None:
        """Start the thread.

        Args:
            own: what this process itself was asked.
        """
        super().__init__()
        self._own = own
        here = coordination()
        self._store: Any = here.client
        self._index, self._count = int(here.process_id), int(here.num_processes)
        self._prefix = f"genjax/stop/{next(_runs)}/"
        self._lock = threading.Lock()
        self._polls = 0
        self._told = False
        self._last: int | None = None
        """The polls made by the process that was furthest when all told."""
        self._known = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agreement", daemon=True)
        self._thread.start()

    def __bool__(self) -> bool:
        with self._lock:
            self._polls += 1
            polls, told = self._polls, self._told
        if not told:
            return False
        self._known.wait()
        return self._last is not None and polls > self._last

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            if self._own.signal_name is not None:
                self._write("request", self._own.signal_name)
            request = self._own.signal_name or self._read("request")
            if request is None:
                continue
            self._tell()
            while len(polls := self._all_told()) < self._count:
                if self._over.wait(_LOOK_SECONDS / 10):
                    break
            self.signal_name = request
            self._last = max(polls, default=0)
            self._known.set()
            return

    def _tell(self) -> None:
        with self._lock:
            self._told = True
            polls = self._polls
        self._write(f"polls/{self._index}", str(polls))

    def _all_told(self) -> list[int]:
        with contextlib.suppress(Exception):
            return [
                int(value) for _, value in self._store.key_value_dir_get(self._prefix + "polls/")
            ]
        return []

    def _read(self, name: str) -> str | None:
        # The store raises where there is no such key.
        with contextlib.suppress(Exception):
            return self._store.key_value_try_get(self._prefix + name)
        return None

    def _write(self, name: str, value: str) -> None:
        # Others wait for what is told once: do not give up at the first failure of the network.
        for _ in range(_TRIES):
            with contextlib.suppress(Exception):
                self._store.key_value_set(self._prefix + name, value, allow_overwrite=True)
                return
            time.sleep(_LOOK_SECONDS / 10)

    def close(self) -> None:
        """No more polls will come: another process that still asks is told so."""
        if not self._told:
            self._tell()
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def agreed(own: StopRequest) -> Iterator[StopRequest]:
    """A request that all processes of a run see at the same poll; `own` itself where it is one."""
    if coordination().client is None:
        yield own
        return
    stop = AgreedStop(own)
    try:
        yield stop
    finally:
        stop.close()
