"""Batches of images: endless for training, one fixed pass for evaluation.

Batch i of a run is a pure function of i, so that the position of a run in its data is one
integer, and any number of processes cut the same global batch into contiguous blocks of rows.

B batch (of all processes together), H height, W width, C channels.
"""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from genjax.data.epochs import ENDLESS_BATCHES, FixedPass, ShuffledEpochs
from genjax.data.image_source import ImageSplit
from genjax.data.random_numbers import permutation

Batch = dict[str, np.ndarray]


def training_batches(
    split: ImageSplit,
    batch_size: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """The endless batches of a training run, by number.

    Each epoch is a new permutation of the split.

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
    numbers = ShuffledEpochs(len(split), batch_size, seed, process_index, process_count)
    return grain.MapDataset.source(_TrainingImages(split, numbers))


class _TrainingImages:
    def __init__(self, split: ImageSplit, numbers: ShuffledEpochs) -> None:
        self._split = split
        self._numbers = numbers

    def __len__(self) -> int:
        return ENDLESS_BATCHES

    def __getitem__(self, index: int) -> Batch:
        return _gather(self._split, self._numbers(index))


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
        self.order: Int[np.ndarray, " count"] = permutation(len(split), seed)[:count]
        self.count = len(self.order)
        self._split = split
        self._numbers = FixedPass(self.order, batch_size, process_index, process_count)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Batch:
        numbers, marks = self._numbers(index)
        return _gather(self._split, numbers) | marks

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def _gather(split: ImageSplit, indices: Int[np.ndarray, " n"]) -> Batch:
    batch = {"images": split.images(indices)}
    if split.labels is not None:
        batch["labels"] = split.labels[indices]
    return batch
