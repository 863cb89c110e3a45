"""Clips in random access by split, whatever they come from: files, TFDS, or drawn when needed.

N clips of a split, n of them asked for; T frames, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

ENDLESS = 2**62
"""`ClipSplit.count` of clips that are drawn anew for as long as anyone asks."""

CLIPS = "clips"
"""The array of a batch that holds finished clips, uint8 [n, T, H, W, C]."""
LABELS = "labels"
"""The array of a batch that holds classes, int32 [n]."""

Description = Mapping[str, np.ndarray]
"""Clips as the host knows them: arrays whose leading axis counts the clips.

Stored clips are the array "clips". What is drawn on the device is described by less, such as the
pictures of two digits and where they stand in each frame. With classes there are "labels" too.
"""


@dataclass(frozen=True, eq=False)
class ClipSplit:
    """Clips by number.

    Attributes:
        count: N, how many there are; `ENDLESS` where each number is another draw.
        read: Descriptions of the clips of numbers [n] below N.
    """

    count: int
    read: Callable[[Int[np.ndarray, " n"]], Description]

    def __len__(self) -> int:
        return self.count


def stored_clips(description: Mapping[str, Array]) -> UInt8[Array, "n T H W C"]:
    """The `render` of clips that are stored as they are."""
    return description[CLIPS]


@dataclass(frozen=True, eq=False)
class ClipSource:
    """An opened source of clips, all of one shape.

    Attributes:
        name: What to call it in messages.
        clip_shape: (T, H, W, C) of every clip.
        frames_per_second: How fast clips play.
        num_classes: Labels are below it; 0 where there are none.
        class_names: One name a class; empty where there are none.
        fingerprint: sha256 in hex of the content, what is made of it, and its division into
            splits; where files lie and when they were written does not enter.
        splits: Always "train" and "validation"; "test" where the source has a third.
        render: From a description, as arrays on a device, to uint8 clips [n, T, H, W, C]: a pure
            function of JAX, run inside the training step.
    """

    name: str
    clip_shape: tuple[int, int, int, int]
    frames_per_second: float
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str
    splits: Mapping[str, ClipSplit]
    render: Callable[[Mapping[str, Array]], UInt8[Array, "n T H W C"]] = stored_clips

    def clips(self, split: str, numbers: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n T H W C"]:
        """Finished clips of a split, on the host."""
        return np.asarray(jax.jit(self.render)(dict(self.splits[split].read(numbers))))
