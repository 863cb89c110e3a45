import numpy as np
import pytest

from genjax.data.clip_batches import EvaluationClips, training_batches
from genjax.data.clip_source import ENDLESS, ClipSplit
from genjax.errors import UserError
from genjax.task import Batches

pytestmark = pytest.mark.fast


def numbered(count):
    """Descriptions that are the clips' numbers."""
    return ClipSplit(count, lambda numbers: {"number": numbers, "labels": numbers % 10})


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# Training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(21, 4), (7, 5), (3, 16), (1, 4)])
def test_every_epoch_is_a_new_permutation(count, batch_size):
    dataset = training_batches(numbered(count), batch_size, 2)
    batches = [dataset[index] for index in range(-(-8 * count // batch_size))]
    assert {batch["number"].shape for batch in batches} == {(batch_size,)}
    read = joined(batches)["number"]
    epochs = [read[i * count : (i + 1) * count].tolist() for i in range(8)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 7:
        assert len({tuple(epoch) for epoch in epochs}) == 8
        assert epochs[0] != sorted(epochs[0])


@pytest.mark.parametrize("count", [21, ENDLESS])
def test_batches_are_a_function_of_their_number(count):
    one, two = (training_batches(numbered(count), 4, 5) for _ in range(2))
    later = [one[index] for index in (900, 3, 11)]
    for batch, index in zip(later, (900, 3, 11), strict=True):
        same(batch, two[index])
        np.testing.assert_array_equal(batch["labels"], batch["number"] % 10)


def test_endless_clips_come_one_after_another_and_depend_on_the_seed():
    dataset = training_batches(numbered(ENDLESS), 4, 1)
    read = joined([dataset[index] for index in range(6)])["number"]
    np.testing.assert_array_equal(read, read[0] + np.arange(24))
    starts = [training_batches(numbered(ENDLESS), 4, seed)[0]["number"][0] for seed in range(20)]
    assert np.diff(np.sort(starts)).min() > 2**40
    assert min(starts) >= 0 and max(starts) < ENDLESS


def test_endless_clips_begin_again_at_the_end():
    dataset = training_batches(numbered(ENDLESS), 4, 1)
    first = int(dataset[0]["number"][0])
    last = (ENDLESS - first) // 4
    read = joined([dataset[last], dataset[last + 1]])["number"].tolist()
    assert read == [(first + 4 * last + row) % ENDLESS for row in range(8)]
    assert 0 in read


@pytest.mark.parametrize("count", [21, ENDLESS])
@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_read_the_global_batch(process_count, count):
    whole = training_batches(numbered(count), 8, 7)
    parts = [
        training_batches(numbered(count), 8, 7, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for index in (0, 2, 55):
        same(joined([part[index] for part in parts]), whole[index])


def test_saved_position_continues_exactly():
    def iterator():
        return iter(training_batches(numbered(21), 4, 1).to_iter_dataset())

    first, second = iterator(), iterator()
    for _ in range(9):
        next(first)
    second.set_state(first.get_state())
    for _ in range(7):
        same(next(first), next(second))
    first.close()
    second.close()


@pytest.mark.parametrize("count", [21, ENDLESS])
def test_batch_that_does_not_divide(count):
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes"):
        training_batches(numbered(count), 4, 0, process_count=3)
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes"):
        EvaluationClips(numbered(count), 4, count=8, process_count=3)


# Evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(None, 4), (10, 4), (21, 7), (3, 8), (99, 5)])
def test_evaluation_reads_each_clip_once(count, batch_size):
    batches = EvaluationClips(numbered(21), batch_size, count=count)
    assert isinstance(batches, Batches)
    expected = min(count or 21, 21)
    assert batches.count == expected and len(batches) == -(-expected // batch_size)
    assert {batch["number"].shape for batch in batches} == {(batch_size,)}
    together = joined(list(batches))
    assert together["weights"].dtype == np.float32 and together["index"].dtype == np.int32
    places = np.arange(len(together["index"]))
    np.testing.assert_array_equal(together["weights"], places < expected)
    np.testing.assert_array_equal(together["index"], places)
    np.testing.assert_array_equal(together["number"], batches.order[places % expected])
    assert len(set(batches.order.tolist())) == expected
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_evaluation_is_shuffled_once_and_for_all():
    every = EvaluationClips(numbered(21), 4).order
    assert every.tolist() != sorted(every)
    np.testing.assert_array_equal(EvaluationClips(numbered(21), 7, count=9).order, every[:9])
    assert EvaluationClips(numbered(21), 4, seed=1).order.tolist() != every.tolist()


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_evaluate_the_same_clips(process_count):
    whole = EvaluationClips(numbered(21), 8, count=18)
    parts = [
        EvaluationClips(numbered(21), 8, count=18, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for index in range(len(whole)):
        same(joined([part[index] for part in parts]), whole[index])


def test_evaluation_of_an_endless_split():
    batches = EvaluationClips(numbered(ENDLESS), 4, count=10, seed=3)
    trained = joined([training_batches(numbered(ENDLESS), 5, 3)[index] for index in range(2)])
    np.testing.assert_array_equal(batches.order, trained["number"])
    with pytest.raises(UserError, match="Give a count"):
        EvaluationClips(numbered(ENDLESS), 4)
