"""Images in random access by split, whatever they come from.

N images of a split, n of them asked for, K modes; H height, W width, C channels.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from genjax.data.random_numbers import permutation


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images by number.

    Attributes:
        count: N, how many there are.
        read: The images of numbers [n] below N; `images` is its public name.
        labels: int32 [N], the class of each, or None.
    """

    count: int
    read: Callable[[np.ndarray], np.ndarray]
    labels: Int[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return self.count

    def images(self, indices: Int[np.ndarray, " n"]) -> Num[np.ndarray, "n H W C"]:
        """Images of the given numbers: uint8, or float32 of a mixture of Gaussians."""
        return self.read(indices)


@dataclass(frozen=True, eq=False)
class Mixture:
    """The density behind samples in the plane: equal Gaussians around the modes.

    Attributes:
        modes: [K, 2], in the units of the samples.
        standard_deviation: Of each, in each direction.
    """

    modes: Float[np.ndarray, "K 2"]
    standard_deviation: float


@dataclass(frozen=True, eq=False)
class ImageSource:
    """An opened source of images.

    Attributes:
        name: What to call it in messages.
        image_shape: (H, W, C) of every image.
        num_classes: Labels are below it; 0 where there are none.
        class_names: One name a class; empty where there are none.
        fingerprint: sha256 in hex of the content, what is made of it, and its division into
            splits; where the files lie and when they were written does not enter.
        splits: Always "train" and "validation".
        base: Of stacked digits: the single digits at the same size, with one channel and their
            own labels. Else None.
        mixture: Of a mixture of Gaussians: its density. Else None.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str
    splits: Mapping[str, ImageSplit]
    base: "ImageSource | None" = None
    mixture: Mixture | None = None


def split_of_rows(
    images: Num[np.ndarray, "N H W C"],
    rows: Int[np.ndarray, " n"] | None = None,
    labels: Int[np.ndarray, " N"] | None = None,
) -> ImageSplit:
    """A split made of some rows of an array, which may be a memory map, or of all of them."""
    if rows is None:
        rows = np.arange(len(images))
    return ImageSplit(
        count=len(rows),
        read=lambda indices: np.asarray(images[rows[indices]]),
        labels=None if labels is None else labels[rows].astype(np.int32),
    )


def cut_shuffled(
    count: int, validation_fraction: float
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Rows for training and for validation in ascending order, chosen by a fixed shuffle.

    Each has at least one row of the `count`, which must be two or more.
    """
    assert count >= 2
    held_out = min(max(round(count * validation_fraction), 1), count - 1)
    order = permutation(count, 0)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def cut_by_name(
    names: Sequence[str], validation_fraction: float
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Rows for training and for validation, chosen by a hash of each image's own name.

    So an image stays in its split when others come or go. Each split has at least one of the
    images, which must be two or more.
    """
    assert len(names) >= 2
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    place = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    held_out = place < validation_fraction * 2.0**64
    held_out[np.argmin(place)] = True
    held_out[np.argmax(place)] = False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
