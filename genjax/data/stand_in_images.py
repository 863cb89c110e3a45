"""Images of the shapes that a config asks for, without the images: for rehearsals.

H height, W width, C channels.
"""

from types import MappingProxyType

import numpy as np

from genjax.data.idx_images import IdxImages
from genjax.data.image_files import ImageFiles
from genjax.data.image_source import ImageSource, ImageSplit
from genjax.data.image_sources import (
    BuiltinDigits,
    GaussianMixture,
    TfdsImages,
    open_images,
)
from genjax.errors import UserError

ASSUMED_CLASSES = 1000
"""Classes of labelled data whose number the config does not say: ImageNet's. It sizes the networks'
label embeddings and nothing else."""

_COUNT = 2**16


def stand_in_images(
    config: BuiltinDigits | ImageFiles | TfdsImages | IdxImages | GaussianMixture,
) -> ImageSource:
    """A source of black images in the shape of a config's; no file is read.

    Built-in images are what they are. Of the others the config tells the size; folders whose
    labels are "auto" are taken to have none, labelled sets to have `ASSUMED_CLASSES` (IDX files
    ten, stacks of them a thousand).

    Raises:
        UserError: the config does not tell the size.
    """
    match config:
        case BuiltinDigits() | GaussianMixture():
            return open_images(config)
        case IdxImages():
            channels, classes = config.channels or config.stack, 1000 if config.stack == 3 else 10
        case ImageFiles():
            channels, classes = config.channels, assumed_classes(config.labels)
        case TfdsImages():
            channels = config.channels
            classes = ASSUMED_CLASSES if config.label_feature is not None else 0
    height, width = known_size(config.size)
    shape = (height, width, channels)
    labels = np.zeros(_COUNT, np.int32) if classes else None
    # A view of one zero: batches of any size cost nothing.
    split = ImageSplit(
        _COUNT, lambda rows: np.broadcast_to(np.uint8(0), (len(rows), *shape)), labels
    )
    return ImageSource(
        name="images that stand in for the data",
        image_shape=shape,
        num_classes=classes,
        class_names=tuple(str(number) for number in range(classes)),
        fingerprint="",
        splits=MappingProxyType({"train": split, "validation": split}),
    )


def assumed_classes(labels: str) -> int:
    """Classes of a folder, by its `labels` field."""
    return ASSUMED_CLASSES if labels == "folders" else 0


def known_size(size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a `size` field.

    Raises:
        UserError: it is not set.
    """
    if size is None:
        raise UserError(
            "data.source.size: not set, so the data decides, and a rehearsal reads none; "
            "give the size, such as data.source.size=32"
        )
    return (size, size) if isinstance(size, int) else size
