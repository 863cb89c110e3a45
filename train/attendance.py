"""When each process of a run was last heard of, and which of them is lost. It reads no clock."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Literal

FAILED_GRACE = 10.0
"""Seconds that a process may go on after another one failed: most often it is about to fail of the
same, and has a message of its own."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What a process says of itself once a second.

    Attributes:
        beat: grows with every record: what does not change is old.
        host: the machine's name.
        pid: the process id there.
        state: "running", "done" (it ended well) or "failed" (it ends with an error).
        text: what it failed of.
        quietest: process 0 alone: seconds since all others that run are known to have lived.
        verdict: process 0 alone: why all have to end, or "".
    """

    beat: int
    host: str
    pid: int
    state: Literal["running", "done", "failed"] = "running"
    text: str = ""
    quietest: float = 0.0
    verdict: str = ""

    def dump(self) -> str:
        """As text, for the store."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> "Record":
        """The inverse of `dump`."""
        return cls(**json.loads(text))


class Attendance:
    """Keeps the newest record of each process, and since when it is the newest.

    All times are seconds of one clock that only moves forward.
    """

    def __init__(self, processes: Iterable[int], count: int, limit: float, now: float) -> None:
        """Start to wait for them.

        Args:
            processes: the processes to hear of.
            count: how many processes the run has, for messages.
            limit: seconds without a new record after which a process counts as lost.
            now: the time.
        """
        self._records: dict[int, Record | None] = dict.fromkeys(processes)
        self._heard = dict.fromkeys(self._records, now)
        self._lived = dict.fromkeys(self._records, now)
        self._count = count
        self._limit = limit

    def hear(self, process: int, record: Record, now: float) -> None:
        """Take in what was read of a process; an old record counts for nothing.

        Once it failed nothing more is heard of a process: it may still beat until it has ended.
        """
        before = self._records.get(process)
        failed = before is not None and before.state == "failed"
        if process in self._records and record != before and not failed:
            self._records[process] = record
            # It was written after the one before was read, and that is all that is certain.
            self._lived[process] = self._heard[process]
            self._heard[process] = now

    def lived(self, process: int) -> float:
        """The latest moment at which a process is known to have lived."""
        return self._lived[process]

    def name(self, process: int) -> str:
        """A process for a message: "process 1 of 2 (host node-3, pid 4711)"."""
        record = self._records[process]
        where = "" if record is None else f" (host {record.host}, pid {record.pid})"
        return f"process {process} of {self._count}{where}"

    def record(self, process: int) -> Record | None:
        """The newest record of a process, or None before the first."""
        return self._records[process]

    def quietest(self, now: float) -> float:
        """Seconds since the latest moment at which all that run are known to have lived."""
        return max((now - self._lived[process] for process in self._running()), default=0.0)

    def all_done(self) -> bool:
        """Whether every process ended well."""
        return all(r is not None and r.state == "done" for r in self._records.values())

    def verdict(self, now: float) -> str:
        """Which process is lost or failed, as the start of a message, or ""."""
        for process in self._running():
            if (silent := now - self._heard[process]) > self._limit:
                return f"{self.name(process)} has not been heard of for {silent:.0f} s"
        for process, record in self._records.items():
            if record is None or record.state != "failed":
                continue
            if now - self._heard[process] > FAILED_GRACE:
                return f"{self.name(process)} ended with an error: {record.text}"
        return ""

    def _running(self) -> list[int]:
        return [p for p, r in self._records.items() if r is None or r.state == "running"]
