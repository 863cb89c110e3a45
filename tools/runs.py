"""Reading a run directory: what a finished, running or broken run has left on disk.

Every tool that looks at runs starts here. Reading never fails on a half-written last line or on
lines that a crash has cut short: those are left out and counted in `Run.unreadable`.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genjax.errors import UserError

Record = dict[str, Any]

SUBJECT = r"(?:the )?(?:run |training |loss )?(?:was |is |has )?"
ENDINGS = {
    "diverged": re.compile(
        SUBJECT + r"(?:diverged\b|not finite\b|nan\b|stopped at step \d+: )", re.IGNORECASE
    ),
    "stopped": re.compile(
        SUBJECT + r"(?:(?:stopped|interrupted|preempted|killed)\b|step \d+ could not be saved)",
        re.IGNORECASE,
    ),
    "finished": re.compile(SUBJECT + r"(?:finished|completed|done)\b", re.IGNORECASE),
    "open": re.compile(SUBJECT + r"(?:started|resumed)\b", re.IGNORECASE),
}
"""What an event's message begins with, and the state that the run is in from there on.

A run that stops of itself says "stopped at step" and, after a colon, what went wrong.
"""
NOT_FINITE = ("nan", "inf", "-inf")
"""How JSON, which has no such numbers, holds them as text."""


@dataclass(frozen=True)
class Series:
    """One scalar over the steps of a run, steps rising, values possibly not finite."""

    steps: np.ndarray
    """int64 [N]."""
    values: np.ndarray
    """float64 [N]."""


@dataclass(frozen=True)
class Status:
    """How a run stands, read from its events."""

    state: str
    """"finished", "stopped", "diverged", or "open": it runs, or was killed before it could say."""
    step: int
    """The last step that anything was logged at."""
    message: str
    """The event that says so, empty for "open"."""


@dataclass(frozen=True)
class Run:
    """The contents of one run directory. Missing files read as empty."""

    path: Path
    config: Record
    environment: Record
    metrics: list[Record]
    samples: list[Record]
    evaluations: list[Record]
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    """File name to the numbers of its lines (from 1) that hold no JSON object with the keys due."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    def records(self, kind: str) -> list[Record]:
        """The lines of metrics.jsonl of one kind, in the order written."""
        return [record for record in self.metrics if record["kind"] == kind]

    def kinds(self) -> list[str]:
        """Every kind of line in metrics.jsonl, in order of first appearance."""
        return list(dict.fromkeys(record["kind"] for record in self.metrics))

    def series(self, kind: str) -> dict[str, Series]:
        """Every scalar found in lines of this kind, by name, in order of first appearance.

        A run that resumes from a checkpoint writes some steps a second time: what was written
        first for those steps and later ones is dropped, so that steps always rise.
        `null` reads as NaN.
        """
        steps: dict[str, list[int]] = {}
        values: dict[str, list[float]] = {}
        for record in self.records(kind):
            step = record["step"]
            for key, value in scalars(record).items():
                past, kept = steps.setdefault(key, []), values.setdefault(key, [])
                while past and past[-1] >= step:
                    past.pop()
                    kept.pop()
                past.append(step)
                kept.append(value)
        return {
            key: Series(np.asarray(steps[key], np.int64), np.asarray(values[key], np.float64))
            for key in steps
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        """The figures of each trivial baseline, by its name; the last line of a name counts."""
        return {
            str(record["name"]): scalars(record)
            for record in self.records("baseline")
            if "name" in record
        }

    def status(self) -> Status:
        """The ending that the events tell; a later resume takes an ending back."""
        last = max((record["step"] for record in self.metrics), default=0)
        state, told = "open", ""
        for record in self.records("event"):
            message = str(record.get("message", ""))
            for ending, opening in ENDINGS.items():
                if opening.match(message):
                    state, told = ending, "" if ending == "open" else message
                    break
        return Status(state, last, told)


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a line, without its step; flags are no numbers, nor is text but NOT_FINITE.

    `null` is NaN.
    """
    found = {}
    for key, value in record.items():
        if key == "step" or isinstance(value, bool):
            continue
        if value is None:
            found[key] = math.nan
        elif isinstance(value, int | float) or value in NOT_FINITE:
            found[key] = float(value)
    return found


def read_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: the folder is missing, is not a run (it holds neither config.toml nor
            metrics.jsonl), or its config.toml or environment.json cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'}. "
            "Give the directory of a run, the one that train wrote to."
        )
    path = path.resolve()
    if not any((path / name).is_file() for name in ("config.toml", "metrics.jsonl")):
        raise UserError(
            f"{path}: not a run, it holds neither config.toml nor metrics.jsonl.\n"
            "Give the directory that train wrote to."
        )
    unreadable: dict[str, list[int]] = {}

    def lines(name: str, keys: Sequence[str]) -> list[Record]:
        records, broken = _read_lines(path / name, keys)
        if broken:
            unreadable[name] = broken
        return records

    return Run(
        path=path,
        config=_read_table(path / "config.toml", tomllib.loads),
        environment=_read_table(path / "environment.json", json.loads),
        metrics=lines("metrics.jsonl", ("step", "kind")),
        samples=lines("samples.jsonl", ("step",)),
        evaluations=lines("evaluations.jsonl", ()),
        unreadable=unreadable,
    )


def _read_table(path: Path, parse: Callable[[str], Any]) -> Record:
    if not path.is_file():
        return {}
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Restore it from a copy, or remove it."
        ) from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: holds no table. Restore it from a copy, or remove it.")
    return table


def _read_lines(path: Path, keys: Sequence[str]) -> tuple[list[Record], list[int]]:
    """The JSON objects of a file that have these keys, and the numbers of the other lines.

    A last line without its line end is still being written: if it does not parse, it is left out
    and not counted.
    """
    if not path.is_file():
        return [], []
    text = path.read_bytes().decode("utf-8", errors="replace")
    records, broken = [], []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(_valid(record, key) for key in keys):
            records.append(record)
        elif number < len(lines):
            broken.append(number)
    return records, broken


def _valid(record: Record, key: str) -> bool:
    value = record.get(key)
    if key == "step":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)
