"""The built-in digits in motion: clips that need no network and no file."""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.builtin_digits import BuiltinDigits, open_digits
from genjax.data.clip_rendering import CORNERS, PICTURES, place_pictures
from genjax.data.clip_source import ENDLESS, LABELS, ClipSource, ClipSplit, Description
from genjax.data.motion import bouncing_pictures
from genjax.data.text_documents import fingerprint

_VALIDATION_CLIPS = 1_000


class MovingDigits(Config):
    """scikit-learn's handwritten digits, which move and bounce on a black canvas."""

    kind: Literal["moving_digits"] = "moving_digits"
    size: Annotated[int, Field(ge=8, le=512)] = 32
    """Height and width of the clips."""
    digit_size: Annotated[int, Field(ge=8, le=512)] = 16
    """Height and width of a digit; its 8 x 8 pixels are interpolated (bicubic)."""
    digits: Annotated[int, Field(ge=1, le=16)] = 2
    """Digits in each clip. With one, a clip's class is its digit; with more there are none."""
    speed: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """How far a digit goes in each frame, as a part of the way from edge to edge."""

    @model_validator(mode="after")
    def _check_digit_size(self) -> "MovingDigits":
        if self.digit_size > self.size:
            raise ValueError(
                f"digit_size = {self.digit_size} is larger than size = {self.size}; "
                "a digit has to fit on the canvas"
            )
        return self


def open_moving_digits(config: MovingDigits, frames: int) -> ClipSource:
    """Digits that move by the law of Moving MNIST; see `genjax.data.motion`.

    Training clips are drawn without end from nine tenths of the scans; the 1,000 clips for
    validation are fixed and show the others.
    """
    scans = open_digits(BuiltinDigits(size=config.digit_size))
    labelled = config.digits == 1

    def split(name: str, count: int, seed: int) -> ClipSplit:
        images = scans.splits[name]
        assert images.labels is not None
        labels = images.labels

        def read(numbers: Int[np.ndarray, " n"]) -> Description:
            chosen, corners = bouncing_pictures(
                numbers,
                pictures=len(images),
                digits=config.digits,
                frames=frames,
                room=config.size - config.digit_size,
                speed=config.speed,
                seed=seed,
            )
            pictures = images.images(chosen.reshape(-1))
            side = config.digit_size
            described = {PICTURES: pictures.reshape(*chosen.shape, side, side), CORNERS: corners}
            return described | ({LABELS: labels[chosen[:, 0]]} if labelled else {})

        return ClipSplit(count, read)

    return ClipSource(
        name="the built-in digits in motion",
        clip_shape=(frames, config.size, config.size, 1),
        frames_per_second=10.0,
        num_classes=scans.num_classes if labelled else 0,
        class_names=scans.class_names if labelled else (),
        fingerprint=fingerprint(
            "moving_digits", scans.fingerprint, frames, config.size, config.digits, config.speed
        ),
        splits={
            "train": split("train", ENDLESS, seed=0),
            "validation": split("validation", _VALIDATION_CLIPS, seed=1),
        },
        render=lambda clips: place_pictures(clips[PICTURES], clips[CORNERS], config.size),
    )
