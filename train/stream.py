"""Batches on their way to the devices, a few ahead, each with the position that follows it."""

import collections
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from genjax.parallel.mesh import batch_size_fits
from genjax.parallel.partition import batch_sharding, sequence_dimension_of
from genjax.parallel.processes import process_shard
from genjax.task import Batch

PREFETCH = 2
"""Batches on the device beyond the one in use: enough to hide a transfer."""


class BatchStream:
    """An endless stream of global batches, placed on the devices.

    Batches are read ahead, so the iterator's own position is ahead of the training. Each batch
    therefore carries the position after it, and `position` is that of the last batch handed out:
    what a checkpoint must hold.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        mesh: Mesh,
        position: dict[str, Any] | None = None,
        threads: int = 1,
        sequence_dimensions: Mapping[str, int] | None = None,
    ) -> None:
        """Start to read.

        Args:
            dataset: batches of numpy arrays, this process' rows.
            mesh: the devices over which each batch is split.
            position: where to go on, from an earlier `position`; the start by default.
            threads: threads that read batches ahead.
            sequence_dimensions: the task's.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
        self._iterator = iter(dataset.to_iter_dataset(options))
        if position is not None:
            self._iterator.set_state(position)
        self._mesh = mesh
        self._sequence_dimensions = sequence_dimensions
        self._ahead: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()
        self.position: dict[str, Any] = self._iterator.get_state()

    def _read(self) -> None:
        batch = next(self._iterator)
        placed = place(batch, self._mesh, self._sequence_dimensions)
        self._ahead.append((placed, self._iterator.get_state()))

    def __next__(self) -> Batch:
        while len(self._ahead) < PREFETCH:
            self._read()
        batch, self.position = self._ahead.popleft()
        return batch

    def close(self) -> None:
        """Stop the reading threads."""
        self._iterator.close()


def place(batch: Batch, mesh: Mesh, sequence_dimensions: Mapping[str, int] | None = None) -> Batch:
    """Put this process' rows of a batch on its devices as one global array each.

    Args:
        batch: the rows.
        mesh: the devices.
        sequence_dimensions: `Task.sequence_dimensions`.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    shard = process_shard(mesh)

    def put(name: str, array: np.ndarray) -> jax.Array:
        rows = len(array)
        batch_size_fits(rows * shard.count, mesh)
        shape = (rows * shard.count, *array.shape[1:])
        dimension = sequence_dimension_of(sequence_dimensions, name)
        sharding = batch_sharding(mesh, shape, dimension)
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        first = shard.index * rows

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(name, array) for name, array in batch.items()}
