"""Clips of the shapes that a config asks for, without the clips: for rehearsals.

T frames, H height, W width, C channels.
"""

import dataclasses
from types import MappingProxyType

import numpy as np

from genjax.data.clip_source import CLIPS, ENDLESS, LABELS, ClipSource, ClipSplit, Description
from genjax.data.clip_sources import (
    ClipFiles,
    MovingDigits,
    MovingMnist,
    ShapeMotion,
    TfdsClips,
    open_clips,
)
from genjax.data.stand_in_images import assumed_classes, known_size


def stand_in_clips(
    config: MovingDigits | MovingMnist | ShapeMotion | ClipFiles | TfdsClips, frames: int
) -> ClipSource:
    """A source of clips in the shape of a config's; no file is read.

    Built-in clips are what they are, and the built-in digits move in MNIST's place. Stored clips
    are black; sets by name, and folders whose labels are "auto", are taken to have no classes.

    Args:
        config: the source.
        frames: T, how many frames each clip has.

    Raises:
        UserError: the config does not tell the size.
    """
    match config:
        case MovingDigits() | ShapeMotion():
            return open_clips(config, frames)
        case MovingMnist():
            return _unlabelled(
                open_clips(
                    MovingDigits(
                        size=config.size, digit_size=28 * config.size // 64, digits=config.digits
                    ),
                    frames,
                )
            )
        case ClipFiles():
            classes = assumed_classes(config.labels)
        case TfdsClips():
            classes = 0
    height, width = known_size(config.size)
    shape = (frames, height, width, config.channels)

    def read(numbers: np.ndarray) -> Description:
        # A view of one zero: batches of any size cost nothing.
        clips = {CLIPS: np.broadcast_to(np.uint8(0), (len(numbers), *shape))}
        return clips | ({LABELS: np.zeros(len(numbers), np.int32)} if classes else {})

    return ClipSource(
        name="clips that stand in for the data",
        clip_shape=shape,
        frames_per_second=config.frames_per_second or 25.0,
        num_classes=classes,
        class_names=tuple(str(number) for number in range(classes)),
        fingerprint="",
        splits=_all_splits(ClipSplit(ENDLESS, read)),
    )


def _all_splits(split: ClipSplit) -> MappingProxyType[str, ClipSplit]:
    return MappingProxyType({name: split for name in ("train", "validation", "test")})


def _unlabelled(source: ClipSource) -> ClipSource:
    """The same clips without classes, as Moving MNIST has none, and with its third split."""

    def read(numbers: np.ndarray) -> Description:
        described = source.splits["train"].read(numbers)
        return {name: array for name, array in described.items() if name != LABELS}

    return dataclasses.replace(
        source, num_classes=0, class_names=(), splits=_all_splits(ClipSplit(ENDLESS, read))
    )
