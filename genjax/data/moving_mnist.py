"""Moving MNIST (Srivastava et al., 2015): handwritten digits that move and bounce.

n clips, D digits in each; T time, H height, W width, S side of the clips.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Array, Int, UInt8
from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.clip_rendering import CORNERS, PICTURES, place_pictures
from genjax.data.clip_source import (
    CLIPS,
    ENDLESS,
    ClipSource,
    ClipSplit,
    Description,
    stored_clips,
)
from genjax.data.idx_images import IdxImages, open_idx
from genjax.data.image_source import ImageSplit
from genjax.data.motion import (
    SRIVASTAVA_STEP,
    bouncing_corners,
    bouncing_pictures,
    srivastava_sequences,
)
from genjax.data.text_documents import fingerprint
from genjax.errors import UserError

_PICTURE = 28
_FIXED_CLIPS = 10_000


class MovingMnist(Config):
    """Moving MNIST (Srivastava et al., 2015), drawn from the IDX files of MNIST."""

    kind: Literal["moving_mnist"] = "moving_mnist"
    path: Path
    """The folder with the four IDX files of MNIST, or of a set in its format."""
    size: Literal[32, 64] = 64
    """Height and width of the clips: 64 as published, or 32 with digits of half the size."""
    digits: Annotated[int, Field(ge=1, le=16)] = 2
    """Digits in each clip; 2 as published."""
    test_file: Path | None = None
    """The published mnist_test_seq.npy, or clips in its format, to test on; unset: 10,000
    sequences of the test digits by the same protocol."""

    @model_validator(mode="after")
    def _check_test_file(self) -> "MovingMnist":
        if self.test_file is not None and self.size != 64:
            raise ValueError(
                f"size = {self.size} does not go with test_file, whose clips have 64 x 64 pixels; "
                "set size = 64, or leave test_file unset"
            )
        return self


def open_moving_mnist(config: MovingMnist, frames: int) -> ClipSource:
    """Clips of the law in `genjax.data.motion`, in three splits that share no picture.

    - "train": without end, of the first eleven twelfths of the training pictures (55,000 of
      MNIST's).
    - "validation": 10,000 fixed clips of the other training pictures.
    - "test": 10,000 fixed clips of the test pictures, those that the data set's usual generator
      makes with Python's random numbers at seed 0; or the clips of `test_file`.

    Digits of clips of 32 pixels are means over 2 x 2 pixels, rounded half up to whole shades.

    Raises:
        UserError: A file is missing, damaged or of another format, or the clips of `test_file`
            are shorter than `frames`.
    """
    mnist = open_idx(IdxImages(path=config.path, size=_PICTURE, channels=1))
    held_out = _held_out(len(mnist.splits["train"]), config.path)
    pictures = {
        "train": (mnist.splits["train"], 0, len(mnist.splits["train"]) - held_out),
        "validation": (mnist.splits["train"], len(mnist.splits["train"]) - held_out, held_out),
    }
    picture = _PICTURE * config.size // 64
    room = config.size - picture

    def describe(
        images: ImageSplit, chosen: Int[np.ndarray, "n D"], corners: Int[np.ndarray, "n T D 2"]
    ) -> Description:
        digits = images.images(chosen.reshape(-1))[..., 0]
        if picture < _PICTURE:
            digits = _halved(digits)
        return {PICTURES: digits.reshape(*chosen.shape, picture, picture), CORNERS: corners}

    def drawn(name: str, count: int, seed: int) -> ClipSplit:
        images, first, number = pictures[name]

        def read(numbers: Int[np.ndarray, " n"]) -> Description:
            chosen, corners = bouncing_pictures(
                numbers,
                pictures=number,
                digits=config.digits,
                frames=frames,
                room=room,
                speed=SRIVASTAVA_STEP,
                seed=seed,
            )
            return describe(images, first + chosen, corners)

        return ClipSplit(count, read)

    def protocol() -> ClipSplit:
        images = mnist.splits["validation"]
        sequences = functools.cache(
            lambda: srivastava_sequences(_FIXED_CLIPS, len(images), config.digits)
        )

        def read(numbers: Int[np.ndarray, " n"]) -> Description:
            chosen, starts, directions = (array[numbers] for array in sequences())
            return describe(images, chosen, bouncing_corners(starts, directions, frames, room))

        return ClipSplit(_FIXED_CLIPS, read)

    if config.test_file is None:
        test, content = protocol(), "protocol"
    else:
        test, content = _stored(config.test_file, frames)
    return ClipSource(
        name=f"Moving MNIST of {config.path}",
        clip_shape=(frames, config.size, config.size, 1),
        frames_per_second=10.0,
        num_classes=0,
        class_names=(),
        fingerprint=fingerprint(
            "moving_mnist", mnist.fingerprint, frames, config.size, config.digits, content
        ),
        splits={
            "train": drawn("train", ENDLESS, seed=0),
            "validation": drawn("validation", _FIXED_CLIPS, seed=1),
            "test": test,
        },
        render=lambda clips: _render(clips, config.size),
    )


def _render(description: Mapping[str, Array], size: int) -> UInt8[Array, "n T S S 1"]:
    if CLIPS in description:
        return stored_clips(description)
    return place_pictures(description[PICTURES], description[CORNERS], size)


def _held_out(count: int, path: Path) -> int:
    """How many training pictures are for validation: 5,000 of MNIST's 60,000."""
    if count < 2:
        raise UserError(
            f"data.source.path = {path} has {count} training picture; it needs two, since those "
            "for validation are others.\nTake a larger set."
        )
    return max(count // 12, 1)


def _halved(pictures: UInt8[np.ndarray, "n H W"]) -> UInt8[np.ndarray, "n h w"]:
    """Means over 2 x 2 pixels, rounded half up."""
    count, height, width = pictures.shape
    blocks = pictures.reshape(count, height // 2, 2, width // 2, 2).astype(np.uint16)
    return ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)


def _stored(file: Path, frames: int) -> tuple[ClipSplit, str]:
    """The clips of a file in the published format, and the sha256 of the file."""
    file = file.expanduser()
    try:
        clips = np.load(file, mmap_mode="r", allow_pickle=False)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.source.test_file = {file} cannot be read ({reason}).\n"
            "Copy or download mnist_test_seq.npy again, or leave test_file unset."
        ) from error
    if clips.dtype != np.uint8 or clips.ndim != 4 or clips.shape[2:] != (64, 64) or not clips.size:
        raise UserError(
            f"data.source.test_file = {file} has {clips.dtype.name} {list(clips.shape)}, but "
            "should have uint8 [frames, clips, 64, 64].\n"
            "Take the published mnist_test_seq.npy, or leave test_file unset."
        )
    if frames > len(clips):
        raise UserError(
            f"data.source.test_file = {file} has clips of {len(clips)} frames, but {frames} are "
            "wanted.\nAsk for fewer frames, or leave test_file unset."
        )

    def read(numbers: Int[np.ndarray, " n"]) -> Description:
        return {CLIPS: np.moveaxis(clips[:frames, numbers], 0, 1)[..., None]}

    return ClipSplit(clips.shape[1], read), digest
