"""A run of several processes ends in all of them when it ends in one.

A process that is killed leaves the others waiting in a collective operation for minutes, until
JAX ends them with a native stack that names nobody. So each process writes a record (see
`train.attendance`) to the key-value store of JAX's coordination service once a second. Process 0,
which runs that service, reads them all and judges; the others read process 0's, with its verdict,
so that the traffic grows with the number of processes and not with its square.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

from genjax.errors import UserError
from genjax.parallel.processes import coordination
from train.attendance import FAILED_GRACE, Attendance, Record
from train.last_words import end, say

PROCESS_LOST = 6
"""Exit code where another process was lost or failed."""

BEAT_SECONDS = 1.0
"""Between a process' records."""

_KEYS = "genjax/peers/"

_ANSWER_SECONDS = 2.0
"""The service answers in milliseconds: after so long without it, look whether it is there."""


class Peers:
    """The other processes of a run; a run of one process has none, and nothing is done.

    Attributes:
        checkpoints: where the run's checkpoints lie, once that is known, for the message.
    """

    def __init__(self, lost_seconds: float = 30.0) -> None:
        """Set up; nothing is watched before `watch`.

        Args:
            lost_seconds: how long a process may stay silent before it counts as lost.
        """
        self.checkpoints: Path | None = None
        here = coordination()
        self._store: Any = here.client
        self._index, self._count = int(here.process_id), int(here.num_processes)
        self._address: str = here.coordinator_address or ""
        self._alone = self._store is None or self._count == 1
        self._record = Record(0, socket.gethostname(), os.getpid())
        self._writing = threading.Lock()
        self._ending = self._ended_of_error = False
        self._over = threading.Event()
        self._answered = time.monotonic()
        watched = range(1, self._count) if self._index == 0 else [0]
        self._attendance = Attendance(watched, self._count, lost_seconds, self._answered)

    @contextlib.contextmanager
    def watch(self) -> Iterator["Peers"]:
        """Watch the others during the block, and wait at its end until they are at theirs.

        Where another process is lost or failed, this one ends at once with `PROCESS_LOST` and a
        message that names it. Start it right after the processes found each other: from then on
        all have to be heard of.
        """
        if self._alone:
            yield self
            return
        threads = [
            threading.Thread(target=work, name="peers", daemon=True)
            for work in (self._beat, self._judge)
        ]
        with _aborts_delayed():
            for thread in threads:
                thread.start()
            try:
                yield self
            except Exception as error:
                self.on_error(type(error), error, error.__traceback__)
                raise
            self._leave()
            for thread in threads:
                thread.join()

    def on_error(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        """Deal with an error of this process; made to be pushed on an `ExitStack`, last of all.

        An operation between processes fails when one of them is gone. Before an error counts as
        this process' own, the others therefore have to be heard of once more; if they are not, the
        process ends as `watch` says. It ends at once with an error of its own as well: what closes
        on the way out would wait for others that are not coming. Only a user's mistake passes, for
        most often all processes make it.
        """
        del kind, trace
        if self._alone or self._ended_of_error or not isinstance(error, Exception):
            return False
        self._ended_of_error = True
        first = (str(error).splitlines() or [""])[0][:200]
        if isinstance(error, UserError):
            self._ending = True
            self._write_soon("failed", first)
            # Before process 0 ends the others, where they did not make the same mistake.
            patience = 3 * FAILED_GRACE if self._index == 0 else FAILED_GRACE + BEAT_SECONDS
            timer = threading.Timer(patience, end, [2, str(error)])
            timer.daemon = True
            timer.start()
            return False
        since = time.monotonic()
        while not self._all_lived(since):
            time.sleep(BEAT_SECONDS / 10)
        say("".join(traceback.format_exception(error)))
        self.fail(f"{type(error).__name__}: {first}")
        end(1, f"process {self._index} of {self._count} ends with this error")

    def fail(self, reason: str) -> None:
        """Tell the others that this process ends with an error, before it does.

        Takes some seconds in process 0, whose end cuts the others off.
        """
        if self._alone:
            return
        self._ending = True
        self._write_soon("failed", reason)
        if self._index == 0:
            time.sleep(FAILED_GRACE + 3 * BEAT_SECONDS)

    def _leave(self) -> None:
        """Wait until all others are here too: process 0 tells when they are."""
        if self._index != 0:
            self._write("done")
        while not self._attendance.all_done():
            time.sleep(BEAT_SECONDS / 20)
        self._ending = True
        self._write("done")
        self._over.set()

    def _all_lived(self, since: float) -> bool:
        """Whether all others are known to have lived after a moment."""
        if self._index == 0:
            now = time.monotonic()
            return self._attendance.quietest(now) < now - since
        record = self._attendance.record(0)
        return record is not None and self._attendance.lived(0) - record.quietest > since

    def _write(self, state: Any = None, text: str = "", verdict: str = "") -> None:
        """Write this process' record, with changes if there are any."""
        with self._writing:
            self._record = dataclasses.replace(
                self._record,
                beat=self._record.beat + 1,
                state=state or self._record.state,
                text=text or self._record.text,
                verdict=verdict or self._record.verdict,
                quietest=self._attendance.quietest(time.monotonic()),
            )
            # A service that is gone answers with an error or not at all: both are silence.
            with contextlib.suppress(Exception):
                key = f"{_KEYS}{self._index}"
                self._store.key_value_set(key, self._record.dump(), allow_overwrite=True)

    def _write_soon(self, *changes: Any) -> None:
        """The same in a process that is ending: it does not wait for a service that is gone."""
        thread = threading.Thread(target=self._write, args=changes, daemon=True)
        thread.start()
        thread.join(2 * BEAT_SECONDS)

    def _beat(self) -> None:
        """Once a second write this process' record and read the others'."""
        while not self._over.is_set():
            self._write()
            with contextlib.suppress(Exception):
                if self._index == 0:
                    found = self._store.key_value_dir_get(_KEYS)
                else:
                    found = [(f"{_KEYS}0", self._store.key_value_try_get(f"{_KEYS}0"))]
                self._answered = time.monotonic()
                for key, value in found:
                    process = int(key.removeprefix(_KEYS))
                    self._attendance.hear(process, Record.load(value), self._answered)
            self._over.wait(BEAT_SECONDS)

    def _judge(self) -> None:
        """End the process when another one is lost or failed.

        A thread of its own, for without process 0's machine a question to it can wait for minutes.
        """
        while not self._over.wait(BEAT_SECONDS / 4):
            now = time.monotonic()
            verdict = self._attendance.verdict(now)
            if self._index != 0:
                record = self._attendance.record(0)
                verdict = (record.verdict if record is not None else "") or verdict
                if not verdict and now - self._answered > _ANSWER_SECONDS and self._refused():
                    verdict = f"{self._attendance.name(0)} is gone: its port is closed"
            if verdict and not self._ending:
                self._end(verdict)

    def _refused(self) -> bool:
        """Whether process 0's machine answers that nobody listens at the service's port.

        JAX is ending this process then, if only after some seconds (`_aborts_delayed`).
        """
        host, port = self._address.rsplit(":", 1)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False

    def _end(self, verdict: str) -> NoReturn:
        if self._index == 0:
            # The others have to read it before the service ends with this process.
            self._write_soon(None, "", verdict)
            time.sleep(3 * BEAT_SECONDS)
        step = self._newest_step()
        start = "there is no checkpoint yet" if step is None else f"it goes on from step {step}"
        end(PROCESS_LOST, f"\n{verdict}; stopping. Start the same command on all again: {start}")

    def _newest_step(self) -> int | None:
        """The step of the newest checkpoint on disk."""
        if self.checkpoints is None:
            return None
        with contextlib.suppress(OSError):
            names = [path.name for path in self.checkpoints.iterdir()]
            return max((int(name) for name in names if name.isdigit()), default=None)
        return None


@contextlib.contextmanager
def _aborts_delayed() -> Iterator[None]:
    """Let a native abort wait for some seconds, in which other threads can say why it comes.

    When process 0 is gone, JAX aborts the others within a millisecond, with a native stack. The
    handler of the signal is the C library's own `sleep`, called with the signal's number: six
    seconds in the thread that aborts, without Python; then the abort takes its course.
    """
    library = ctypes.CDLL(None)
    install = library.signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = install(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGABRT, before)
