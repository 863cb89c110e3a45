"""Where a clip cuts from one shot to another, seen in how much its frames change.

T frames of a clip, H height, W width, C channels.
"""

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

_SIDE = 16
_FAR = 8
_NEAR = 2
# A frame that changes by less repeats the one before.
_STILL = 0.001


def thumbnail(frame: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "16 16 C"]:
    """The frame as 16 x 16 averages: small movements vanish in it, another scene does not."""
    channels = frame.shape[-1]
    picture = Image.fromarray(frame if channels > 1 else frame[..., 0])
    small = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return small.reshape(_SIDE, _SIDE, channels)


def frame_changes(thumbnails: UInt8[np.ndarray, "T 16 16 C"]) -> Float32[np.ndarray, " T"]:
    """How lastingly each frame differs from the one before, 0 (not at all) to 1 (black to white).

    With d the mean absolute difference of two thumbnails, frame t changes by the smallest of
    d(t - 1, t), d(t - 2, t) and d(t - 1, t + 1): a cut has all three large, but a flash of one
    frame leaves those before and after it alike. The first frame changes by 0.
    """
    small = thumbnails.astype(np.int16)
    changes = _distances(small, 1)
    apart = _distances(small, 2)
    changes[2:] = np.minimum(changes[2:], apart[2:])
    changes[1:-1] = np.minimum(changes[1:-1], apart[2:])
    return changes


def _distances(small: Int[np.ndarray, "T H W C"], apart: int) -> Float32[np.ndarray, " T"]:
    """Mean absolute difference of each frame from the one `apart` before; 0 where there is none."""
    result = np.zeros(len(small), np.float32)
    for t in range(apart, len(small)):
        result[t] = np.abs(small[t] - small[t - apart]).mean() / 255.0
    return result


def find_cuts(changes: Float32[np.ndarray, " T"], threshold: float) -> Int[np.ndarray, " n"]:
    """The frames that begin another shot, in ascending order; frame 0 is not among them.

    A frame does so where it changes by more than the threshold, by more than three times what its
    neighbours usually do (the median of those of the eight before and eight after that changed at
    all), and by more than twice what the two on either side do. A moving camera changes every
    frame, and one that is swung changes several; a cut changes one.

    Args:
        changes: From `frame_changes`.
        threshold: Smallest change that counts, above 0 and up to 1.
    """
    cuts: list[int] = []
    # Frame 0 has nothing before it to change from.
    for t in 1 + np.flatnonzero(changes[1:] > threshold):
        around = np.concatenate([changes[max(t - _FAR, 1) : t], changes[t + 1 : t + 1 + _FAR]])
        moving = around[around > _STILL]
        # Fewer than a quarter are other cuts nearby, in a clip that stands still else.
        usual = np.median(moving) if 4 * len(moving) >= max(len(around), 1) else 0.0
        near = np.concatenate([changes[max(t - _NEAR, 1) : t], changes[t + 1 : t + 1 + _NEAR]])
        if changes[t] > max(3.0 * usual, 2.0 * near.max(initial=0.0)):
            cuts.append(int(t))
    return np.array(cuts, np.int64)
