"""MNIST and sets in its IDX files, as single digits or as stacks of three (Stacked MNIST).

N images; H height, W width, S the side after padding, C channels.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import Field, model_validator

from genjax.config import Config
from genjax.data.image_source import ImageSource, ImageSplit
from genjax.data.random_numbers import random_integers
from genjax.data.text_documents import fingerprint
from genjax.errors import UserError

_PARTS = {"train": "train", "validation": "t10k"}
_VALIDATION_STACKS = 26_000
_UNSIGNED_BYTE = 8


class IdxImages(Config):
    """MNIST, Fashion-MNIST and the like: a folder of IDX files, each plain or .gz.

    It has train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same of t10k for validation.
    """

    kind: Literal["idx"] = "idx"
    path: Path
    """The folder with the four files."""
    size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Height and width, from zero padding around the images; their own, 28, leaves them as is."""
    channels: Literal[1, 3] | None = None
    """1, or 3 equal ones; unset: 1, or 3 where images are stacked."""
    stack: Literal[1, 3] = 1
    """3: Stacked MNIST (Metz et al., 2017): three random digits as red, green and blue of
    one image; the class is the number that they spell, 0 to 999."""
    stacks: Annotated[int, Field(ge=1)] = 128_000
    """With `stack` = 3: number of stacks to train on; as many, but 26,000 at most, validate."""
    stack_seed: Annotated[int, Field(ge=0)] = 0
    """With `stack` = 3: decides which digits are stacked."""

    @model_validator(mode="after")
    def _check_channels(self) -> "IdxImages":
        if self.stack == 3 and self.channels == 1:
            raise ValueError("channels = 1 does not go with stack = 3; use 3, or leave it unset")
        return self


def open_idx(config: IdxImages) -> ImageSource:
    """Reads the files; stacks are put together when they are asked for.

    Raises:
        UserError: A file is missing, truncated, not IDX or does not fit the others, or the images
            are larger than `size` or, to be stacked, no digits.
    """
    folder = config.path.expanduser()
    parts = {split: _read_part(folder, part) for split, part in _PARTS.items()}
    channels = config.channels or config.stack
    if config.stack == 1:
        return _source(config, parts, channels)
    single = _source(config, parts, 1)
    if single.num_classes != 10:
        raise UserError(
            f"data.source.stack = 3 spells numbers with ten digits, but {config.path} has "
            f"{single.num_classes} classes.\nSet data.source.stack = 1."
        )
    counts = {
        "train": config.stacks,
        "validation": min(config.stacks, _VALIDATION_STACKS),
    }
    return ImageSource(
        name=f"stacks of {config.path}",
        image_shape=(config.size, config.size, 3),
        num_classes=1000,
        class_names=tuple(f"{number:03d}" for number in range(1000)),
        fingerprint=fingerprint(single.fingerprint, "stack", config.stacks, config.stack_seed),
        splits={
            split: _stacked(single.splits[split], count, config.stack_seed, number)
            for number, (split, count) in enumerate(counts.items())
        },
        base=single,
    )


_Part = tuple[UInt8[np.ndarray, "N H W"], UInt8[np.ndarray, " N"]]


def _source(config: IdxImages, parts: dict[str, _Part], channels: int) -> ImageSource:
    num_classes = 1 + max(int(labels.max()) for _, labels in parts.values())
    content = [
        hashlib.sha256(array.tobytes()).hexdigest() for part in parts.values() for array in part
    ]
    return ImageSource(
        name=str(config.path),
        image_shape=(config.size, config.size, channels),
        num_classes=num_classes,
        class_names=tuple(str(number) for number in range(num_classes)),
        fingerprint=fingerprint("idx", content, config.size, channels),
        splits={
            split: _padded(images, labels, config, channels)
            for split, (images, labels) in parts.items()
        },
    )


def _padded(
    images: UInt8[np.ndarray, "N H W"],
    labels: UInt8[np.ndarray, " N"],
    config: IdxImages,
    channels: int,
) -> ImageSplit:
    height, width = images.shape[1:]
    size = config.size
    if size < max(height, width):
        raise UserError(
            f"data.source.size = {size} is too small: the images of {config.path} have "
            f"{height} x {width} pixels.\nSet it to {max(height, width)} or more."
        )
    top, left = (size - height) // 2, (size - width) // 2

    def read(indices: np.ndarray) -> UInt8[np.ndarray, "n S S C"]:
        padded = np.zeros((len(indices), size, size, channels), np.uint8)
        padded[:, top : top + height, left : left + width] = images[indices][..., None]
        return padded

    return ImageSplit(len(images), read, labels.astype(np.int32))


def _stacked(single: ImageSplit, count: int, seed: int, number: int) -> ImageSplit:
    """Random stacks of three images of a split, drawn with replacement."""
    chosen = random_integers(len(single), 3 * count, seed, number).reshape(count, 3)
    assert single.labels is not None
    labels = single.labels[chosen] @ np.array([100, 10, 1], np.int32)

    def read(indices: np.ndarray) -> UInt8[np.ndarray, "n S S 3"]:
        layers = [single.images(chosen[indices, layer]) for layer in range(3)]
        return np.concatenate(layers, axis=-1)

    return ImageSplit(count, read, labels)


# Files ------------------------------------------------------------------------------------------


def _read_part(folder: Path, part: str) -> _Part:
    images = _read_idx(_find(folder, part, "images", 3), 3)
    labels = _read_idx(_find(folder, part, "labels", 1), 1)
    if len(images) != len(labels) or not len(images):
        raise UserError(
            f"{folder}: {part} has {len(images)} images, but {len(labels)} labels.\n"
            "Take both files from the same set."
        )
    return images, labels


def _find(folder: Path, part: str, what: str, axes: int) -> Path:
    # Some copies of the files have a dot where the original has a dash.
    names = [f"{part}-{what}{dash}idx{axes}-ubyte" for dash in "-."]
    for name in names:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    if not folder.is_dir():
        raise UserError(
            f"data.source.path = {folder} is no folder (looked from {Path.cwd()}).\n"
            "Give the folder that the IDX files are in."
        )
    raise UserError(
        f"data.source.path = {folder} has no file {names[0]}, plain or .gz.\n"
        "It needs images and labels of train and of t10k."
    )


def _read_idx(file: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """An array of bytes: two zero bytes, type, number of axes, their lengths, the content."""
    again = "Copy or download it again."
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}).\n{again}") from error
    magic = bytes([0, 0, _UNSIGNED_BYTE, axes])
    if content[:4] != magic:
        raise UserError(
            f"{file} is no IDX file of {axes} axes of bytes: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}.\n{again}"
        )
    begin = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, begin, 4))
    expected = begin + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{file} is truncated or damaged: it has {len(content)} bytes, but its header of "
            f"{shape} asks for {expected}.\n{again}"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
