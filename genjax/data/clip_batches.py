"""Batches of clips: endless for training, one fixed pass for evaluation.

Batch i of a run is a pure function of i, so that the position of a run in its data is one
integer, and any number of processes cut the same global batch into contiguous blocks of rows.

B batch (of all processes together), n its rows that one process reads.
"""

from collections.abc import Callable, Iterator

import grain
import numpy as np
from jaxtyping import Int

from genjax.data.clip_source import ENDLESS, ClipSplit
from genjax.data.epochs import ENDLESS_BATCHES, FixedPass, ShuffledEpochs
from genjax.data.process_rows import process_rows
from genjax.data.random_numbers import permutation, random_integers
from genjax.errors import UserError

Batch = dict[str, np.ndarray]


def training_batches(
    split: ClipSplit,
    batch_size: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """The endless batches of a training run, by number.

    Each epoch is a new permutation of the split. A split that is itself endless is read clip by
    clip, from a place that the seed decides.

    Args:
        split: The training clips.
        batch_size: B.
        seed: Decides the order; not negative.
        process_index: Which contiguous block of rows this process reads.
        process_count: Number of processes that share the batch.

    Returns:
        Batches of what the split says of its clips, arrays [n, ...].

    Raises:
        UserError: The batch does not divide among the processes.
    """
    choose = _Consecutive if len(split) == ENDLESS else ShuffledEpochs
    numbers = choose(len(split), batch_size, seed, process_index, process_count)
    return grain.MapDataset.source(_TrainingClips(split, numbers))


class _Consecutive:
    """Numbers of an endless split one after another; two seeds begin far apart."""

    def __init__(
        self, count: int, batch_size: int, seed: int, process_index: int, process_count: int
    ) -> None:
        rows = process_rows(batch_size, process_index, process_count)
        self._rows = np.arange(batch_size)[rows]
        self._count = count
        self._batch_size = batch_size
        self._start = _start(count, seed)

    def __call__(self, index: int) -> Int[np.ndarray, " n"]:
        first = (self._start + index * self._batch_size) % self._count
        return (first + self._rows) % self._count


def _start(count: int, seed: int) -> int:
    return int(random_integers(count, 1, seed)[0])


class _TrainingClips:
    def __init__(self, split: ClipSplit, numbers: Callable[[int], Int[np.ndarray, " n"]]) -> None:
        self._split = split
        self._numbers = numbers

    def __len__(self) -> int:
        return ENDLESS_BATCHES

    def __getitem__(self, index: int) -> Batch:
        return dict(self._split.read(self._numbers(index)))


class EvaluationClips:
    """The first clips of a split in a fixed shuffled order, in batches of one shape.

    A batch has what the split says of its clips, `weights` float32 (1, or 0 where the last batch
    is filled up with clips that came before) and `index` int32: the clip's number in the order,
    over all processes; filling counts on. Of an endless split these are the clips that training
    with the same seed sees first.

    Attributes:
        count: How many clips count, over all processes.
        order: int [count], which clips of the split these are.
    """

    def __init__(
        self,
        split: ClipSplit,
        batch_size: int,
        *,
        count: int | None = None,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Choose the clips.

        Args:
            split: Where they come from.
            batch_size: B, over all processes.
            count: How many at most; None: the whole split.
            seed: Decides the order; not negative.
            process_index: Which contiguous block of each batch this process reads.
            process_count: Number of processes that share the batch.

        Raises:
            UserError: The batch does not divide among the processes, or the split is endless and
                `count` is None.
        """
        if len(split) == ENDLESS:
            if count is None:
                raise UserError(
                    "The clips of this split are drawn anew without end; all of them cannot be "
                    "evaluated.\nGive a count, or choose the validation split."
                )
            order = (_start(len(split), seed) + np.arange(count)) % len(split)
        else:
            order = permutation(len(split), seed)[:count]
        self.count = len(order)
        self.order: Int[np.ndarray, " count"] = order
        self._split = split
        self._numbers = FixedPass(order, batch_size, process_index, process_count)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Batch:
        numbers, marks = self._numbers(index)
        return dict(self._split.read(numbers)) | marks

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))
