"""Whether an object keeps its colour through a clip.

Letters: N clips, T frames, H height, W width, C channels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from genjax.errors import UserError
from genjax.video.metrics.foreground import foreground


class ContentConsistency(NamedTuple):
    """How much content changes within a clip.

    Attributes:
        average_content_distance: mean over clips, in levels of 0 to 255; 0 is perfect, and what
            clips of one rigid object of one colour get. NaN where no clip could be tracked.
        track_rate: share of clips with a foreground in every frame, which the mean is over: a low
            one says that the distance is that of the few good clips.
    """

    average_content_distance: float
    track_rate: float


def content_consistency(clips: UInt8[np.ndarray, "N T H W C"]) -> ContentConsistency:
    """The average content distance (ACD) of clips of one object on a plain background.

    A frame's content is the mean colour of its foreground, a vector of C numbers. A clip's distance
    is the mean Euclidean distance of the contents over all pairs of its frames. Pixels at the
    foreground's edge do not count, unless a frame of the clip has no others: soft edges mix in more
    or less background from frame to frame, several levels of it where the object is perfect.

    Published figures for shapes in motion are in levels of 0 to 255 (MoCoGAN 1.79, on its own
    data). A clip that never moves is as consistent as can be: look at its motion too.

    Args:
        clips: uint8, [N, T, H, W, C], N at least 1.

    Raises:
        UserError: clips of one frame.

    Paper: Tulyakov et al. 2018, "MoCoGAN: Decomposing motion and content for video generation".
    """
    frames = clips.shape[1]
    if frames < 2:
        raise UserError("content consistency compares frames, and the clips have only one")
    seen = foreground(clips)
    first, second = np.triu_indices(frames, 1)
    distances = []
    for clip, contrast in zip(clips[seen.tracked], seen.contrast[seen.tracked], strict=True):
        colours = np.stack(
            [
                frame[mask].mean(0, np.float64)
                for frame, mask in zip(clip, _inside(contrast > 0), strict=True)
            ]
        )
        distances.append(np.linalg.norm(colours[first] - colours[second], axis=1).mean())
    average = float(np.mean(distances)) if distances else float("nan")
    return ContentConsistency(average, float(seen.tracked.mean()))


def _inside(masks: Bool[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"]:
    """Pixels whose eight neighbours are in the mask too; all, where a frame would have none."""
    height, width = masks.shape[1:]
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    inside = np.ones_like(masks)
    for row, column in np.ndindex(3, 3):
        inside &= padded[:, row : row + height, column : column + width]
    return inside if inside.any((1, 2)).all() else masks
