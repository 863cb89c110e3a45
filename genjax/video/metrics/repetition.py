"""Whether clips stand still or go round in circles.

Both look at how far frames that lie some frames apart differ: the root of the mean squared
difference of their pixels, in levels of 0 to 255, to which faint noise all over the frame adds
little beside an object that moves. Letters: N clips, T frames, H height, W width, C channels.
"""

import numpy as np
from jaxtyping import Float, UInt8

from genjax.errors import UserError

FREEZE_THRESHOLD = 0.1
"""Part of the change of real clips that a frozen one stays under."""
LOOP_THRESHOLD = 0.25
"""How far a loop comes back to its beginning, as part of what its frames differ by before."""


def frame_changes(clips: UInt8[np.ndarray, "N T H W C"]) -> Float[np.ndarray, " N"]:
    """How far each frame differs from the next, over the whole clip, in levels of 0 to 255.

    Raises:
        UserError: clips of one frame.
    """
    if clips.shape[1] < 2:
        raise UserError("a change takes two frames, and the clips have only one")
    return np.array([_difference(clip, 1) for clip in clips], np.float64)


def freeze_rate(
    changes: Float[np.ndarray, " N"],
    real_changes: Float[np.ndarray, " M"],
    threshold: float = FREEZE_THRESHOLD,
) -> float:
    """Share of clips that change less than `threshold` times the median real clip.

    Strong noise that differs from frame to frame counts as change: it hides that a picture stands
    still. Where most real clips do not change, none counts as frozen.

    Args:
        changes: `frame_changes` of the clips in question, N at least 1.
        real_changes: `frame_changes` of real clips of the same size and frame rate, M at least 1.
        threshold: see above.
    """
    return float((changes < threshold * np.median(real_changes)).mean())


def loop_rate(clips: UInt8[np.ndarray, "N T H W C"], threshold: float = LOOP_THRESHOLD) -> float:
    """Share of clips that come back to where they were, again and again.

    A clip loops if there is a lag of p frames, 2 <= p <= T / 2, at which frames differ by less than
    `threshold` times what they differ by at any smaller lag. Motion one way differs more with every
    lag, a frozen clip or noise equally at all. A period that is longer than half the clip is not
    seen, nor one that lies half-way between two whole numbers of frames.

    Args:
        clips: uint8, [N, T, H, W, C], N at least 1.
        threshold: see above.

    Raises:
        UserError: clips of fewer than 4 frames, which no loop fits in twice.
    """
    frames = clips.shape[1]
    if frames < 4:
        raise UserError(f"a loop takes at least 4 frames to show, and the clips have {frames}")
    loops = []
    for clip in clips:
        differences = np.array([_difference(clip, lag) for lag in range(1, frames // 2 + 1)])
        before = np.minimum.accumulate(differences)[:-1]
        loops.append((differences[1:] < threshold * before).any())
    return float(np.mean(loops))


def _difference(clip: UInt8[np.ndarray, "T H W C"], lag: int) -> float:
    """Root of the mean squared difference of frames that lie `lag` apart."""
    # Unsigned differences would wrap.
    wide = clip.astype(np.int32)
    return float(np.sqrt(np.square(wide[lag:] - wide[:-lag]).mean(dtype=np.float64)))
