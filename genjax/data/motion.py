"""How things move in drawn clips, and the random numbers that decide it.

Two laws:

- Bouncing, of Moving MNIST (Srivastava et al., 2015). A picture's place runs from 0 to 1 down and
  across the room that it has. In every frame, the first included, it first goes one step of fixed
  length in its direction; at a border it stops there and turns back.
- Crossing, of shapes. The way along one axis lasts exactly as long as the clip, so that nothing
  ever turns round; the speed follows from the number of frames.

n clips, D pictures in each, T time.
"""

import math
import random

import numpy as np
from jaxtyping import Float, Int, UInt64

from genjax.data.random_numbers import random_integers

Numbers = Int[np.ndarray, " n"]


# Random numbers -----------------------------------------------------------------------------------


def uniform_by_number(numbers: Numbers, draws: int, *seeds: int) -> Float[np.ndarray, "n draws"]:
    """Uniform numbers in [0, 1) that belong to the clips of these numbers, in any order of asking.

    They are SplitMix64's (Steele, Lea and Flood, 2014), which is integer arithmetic alone: each
    clip has a stream of its own, whose state is a hash of seeds and number.
    """
    key = np.uint64(random_integers(2**62, 1, *seeds)[0])
    states = _scrambled(key + numbers.astype(np.uint64) * _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _scrambled(states[:, None] + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scrambled(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """SplitMix64's finaliser; products are meant to wrap."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Bouncing -----------------------------------------------------------------------------------------

SRIVASTAVA_STEP = 0.1
"""Step of Moving MNIST, in each frame, as a part of the room: 3.6 of 36 pixels."""


def bouncing_pictures(
    numbers: Numbers,
    *,
    pictures: int,
    digits: int,
    frames: int,
    room: int,
    speed: float,
    seed: int,
) -> tuple[Int[np.ndarray, "n D"], Int[np.ndarray, "n T D 2"]]:
    """Which pictures the clips of these numbers show, and where.

    Args:
        numbers: The clips.
        pictures: How many pictures there are to choose from.
        digits: D.
        frames: T.
        room: How many pixels a picture can move on the canvas.
        speed: Step in a frame, as a part of the room.
        seed: Decides the clips.

    Returns:
        The pictures' numbers; and int32 pixels (row, column) of their upper left corners.
    """
    drawn = uniform_by_number(numbers, 4 * digits, seed).reshape(len(numbers), digits, 4)
    angles = 2.0 * np.pi * drawn[..., 2]
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    corners = bouncing_corners(drawn[..., :2], directions, frames, room, speed)
    return (drawn[..., 3] * pictures).astype(np.int64), corners


def srivastava_sequences(
    count: int, pictures: int, digits: int = 2
) -> tuple[Int[np.ndarray, "n D"], Float[np.ndarray, "n D 2"], Float[np.ndarray, "n D 2"]]:
    """The draws of the fixed sequences of Moving MNIST, with Python's generator at seed 0.

    They are those of the data set's usual generator: for each sequence the number of digits, from
    one choice; for each digit its column, row, angle and picture.

    Returns:
        The pictures' numbers; starts (row, column) in [0, 1); directions (row, column), of length
        1.
    """
    stream = random.Random(0)
    chosen = np.empty((count, digits), np.int64)
    starts = np.empty((count, digits, 2))
    directions = np.empty((count, digits, 2))
    for sequence in range(count):
        for digit in range(stream.choice([digits])):
            column, row = stream.random(), stream.random()
            angle = stream.random() * 2 * math.pi
            starts[sequence, digit] = row, column
            directions[sequence, digit] = math.sin(angle), math.cos(angle)
            chosen[sequence, digit] = stream.randint(0, pictures - 1)
    return chosen, starts, directions


def bouncing_corners(
    starts: Float[np.ndarray, "n D 2"],
    directions: Float[np.ndarray, "n D 2"],
    frames: int,
    room: int,
    speed: float = SRIVASTAVA_STEP,
) -> Int[np.ndarray, "n T D 2"]:
    """Pixels of the upper left corners, from starts in [0, 1] and directions of length 1."""
    places = np.empty((len(starts), frames, *starts.shape[1:]))
    place, velocity = starts, directions
    for frame in range(frames):
        place = place + velocity * speed
        velocity = np.where((place <= 0.0) | (place >= 1.0), -velocity, velocity)
        place = np.clip(place, 0.0, 1.0)
        places[:, frame] = place
    # Truncated, as the protocol has it: the last row of pixels is reached at the border alone.
    return (room * places).astype(np.int32)


# Crossing -----------------------------------------------------------------------------------------


def crossing(
    starts: Float[np.ndarray, " n"],
    ends: Float[np.ndarray, " n"],
    frames: int,
    slopes: Float[np.ndarray, "n 2"] | None = None,
) -> Float[np.ndarray, "n T"]:
    """Places from start to end in all frames.

    Args:
        starts: Places in the first frame.
        ends: Places in the last frame.
        frames: T.
        slopes: Heights in [0, 1], in rising order, of the two inner control points of a cubic
            Bezier curve, the part of the way that is done; None: equal steps.
    """
    time = np.linspace(0.0, 1.0, frames)
    done = np.broadcast_to(time, (len(starts), frames))
    if slopes is not None:
        first, second = slopes[:, :1], slopes[:, 1:]
        rest = 1.0 - time
        done = 3.0 * rest**2 * time * first + 3.0 * rest * time**2 * second + time**3
    return starts[:, None] + (ends - starts)[:, None] * done
