"""Batches on their way to the devices, a few ahead, each with the position that follows it."""

import collections
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from genjax.parallel.mesh import batch_size_fits
from genjax.parallel.partition import batch_sharding
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
    ) -> None:
        """Start to read.

        Args:
            dataset: batches of numpy arrays, this process' rows.
            mesh: the devices over which each batch is split.
            position: where to go on, from an earlier `position`; the start by default.
            threads: threads that read batches ahead.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
        self._iterator = iter(dataset.to_iter_dataset(options))
        if position is not None:
            self._iterator.set_state(position)
        self._mesh = mesh
        self._ahead: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()
        self.position: dict[str, Any] = self._iterator.get_state()

    def _read(self) -> None:
        batch = next(self._iterator)
        self._ahead.append((place(batch, self._mesh), self._iterator.get_state()))

    def __next__(self) -> Batch:
        while len(self._ahead) < PREFETCH:
            self._read()
        batch, self.position = self._ahead.popleft()
        return batch

    def close(self) -> None:
        """Stop the reading threads."""
        self._iterator.close()


def place(batch: Batch, mesh: Mesh) -> Batch:
    """Put this process' rows of a batch on its devices as one global array each.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    for array in batch.values():
        batch_size_fits(len(array) * jax.process_count(), mesh)
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, array.shape), array)
        for name, array in batch.items()
    }
