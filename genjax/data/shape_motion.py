"""Coloured shapes in motion: clips to train small video GANs on, drawn when needed.

n clips; T time.
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from genjax.config import Config
from genjax.data.clip_rendering import (
    BACKGROUND,
    CENTRES,
    COLOUR,
    RADIUS,
    SHAPE,
    SHAPES,
    UNITS,
    draw_shapes,
    shape_reach,
)
from genjax.data.clip_source import ENDLESS, LABELS, ClipSource, ClipSplit, Description
from genjax.data.motion import crossing, uniform_by_number
from genjax.data.text_documents import fingerprint

_VALIDATION_CLIPS = 1_000

_RADII = (0.12, 0.18)
"""Smallest and largest radius, as parts of the side of the canvas."""

_DIRECTIONS = {"left": (1, 1), "right": (1, 0), "up": (0, 1), "down": (0, 0)}
"""The axis (0 down, 1 across) that the shape moves along, and 1 if it moves backward on it."""


class ShapeMotion(Config):
    """One coloured shape that moves left, right, up or down on a plain background."""

    kind: Literal["shape_motion"] = "shape_motion"
    size: Annotated[int, Field(ge=16, le=256)] = 32
    """Height and width of the clips."""
    speed: Literal["constant", "smooth"] = "constant"
    """"constant": equal steps; "smooth": the shape speeds up and slows down on its way."""


def open_shape_motion(config: ShapeMotion, frames: int) -> ClipSource:
    """Circles, squares, triangles and diamonds that cross the canvas; the class is the direction.

    Shape, size, colours and the line that the shape moves on are random, and constant in a clip.
    It starts in the first quarter of its way and ends in the last, however many frames the clip
    has: it never turns round, and never touches the border. Training clips are drawn without end;
    the 1,000 clips for validation are fixed.
    """

    def split(count: int, seed: int) -> ClipSplit:
        return ClipSplit(count, lambda numbers: _describe(numbers, config, frames, seed))

    return ClipSource(
        name="shapes in motion",
        clip_shape=(frames, config.size, config.size, 3),
        frames_per_second=10.0,
        num_classes=len(_DIRECTIONS),
        class_names=tuple(_DIRECTIONS),
        fingerprint=fingerprint("shape_motion", frames, config.size, config.speed),
        splits={"train": split(ENDLESS, 0), "validation": split(_VALIDATION_CLIPS, 1)},
        render=lambda clips: draw_shapes(clips, config.size),
    )


def shape_centroids(description: Description) -> Float[np.ndarray, "n T 2"]:
    """True centres of mass (row, column) in pixels; the middle of the first pixel is at 0."""
    return description[CENTRES] / UNITS - 0.5


def _describe(
    numbers: Int[np.ndarray, " n"], config: ShapeMotion, frames: int, seed: int
) -> Description:
    drawn = uniform_by_number(numbers, 16, seed)
    labels = (drawn[:, 0] * len(_DIRECTIONS)).astype(np.int32)
    lengths = UNITS * config.size * np.array(_RADII)
    radius = (lengths[0] + (lengths[1] - lengths[0]) * drawn[:, 1]).astype(np.int32)
    reach = shape_reach(radius)
    room = UNITS * config.size - 2 * reach
    slopes = np.array([0.05, 0.5]) + 0.45 * drawn[:, 2:4] if config.speed == "smooth" else None
    way = crossing(0.25 * drawn[:, 4], 1.0 - 0.25 * drawn[:, 5], frames, slopes)

    axes, backward = (np.array(list(_DIRECTIONS.values()))[labels, part] for part in (0, 1))
    along = np.where(backward[:, None], 1.0 - way, way)
    beside = np.broadcast_to(drawn[:, 6:7], along.shape)
    places = np.where(
        (axes == 0)[:, None, None],
        np.stack([along, beside], axis=-1),
        np.stack([beside, along], axis=-1),
    )
    centres = reach[:, None, None] + room[:, None, None] * places

    # One channel of the shape is far brighter than the background's, so that it can be seen.
    colour = np.floor(256 * drawn[:, 7:10])
    bright = (3 * drawn[:, 10]).astype(np.int64)
    colour[np.arange(len(numbers)), bright] = np.floor(192 + 64 * drawn[:, 11])
    return {
        SHAPE: (drawn[:, 12] * len(SHAPES)).astype(np.int32),
        RADIUS: radius,
        CENTRES: np.round(centres).astype(np.int32),
        COLOUR: colour.astype(np.uint8),
        BACKGROUND: np.floor(96 * drawn[:, 13:16]).astype(np.uint8),
        LABELS: labels,
    }
