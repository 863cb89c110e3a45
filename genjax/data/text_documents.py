"""Text as documents by split, whatever it comes from.

Documents are produced one at a time; only the tokens made from them are held in memory.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from genjax.errors import UserError

_log = logging.getLogger(__name__)
_NAMED_IN_WARNING = 5


@dataclass(frozen=True)
class TextSource:
    """An opened source of text.

    Attributes:
        name: What to call it in messages.
        readers: For each split, a function that begins a fresh pass over its documents.
        fingerprint: sha256 in hex of the content and its division into splits; paths and dates
            do not enter. For TFDS it covers the set's name, version and shard sizes instead.
    """

    name: str
    readers: dict[str, Callable[[], Iterator[str]]]
    fingerprint: str

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: always "train" and "validation", perhaps others."""
        return tuple(self.readers)

    def documents(self, split: str) -> Iterator[str]:
        """Reads the documents of a split in order; none is empty.

        Raises:
            UserError: The source has no such split.
        """
        if split not in self.readers:
            raise UserError(
                f"{self.name} has no split '{split}'.\nIt has: {', '.join(self.splits)}."
            )
        return self.readers[split]()


@dataclass
class Skipped:
    """What was left out of a pass, and why: reported once, so that it is never silent."""

    what: str
    reasons: list[str] = field(default_factory=list)

    def report(self, total: int) -> None:
        """Logs one warning with the number and the first few, if there are any."""
        if self.reasons:
            named = "; ".join(self.reasons[:_NAMED_IN_WARNING])
            more = len(self.reasons) - _NAMED_IN_WARNING
            rest = f"; and {more} more" if more > 0 else ""
            _log.warning(
                "skipped %d of %d %s: %s%s", len(self.reasons), total, self.what, named, rest
            )


@dataclass
class Summary:
    """Characters and content hash of the documents that passed by."""

    characters: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def watch(self, documents: Iterable[str]) -> None:
        """Adds documents."""
        for document in documents:
            encoded = document.encode("utf-8")
            self.characters += len(document)
            self.sha256.update(len(encoded).to_bytes(8, "little"))
            self.sha256.update(encoded)


def cut_documents(
    documents: Iterable[str], total_characters: int, validation_fraction: float, split: str
) -> Iterator[str]:
    """The part of a run of documents that belongs to a split.

    The documents are taken as one text of `total_characters`, cut at
    `int(total_characters * (1 - validation_fraction))`: training text before, validation text
    after. The document that the cut falls into is divided.
    """
    # Rounded, so that 1 - 0.1 cuts where 0.9 does.
    boundary = int(total_characters * round(1.0 - validation_fraction, 12))
    start = 0
    for document in documents:
        cut = min(max(boundary - start, 0), len(document))
        part = document[:cut] if split == "train" else document[cut:]
        start += len(document)
        if part:
            yield part
        if split == "train" and start >= boundary:
            return


def cut_readers(
    read: Callable[[], Iterator[str]], characters: int, fraction: float
) -> dict[str, Callable[[], Iterator[str]]]:
    """Readers of both splits of a run of documents, as `cut_documents` divides it."""
    return {
        split: lambda split=split: cut_documents(read(), characters, fraction, split)
        for split in ("train", "validation")
    }


def fingerprint(*parts: object) -> str:
    """sha256 in hex of plain values."""
    return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()
