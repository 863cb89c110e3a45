import json
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from genjax.data.text_batches import Corpus, Documents, Streams, Windows, training_dataset
from genjax.errors import UserError

KINDS = [Windows, Streams, Documents]


def numbered_corpus(lengths=(5, 1, 17, 40, 9, 28)):
    """Tokens that are their own place in the text."""
    total = sum(lengths)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Corpus(np.arange(total, dtype=np.uint16), offsets)


def batching(kind, batch_size=4, sequence_length=6):
    return kind(batch_size=batch_size, sequence_length=sequence_length)


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_shapes(kind):
    batch = training_dataset(numbered_corpus(), batching(kind), 0)[3]
    assert batch["inputs"].shape == batch["targets"].shape == (4, 6)
    dtypes = {name: array.dtype.name for name, array in batch.items()}
    expected = {"inputs": "int32", "targets": "int32"}
    if kind is Streams:
        expected["reset"] = "bool"
        assert batch["reset"].shape == (4,)
    if kind is Documents:
        expected |= {"segment_ids": "int32", "positions": "int32", "weights": "float32"}
        assert {array.shape for array in batch.values()} == {(4, 6)}
    assert dtypes == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_read_the_global_batch(kind, process_count):
    corpus, config = numbered_corpus(), batching(kind)
    whole = training_dataset(corpus, config, 7)
    parts = [
        training_dataset(corpus, config, 7, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for index in (0, 1, 11):
        pieces = [part[index] for part in parts]
        union = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        same(union, whole[index])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_threads", [0, 3])
def test_saved_position_continues_exactly(kind, num_threads):
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)

    def iterator():
        dataset = training_dataset(numbered_corpus(), batching(kind), 1)
        return iter(dataset.to_iter_dataset(options))

    first = iterator()
    for _ in range(9):
        next(first)
    saved = json.loads(json.dumps(first.get_state()))
    second = iterator()
    second.set_state(saved)
    for _ in range(5):
        same(next(first), next(second))
    first.close()
    second.close()


def test_seed_decides_windows_and_documents():
    for kind in (Windows, Documents):
        batches = [
            training_dataset(numbered_corpus(), batching(kind), seed)[0]["inputs"]
            for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(batches[0], batches[1])
        assert (batches[0] != batches[2]).any()


def test_windows_are_contiguous_and_uniform():
    corpus = numbered_corpus((30,))
    dataset = training_dataset(corpus, batching(Windows, 8, 6), 0)
    starts = []
    for index in range(600):
        batch = dataset[index]
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
        np.testing.assert_array_equal(np.diff(batch["inputs"], axis=1), 1)
        starts.extend(batch["inputs"][:, 0])
    counts = np.bincount(starts)
    assert len(counts) == 30 - 6
    # 200 each are expected; six standard deviations are 84.
    assert counts.min() > 116 and counts.max() < 284


def test_windows_do_not_change_with_the_version_of_numpy():
    batch = training_dataset(numbered_corpus((1000,)), batching(Windows), 5)[12345]
    assert batch["inputs"][:, 0].tolist() == [24, 396, 617, 24]


def test_streams_continue_and_reset_each_pass():
    corpus = numbered_corpus((100,))
    dataset = training_dataset(corpus, batching(Streams, 4, 6), 0)
    stream_length = 99 // 4
    steps = stream_length // 6
    for index in range(2 * steps + 1):
        batch, step = dataset[index], index % steps
        starts = np.arange(4) * stream_length + step * 6
        np.testing.assert_array_equal(batch["inputs"], starts[:, None] + np.arange(6))
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
        np.testing.assert_array_equal(batch["reset"], np.full(4, step == 0))


def expected_rows(corpus, length, orders, num_rows):
    """Packs documents one token at a time, in the given order of each epoch."""
    stream = []
    for epoch, order in enumerate(orders):
        for document in order:
            begin, end = corpus.offsets[document], corpus.offsets[document + 1]
            stream += [(int(t), (epoch, document)) for t in corpus.tokens[begin:end]]
    rows = []
    for row in range(num_rows):
        part = stream[row * length : (row + 1) * length + 1]
        segments, positions, weights = [], [], []
        for place, (_, document) in enumerate(part[:-1]):
            new = place > 0 and document != part[place - 1][1]
            segments.append(1 if place == 0 else segments[-1] + new)
            positions.append(0 if place == 0 or new else positions[-1] + 1)
            weights.append(float(document == part[place + 1][1]))
        tokens = [token for token, _ in part]
        rows.append((tokens[:-1], tokens[1:], segments, positions, weights))
    return rows


def test_documents_are_packed_in_a_new_order_each_epoch():
    corpus = numbered_corpus()
    total, length = len(corpus.tokens), 6
    dataset = training_dataset(corpus, batching(Documents, 4, length), 3)
    batches = [dataset[i] for i in range(2 * total // (4 * length))]
    read = np.concatenate([batch["inputs"].ravel() for batch in batches])
    starts = {int(t): d for d, t in enumerate(corpus.offsets[:-1])}
    in_order = [starts[t] for t in read.tolist() if t in starts]
    orders = [in_order[:6], in_order[6:]]
    orders[1] += [d for d in range(6) if d not in orders[1]]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6)) and orders[0] != orders[1]
    rows = expected_rows(corpus, length, orders, 4 * len(batches))
    names = ("inputs", "targets", "segment_ids", "positions", "weights")
    for i, batch in enumerate(batches):
        for j, name in enumerate(names):
            expected = [row[j] for row in rows[4 * i : 4 * i + 4]]
            np.testing.assert_array_equal(batch[name], expected, err_msg=f"{name} of batch {i}")


def test_documents_read_every_token_once_an_epoch():
    corpus = numbered_corpus((7, 3, 11, 3))
    dataset = training_dataset(corpus, batching(Documents, 2, 6), 0)
    read = np.concatenate([dataset[i]["inputs"].ravel() for i in range(6)])
    for epoch in range(3):
        assert sorted(read[epoch * 24 : (epoch + 1) * 24]) == list(range(24))


def test_documents_of_a_text_shorter_than_a_batch():
    corpus = numbered_corpus((3, 5))
    batch = training_dataset(corpus, batching(Documents, 4, 7), 0)[2]
    assert np.bincount(batch["inputs"].ravel(), minlength=8).min() >= 3


def test_a_single_document_ends_with_each_epoch():
    batch = training_dataset(numbered_corpus((10,)), batching(Documents, 5, 6), 0)[0]
    begins = batch["targets"] == 0
    assert begins.sum() == 3
    np.testing.assert_array_equal(batch["weights"], ~begins)
    np.testing.assert_array_equal(batch["positions"][batch["inputs"] == 0], 0)


def test_memory_map_gives_the_same_batches(tmp_path):
    corpus = numbered_corpus()
    path = tmp_path / "tokens.bin"
    corpus.tokens.tofile(path)
    mapped = Corpus(np.memmap(path, np.uint16, mode="r"), corpus.offsets)
    for kind in KINDS:
        config = batching(kind)
        same(training_dataset(mapped, config, 0)[4], training_dataset(corpus, config, 0)[4])


@pytest.mark.parametrize(("kind", "needed"), [(Windows, 7), (Streams, 25), (Documents, 7)])
def test_text_too_short(kind, needed):
    assert training_dataset(numbered_corpus((needed,)), batching(kind), 0)[0]
    with pytest.raises(UserError) as caught:
        training_dataset(numbered_corpus((needed - 1,)), batching(kind), 0)
    message = str(caught.value)
    assert f"has {needed - 1} tokens" in message and f"need {needed}." in message


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes"):
        training_dataset(numbered_corpus(), batching(Windows), 0, process_index=1, process_count=3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_cost_little(kind):
    tokens = np.arange(1_000_000, dtype=np.uint16)
    corpus = Corpus(tokens, np.arange(0, 1_000_001, 1000, dtype=np.int64))
    dataset = training_dataset(corpus, batching(kind, 12, 64), 0)
    assert dataset[0]
    times = []
    for index in range(1, 101):
        began = time.perf_counter()
        assert dataset[index]
        times.append(time.perf_counter() - began)
    # Ten times what it takes on an idle machine: a loop over tokens would be slower still.
    assert min(times) < 1e-3


def test_program_that_leaves_threads_reading_ends_cleanly():
    program = (
        "import grain, numpy as np\n"
        "from genjax.data.text_batches import Corpus, Windows, training_dataset\n"
        "corpus = Corpus(np.arange(100, dtype=np.uint16), np.array([0, 100]))\n"
        "dataset = training_dataset(corpus, Windows(batch_size=2, sequence_length=4), 0)\n"
        "batches = iter(dataset.to_iter_dataset(grain.ReadOptions(2, 8)))\n"
        "print(next(batches)['inputs'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 4)\n", "")
