"""One deterministic pass over a split: sums on the devices, totals on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.task import Evaluation, Task, TrainState
from train.stream import place


class Interrupted(Exception):
    """An evaluation ended early because a stop was asked for."""


class Evaluator:
    """Runs evaluations of one task; compiles its `eval_step` once a shape."""

    def __init__(self, task: Task, mesh: Mesh) -> None:
        self._task = task
        self._mesh = mesh
        # The sums are read by every process, so each holds them whole.
        self._step = jax.jit(task.eval_step, out_shardings=(None, NamedSharding(mesh, P())))

    def __call__(
        self,
        state: TrainState,
        evaluation: Evaluation,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, float]:
        """The figures of a whole evaluation.

        Args:
            state: the trained state; it is not changed.
            evaluation: what to go through, and the carry to start from if not the state's own.
            stop: polled between batches.
            progress: told the batches done and their total.

        Raises:
            Interrupted: `stop` said so.
        """
        carry = state.carry if evaluation.carry is None else evaluation.carry
        state = dataclasses.replace(state, carry={**carry, **evaluation.constants})
        totals: Any = None
        pending: Any = None
        count = len(evaluation.batches)
        for number in range(count):
            if stop():
                raise Interrupted
            sequence_dimensions = self._task.sequence_dimensions
            batch = place(evaluation.batches[number], self._mesh, sequence_dimensions)
            carry, sums = self._step(state, batch)
            state = dataclasses.replace(state, carry=carry)
            # One batch late, so that the device never waits for the host.
            totals, pending = self._add(totals, pending), sums
            progress(number + 1, count)
        return self._task.figures(self._add(totals, pending))

    def _add(self, totals: Any, sums: Any) -> Any:
        return totals if sums is None else self._task.combine(totals, jax.device_get(sums))
