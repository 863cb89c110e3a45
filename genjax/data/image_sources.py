"""Sources of images: the built-in digits, the user's files, TFDS, IDX files, toy densities.

A source is described by a config class and opened by `open_images`.
"""

from typing import Annotated

from pydantic import Field

from genjax.data.builtin_digits import BuiltinDigits, open_digits
from genjax.data.gaussian_mixture import GaussianMixture, open_mixture
from genjax.data.idx_images import IdxImages, open_idx
from genjax.data.image_files import ImageFiles, open_files
from genjax.data.image_source import ImageSource
from genjax.data.tfds_images import TfdsImages, open_tfds_images

__all__ = [
    "BuiltinDigits",
    "GaussianMixture",
    "IdxImages",
    "ImageFiles",
    "ImageSourceConfig",
    "TfdsImages",
    "open_images",
]

ImageSourceConfig = Annotated[
    BuiltinDigits | ImageFiles | TfdsImages | IdxImages | GaussianMixture,
    Field(discriminator="kind"),
]


def open_images(
    config: BuiltinDigits | ImageFiles | TfdsImages | IdxImages | GaussianMixture,
) -> ImageSource:
    """Opens a source of images and checks all of it that can be checked without training.

    Raises:
        UserError: Something named in the config is missing, empty, unreadable or contradictory.
    """
    match config:
        case BuiltinDigits():
            return open_digits(config)
        case ImageFiles():
            return open_files(config)
        case TfdsImages():
            return open_tfds_images(config)
        case IdxImages():
            return open_idx(config)
        case GaussianMixture():
            return open_mixture(config)
