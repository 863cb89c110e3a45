"""Sources of clips: digits and shapes in motion, Moving MNIST, the user's files, TFDS.

A source is described by a config class and opened by `open_clips`.
"""

from typing import Annotated

from pydantic import Field

from genjax.data.clip_files import ClipFiles, open_clip_files
from genjax.data.clip_source import ClipSource
from genjax.data.moving_digits import MovingDigits, open_moving_digits
from genjax.data.moving_mnist import MovingMnist, open_moving_mnist
from genjax.data.shape_motion import ShapeMotion, open_shape_motion
from genjax.data.tfds_clips import TfdsClips, open_tfds_clips

__all__ = [
    "ClipFiles",
    "ClipSourceConfig",
    "MovingDigits",
    "MovingMnist",
    "ShapeMotion",
    "TfdsClips",
    "open_clips",
]

ClipSourceConfig = Annotated[
    MovingDigits | MovingMnist | ShapeMotion | ClipFiles | TfdsClips,
    Field(discriminator="kind"),
]


def open_clips(
    config: MovingDigits | MovingMnist | ShapeMotion | ClipFiles | TfdsClips, frames: int
) -> ClipSource:
    """Opens a source of clips and checks all of it that can be checked without training.

    Args:
        config: The source.
        frames: T, how many frames each clip has.

    Raises:
        UserError: Something named in the config is missing, empty, unreadable or contradictory,
            or its clips are shorter than `frames`.
    """
    match config:
        case MovingDigits():
            return open_moving_digits(config, frames)
        case MovingMnist():
            return open_moving_mnist(config, frames)
        case ShapeMotion():
            return open_shape_motion(config, frames)
        case ClipFiles():
            return open_clip_files(config, frames)
        case TfdsClips():
            return open_tfds_clips(config, frames)
