"""Prepared data sets of TensorFlow Datasets, opened without TensorFlow."""

import difflib
from pathlib import Path
from typing import Any

from genjax.errors import UserError


def open_builder(name: str, data_dir: Path | None) -> Any:
    """Opens a data set that was prepared as ArrayRecord.

    Args:
        name: Such as "mnist" or "mnist:3.0.1".
        data_dir: Folder of prepared data sets; None for TFDS's own, ~/tensorflow_datasets.

    Returns:
        Its `tfds.core.DatasetBuilder`.

    Raises:
        UserError: It is unknown, not prepared, or prepared in another file format.
    """
    import tensorflow_datasets as tfds

    folder = None if data_dir is None else str(data_dir.expanduser())
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        plain_name = name.split(":")[0].split("/")[0]
        close = difflib.get_close_matches(
            plain_name, tfds.list_builders(with_community_datasets=False), n=1
        )
        hint = f"Did you mean '{close[0]}'?" if close else "Names: tensorflow.org/datasets/catalog"
        raise UserError(
            f"data.source.name = '{name}': TFDS knows no such data set, and none of that "
            f"name is prepared in {folder or '~/tensorflow_datasets'}.\n{hint}"
        ) from error
    if not builder.is_prepared():
        raise UserError(
            f"{builder.info.full_name} is not prepared in {builder.data_dir}. Prepare it once "
            '(most sets need "pip install tensorflow-cpu" for that):\n'
            + _prepare_command(name, folder)
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.info.full_name} in {builder.data_dir} is stored as "
            f"{builder.info.file_format}, but array_record is needed.\nPrepare it again in "
            "another folder and set data.source.data_dir to it:\n"
            + _prepare_command(name, "NEW_FOLDER")
        )
    return builder


def open_records(builder: Any, split: str, decoders: dict[str, Any] | None = None) -> Any:
    """Random access to the records of a split.

    Args:
        builder: From `open_builder`.
        split: Name of a split; TFDS slices such as "train[:10%]" work.
        decoders: TFDS's decoders of single features, where not its own.

    Raises:
        UserError: The set has no such split.
    """
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, KeyError) as error:
        info = builder.info
        raise UserError(
            f"{info.full_name} has no split '{split}'.\nIt has: {', '.join(info.splits)}."
        ) from error


def features_of(builder: Any) -> dict[str, Any]:
    """The features of a record by name; empty where records are no dict."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    return dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}


def first_line(error: Exception) -> str:
    """What went wrong with a record, without the stack that ArrayRecord appends."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(";")[0]


def _prepare_command(name: str, data_dir: str | None) -> str:
    where = "" if data_dir is None else f", data_dir={data_dir!r}"
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\""
    )
