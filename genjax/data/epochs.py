"""Which examples make up batch i: endless shuffled epochs, or one fixed pass.

N examples of a split, B batch (of all processes together), b rows of it that one process reads.
"""

import functools

import numpy as np
from jaxtyping import Float, Int

from genjax.data.process_rows import process_rows
from genjax.data.random_numbers import permutation

ENDLESS_BATCHES = 2**62
"""Training goes on for as long as anyone asks; grain wants a length."""


class ShuffledEpochs:
    """Numbers of the examples in each training batch: every epoch a new permutation.

    A batch may lie across the border of two epochs, and across many of a split that is smaller
    than the batch.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, process_index: int, process_count: int
    ) -> None:
        """Fix the order.

        Args:
            count: N.
            batch_size: B.
            seed: Decides the order; not negative.
            process_index: Which contiguous block of rows this process reads.
            process_count: Number of processes that share the batch.

        Raises:
            UserError: The batch does not divide among the processes.
        """
        rows = process_rows(batch_size, process_index, process_count)
        self._rows = np.arange(batch_size)[rows]
        self._count = count
        self._batch_size = batch_size
        # Two, since a batch may lie across the border of two epochs.
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: permutation(count, seed, epoch))

    def __call__(self, index: int) -> Int[np.ndarray, " b"]:
        """The numbers in batch `index`."""
        epochs, places = np.divmod(index * self._batch_size + self._rows, self._count)
        chosen = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            chosen[inside] = self._order(epoch)[places[inside]]
        return chosen


class FixedPass:
    """Numbers of the examples in each evaluation batch: one pass through a fixed order.

    Attributes:
        order: int [count], the numbers in their order, over all processes.
    """

    def __init__(
        self,
        order: Int[np.ndarray, " count"],
        batch_size: int,
        process_index: int,
        process_count: int,
    ) -> None:
        """Cut the order into batches.

        Args:
            order: The numbers.
            batch_size: B.
            process_index: Which contiguous block of rows this process reads.
            process_count: Number of processes that share the batch.

        Raises:
            UserError: The batch does not divide among the processes.
        """
        self.order = order
        self._batch_size = batch_size
        self._rows = np.arange(batch_size)[process_rows(batch_size, process_index, process_count)]

    def __len__(self) -> int:
        return -(-len(self.order) // self._batch_size)

    def __call__(
        self, index: int
    ) -> tuple[Int[np.ndarray, " b"], dict[str, Float[np.ndarray, " b"] | Int[np.ndarray, " b"]]]:
        """The numbers in batch `index`, and the arrays that tell which of them count.

        Returns:
            The numbers; and `weights` float32 (1, or 0 where the last batch is filled up with
            examples that came before) and `index` int32: the place in the order; filling counts on.

        Raises:
            IndexError: There is no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        places = index * self._batch_size + self._rows
        # Filled with real examples, so that layers that look across the batch see nothing odd.
        weights = (places < len(self.order)).astype(np.float32)
        marks = {"weights": weights, "index": places.astype(np.int32)}
        return self.order[places % len(self.order)], marks
