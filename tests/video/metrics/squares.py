"""Clips drawn by hand: one square of one colour on a plain background."""

import numpy as np

BACKGROUND = (20, 30, 40)


def squares(places, colour=(220, 100, 60), size=16, side=4):
    """A square whose first pixel lies at the (row, column) of each frame, [1, T, H, W, 3].

    A place that is no whole number blends the square's edge with the background.
    """
    clip = np.empty((len(places), size, size, 3))
    for frame, (row, column) in zip(clip, places, strict=True):
        cover = np.multiply.outer(_cover(row, size, side), _cover(column, size, side))[..., None]
        frame[:] = cover * np.array(colour) + (1 - cover) * np.array(BACKGROUND)
    return np.rint(clip).astype(np.uint8)[None]


def _cover(start, size, side):
    """Part of each pixel on a line that lies in [start, start + side]."""
    pixels = np.arange(size)
    return np.clip(np.minimum(pixels + 1, start + side) - np.maximum(pixels, start), 0, 1)


def line(start, step, frames):
    """Places of equal steps."""
    return np.array(start) + np.array(step) * np.arange(frames)[:, None]
