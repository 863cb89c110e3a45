"""Built-in images: the handwritten digits that scikit-learn brings along."""

import gzip
import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from pydantic import Field

from genjax.config import Config
from genjax.data.image_source import ImageSource, cut_shuffled, split_of_rows
from genjax.data.text_documents import fingerprint

_SIDE = 8
_BRIGHTEST = 16


class BuiltinDigits(Config):
    """1797 scans of handwritten digits, 8 x 8 pixels in 17 shades; needs no network.

    They are the test set of the UCI optical recognition set of handwritten digits.
    """

    kind: Literal["digits"] = "digits"
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Height and width of the images, at least 8; larger ones are interpolated (bicubic)."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Part of the scans that is kept for validation, chosen at random once and for all."""


def open_digits(config: BuiltinDigits) -> ImageSource:
    """The scans, white on black, with one channel and the digits as classes."""
    scans, labels = _read_scans()
    pixels = np.stack([_enlarge(scan, config.size) for scan in scans])[..., None]
    train, validation = cut_shuffled(len(pixels), config.validation_fraction)
    return ImageSource(
        name="the built-in digits",
        image_shape=(config.size, config.size, 1),
        num_classes=10,
        class_names=tuple("0123456789"),
        fingerprint=fingerprint(
            "digits", scans.tobytes(), labels.tolist(), config.size, config.validation_fraction
        ),
        splits={
            "train": split_of_rows(pixels, train, labels),
            "validation": split_of_rows(pixels, validation, labels),
        },
    )


def _read_scans() -> tuple[UInt8[np.ndarray, "N 8 8"], Int[np.ndarray, " N"]]:
    """Scans from 0 to 255, and their digits."""
    # The file that load_digits reads; importing scikit-learn for it takes seconds.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",")
        shades, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        shades, labels = load_digits(return_X_y=True)
    scans = np.round(np.asarray(shades) * (255 / _BRIGHTEST)).astype(np.uint8)
    return scans.reshape(-1, _SIDE, _SIDE), np.asarray(labels).astype(np.int64)


def _enlarge(scan: UInt8[np.ndarray, "8 8"], size: int) -> UInt8[np.ndarray, "S S"]:
    image = Image.fromarray(scan)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
