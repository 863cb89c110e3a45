"""The user's own images: a folder or a zip archive."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from genjax.data.image_cache import DecodedImages, EncodedImages, decode_all
from genjax.data.image_decode import Decoding, PixelOptions, Side
from genjax.data.image_listing import LABEL_FILE, Listing, list_images, parse_label_file
from genjax.data.image_source import ImageSource, ImageSplit, cut_by_name, split_of_rows
from genjax.data.text_documents import fingerprint
from genjax.errors import UserError

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


class ImageFiles(PixelOptions):
    """Images of a folder, read recursively, or of a zip archive: png, jpg, webp, bmp, gif, tif."""

    kind: Literal["files"] = "files"
    path: Path
    """A folder of images, or a .zip archive of such a folder."""
    size: Side | tuple[Side, Side]
    """Height and width of the images to train on, as [height, width], or one number for both."""
    labels: Literal["auto", "folders", "none"] = "auto"
    """"folders": each first-level sub-folder is a class; "none": no labels; "auto": the labels of
    a file dataset.json beside the images, else folders where two or more have images."""
    validation_path: Path | None = None
    """A folder or archive with the validation images; unset: some of `path` are kept for it."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Without `validation_path`: about this part of the images, chosen by their names."""


def open_files(config: ImageFiles) -> ImageSource:
    """Opens a folder or archive; the first time, all images are decoded into the cache.

    Raises:
        UserError: Something named in the config is missing, empty or unreadable, a class has no
            image, or the labels contradict themselves.
    """
    decoding = Decoding.of(config.size, config)
    key = "data.source.path"
    train = _open_part(config.path, key, config, decoding, None)
    if config.validation_path is None:
        names = [train.listing.names[number] for number in train.decoded.kept]
        if len(names) < 2:
            raise UserError(
                f"{key} = {config.path} has one readable image, {names[0]}, but training and "
                "validation need one each.\nAdd images, or set data.source.validation_path, which "
                "may be the same."
            )
        rows = cut_by_name(names, config.validation_fraction)
        splits = {"train": train.split(rows[0]), "validation": train.split(rows[1])}
        division: object = config.validation_fraction
    else:
        validation = _open_part(
            config.validation_path, "data.source.validation_path", config, decoding, train.classes
        )
        splits = {"train": train.split(), "validation": validation.split()}
        division = validation.digest
    height, width, channels = train.decoded.pixels.shape[1:]
    return ImageSource(
        name=str(config.path),
        image_shape=(height, width, channels),
        num_classes=len(train.classes or ()),
        class_names=train.classes or (),
        fingerprint=fingerprint(train.digest, division, decoding),
        splits=splits,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """A folder or archive with its pixels and labels."""

    listing: Listing
    decoded: DecodedImages
    classes: tuple[str, ...] | None
    labels: Int[np.ndarray, " n"] | None

    def split(self, rows: Int[np.ndarray, " m"] | None = None) -> ImageSplit:
        return split_of_rows(self.decoded.pixels, rows, self.labels)

    @property
    def digest(self) -> str:
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        return fingerprint(self.decoded.digest, self.classes, hashlib.sha256(labels).hexdigest())


def _open_part(
    path: Path, key: str, config: ImageFiles, decoding: Decoding, known: tuple[str, ...] | None
) -> _Part:
    """Reads a folder or archive.

    Args:
        path: The folder or archive.
        key: Its name in the config.
        config: How labels are found, and where the cache is.
        decoding: What is made of the images.
        known: For validation: the classes of the training images.
    """
    listing = list_images(path, key)
    labelling = _labelling(listing, config.labels, key)
    if key == "data.source.validation_path":
        labelling = _as_in_training(labelling, known, path)
    encoded = EncodedImages(
        what=f"images of {path}",
        names=listing.names,
        stamp=(listing.names, listing.stamp),
        read=listing.read,
    )
    decoded = decode_all(encoded, decoding, config.cache)
    if labelling is None:
        return _Part(listing, decoded, None, None)
    classes, numbers = labelling
    labels = np.array(numbers, np.int64)[decoded.kept]
    if known is None:
        _check_no_class_is_empty(classes, labels, numbers, decoded, listing, key)
    return _Part(listing, decoded, classes, labels)


_Labelling = tuple[tuple[str, ...], list[int]]
"""Names of the classes, and the class of each image of a listing."""


def _labelling(listing: Listing, choice: str, key: str) -> _Labelling | None:
    if choice == "none":
        return None
    if choice == "auto" and listing.label_file is not None:
        table = parse_label_file(listing.label_file, listing.path)
        return None if table is None else _by_table(listing, table)
    with_images = {name.split("/")[0] for name in listing.names if "/" in name}
    if choice == "auto":
        if len(with_images) < 2:
            return None
        if {name.lower() for name in with_images} <= _SPLIT_NAMES:
            raise UserError(
                f"{key} = {listing.path}: the folders {', '.join(sorted(with_images))} look like "
                "splits, not classes.\nSet data.source.path and data.source.validation_path to "
                'one each (unpack an archive), or data.source.labels to "folders" or "none".'
            )
    loose = [name for name in listing.names if "/" not in name]
    if loose:
        raise UserError(
            f"{key} = {listing.path}: {len(loose)} images, such as {loose[0]}, lie in no class "
            f"folder.\nMove them into {', '.join(listing.folders[:3]) or 'class folders'}, or set "
            'data.source.labels = "none".'
        )
    if len(listing.folders) < 2:
        raise UserError(
            f"{key} = {listing.path} has no class folders: two or more sub-folders are needed.\n"
            'Set data.source.labels = "none" to train without labels.'
        )
    numbers = {name: number for number, name in enumerate(listing.folders)}
    return listing.folders, [numbers[name.split("/")[0]] for name in listing.names]


def _by_table(listing: Listing, table: dict[str, int]) -> _Labelling:
    missing = [name for name in listing.names if name not in table]
    if missing:
        raise UserError(
            f"{LABEL_FILE} in {listing.path} has no label for {len(missing)} of "
            f"{len(listing.names)} images, such as {missing[0]}.\nAdd them, or set "
            'data.source.labels = "none" (or "folders").'
        )
    numbers = [table[name] for name in listing.names]
    return tuple(str(number) for number in range(max(numbers) + 1)), numbers


def _as_in_training(
    labelling: _Labelling | None, known: tuple[str, ...] | None, path: Path
) -> _Labelling | None:
    """The validation images' labels by the training images' numbers."""
    if known is None:
        return None
    found = () if labelling is None else labelling[0]
    unknown = [name for name in found if name not in known]
    if labelling is None or unknown:
        what = "has no labels" if labelling is None else f"has the class '{unknown[0]}'"
        raise UserError(
            f"data.source.validation_path = {path} {what}, but the training images' classes are "
            f"{', '.join(known[:8])}{', ...' if len(known) > 8 else ''}.\n"
            'Sort it into the same classes, or set data.source.labels = "none".'
        )
    return known, [known.index(found[number]) for number in labelling[1]]


def _check_no_class_is_empty(
    classes: tuple[str, ...],
    labels: Int[np.ndarray, " n"],
    numbers: list[int],
    decoded: DecodedImages,
    listing: Listing,
    key: str,
) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return
    broken = [number for number in decoded.skipped if numbers[number] == empty[0]]
    why = ", and no image at all"
    if broken:
        why = f"; {listing.names[broken[0]]} {decoded.skipped[broken[0]]}"
    more = f" ({len(empty)} classes have none)" if len(empty) > 1 else ""
    raise UserError(
        f"{key} = {listing.path}: class '{classes[empty[0]]}' has no readable image{more}{why}.\n"
        'Add images to it or remove it, or set data.source.labels = "none".'
    )
