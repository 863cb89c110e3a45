"""Video data sets of TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

import hashlib
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from genjax.data.clip_decode import FOLDER_RATE, TimedFrame, UnreadableClip, pixels_of
from genjax.data.clip_shards import decode_clips
from genjax.data.clip_source import ClipSource
from genjax.data.clip_stream import StoredClip, StoredClips
from genjax.data.clip_windows import ClipOptions, ClipSet, decoding_of, windowed_source
from genjax.data.image_decode import Decoding, UnreadableImage, decode_image
from genjax.data.tfds_builder import features_of, first_line, open_builder, open_records
from genjax.errors import UserError

_lock = threading.Lock()


class TfdsClips(ClipOptions):
    """A video data set of TensorFlow Datasets, prepared as ArrayRecord; needs no TensorFlow."""

    kind: Literal["tfds"] = "tfds"
    name: str
    """Name of the data set, e.g. "moving_mnist" or "ucf101/ucf101_1:2.0.0"."""
    data_dir: Path | None = None
    """Folder of prepared data sets; unset: TFDS's own, ~/tensorflow_datasets."""
    video_feature: str | None = None
    """Which feature of a record is the clip: a Video, a sequence of images, or a uint8 tensor
    [frames, height, width, channels]; unset: the only such one."""
    label_feature: str | None = "label"
    """Which feature is the class; "label" where there is none, and "none": no labels."""
    frames_per_second: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """How fast the clips play, which records do not say; unset: 25. All frames are used."""
    train_split: str = "train"
    """Split to train on; TFDS slices such as "train[:10%]" work."""
    validation_split: str | None = None
    """Split to validate on; unset: "validation" where the set has one, else some clips of the
    training split."""


def open_tfds_clips(config: TfdsClips, frames: int) -> ClipSource:
    """Opens a prepared data set; the first time, all clips are decoded into the cache.

    Args:
        config: The data set, and what is made of its clips.
        frames: T, how many frames a window has.

    Raises:
        UserError: It is unknown, not prepared, has no such split or feature, no readable clip,
            clips of different sizes while the config names none, or clips that are too short.
    """
    with _features_without_tensorflow():
        try:
            builder = open_builder(config.name, config.data_dir)
            features = features_of(builder)
        except ModuleNotFoundError as error:
            raise UserError(
                f"data.source.name = '{config.name}' has features that cannot be read without "
                f"the module {error.name}.\nInstall it, or prepare the set with its clips as a "
                "uint8 tensor of TFDS's."
            ) from error
    feature = _video_feature(features, config, builder.info.full_name)
    classes = _class_names(features, config, builder.info.full_name)
    train = _decode(builder, config.train_split, config, feature, len(classes))
    validation = config.validation_split
    if validation is None and "validation" in builder.info.splits:
        validation = "validation"
    held_out = None
    if validation is not None:
        held_out = _decode(builder, validation, config, feature, len(classes))
        if held_out.decoded.frame_shape != train.decoded.frame_shape:
            raise UserError(
                f"{builder.info.full_name}: clips of '{config.train_split}' and '{validation}' "
                "have different sizes.\nSet data.source.size, such as 64."
            )
    return windowed_source(builder.info.full_name, train, held_out, frames, config, classes)


@contextmanager
def _features_without_tensorflow() -> Iterator[None]:
    """Lets TFDS describe a Video feature where TensorFlow is not to be imported.

    All it asks TensorFlow for is the name of a type of numbers, which NumPy knows as well.
    """
    from tensorflow_datasets.core.features import video_feature

    with _lock:
        theirs = video_feature.tf
        video_feature.tf = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))
        try:
            yield
        finally:
            video_feature.tf = theirs


def _is_encoded(feature: Any) -> bool:
    """Whether a feature is a sequence of encoded images; a Video is one too."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    return isinstance(feature, kinds.Sequence) and isinstance(feature.feature, kinds.Image)


def _is_clip(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if _is_encoded(feature):
        return True
    # Its sub-classes mean something else by their numbers.
    raw: Any = feature if type(feature) is tfds.features.Tensor else None
    return raw is not None and raw.np_dtype == np.uint8 and len(raw.shape) == 4


def _video_feature(features: dict[str, Any], config: TfdsClips, full_name: str) -> str:
    fitting = [name for name, feature in features.items() if _is_clip(feature)]
    if config.video_feature is None and len(fitting) == 1:
        return fitting[0]
    if config.video_feature in fitting:
        return config.video_feature
    what = f"data.source.video_feature = '{config.video_feature}' is no clip feature of"
    if config.video_feature is None:
        what = f"data.source.video_feature is not set, and {len(fitting)} features are clips in"
    raise UserError(
        f"{what} {full_name}.\nIts clip features: {', '.join(fitting) or 'none'} "
        f"(all: {', '.join(features) or 'unnamed'})."
    )


def _class_names(features: dict[str, Any], config: TfdsClips, full_name: str) -> tuple[str, ...]:
    """Names of the classes; empty without labels."""
    import tensorflow_datasets as tfds

    name = config.label_feature
    if name is None or (name == "label" and name not in features):
        return ()
    kind = tfds.features.ClassLabel
    label = features.get(name)
    if not isinstance(label, kind):
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        raise UserError(
            f"data.source.label_feature = '{name}' is no class label feature of {full_name}.\n"
            f"Its class label features: {', '.join(fitting) or 'none'} "
            f'(all: {", ".join(features)}); or set label_feature = "none".'
        )
    return tuple(label.int2str(number) for number in range(label.num_classes or 0))


def _decode(builder: Any, split: str, config: TfdsClips, feature: str, num_classes: int) -> ClipSet:
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves the frames of a sequence as they are stored."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

    encoded = _is_encoded(features_of(builder)[feature])
    records = open_records(builder, split, {feature: Encoded()} if encoded else None)
    decoding = decoding_of(config)
    duration = 1.0 / (config.frames_per_second or FOLDER_RATE)

    def read(number: int) -> StoredClip:
        try:
            record = records[number]
        except (RuntimeError, OSError, ValueError) as error:
            raise UnreadableClip(f"cannot be read ({first_line(error)})") from error
        stored = list(record[feature])
        label = int(record[config.label_feature]) if num_classes else -1
        if num_classes and not 0 <= label < num_classes:
            raise UnreadableClip(f"has the label {label}, not one of {num_classes} classes")
        return StoredClip(
            frames=lambda: _frames(stored, decoding, duration),
            digest=lambda: _digest(stored),
            label=label,
        )

    files = sorted(Path(builder.data_path).iterdir())
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    clips = StoredClips(
        what=f"records of {builder.info.full_name} '{split}'",
        names=[str(number) for number in range(len(records))],
        stamp=(str(builder.data_path), states, split, feature, config.label_feature),
        read=read,
    )
    decoded = decode_clips(clips, decoding, config.frames_per_second, config.cache)
    return ClipSet(
        what=clips.what,
        decoded=decoded,
        names=[clips.names[int(number)] for number in decoded.kept],
        labels=decoded.labels if num_classes else None,
    )


def _frames(stored: list[Any], decoding: Decoding, duration: float) -> Iterator[TimedFrame]:
    """The frames of a record: encoded images, or arrays [H, W, C]."""
    for number, frame in enumerate(stored):
        try:
            if isinstance(frame, bytes):
                pixels = decode_image(frame, decoding)
            else:
                pixels = pixels_of(_picture(frame), decoding)
        except UnreadableImage as error:
            raise UnreadableClip(f"breaks off: frame {number} {error}") from error
        yield TimedFrame(number * duration, duration, pixels)


def _picture(frame: np.ndarray) -> Image.Image:
    if frame.shape[-1] not in (1, 3, 4):
        raise UnreadableImage(f"has {frame.shape[-1]} channels")
    return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def _digest(stored: list[Any]) -> bytes:
    digest = hashlib.sha256()
    for frame in stored:
        data = frame if isinstance(frame, bytes) else np.ascontiguousarray(frame).tobytes()
        digest.update(hashlib.sha256(data).digest())
    return digest.digest()
