"""The compiled programs of a run: what trains, and what a dry run or rehearsal looks at."""

import functools
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.parallel.mesh import batch_size_fits
from genjax.parallel.partition import (
    batch_sharding,
    layout_remarks,
    sequence_dimension_of,
    state_shardings,
)
from genjax.task import Batch, Task, TrainState


class Program:
    """A task's jitted functions on a mesh, each compiled when it is first called.

    The mesh may lie on devices that this machine does not have: then the functions can be lowered
    and compiled (`step(variant).lower(..)`), under `jax.set_mesh(mesh)`, but not called. On an
    abstract mesh there are shapes and shardings alone.

    Attributes:
        task: the task.
        mesh: the devices.
        shapes: the train state's shapes.
        shardings: where each array of it lies.
    """

    def __init__(self, task: Task, mesh: Mesh | AbstractMesh, seed: int = 0) -> None:
        """Find shapes and shardings; nothing is compiled or allocated.

        Raises:
            UserError: the task cannot split its work over the mesh.
        """
        task.check_mesh(mesh.shape)
        self.task = task
        self.mesh = mesh
        self.shapes: TrainState = jax.eval_shape(lambda: task.init(jax.random.key(seed)))
        self.shardings: TrainState = state_shardings(self.shapes, task.partition_rules, mesh)
        self._steps: dict[Hashable, Callable[..., tuple[TrainState, dict[str, Any]]]] = {}

    def init(self) -> Any:
        """The jitted `Task.init`, from a random key to the sharded state."""
        return jax.jit(self.task.init, out_shardings=self.shardings)

    def step(self, variant: Hashable = None) -> Any:
        """The jitted `Task.train_step` of a variant: (state, batch) to (state, metrics).

        The state's buffers are donated.
        """
        if variant not in self._steps:
            step = functools.partial(self.task.train_step, variant=variant)
            if variant is not None:
                # So that a profile tells the variants apart: it goes by names of programs.
                name = re.sub(r"\W+", "_", f"train_step_{variant}")
                step.__name__ = name  # pyright: ignore[reportAttributeAccessIssue]
            self._steps[variant] = jax.jit(
                step,
                donate_argnums=0,
                # Every process reads the metrics.
                out_shardings=(self.shardings, NamedSharding(self.mesh, P())),
            )
        return self._steps[variant]

    def compiled_before(self, variant: Hashable) -> bool:
        """Whether `step(variant)` was asked for already."""
        return variant in self._steps

    def abstract_state(self) -> TrainState:
        """The state's shapes with their shardings, to lower `step` with."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )

    def abstract_batch(self, batch: Mapping[str, Any]) -> Batch:
        """The shapes of a global batch with their shardings, to lower `step` with.

        Args:
            batch: arrays, or anything with `shape` and `dtype`, of the global batch.

        Raises:
            UserError: the mesh does not divide the batch.
        """
        for array in batch.values():
            batch_size_fits(array.shape[0], self.mesh)
        return {
            name: jax.ShapeDtypeStruct(
                array.shape, array.dtype, sharding=self._batch_sharding(name, array.shape)
            )
            for name, array in batch.items()
        }

    def remarks(self, batch: Mapping[str, Any]) -> list[str]:
        """Sentences on what the layout makes more costly than it need be.

        Args:
            batch: arrays, or anything with `shape`; their number of examples does not matter.
        """
        dimensions = self.task.sequence_dimensions
        may_split = {
            name: self._batch_sharding(name, array.shape)
            for name, array in batch.items()
            if sequence_dimension_of(dimensions, name) is not None
        }
        rules = self.task.partition_rules
        return layout_remarks(self.shapes, self.shardings, may_split, rules, self.mesh)

    def _batch_sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        dimension = sequence_dimension_of(self.task.sequence_dimensions, name)
        return batch_sharding(self.mesh, shape, dimension)
