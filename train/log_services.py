"""Other places where a run's figures and samples go: TensorBoard, and Weights & Biases."""

import dataclasses
import io
import math
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genjax.errors import UserError
from genjax.media import AnimationSample, ImageSample, MediaSample
from genjax.task import Sample
from train.run_directory import RunDirectory

_FLUSH_SECONDS = 5.0
"""Seconds between flushes of an event file; each waits for the disk."""


class TensorBoard:
    """An event file for TensorBoard.

    `tensorboardX.SummaryWriter` is not used: the thread that it writes in dies when the disk is
    full, and the training then waits for it without end.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Open an event file; events after `step` of an earlier one are purged by the viewer."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        messages: Any = event_pb2
        folder.mkdir(exist_ok=True)
        self._event = messages.Event
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._flushed = -math.inf
        self._writer = RecordWriter(str(folder / name))
        self._write(step + 1, file_version="brain.Event:2")
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._write(step + 1, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among the values as scalars named "kind/name"."""
        from tensorboardX.summary import scalar

        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._write(step, summary=scalar(f"{kind}/{key}", value))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write samples as images, clips as looping images, anything else as text."""
        from tensorboardX.proto import summary_pb2
        from tensorboardX.summary import text

        messages: Any = summary_pb2
        for sample in samples:
            if not isinstance(sample, ImageSample | AnimationSample):
                words = f"```\n{sample.preview()}\n```"
                self._write(step, summary=text(_tag(sample), words))
                continue
            pixels = sample.image if isinstance(sample, ImageSample) else sample.animation
            height, width, channels = pixels.shape[-3:]
            image = messages.Summary.Image(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=_shown(sample).encoded(),
            )
            value = messages.Summary.Value(tag=_tag(sample), image=image)
            self._write(step, summary=messages.Summary(value=[value]))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _tag(sample: Sample) -> str:
    return f"sample/{sample.name if isinstance(sample, MediaSample) else sample.index}"


def _shown(sample: ImageSample | AnimationSample) -> MediaSample:
    """The sample in a format that viewers of logs can show."""
    if isinstance(sample, AnimationSample):
        return dataclasses.replace(sample, format="gif")
    return sample


class WeightsAndBiases:
    """A run of a Weights & Biases project; continues the same run when resumed."""

    def __init__(self, project: str, run: RunDirectory, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]

            self._wandb: Any = wandb
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
        """Log samples as images, clips or text."""
        self._run.log({_tag(sample): self._value(sample) for sample in samples}, step=step)

    def _value(self, sample: Sample) -> Any:
        if isinstance(sample, ImageSample):
            grey = sample.image.shape[-1] == 1
            pixels = sample.image[..., 0] if grey else sample.image
            return self._wandb.Image(pixels, caption=sample.preview())
        if isinstance(sample, AnimationSample):
            content = io.BytesIO(_shown(sample).encoded())
            return self._wandb.Video(content, caption=sample.preview(), format="gif")
        return sample.preview()

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()
