import numpy as np
import pytest

from genjax.data.text_batches import Corpus
from genjax.data.text_evaluation import (
    evaluation_chunks,
    evaluation_documents,
    evaluation_sliding,
    evaluation_streams,
)
from genjax.errors import UserError

LENGTHS = [2, 3, 6, 7, 8, 13, 25, 49, 50, 61]


def numbered(length):
    """Tokens that are their own place in the text, so that a target tells where it is from."""
    return np.arange(length, dtype=np.uint16)


def scored(batches):
    """Places of all targets that count."""
    kept = [batch["targets"][batch["weights"] == 1] for batch in batches]
    return np.sort(np.concatenate(kept))


def check_form(batches, rows, length):
    shapes = {batch[name].shape for batch in batches for name in ("inputs", "targets", "weights")}
    assert shapes == {(rows, length)}
    for batch in batches:
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        assert batch["weights"].dtype == np.float32
        assert set(np.unique(batch["weights"])) <= {0.0, 1.0}
        counted = batch["weights"] == 1
        np.testing.assert_array_equal(
            batch["targets"][counted], batch["inputs"][counted] + 1, err_msg="not the next token"
        )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("stride", [None, 1, 2, 5, 6])
def test_windows_score_every_token_but_the_first_once(length, batch_size, stride):
    tokens = numbered(length)
    if stride is None:
        batches = evaluation_chunks(tokens, batch_size, 6)
    else:
        batches = evaluation_sliding(tokens, batch_size, 6, stride)
    check_form(batches, batch_size, 6)
    np.testing.assert_array_equal(scored(batches), np.arange(1, length))
    assert batches.targets == length - 1
    assert len(list(batches)) == len(batches)
    assert all(batch["weights"].any() for batch in batches)


@pytest.mark.parametrize("stride", [1, 2, 5, 6])
def test_sliding_gives_the_promised_context(stride):
    for batch in evaluation_sliding(numbered(61), 3, 6, stride):
        for row in range(3):
            for place in np.flatnonzero(batch["weights"][row]):
                target = batch["targets"][row, place]
                context = batch["inputs"][row, : place + 1]
                np.testing.assert_array_equal(context, np.arange(target - place - 1, target))
                assert len(context) >= min(6 - stride + 1, target)


def test_stride_of_a_whole_window_is_chunks():
    pairs = zip(
        evaluation_chunks(numbered(61), 3, 6),
        evaluation_sliding(numbered(61), 3, 6, 6),
        strict=True,
    )
    for left, right in pairs:
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_streams_score_every_token_but_the_first_once(length, batch_size):
    batches = evaluation_streams(numbered(length), batch_size, 6)
    check_form(batches, batch_size, 6)
    np.testing.assert_array_equal(scored(batches), np.arange(1, length))
    for index, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["reset"], np.full(batch_size, index == 0))
    # Within a row, what counts runs on from batch to batch without a gap.
    for row in range(batch_size):
        kept = [batch["targets"][row][batch["weights"][row] == 1] for batch in batches]
        assert (np.diff(np.concatenate(kept)) == 1).all()


def test_streams_do_not_depend_on_the_sequence_length():
    whole, short = (
        [
            np.concatenate([b["inputs"][row][b["weights"][row] == 1] for b in batches])
            for row in range(3)
        ]
        for batches in (
            evaluation_streams(numbered(50), 3, 40),
            evaluation_streams(numbered(50), 3, 4),
        )
    )
    for left, right in zip(whole, short, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("lengths", [(5, 1, 17, 40, 9, 28), (2, 2), (1, 1, 3), (12, 12)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_documents_score_all_but_their_first_tokens_once(lengths, batch_size):
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    corpus = Corpus(numbered(sum(lengths)), offsets)
    batches = evaluation_documents(corpus, batch_size, 6)
    check_form(batches, batch_size, 6)
    expected = np.setdiff1d(np.arange(sum(lengths)), offsets[:-1])
    np.testing.assert_array_equal(scored(batches), expected)
    assert batches.targets == len(expected)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for index, batch in enumerate(batches):
        for row in range(batch_size):
            first = (index * batch_size + row) * 6
            held = max(0, min(6, sum(lengths) - first))
            np.testing.assert_array_equal(batch["segment_ids"][row, held:], 0)
            np.testing.assert_array_equal(batch["weights"][row, held:], 0)
            np.testing.assert_array_equal(
                batch["inputs"][row, :held], np.arange(first, first + held)
            )
            numbers = document_of[first : first + held]
            if held:
                np.testing.assert_array_equal(
                    batch["segment_ids"][row, :held], numbers - numbers[0] + 1
                )
                begins = np.maximum(offsets[numbers], first)
                np.testing.assert_array_equal(
                    batch["positions"][row, :held], np.arange(first, first + held) - begins
                )


@pytest.mark.parametrize(
    "make",
    [
        lambda **process: evaluation_chunks(numbered(61), 4, 6, **process),
        lambda **process: evaluation_sliding(numbered(61), 4, 6, 2, **process),
        lambda **process: evaluation_streams(numbered(61), 4, 6, **process),
        lambda **process: evaluation_documents(
            Corpus(numbered(61), np.array([0, 20, 61])), 4, 6, **process
        ),
    ],
)
def test_processes_together_read_the_global_batch(make):
    whole = make()
    parts = [make(process_index=i, process_count=2) for i in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, *pieces in zip(whole, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(
                batch[name], np.concatenate([piece[name] for piece in pieces])
            )


def test_pass_is_indexed_and_ends():
    batches = evaluation_chunks(numbered(61), 4, 6)
    np.testing.assert_array_equal(batches[1]["inputs"], list(batches)[1]["inputs"])
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_protocols_are_told_apart():
    corpus = Corpus(numbered(61), np.array([0, 61]))
    protocols = {
        evaluation_chunks(corpus.tokens, 4, 6).protocol,
        evaluation_sliding(corpus.tokens, 4, 6, 2).protocol,
        evaluation_streams(corpus.tokens, 1, 6).protocol,
        evaluation_streams(corpus.tokens, 4, 6).protocol,
        evaluation_documents(corpus, 4, 6).protocol,
    }
    assert len(protocols) == 5


@pytest.mark.parametrize("stride", [0, 7])
def test_stride_out_of_range(stride):
    with pytest.raises(UserError, match=f"stride = {stride} must lie between 1 and"):
        evaluation_sliding(numbered(61), 4, 6, stride)


def test_text_of_one_token():
    with pytest.raises(UserError, match="has 1 tokens, but at least 2"):
        evaluation_chunks(numbered(1), 4, 6)
    with pytest.raises(UserError, match="has 1 tokens, but at least 2"):
        evaluation_streams(numbered(1), 4, 6)
