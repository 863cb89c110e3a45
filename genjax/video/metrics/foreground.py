"""What stands out from the background of a clip of one colour, to be followed over its frames.

Letters: N clips, T frames, H height, W width, C channels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

TOLERANCE = 32
"""Levels of 255 by which a pixel of the foreground differs from the background.

It lets noise and ringing of a generator pass, and misses shapes that are hardly brighter.
"""
SMALLEST_SHARE = 0.002
"""Part of a frame's pixels that a foreground has at least: 8 of 64 x 64, 2 of 32 x 32."""


class Foreground(NamedTuple):
    """Where the foreground is.

    Attributes:
        contrast: largest difference over channels from the background, 0 where nothing stands out.
        found: whether a frame has a foreground. A frame of noise has one all over it.
    """

    contrast: UInt8[np.ndarray, "N T H W"]
    found: Bool[np.ndarray, "N T"]

    @property
    def tracked(self) -> Bool[np.ndarray, " N"]:
        """Clips with a foreground in every frame; figures leave out the others."""
        return np.all(self.found, axis=1)


def foreground(clips: UInt8[np.ndarray, "N T H W C"], tolerance: int = TOLERANCE) -> Foreground:
    """Pixels that differ from the background, whose colour is the median over all frames' borders.

    The median bears an object that covers less than half of the border. Backgrounds with a
    texture, or that move, are foreground to it.

    Args:
        clips: uint8, [N, T, H, W, C], N at least 1.
        tolerance: a pixel of the foreground differs by more in at least one channel.
    """
    contrast = np.stack([_contrast(clip, tolerance) for clip in clips])
    pixels = np.count_nonzero(contrast, axis=(2, 3))
    return Foreground(contrast, pixels >= max(1.0, SMALLEST_SHARE * contrast[0, 0].size))


def _contrast(clip: UInt8[np.ndarray, "T H W C"], tolerance: int) -> UInt8[np.ndarray, "T H W"]:
    # The sides without the corners, which the rows have.
    sides = (clip[:, 0], clip[:, -1], clip[:, 1:-1, 0], clip[:, 1:-1, -1])
    border = np.concatenate(sides, axis=1)
    background = np.rint(np.median(border, axis=(0, 1))).astype(np.int16)
    difference = np.abs(clip.astype(np.int16) - background).max(-1)
    return np.where(difference > tolerance, difference, 0).astype(np.uint8)
