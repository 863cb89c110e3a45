"""Evaluation of language models: one deterministic pass over a whole split.

Every protocol but `evaluation_documents` scores each token of the split except the very first
exactly once, so that their figures are sums over the same tokens and differ only in the context
that a token is predicted from. Batches have one shape; what does not count has weight 0.

B batch, T time (sequence_length), N tokens of the split.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer

from genjax.data.process_rows import process_rows
from genjax.data.text_batches import Batch, Corpus, segments_of_rows
from genjax.errors import UserError


@dataclass(frozen=True)
class EvaluationBatches:
    """A finite, repeatable pass in batches of one shape.

    Attributes:
        protocol: What context each token is predicted from, to be printed beside the figures.
        targets: How many tokens the pass scores, over all processes.
        count: Number of batches.
        batch: Batch by number, from 0 to count - 1.
    """

    protocol: str
    targets: int
    count: int
    batch: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.batch(index)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(self.count))


def evaluation_chunks(
    tokens: Integer[np.ndarray, " N"],
    batch_size: int,
    sequence_length: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Windows of T tokens side by side: a token sees what lies before it in its own window.

    The last window is padded with weight 0.

    Returns:
        Batches of `inputs`, `targets` [B / process_count, T], int32, and `weights`, float32.

    Raises:
        UserError: Fewer than two tokens, or the batch does not divide among the processes.
    """
    rows = process_rows(batch_size, process_index, process_count)
    protocol = f"whole split, windows of {sequence_length} tokens, no context between windows"
    return _windows(tokens, batch_size, sequence_length, sequence_length, rows, protocol)


def evaluation_sliding(
    tokens: Integer[np.ndarray, " N"],
    batch_size: int,
    sequence_length: int,
    stride: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Overlapping windows: only the last `stride` targets of each count, all of the first's.

    A token is so predicted from at least T - stride + 1 tokens before it, where the text has them.

    Returns:
        Batches of `inputs`, `targets` [B / process_count, T], int32, and `weights`, float32.

    Raises:
        UserError: The stride is not within 1 .. T; fewer than two tokens; or the batch does not
            divide among the processes.
    """
    if not 1 <= stride <= sequence_length:
        raise UserError(
            f"stride = {stride} must lie between 1 and the window's {sequence_length} tokens.\n"
            "A larger one would leave tokens unscored."
        )
    rows = process_rows(batch_size, process_index, process_count)
    protocol = (
        f"whole split, sliding windows of {sequence_length} tokens by {stride}: "
        f"at least {sequence_length - stride + 1} tokens of context"
    )
    return _windows(tokens, batch_size, sequence_length, stride, rows, protocol)


def evaluation_streams(
    tokens: Integer[np.ndarray, " N"],
    batch_size: int,
    sequence_length: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Contiguous streams with carried state, as recurrent models are evaluated.

    The N - 1 steps from token to token are dealt to B streams of equal length, so a stream begins
    with the last token of the one before it, from a zero state, and no token between streams goes
    unscored; the last streams are padded with weight 0. With `batch_size` 1 the state runs through
    the whole split (Zaremba et al., 2014); T changes the figures in no case.

    Returns:
        Batches of `inputs`, `targets` [B / process_count, T], int32, `weights`, float32, and
        `reset` [B / process_count], true in the first batch only.

    Raises:
        UserError: Fewer than two tokens, or the batch does not divide among the processes.
    """
    _check_two(tokens)
    steps = len(tokens) - 1
    stream_length = -(-steps // batch_size)
    streams = np.arange(batch_size)[process_rows(batch_size, process_index, process_count)]
    time = np.arange(sequence_length)

    def batch(index: int) -> Batch:
        within = index * sequence_length + time
        step = streams[:, None] * stream_length + within
        block = _block(tokens, step, (within < stream_length) & (step < steps))
        return block | {"reset": np.full(len(streams), index == 0)}

    plural = "s" if batch_size > 1 else ""
    return EvaluationBatches(
        protocol=f"whole split, {batch_size} contiguous stream{plural}, state carried",
        targets=steps,
        count=-(-stream_length // sequence_length),
        batch=batch,
    )


def evaluation_documents(
    corpus: Corpus,
    batch_size: int,
    sequence_length: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Documents in order, packed end to end into rows of T as in training.

    A token is predicted from what lies before it in its document and its row. The first token of
    each document has nothing before it and is not scored: N - D targets in all.

    Returns:
        Batches of `inputs`, `targets`, `segment_ids` (0 is padding), `positions`
        [B / process_count, T], int32, and `weights`, float32.

    Raises:
        UserError: Fewer than two tokens, or the batch does not divide among the processes.
    """
    tokens = corpus.tokens
    _check_two(tokens)
    steps = len(tokens) - 1
    count = -(-steps // (batch_size * sequence_length))
    lines = np.arange(batch_size)[process_rows(batch_size, process_index, process_count)]
    time = np.arange(sequence_length + 1)

    def batch(index: int) -> Batch:
        place = (index * batch_size + lines)[:, None] * sequence_length + time
        documents = np.searchsorted(corpus.offsets, np.minimum(place, steps), side="right")
        segment_ids, positions, weights = segments_of_rows(documents)
        step = place[:, :-1]
        block = _block(tokens, step, step < steps)
        is_token = step <= steps
        return block | {
            "inputs": np.where(is_token, tokens[np.minimum(step, steps)], 0).astype(np.int32),
            "segment_ids": np.where(is_token, segment_ids, 0).astype(np.int32),
            "positions": np.where(is_token, positions, 0).astype(np.int32),
            "weights": block["weights"] * weights,
        }

    return EvaluationBatches(
        protocol=f"whole split, documents packed into rows of {sequence_length} tokens",
        targets=len(tokens) - (len(corpus.offsets) - 1),
        count=count,
        batch=batch,
    )


def _windows(
    tokens: np.ndarray,
    batch_size: int,
    sequence_length: int,
    stride: int,
    rows: slice,
    protocol: str,
) -> EvaluationBatches:
    _check_two(tokens)
    steps = len(tokens) - 1
    windows = 1 + -(-max(steps - sequence_length, 0) // stride)
    lines = np.arange(batch_size)[rows]
    time = np.arange(sequence_length)

    def batch(index: int) -> Batch:
        window = index * batch_size + lines[:, None]
        step = window * stride + time
        is_new = (window == 0) | (time >= sequence_length - stride)
        block = _block(tokens, step, (window < windows) & (step < steps))
        return block | {"weights": block["weights"] * is_new.astype(np.float32)}

    return EvaluationBatches(protocol, steps, -(-windows // batch_size), batch)


def _block(tokens: np.ndarray, step: Int[np.ndarray, "B T"], valid: np.ndarray) -> Batch:
    """The given steps from token to token; zeros where they are not valid."""
    step = np.where(valid, step, 0)
    return {
        "inputs": np.where(valid, tokens[step], 0).astype(np.int32),
        "targets": np.where(valid, tokens[step + 1], 0).astype(np.int32),
        "weights": valid.astype(np.float32),
    }


def _check_two(tokens: np.ndarray) -> None:
    if len(tokens) < 2:
        raise UserError(
            f"The text to evaluate has {len(tokens)} tokens, but at least 2 are needed.\n"
            "Use more text, or a larger data.source.validation_fraction."
        )
