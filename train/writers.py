"""Where metrics and samples go: JSON lines always, TensorBoard and Weights & Biases if asked."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from genjax.errors import UserError
from genjax.run_config import RunConfig
from genjax.task import Sample
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


class JsonLines:
    """`metrics.jsonl` and `samples.jsonl`, flushed line by line."""

    def __init__(self, run: RunDirectory, step: int) -> None:
        """Open the files and drop what they say of steps after `step`, which will be done again."""
        for path in (run.metrics_file, run.samples_file):
            _drop_after(path, step)
        self._metrics = run.metrics_file.open("a", encoding="utf-8")
        self._samples = run.samples_file.open("a", encoding="utf-8")

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        line = {"kind": kind, "step": step} | {key: _finite(value) for key, value in values.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Append one line a sample to `samples.jsonl`."""
        for sample in samples:
            line = {"step": step, "index": sample.index, "text": sample.text}
            self._samples.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._samples.flush()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._samples.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open an event file; events after `step` of an earlier one are purged by the viewer."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among the values as scalars named "kind/name"."""
        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{key}", value, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write samples as text."""
        for sample in samples:
            self._writer.add_text(f"sample/{sample.index}", f"```\n{sample.text}\n```", step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project; continues the same run when resumed."""

    def __init__(self, project: str, run: RunDirectory, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"log.wandb_project: {project!r} needs Weights & Biases: pip install genjax[wandb]"
            ) from error
        identity = run.folder.resolve().as_posix().strip("/").replace("/", "-")[-64:]
        self._run = wandb.init(
            project=project,
            id=identity,
            name=run.folder.name,
            dir=run.folder,
            config=dict(config),
            resume="allow",
        )

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the values as "kind/name"."""
        self._run.log({f"{kind}/{key}": value for key, value in values.items()}, step=step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log samples as text."""
        self._run.log({f"sample/{sample.index}": sample.text for sample in samples}, step=step)

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


class Writers:
    """All writers of a run as one."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = list(writers)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write values to each."""
        for writer in self._writers:
            writer.record(kind, step, values)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write samples to each."""
        for writer in self._writers:
            writer.samples(step, samples)

    def close(self) -> None:
        """Close each."""
        for writer in self._writers:
            writer.close()


def open_writers(config: RunConfig, run: RunDirectory, step: int) -> Writers:
    """The writers that a config asks for, going on after `step`; none but in process 0."""
    if jax.process_index() != 0:
        return Writers([])
    writers: list[Writer] = [JsonLines(run, step)]
    if config.log.tensorboard:
        writers.append(TensorBoard(run.tensorboard, step))
    if config.log.wandb_project:
        resolved = json.loads(config.model_dump_json())
        writers.append(WeightsAndBiases(config.log.wandb_project, run, resolved))
    return Writers(writers)


def recorded(run: RunDirectory, kind: str, name: str, step: int | None = None) -> Any:
    """The newest value that `metrics.jsonl` holds of a kind and name (at a step), or None."""
    if not run.metrics_file.exists():
        return None
    value = None
    for line in run.metrics_file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] == kind and name in entry and step in (None, entry["step"]):
            value = entry[name]
    return value


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`; a torn last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step or entry.get("kind") == "event":
            kept.append(line + "\n")
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
