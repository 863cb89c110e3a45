"""How an object moves through a clip: which way, how fast, how evenly.

Everything follows the centroid of what stands out from a plain background. Letters: N clips,
T frames, H height, W width, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from genjax.errors import UserError
from genjax.video.metrics.foreground import foreground

DIRECTIONS = ("left", "right", "up", "down")
"""Names of directions, which classes of clips may have."""
NO_DIRECTION = "none"
"""What a clip has that stands still or could not be tracked."""


class Tracks(NamedTuple):
    """Centroids of the foreground.

    Attributes:
        centroids: (row, column) in pixels, the middle of the first pixel at 0; NaN in frames
            without a foreground.
        tracked: whether every frame of a clip has a foreground. Figures leave out the others.
    """

    centroids: Float[np.ndarray, "N T 2"]
    tracked: Bool[np.ndarray, " N"]


class Motion(NamedTuple):
    """Means over the tracked clips; NaN where there is none.

    Attributes:
        speed: length of the centroid's steps, in pixels a frame.
        acceleration: length of the second difference of its place, in pixels a frame squared: 0 is
            perfectly smooth, and trembling is as large as speed.
        consistency: share of steps, along the axis of the larger net displacement, that go the way
            of that displacement: 1 never turns round, 1/2 trembles, 0 stands still.
        track_rate: share of clips with a foreground in every frame.
    """

    speed: float
    acceleration: float
    consistency: float
    track_rate: float


def centroid_tracks(clips: UInt8[np.ndarray, "N T H W C"]) -> Tracks:
    """Follow the foreground's centroid, each pixel weighing its contrast with the background.

    Weights place soft edges to a fraction of a pixel. Several objects have one common centroid.

    Args:
        clips: uint8, [N, T, H, W, C], N at least 1.
    """
    seen = foreground(clips)
    mass = seen.contrast.sum((2, 3), dtype=np.float64)
    moments = [
        seen.contrast.sum(3, dtype=np.float64) @ np.arange(clips.shape[2]),
        seen.contrast.sum(2, dtype=np.float64) @ np.arange(clips.shape[3]),
    ]
    centroids = np.full((*mass.shape, 2), np.nan)
    for axis, moment in enumerate(moments):
        np.divide(moment, mass, out=centroids[..., axis], where=seen.found)
    return Tracks(centroids, seen.tracked)


def motion(tracks: Tracks) -> Motion:
    """Speed, smoothness and consistency of tracks.

    Raises:
        UserError: fewer than the three frames that a change of speed takes.
    """
    places = tracks.centroids[tracks.tracked]
    if places.shape[1] < 3:
        raise UserError(
            f"smoothness of motion needs 3 frames, and the clips have {places.shape[1]}"
        )
    rate = float(tracks.tracked.mean())
    if not len(places):
        return Motion(np.nan, np.nan, np.nan, rate)
    steps = np.diff(places, axis=1)
    net = places[:, -1] - places[:, 0]
    dominant = np.abs(net).argmax(1)
    rows = np.arange(len(places))
    ahead = steps[rows, :, dominant] * net[rows, dominant][:, None] > 0
    return Motion(
        speed=float(np.linalg.norm(steps, axis=2).mean()),
        acceleration=float(np.linalg.norm(np.diff(steps, axis=1), axis=2).mean()),
        consistency=float(ahead.mean()),
        track_rate=rate,
    )


def directions(tracks: Tracks, least: float = 1.0) -> list[str]:
    """Where each clip goes: one of `DIRECTIONS`, or `NO_DIRECTION`.

    The sign of the net displacement, from the first to the last frame, along the axis where it is
    larger.

    Args:
        tracks: of N clips.
        least: displacement in pixels under which a clip stands still.
    """
    found = []
    for places, tracked in zip(tracks.centroids, tracks.tracked, strict=True):
        down, right = places[-1] - places[0]
        if not tracked or max(abs(down), abs(right)) < least:
            found.append(NO_DIRECTION)
        elif abs(right) >= abs(down):
            found.append("right" if right > 0 else "left")
        else:
            found.append("down" if down > 0 else "up")
    return found


def direction_accuracy(
    tracks: Tracks, labels: Integer[np.ndarray, " N"], class_names: Sequence[str]
) -> float:
    """Share of clips that go where their class says; one that could not be tracked does not.

    Args:
        tracks: of N clips, N at least 1.
        labels: the class that each clip was asked for.
        class_names: one a class, each of `DIRECTIONS`.

    Raises:
        UserError: a class is named otherwise.
    """
    strange = [name for name in class_names if name not in DIRECTIONS]
    if strange:
        raise UserError(
            f"direction accuracy needs classes named {', '.join(DIRECTIONS)}, and there is "
            f"{strange[0]!r}; leave it out for this data"
        )
    asked = [class_names[label] for label in labels]
    right = [a == b for a, b in zip(asked, directions(tracks), strict=True)]
    return float(np.mean(right))
