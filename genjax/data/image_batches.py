"""Batches of images: endless for training, one fixed pass for evaluation.

Batch i of a run is a pure function of i, so that the position of a run in its data is one
integer, and any number of processes cut the same global batch into contiguous blocks of rows.

B batch (of all processes together), H height, W width, C channels.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from genjax.data.image_source import ImageSplit
from genjax.data.process_rows import process_rows
from genjax.data.random_numbers import permutation

Batch = dict[str, np.ndarray]

# Training goes on for as long as anyone asks; grain wants a length.
_ENDLESS = 2**62


def training_batches(
    split: ImageSplit,
    batch_size: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """The endless batches of a training run, by number.

    Each epoch is a new permutation of the split. A batch may lie across the border of two epochs,
    and across many of a split that is smaller than the batch.

    Args:
        split: The training images.
        batch_size: B.
        seed: Decides the order; not negative.
        process_index: Which contiguous block of rows this process reads.
        process_count: Number of processes that share the batch.

    Returns:
        Batches of `images` [B / process_count, H, W, C] as the split stores them, and of `labels`
        int32 [B / process_count] where it has any.

    Raises:
        UserError: The batch does not divide among the processes.
    """
    rows = process_rows(batch_size, process_index, process_count)
    return grain.MapDataset.source(_EpochBatches(split, batch_size, seed, rows))


class _EpochBatches:
    def __init__(self, split: ImageSplit, batch_size: int, seed: int, rows: slice) -> None:
        self._split = split
        self._batch_size = batch_size
        self._seed = seed
        self._rows = np.arange(batch_size)[rows]
        # Two, since a batch may lie across the border of two epochs.
        self._order = functools.lru_cache(maxsize=2)(self._order_of_epoch)

    def __len__(self) -> int:
        return _ENDLESS

    def _order_of_epoch(self, epoch: int) -> Int[np.ndarray, " N"]:
        return permutation(len(self._split), self._seed, epoch)

    def __getitem__(self, index: int) -> Batch:
        epochs, places = np.divmod(index * self._batch_size + self._rows, len(self._split))
        chosen = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            chosen[inside] = self._order(epoch)[places[inside]]
        return _gather(self._split, chosen)


class EvaluationImages:
    """The first images of a split in a fixed shuffled order, in batches of one shape.

    A batch has `images` [B / process_count, H, W, C], `labels` int32 where the split has any,
    `weights` float32 (1, or 0 where the last batch is filled up with images that came before) and
    `index` int32: the image's number in the order, over all processes; filling counts on.

    Attributes:
        count: How many images count, over all processes.
        order: int [count], which images of the split these are.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        *,
        count: int | None = None,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Choose the images.

        Args:
            split: Where they come from.
            batch_size: B, over all processes.
            count: How many at most; None: the whole split.
            seed: Decides the order; not negative.
            process_index: Which contiguous block of each batch this process reads.
            process_count: Number of processes that share the batch.

        Raises:
            UserError: The batch does not divide among the processes.
        """
        self.count = len(split) if count is None else min(count, len(split))
        self.order: Int[np.ndarray, " count"] = permutation(len(split), seed)[: self.count]
        self._split = split
        self._batch_size = batch_size
        self._rows = np.arange(batch_size)[process_rows(batch_size, process_index, process_count)]

    def __len__(self) -> int:
        return -(-self.count // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = index * self._batch_size + self._rows
        # Filled with real images, so that layers that look across the batch see nothing odd.
        batch = _gather(self._split, self.order[numbers % self.count])
        weights = (numbers < self.count).astype(np.float32)
        return batch | {"weights": weights, "index": numbers.astype(np.int32)}

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def _gather(split: ImageSplit, indices: Int[np.ndarray, " n"]) -> Batch:
    batch = {"images": split.images(indices)}
    if split.labels is not None:
        batch["labels"] = split.labels[indices]
    return batch
