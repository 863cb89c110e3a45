"""Windows of frames inside the shots of clips, by number, for training and for validation.

S shots, n windows asked for; T frames, H height, W width, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from genjax.config import Config
from genjax.data.clip_shards import DecodedClips
from genjax.data.clip_source import CLIPS, LABELS, ClipSource, ClipSplit, Description
from genjax.data.image_decode import Decoding, Side
from genjax.data.image_source import cut_by_name
from genjax.data.text_documents import fingerprint
from genjax.errors import UserError


class ClipOptions(Config):
    """How recorded clips become windows of frames, for every source that stores them."""

    size: Side | tuple[Side, Side] | None = None
    """Height and width to train on, as [height, width], or one number for both; unset: the clips'
    own, which must then all be the same."""
    crop: Literal["center", "none"] = "center"
    """"center": first cut to the aspect ratio of `size`, around the middle; "none": stretch."""
    channels: Literal[1, 3] = 3
    """1 (gray) or 3 (colour); what is transparent becomes white."""
    frames_per_second: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """Rate to resample all clips to, by the times at which their frames are shown; unset: every
    frame as it comes, at each clip's own rate. Numbered frames, which have no times, are taken to
    have this rate, or 25."""
    stride: Annotated[int, Field(ge=1, le=1000)] = 1
    """Take each n-th frame: a window of T frames covers (T - 1) n + 1 frames of its clip."""
    cut_threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.12
    """A scene cut is where a frame differs from the one before by more than this (mean absolute
    difference, 1 from black to white), and by far more than its neighbours do. No window crosses a
    cut. Lower it for dark or plain clips; "none": clips have no cuts."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """About this part of the clips is kept for validation, chosen by their names; of a single
    clip, this part of its shots or of its time, at the end."""
    # Not validated: strict JSON knows no paths, only texts that become paths.
    cache: Path = Field(default=Path("~/.cache/genjax/clips"), validate_default=False)
    """Folder where decoded frames are kept for the next run: H * W * C bytes a frame."""


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Decoded clips with what messages and splits need.

    Attributes:
        what: What to call them in messages, such as "clips of holiday".
        decoded: The n clips that could be decoded.
        names: The name of each, n.
        labels: [n], the class of each, or None.
    """

    what: str
    decoded: DecodedClips
    names: Sequence[str]
    labels: Int[np.ndarray, " n"] | None = None


def windowed_source(
    name: str,
    train: ClipSet,
    validation: ClipSet | None,
    frames: int,
    options: ClipOptions,
    class_names: tuple[str, ...] = (),
) -> ClipSource:
    """Windows of clips as a source.

    The training split has every window inside the shots of its clips, the validation split those
    that follow one another. Clips play at the rate of the options, else at the median of their
    own.

    Args:
        name: What to call the source.
        train: The clips to train on, and to keep some of for validation if need be.
        validation: The clips to validate on, if they are others.
        frames: T, how many frames a window has.
        options: How windows are cut.
        class_names: One name a class; labels are below their number.

    Raises:
        UserError: The clips are too short or too few, or a class has none.
    """
    shots = _long_enough(train, frames, options)
    if train.labels is not None:
        _check_no_class_is_empty(train, shots, class_names)
    if validation is None:
        kept, held_out = divide(shots, train, options.validation_fraction, _span(frames, options))
        division: object = options.validation_fraction
    else:
        kept, held_out = shots, _long_enough(validation, frames, options)
        division = (validation.decoded.digest, _content(validation.labels))
    splits = {
        "train": windows(train, kept, frames, options.stride, overlapping=True),
        "validation": windows(
            validation or train, held_out, frames, options.stride, overlapping=False
        ),
    }
    settings = options.model_dump(include={"size", "crop", "channels", "frames_per_second"})
    return ClipSource(
        name=name,
        clip_shape=(frames, *train.decoded.frame_shape),
        frames_per_second=float(np.median(train.decoded.rates)) / options.stride,
        num_classes=len(class_names),
        class_names=class_names,
        fingerprint=fingerprint(
            *(train.decoded.digest, _content(train.labels), class_names, division),
            *(settings, frames, options.stride, options.cut_threshold),
        ),
        splits=splits,
    )


def decoding_of(options: ClipOptions) -> Decoding:
    """What the options make of each frame."""
    size = options.size
    return Decoding(
        size=(size, size) if isinstance(size, int) else size,
        crop=options.crop,
        channels=options.channels,
    )


def _content(labels: np.ndarray | None) -> list[int] | None:
    return None if labels is None else labels.tolist()


def _span(frames: int, options: ClipOptions) -> int:
    """How many frames of a clip a window covers."""
    return (frames - 1) * options.stride + 1


# Shots -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shots:
    """Runs of frames without a cut.

    Attributes:
        starts: [S], the first frame of each among the frames of all clips.
        lengths: [S], how many frames each has.
        clips: [S], which of the decoded clips each is of.
    """

    starts: Int[np.ndarray, " S"]
    lengths: Int[np.ndarray, " S"]
    clips: Int[np.ndarray, " S"]

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, rows: np.ndarray) -> "Shots":
        """Some of the shots, by number or mask."""
        return Shots(self.starts[rows], self.lengths[rows], self.clips[rows])


def shots_of(decoded: DecodedClips, threshold: float | None) -> Shots:
    """The shots of all clips; each clip is one where the threshold is None."""
    starts: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    for clip in range(len(decoded.kept)):
        first = decoded.starts[clip]
        cuts = np.zeros(0, np.int64) if threshold is None else decoded.cuts(clip, threshold)
        starts.append(np.concatenate([[first], first + cuts]))
        clips.append(np.full(1 + len(cuts), clip))
    begin = np.concatenate(starts)
    return Shots(begin, np.diff(np.append(begin, decoded.starts[-1])), np.concatenate(clips))


def windows(
    clips: ClipSet, shots: Shots, frames: int, stride: int, *, overlapping: bool
) -> ClipSplit:
    """The windows of T frames inside shots, in the order of the frames they begin with.

    Args:
        clips: The clips.
        shots: The shots of them to use; those that are too short have no window.
        frames: T.
        stride: A window has each stride-th frame from its first one on.
        overlapping: Whether a window begins with every frame that one can begin with, or where
            the last one has ended.
    """
    span = (frames - 1) * stride + 1
    step = 1 if overlapping else span
    counts = np.maximum((shots.lengths - span) // step + 1, 0)
    ends = np.cumsum(counts)
    offsets = np.arange(frames) * stride

    def read(numbers: np.ndarray) -> Description:
        shot = np.searchsorted(ends, numbers, side="right")
        first = shots.starts[shot] + (numbers - (ends[shot] - counts[shot])) * step
        description = {CLIPS: clips.decoded.frames(first[:, None] + offsets)}
        if clips.labels is not None:
            description[LABELS] = clips.labels[shots.clips[shot]].astype(np.int32)
        return description

    return ClipSplit(count=int(counts.sum()), read=read)


def _long_enough(clips: ClipSet, frames: int, options: ClipOptions) -> Shots:
    """The shots that have a window."""
    shots = shots_of(clips.decoded, options.cut_threshold)
    span = _span(frames, options)
    fitting = shots.lengths >= span
    if fitting.any():
        return shots.select(fitting)
    longest = shots.lengths.argmax()
    whole = int(np.diff(clips.decoded.starts).max())
    window = f"{frames} frames"
    ways = [
        "fewer frames (of conditioning, data.frames or evaluation.future; --frames of a request)"
    ]
    if options.stride > 1:
        window += f" at stride {options.stride}, which cover {span},"
        ways.append("a smaller data.source.stride")
    if options.frames_per_second is not None:
        ways.append("higher data.source.frames_per_second")
    divided = ""
    if whole >= span:
        divided = f" (a clip has {whole} frames, but scene cuts divide it)"
        ways.append("a higher data.source.cut_threshold")
    raise UserError(
        f"The {clips.what} are too short: a window has {window} and the longest shot "
        f"{shots.lengths[longest]}, in {clips.names[shots.clips[longest]]}{divided}.\n"
        f"Ask for {' or '.join(ways)}, or add longer clips."
    )


def _check_no_class_is_empty(clips: ClipSet, shots: Shots, class_names: Sequence[str]) -> None:
    assert clips.labels is not None
    counts = np.bincount(clips.labels[shots.clips], minlength=len(class_names))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        more = f" ({len(empty)} classes have none)" if len(empty) > 1 else ""
        raise UserError(
            f"The {clips.what}: class '{class_names[empty[0]]}' has no clip that can be read and "
            f"is long enough{more}.\nAdd clips to it or remove it, or train without labels."
        )


def divide(shots: Shots, clips: ClipSet, fraction: float, span: int) -> tuple[Shots, Shots]:
    """Shots for training and for validation, which share no frame and no clip.

    Clips are chosen by a hash of each one's own name. Where there is only one, its last shots
    are kept for validation, and where that has only one, its last frames.

    Args:
        shots: Shots that have a window each.
        clips: The clips that they are of.
        fraction: About this part is for validation.
        span: How many frames a window covers.

    Raises:
        UserError: There is only one shot, and it is shorter than two windows.
    """
    used = np.unique(shots.clips)
    if len(used) > 1:
        _, rows = cut_by_name([clips.names[int(clip)] for clip in used], fraction)
        held_out = np.isin(shots.clips, used[rows])
        return shots.select(~held_out), shots.select(held_out)
    if len(shots) > 1:
        from_here_on = np.cumsum(shots.lengths[::-1])[::-1]
        # The shots that begin in the last part, but at least one, and not all.
        held_out = from_here_on <= max(fraction * shots.lengths.sum(), shots.lengths[-1])
        held_out[0] = False
        return shots.select(~held_out), shots.select(held_out)
    length = int(shots.lengths[0])
    if length < 2 * span:
        raise UserError(
            f"The {clips.what} have one shot that is long enough, of {length} frames, but training "
            f"and validation need {span} each.\nAdd clips, or ask for a shorter window."
        )
    kept = length - min(max(round(fraction * length), span), length - span)
    return (
        Shots(shots.starts, np.array([kept]), shots.clips),
        Shots(shots.starts + kept, np.array([length - kept]), shots.clips),
    )
