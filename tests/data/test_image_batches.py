import json

import grain
import numpy as np
import pytest

from genjax.data.image_batches import EvaluationImages, training_batches
from genjax.data.image_source import split_of_rows
from genjax.errors import UserError
from genjax.task import Batches

pytestmark = pytest.mark.fast


def numbered(count, labelled=True, rows=None):
    """Images whose pixels are their number; the label is the number modulo 10."""
    pixels = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 3, 1)
    )
    return split_of_rows(pixels, rows, np.arange(count) % 10 if labelled else None)


def numbers(batch):
    images = batch["images"]
    assert (images == images[:, :1, :1]).all()
    return images[:, 0, 0, 0].astype(int)


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# Training ---------------------------------------------------------------------------------------


def test_dtypes_and_shapes():
    batch = training_batches(numbered(20), 4, 0)[3]
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "images": ((4, 2, 3, 1), "uint8"),
        "labels": ((4,), "int32"),
    }
    np.testing.assert_array_equal(batch["labels"], numbers(batch) % 10)
    assert set(training_batches(numbered(20, labelled=False), 4, 0)[3]) == {"images"}


@pytest.mark.parametrize(("count", "batch_size"), [(20, 4), (21, 4), (7, 5), (3, 16), (1, 4)])
def test_every_epoch_is_a_new_permutation(count, batch_size):
    dataset = training_batches(numbered(count), batch_size, 2)
    read = np.concatenate([numbers(dataset[i]) for i in range(-(-8 * count // batch_size))])
    epochs = [read[i * count : (i + 1) * count].tolist() for i in range(8)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 7:
        assert len({tuple(epoch) for epoch in epochs}) == 8
        assert epochs[0] != sorted(epochs[0])


def test_batches_are_a_function_of_their_number():
    one, two = (training_batches(numbered(21), 4, 5) for _ in range(2))
    later = [one[index] for index in (900, 3, 11)]
    for batch, index in zip(later, (900, 3, 11), strict=True):
        same(batch, two[index])
    other = training_batches(numbered(21), 4, 6)
    assert any((numbers(other[i]) != numbers(one[i])).any() for i in range(5))


def test_order_does_not_change_with_the_version_of_numpy():
    dataset = training_batches(numbered(200), 6, 3)
    assert numbers(dataset[1000]).tolist() == [183, 78, 9, 125, 23, 186]


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_read_the_global_batch(process_count):
    whole = training_batches(numbered(21), 8, 7)
    parts = [
        training_batches(numbered(21), 8, 7, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for index in (0, 2, 55):
        same(joined([part[index] for part in parts]), whole[index])


@pytest.mark.parametrize("num_threads", [0, 3])
def test_saved_position_continues_exactly(num_threads):
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)

    def iterator():
        return iter(training_batches(numbered(21), 4, 1).to_iter_dataset(options))

    first = iterator()
    for _ in range(9):
        next(first)
    saved = json.loads(json.dumps(first.get_state()))
    second = iterator()
    second.set_state(saved)
    for _ in range(7):
        same(next(first), next(second))
    first.close()
    second.close()


def test_rows_of_a_split():
    split = numbered(50, rows=np.array([5, 40, 17]))
    assert len(split) == 3 and split.labels.tolist() == [5, 0, 7]
    batch = training_batches(split, 3, 0)[4]
    assert sorted(numbers(batch)) == [5, 17, 40]
    np.testing.assert_array_equal(batch["labels"], numbers(batch) % 10)


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes"):
        training_batches(numbered(20), 4, 0, process_count=3)
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes"):
        EvaluationImages(numbered(20), 4, process_count=3)


# Evaluation -------------------------------------------------------------------------------------


def read_all(batches):
    together = joined(list(batches))
    counts = together["weights"] == 1
    assert set(together["weights"].tolist()) <= {0.0, 1.0}
    return {name: array[counts] for name, array in together.items()}, together


@pytest.mark.parametrize(("count", "batch_size"), [(None, 4), (10, 4), (21, 7), (3, 8), (99, 5)])
def test_evaluation_reads_each_image_once(count, batch_size):
    split = numbered(21)
    batches = EvaluationImages(split, batch_size, count=count)
    assert isinstance(batches, Batches)
    expected = min(count or 21, 21)
    assert batches.count == expected and len(batches) == -(-expected // batch_size)
    assert {batch["images"].shape for batch in batches} == {(batch_size, 2, 3, 1)}
    counted, together = read_all(batches)
    assert counted["index"].tolist() == list(range(expected))
    assert together["index"].tolist() == list(range(len(together["index"])))
    assert len(set(numbers(counted))) == expected
    np.testing.assert_array_equal(numbers(counted), batches.order)
    np.testing.assert_array_equal(counted["labels"], numbers(counted) % 10)
    dtypes = {name: array.dtype.name for name, array in together.items()}
    assert dtypes == {"images": "uint8", "labels": "int32", "weights": "float32", "index": "int32"}
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_evaluation_is_shuffled_once_and_for_all():
    all_images = EvaluationImages(numbered(21), 4).order
    assert all_images.tolist() != sorted(all_images)
    np.testing.assert_array_equal(EvaluationImages(numbered(21), 7, count=9).order, all_images[:9])
    assert EvaluationImages(numbered(21), 4, seed=1).order.tolist() != all_images.tolist()


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_evaluate_the_same_images(process_count):
    whole = EvaluationImages(numbered(21), 8, count=18)
    parts = [
        EvaluationImages(numbered(21), 8, count=18, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for index in range(len(whole)):
        same(joined([part[index] for part in parts]), whole[index])


def test_evaluation_without_labels():
    assert "labels" not in EvaluationImages(numbered(21, labelled=False), 4)[0]
