"""Image data sets of TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from genjax.data.image_cache import DecodedImages, Encoded, EncodedImages, decode_all
from genjax.data.image_decode import Decoding, PixelOptions, Side, UnreadableImage
from genjax.data.image_source import ImageSource, cut_by_name, split_of_rows
from genjax.data.text_documents import fingerprint
from genjax.data.tfds_builder import features_of, first_line, open_builder, open_records
from genjax.errors import UserError


class TfdsImages(PixelOptions):
    """An image data set of TensorFlow Datasets, prepared as ArrayRecord; needs no TensorFlow."""

    kind: Literal["tfds"] = "tfds"
    name: str
    """Name of the data set, e.g. "cifar10" or "cifar10:3.0.2"."""
    data_dir: Path | None = None
    """Folder of prepared data sets; unset: TFDS's own, ~/tensorflow_datasets."""
    image_feature: str = "image"
    """Which feature of a record is the image."""
    label_feature: str | None = "label"
    """Which feature is the class; "none": no labels."""
    size: Side | tuple[Side, Side] | None = None
    """Height and width to train on, as [height, width], or one number for both; unset: the
    images' own, which must then all be the same."""
    train_split: str = "train"
    """Split to train on; TFDS slices such as "train[:10%]" work."""
    validation_split: str | None = None
    """Split to validate on; unset: "validation" where the set has one, else some images of the
    training split."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Where there is no validation split: about this part of the training split."""


def open_tfds_images(config: TfdsImages) -> ImageSource:
    """Opens a prepared data set; the first time, all images are decoded into the cache.

    Raises:
        UserError: It is unknown, not prepared, has no such split or feature, no readable image, or
            images of different sizes while the config names none.
    """
    builder = open_builder(config.name, config.data_dir)
    info = builder.info
    class_names = _check_features(builder, config)
    decoding = Decoding.of(config.size, config)
    decoded = _decode(builder, config.train_split, config, decoding, len(class_names))
    labels = decoded.labels if class_names else None
    validation = config.validation_split or ("validation" if "validation" in info.splits else None)
    if validation is None:
        if len(decoded.kept) < 2:
            raise UserError(
                f"{info.full_name} '{config.train_split}' has one readable image, but training "
                "and validation need one each.\nSet data.source.validation_split."
            )
        names = [str(number) for number in decoded.kept]
        train_rows, validation_rows = cut_by_name(names, config.validation_fraction)
        splits = {
            "train": split_of_rows(decoded.pixels, train_rows, labels),
            "validation": split_of_rows(decoded.pixels, validation_rows, labels),
        }
        division: object = config.validation_fraction
    else:
        held_out = _decode(builder, validation, config, decoding, len(class_names))
        if held_out.pixels.shape[1:] != decoded.pixels.shape[1:]:
            raise UserError(
                f"{info.full_name}: images of '{config.train_split}' and '{validation}' have "
                "different sizes.\nSet data.source.size, such as 64."
            )
        splits = {
            "train": split_of_rows(decoded.pixels, None, labels),
            "validation": split_of_rows(
                held_out.pixels, None, held_out.labels if class_names else None
            ),
        }
        division = held_out.digest
    height, width, channels = decoded.pixels.shape[1:]
    return ImageSource(
        name=info.full_name,
        image_shape=(height, width, channels),
        num_classes=len(class_names),
        class_names=class_names,
        fingerprint=fingerprint(decoded.digest, class_names, decoding, division),
        splits=splits,
    )


def _check_features(builder: Any, config: TfdsImages) -> tuple[str, ...]:
    """Names of the classes; empty without labels."""
    import tensorflow_datasets as tfds

    features, full_name = features_of(builder), builder.info.full_name

    def check(name: str, field: str, kind: type, what: str, way_out: str) -> None:
        if not isinstance(features.get(name), kind):
            fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
            raise UserError(
                f"data.source.{field} = '{name}' is no {what} feature of {full_name}.\n"
                f"Its {what} features: {', '.join(fitting) or 'none'} "
                f"(all: {', '.join(features) or 'unnamed'}){way_out}."
            )

    check(config.image_feature, "image_feature", tfds.features.Image, "image", "")
    if config.label_feature is None:
        return ()
    way_out = '; or set label_feature = "none"'
    check(config.label_feature, "label_feature", tfds.features.ClassLabel, "class label", way_out)
    label = features[config.label_feature]
    return tuple(label.int2str(number) for number in range(label.num_classes or 0))


def _decode(
    builder: Any, split: str, config: TfdsImages, decoding: Decoding, num_classes: int
) -> DecodedImages:
    import tensorflow_datasets as tfds

    # Encoded, so that a broken image is one image's trouble and the filter is ours.
    decoders = {config.image_feature: tfds.decode.SkipDecoding()}
    records = open_records(builder, split, decoders)

    def read(number: int) -> Encoded:
        try:
            record = records[number]
        except (RuntimeError, OSError, ValueError) as error:
            raise UnreadableImage(f"cannot be read ({first_line(error)})") from error
        if not num_classes:
            return Encoded(record[config.image_feature])
        label = int(record[config.label_feature])
        if not 0 <= label < num_classes:
            raise UnreadableImage(f"has the label {label}, not one of {num_classes} classes")
        return Encoded(record[config.image_feature], label)

    files = sorted(Path(builder.data_path).iterdir())
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = hashlib.sha256(repr((str(builder.data_path), states)).encode("utf-8")).hexdigest()
    encoded = EncodedImages(
        what=f"records of {builder.info.full_name} '{split}'",
        names=[str(number) for number in range(len(records))],
        stamp=(stamp, split, config.image_feature, config.label_feature),
        read=read,
    )
    return decode_all(encoded, decoding, config.cache)
