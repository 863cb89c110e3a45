"""Training batches of language models, each a pure function of its number.

A data set is random access: `dataset[i]` is batch i of the run, whatever was read before it. So
the position of a run in its data is one integer, and any number of processes, now or after a
resume, cut the same global batch into contiguous blocks of rows.

B batch, T time (sequence_length), N tokens of the corpus, D documents.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from pydantic import Field

from genjax.config import Config
from genjax.data.process_rows import process_rows
from genjax.data.random_numbers import random_integers
from genjax.errors import UserError

Batch = dict[str, np.ndarray]

# Training goes on for as long as anyone asks; grain wants a length.
_ENDLESS = 2**62


class _Batching(Config):
    batch_size: Annotated[int, Field(ge=1)] = 12
    """Sequences in a batch, over all processes together."""
    sequence_length: Annotated[int, Field(ge=1)] = 64
    """Tokens of a sequence that are read, and as many that are predicted."""


class Windows(_Batching):
    """Windows at uniformly random offsets, drawn with replacement, as nanoGPT does."""

    kind: Literal["windows"] = "windows"


class Streams(_Batching):
    """Contiguous streams for recurrent models: truncated backpropagation through time.

    The text is cut into `batch_size` streams; each batch continues where the one before ended, so
    the state is carried over. Fewer than `sequence_length` tokens at the end of each stream, and
    fewer than `batch_size` at the end of the text, are left out (Zaremba et al., 2014).
    """

    kind: Literal["streams"] = "streams"


class Documents(_Batching):
    """Whole documents in random order, laid end to end and cut into rows.

    Nothing is dropped and nothing padded: every token is read once an epoch. Segment ids tell the
    documents of a row apart; a document that crosses into the next row begins afresh there.
    """

    kind: Literal["documents"] = "documents"


BatchingConfig = Annotated[Windows | Streams | Documents, Field(discriminator="kind")]


@dataclass(frozen=True)
class Corpus:
    """Tokens of a split.

    Attributes:
        tokens: [N] token ids of all documents, end to end; may be a memory map.
        offsets: [D + 1] where each document begins, and N at the end; no document is empty.
    """

    tokens: Integer[np.ndarray, " N"]
    offsets: Int[np.ndarray, " D1"]


def training_dataset(
    corpus: Corpus,
    batching: Windows | Streams | Documents,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """The endless batches of a training run, by number.

    An iterator from `to_iter_dataset` has the state `{"next_index": i}`: the whole position of the
    run in its data, exact also with threads that read ahead.

    Args:
        corpus: The training tokens.
        batching: How they are cut.
        seed: Decides all that is random.
        process_index: Which contiguous block of rows this process reads.
        process_count: Number of processes that share the batch.

    Returns:
        Batches of int32 `inputs` and `targets` [B / process_count, T]; with streams also `reset`
        [B / process_count], bool; with documents also `segment_ids` and `positions` [.., T],
        int32, and `weights` [.., T], float32.

    Raises:
        UserError: The text is too short, or the batch does not divide among the processes.
    """
    rows = process_rows(batching.batch_size, process_index, process_count)
    tokens, length, size = corpus.tokens, batching.sequence_length, batching.batch_size
    match batching:
        case Windows():
            _check_length(len(tokens), length + 1, f"one sequence of {length} tokens")
            source = _WindowSource(tokens, size, length, seed, rows)
        case Streams():
            _check_length(len(tokens), size * length + 1, f"{size} streams of {length} tokens")
            source = _StreamSource(tokens, size, length, rows)
        case Documents():
            _check_length(len(tokens), length + 1, f"one row of {length} tokens")
            source = _DocumentSource(corpus, size, length, seed, rows)
    return grain.MapDataset.source(source)


def _check_length(tokens: int, needed: int, what: str) -> None:
    if tokens < needed:
        raise UserError(
            f"The text has {tokens} tokens, but {what} (data.batching) need {needed}.\n"
            "Use more text, or a smaller sequence_length or batch_size."
        )


@dataclass(frozen=True)
class _WindowSource:
    tokens: np.ndarray
    batch_size: int
    sequence_length: int
    seed: int
    rows: slice

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        bound = len(self.tokens) - self.sequence_length
        starts = random_integers(bound, self.batch_size, self.seed, index)[self.rows]
        block = self.tokens[starts[:, None] + np.arange(self.sequence_length + 1)]
        block = block.astype(np.int32)
        return {"inputs": block[:, :-1], "targets": block[:, 1:]}


@dataclass(frozen=True)
class _StreamSource:
    tokens: np.ndarray
    batch_size: int
    sequence_length: int
    rows: slice

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        stream_length = (len(self.tokens) - 1) // self.batch_size
        step = index % (stream_length // self.sequence_length)
        streams = np.arange(self.batch_size)[self.rows]
        starts = streams * stream_length + step * self.sequence_length
        block = self.tokens[starts[:, None] + np.arange(self.sequence_length + 1)]
        block = block.astype(np.int32)
        return {
            "inputs": block[:, :-1],
            "targets": block[:, 1:],
            "reset": np.full(len(streams), step == 0),
        }


class _DocumentSource:
    """Rows of an endless text: the corpus again and again, its documents reordered each time."""

    def __init__(
        self, corpus: Corpus, batch_size: int, sequence_length: int, seed: int, rows: slice
    ) -> None:
        self._corpus = corpus
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._seed = seed
        self._rows = np.arange(batch_size)[rows]
        # Two, since a batch may lie across the border of two epochs.
        self._order = functools.lru_cache(maxsize=2)(self._order_of_epoch)

    def __len__(self) -> int:
        return _ENDLESS

    def _order_of_epoch(self, epoch: int) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"]]:
        """Where each document of the epoch ends, and how far its tokens are from their place."""
        offsets = self._corpus.offsets
        lengths = np.diff(offsets)
        keys = np.random.Philox(np.random.SeedSequence((self._seed, epoch)))
        order = np.argsort(keys.random_raw(len(lengths)), kind="stable")
        ends = np.cumsum(lengths[order])
        return ends, offsets[:-1][order] - (ends - lengths[order])

    def __getitem__(self, index: int) -> Batch:
        length = self._sequence_length
        row = index * self._batch_size + self._rows
        place = row[:, None] * length + np.arange(length + 1)
        epochs, place = np.divmod(place, len(self._corpus.tokens))
        documents = np.empty_like(place)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            ends, shifts = self._order(epoch)
            inside = epochs == epoch
            document = np.searchsorted(ends, place[inside], side="right")
            place[inside] += shifts[document]
            documents[inside] = document + epoch * len(ends)
        block = self._corpus.tokens[place].astype(np.int32)
        segment_ids, positions, weights = segments_of_rows(documents)
        return {
            "inputs": block[:, :-1],
            "targets": block[:, 1:],
            "segment_ids": segment_ids,
            "positions": positions,
            "weights": weights,
        }


def segments_of_rows(
    documents: Int[np.ndarray, "B T1"],
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """Segment ids, positions and target weights of packed rows.

    Args:
        documents: [B, T + 1] number of the document that each token belongs to, ascending.

    Returns:
        segment_ids [B, T] from 1 in each row; positions [B, T] from 0 in each segment of a row;
        weights [B, T], 1 where the target belongs to the same document as the input.
    """
    same: Bool[np.ndarray, "B T"] = documents[:, 1:] == documents[:, :-1]
    begins = np.zeros(same.shape, dtype=np.int32)
    begins[:, 1:] = ~same[:, :-1]
    segment_ids = np.cumsum(begins, axis=1, dtype=np.int32) + np.int32(1)
    time = np.arange(same.shape[1], dtype=np.int32)
    positions = time - np.maximum.accumulate(begins * time, axis=1)
    return segment_ids, positions, same.astype(np.float32)
