"""Batches on their way to the devices: positions, shards, threads."""

import threading
import time

import grain
import jax
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import batch_sharding
from genjax.task import Shard
from tests.toy import Batches, Toy, ToyConfig
from train.stream import BatchStream

MESH = make_mesh(MeshConfig(data=8))


def stream(position=None, threads=1, dataset=None):
    dataset = Toy(ToyConfig()).dataset("train", Shard()) if dataset is None else dataset
    return BatchStream(dataset, MESH, position, threads)


@pytest.mark.fast
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_position_is_that_of_the_batch_handed_out(threads):
    batches = stream(threads=threads)
    assert batches.position == {"next_index": 0}
    for number in range(5):
        batch = next(batches)
        np.testing.assert_array_equal(batch["x"], Batches()[number]["x"])
        assert batches.position == {"next_index": number + 1}
    position = batches.position
    batches.close()
    again = stream(position, threads)
    np.testing.assert_array_equal(next(again)["x"], Batches()[5]["x"])
    again.close()


def test_reads_ahead_but_the_position_stays():
    read = []
    source = grain.MapDataset.source(Batches()).map(lambda batch: (read.append(1), batch)[1])
    batches = stream(dataset=source)
    next(batches)
    end = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(read) >= 4
    assert batches.position == {"next_index": 1}
    batches.close()


def test_batches_lie_on_all_devices():
    batches = stream()
    batch = next(batches)
    assert batch["x"].shape == (16, 64)
    assert batch["x"].sharding == batch_sharding(MESH)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 64)}
    batches.close()


@pytest.mark.fast
def test_two_processes_read_the_two_halves_of_each_batch():
    task = Toy(ToyConfig())
    alone = make_mesh(MeshConfig(data=1))
    halves = [BatchStream(task.dataset("train", Shard(index, 2)), alone) for index in (0, 1)]
    for number in range(3):
        parts = [next(half) for half in halves]
        for name, whole in Batches()[number].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)
    assert [half.position for half in halves] == [{"next_index": 3}] * 2
    for half in halves:
        half.close()


@pytest.mark.parametrize("used", [0, 1, 4])
def test_close_leaves_no_threads(used):
    before = set(threading.enumerate())
    batches = stream(threads=2)
    for _ in range(used):
        next(batches)
    batches.close()
    end = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert left == set()


@pytest.mark.fast
def test_a_batch_that_the_mesh_does_not_divide():
    source = grain.MapDataset.source([{"x": np.zeros((6, 3), np.float32)}] * 9)
    batches = stream(dataset=source)
    with pytest.raises(UserError, match="batch of 6 examples does not split over 8 devices"):
        next(batches)
    batches.close()


def test_an_error_in_the_data_reaches_the_caller():
    def broken(batch):
        raise UserError("the file is gone")

    batches = stream(dataset=grain.MapDataset.source(Batches()).map(broken))
    with pytest.raises(Exception, match="the file is gone"):
        next(batches)
    batches.close()
    assert jax.process_count() == 1
