"""Text data sets of TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from genjax.config import Config
from genjax.data.text_documents import Skipped, Summary, TextSource, cut_readers, fingerprint
from genjax.data.tfds_builder import features_of, first_line, open_builder, open_records
from genjax.errors import UserError

_RECORDS_PER_READ = 1024


class TfdsText(Config):
    """A text data set of TensorFlow Datasets, prepared as ArrayRecord; needs no TensorFlow."""

    kind: Literal["tfds"] = "tfds"
    name: str
    """Name of the data set, e.g. "lm1b" or "lm1b:1.1.0"."""
    data_dir: Path | None = None
    """Folder of prepared data sets; unset: TFDS's own, ~/tensorflow_datasets."""
    text_feature: str = "text"
    """Which feature of a record is the text; each record is a document."""
    train_split: str = "train"
    """Split to train on; TFDS slices such as "train[:10%]" work."""
    validation_split: str | None = None
    """Split to validate on; unset: "validation" where the set has one, else the end of the
    training split."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Where the set has no validation split: the last part of the training split, by characters."""


def open_tfds(config: TfdsText) -> TextSource:
    """Opens a prepared data set.

    Raises:
        UserError: It is unknown, not prepared, or has no such split or text feature.
    """
    import tensorflow_datasets as tfds

    builder = open_builder(config.name, config.data_dir)
    info = builder.info
    features = features_of(builder)
    if not isinstance(features.get(config.text_feature), tfds.features.Text):
        texts = [name for name, kind in features.items() if isinstance(kind, tfds.features.Text)]
        raise UserError(
            f"data.source.text_feature = '{config.text_feature}' is no text feature of "
            f"{info.full_name}.\nIts text features: {', '.join(texts) or 'none'} "
            f"(all: {', '.join(features) or 'unnamed'})."
        )

    def reader(split: str) -> Callable[[], Iterator[str]]:
        records = open_records(builder, split)
        return lambda: _read_records(records, config.text_feature, f"{info.full_name} '{split}'")

    train = reader(config.train_split)
    validation = config.validation_split or ("validation" if "validation" in info.splits else None)
    if validation is None:
        summary = Summary()
        summary.watch(train())
        readers = cut_readers(train, summary.characters, config.validation_fraction)
    else:
        readers = {"train": train, "validation": reader(validation)}
    readers |= {name: reader(name) for name in info.splits if name not in readers}
    shards = sorted(
        (name, part.num_examples, part.num_bytes, part.shard_lengths)
        for name, part in info.splits.items()
    )
    division = (config.train_split, validation or config.validation_fraction)
    return TextSource(
        name=info.full_name,
        readers=readers,
        fingerprint=fingerprint(info.full_name, config.text_feature, shards, division),
    )


def _read_records(records: Any, feature: str, name: str) -> Iterator[str]:
    skipped = Skipped(f"records of {name}")
    produced = 0
    for start in range(0, len(records), _RECORDS_PER_READ):
        indices = range(start, min(start + _RECORDS_PER_READ, len(records)))
        for index, record in zip(indices, _read_chunk(records, indices, skipped), strict=True):
            if record is None:
                continue
            try:
                document = record[feature].decode("utf-8")
            except UnicodeDecodeError as error:
                skipped.reasons.append(f"{index} is not UTF-8 at byte {error.start}")
                continue
            if document:
                produced += 1
                yield document
    if not produced:
        why = skipped.reasons[0] if skipped.reasons else "every record is empty"
        raise UserError(
            f"{name}: no readable text in its {len(records)} records ({why}).\n"
            "Delete the prepared data set and prepare it again."
        )
    skipped.report(len(records))


def _read_chunk(records: Any, indices: range, skipped: Skipped) -> list[Any]:
    """Reads records in bulk; where that fails, one by one, with None for the broken ones."""
    try:
        return records.__getitems__(list(indices))
    except (RuntimeError, OSError):
        chunk: list[Any] = []
        for index in indices:
            try:
                chunk.append(records[index])
            except (RuntimeError, OSError) as error:
                skipped.reasons.append(f"{index} cannot be read ({first_line(error)})")
                chunk.append(None)
        return chunk
