"""Where metrics and samples go: JSON lines always, TensorBoard and Weights & Biases if asked."""

import collections
import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from genjax.run_config import RunConfig
from genjax.task import Sample
from train.log_services import TensorBoard, WeightsAndBiases
from train.run_directory import RunDirectory


@runtime_checkable
class Writer(Protocol):
    """One place where a run's figures go."""

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the named values of one kind ("train", "validation", ..) at a step."""

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write generated samples."""

    def close(self) -> None:
        """Write what is left."""


class LineFile:
    """A file of lines that outlives a full disk: what cannot be written is tried again later."""

    def __init__(self, path: Path) -> None:
        # Unbuffered, so that each line is in the file when `write` returns, and so that how much
        # of it was written is known when the disk is full.
        self._file = path.open("ab", buffering=0)
        self._left = b""

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            OSError: it could not be written whole; the rest is written before the next line.
        """
        self._left += line.encode("utf-8", errors="replace") + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what is left.

        Raises:
            OSError: it could not be written.
        """
        while self._left:
            self._left = self._left[self._file.write(self._left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_WAITING = 4
"""Steps whose samples wait in memory for room on a full disk; grids of images may be large."""


class JsonLines:
    """`metrics.jsonl` and `samples.jsonl`, written line by line.

    Files of samples go to `samples/STEP/`; those of a step that is done again are overwritten.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        """Open the files and drop what they say of steps after `step`, which will be done again."""
        for path in (run.metrics_file, run.samples_file):
            _drop_after(path, step)
        self._metrics = LineFile(run.metrics_file)
        self._samples = LineFile(run.samples_file)
        self._folder = run.folder
        self._waiting: collections.deque[tuple[int, list[Sample]]] = collections.deque()
        self.samples_lost = 0
        """How many samples were given up because the disk stayed full."""

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        line = {"kind": kind, "step": step} | {key: _finite(value) for key, value in values.items()}
        self._metrics.write(json.dumps(line))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write the samples' files, and append one line a sample to `samples.jsonl`.

        Raises:
            OSError: something could not be written; it is written before the next samples, unless
                more than a few steps' wait by then.
        """
        self._waiting.append((step, list(samples)))
        try:
            self._save_samples()
        except OSError:
            while len(self._waiting) > _WAITING:
                self.samples_lost += len(self._waiting.popleft()[1])
            raise

    def _save_samples(self) -> None:
        while self._waiting:
            step, samples = self._waiting[0]
            while samples:
                fields = samples[0].save(self._folder, f"samples/{step:08d}")
                line = {"step": step, "index": samples.pop(0).index, **fields}
                # From here on the line is the file's to keep.
                self._samples.write(json.dumps(line, ensure_ascii=False))
            self._waiting.popleft()

    def flush(self) -> None:
        """Write what could not be written before.

        Raises:
            OSError: it still cannot be.
        """
        self._metrics.flush()
        self._samples.flush()
        self._save_samples()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._samples.close()


class Writers:
    """All writers of a run as one; a full disk stops none of the training."""

    def __init__(
        self,
        lines: JsonLines | None,
        others: Sequence[Writer] = (),
        tell: Callable[[str], None] = print,
    ) -> None:
        self._lines = lines
        self._others = list(others)
        self._tell = tell
        self._failing = False

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write values to each."""
        self._each(lambda writer: writer.record(kind, step, values))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write samples to each."""
        self._each(lambda writer: writer.samples(step, samples))

    def _each(self, write: Callable[[Writer], None]) -> None:
        if self._lines is not None:
            try:
                write(self._lines)
                self._failing = False
            except OSError as error:
                if not self._failing:
                    self._tell(f"cannot write the log ({error.strerror}); it is tried again later")
                self._failing = True
        for writer in list(self._others):
            try:
                write(writer)
            except OSError as error:
                name = type(writer).__name__
                self._tell(f"logging to {name} ends here ({error.strerror}); metrics.jsonl goes on")
                self._others.remove(writer)
                with contextlib.suppress(OSError):
                    writer.close()

    def problem(self) -> str | None:
        """Why lines are still not in the log, after one more try, or None."""
        try:
            if self._lines is not None:
                self._lines.flush()
        except OSError as error:
            return error.strerror
        if self._lines is not None and self._lines.samples_lost:
            return f"{self._lines.samples_lost} samples found no room on the disk in time"
        return None

    def close(self) -> None:
        """Close each."""
        if self._lines is not None:
            self._lines.close()
        for writer in self._others:
            with contextlib.suppress(OSError):
                writer.close()


def open_writers(
    config: RunConfig, run: RunDirectory, step: int, tell: Callable[[str], None] = print
) -> Writers:
    """The writers that a config asks for, going on after `step`; none but in process 0.

    Args:
        config: the run's config.
        run: its open run directory.
        step: what the logs say of later steps is dropped; -1 drops everything but events.
        tell: gets a line when something cannot be written.
    """
    if jax.process_index() != 0:
        return Writers(None)
    others: list[Writer] = []
    if config.log.wandb_project:
        resolved = json.loads(config.model_dump_json())
        others.append(WeightsAndBiases(config.log.wandb_project, run, resolved))
    if config.log.tensorboard:
        others.append(TensorBoard(run.tensorboard, step))
    return Writers(JsonLines(run, step), others, tell)


def recorded(run: RunDirectory, kind: str, name: str, step: int | None = None) -> Any:
    """The newest value that `metrics.jsonl` holds of a kind and name, or None.

    Args:
        run: the run directory.
        kind: the lines' kind.
        name: the value's name.
        step: only lines of this step.
    """
    values = [
        entry[name]
        for _, entry in _entries(run.metrics_file)
        if entry["kind"] == kind and name in entry and step in (None, entry["step"])
    ]
    return values[-1] if values else None


def recorded_values(run: RunDirectory, kind: str, name: str, last: int) -> list[float]:
    """All numbers that `metrics.jsonl` holds of a kind and name up to a step, in their order."""
    return [
        float(entry[name])
        for _, entry in _entries(run.metrics_file)
        if entry["kind"] == kind
        and entry["step"] <= last
        and (isinstance(entry.get(name), int | float) or entry.get(name) in _NOT_FINITE)
    ]


def newest(run: RunDirectory, kind: str, name: str, last: int | None = None) -> dict[str, Any]:
    """The newest line of `metrics.jsonl` of a kind that has a name, up to a step; {} for none."""
    found: dict[str, Any] = {}
    for _, entry in _entries(run.metrics_file):
        if entry["kind"] == kind and name in entry and (last is None or entry["step"] <= last):
            found = entry
    return found


def has_trained(run: RunDirectory) -> bool:
    """Whether `metrics.jsonl` holds any metric of a training step, whatever the family's are."""
    return any(entry["kind"] == "train" for _, entry in _entries(run.metrics_file))


def has_samples(run: RunDirectory, step: int) -> bool:
    """Whether `samples.jsonl` holds any sample of a step."""
    return any(entry["step"] == step for _, entry in _entries(run.samples_file))


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The intact lines of a log, as text and content; torn or garbled ones are passed over."""
    if not path.exists():
        return
    # Not `splitlines`: texts of samples may hold other line ends, such as U+2028.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield line, {"kind": None} | entry


_NOT_FINITE = ("nan", "inf", "-inf")


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`, and events; a torn last line goes too."""
    if not path.exists():
        return
    kept = [
        line + "\n"
        for line, entry in _entries(path)
        if entry["step"] <= step or entry["kind"] == "event"
    ]
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
