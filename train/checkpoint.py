"""Checkpoints: asynchronous, atomic, verified when they are read.

A thin layer over Orbax. A checkpoint holds the train state as plain nested dicts of arrays, the
position in the data, a checksum of each array and the figures of the last evaluation.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from genjax.errors import UserError
from genjax.parallel.partition import path_name
from genjax.run_config import CheckpointConfig
from genjax.task import TrainState
from train.integrity import checksums

managers = ocp.checkpoint_managers

class SaveError(Exception):
    """A checkpoint could not be written; earlier ones are untouched."""


class CorruptCheckpointError(Exception):
    """A checkpoint on disk is damaged."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read: its step, train state and position in the data."""

    step: int
    state: TrainState
    position: dict[str, Any]


def flatten(state: TrainState) -> dict[str, Any]:
    """A train state's arrays by path; random keys as their integers."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        path_name(path): jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for path, leaf in leaves
    }


def unflatten(arrays: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `flatten`, in the structure of `like`."""

    def leaf(path: tuple[Any, ...], template: Any) -> Any:
        array = arrays[path_name(path)]
        if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array)
        return array

    return jax.tree_util.tree_map_with_path(leaf, like)


def _nest(arrays: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(arrays, sep="/")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig | None = None,
        *,
        tell: Callable[[str], None] = print,
    ) -> None:
        """Open a folder of checkpoints, for reading only if there is no config.

        Args:
            folder: where the checkpoints lie, one folder a step.
            config: which to keep.
            tell: gets a line when a damaged checkpoint is passed over.
        """
        self.folder = folder.absolute()
        self._tell = tell
        self._writable = config is not None
        policies = None
        if config is not None:
            keep: list[managers.PreservationPolicy] = [managers.LatestN(config.keep_last)]
            if config.keep_every:
                keep.append(managers.EveryNSteps(config.keep_every))
            if (metric := config.best_metric) is not None:
                keep.append(
                    managers.BestN(
                        get_metric_fn=lambda figures: -figures[metric],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )
            policies = managers.AnyPreservationPolicy(keep)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies,
                read_only=config is None,
                create=config is not None,
                cleanup_tmp_directories=config is not None,
                enable_async_checkpointing=True,
            ),
            # Named, so that a program that only reads knows how to.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
                "checksums": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best(self, metric: str) -> int | None:
        """The step whose evaluation had the lowest value of a figure, or None if none was saved."""
        values = {
            step: figures[metric]
            for step in self.steps()
            if (figures := self._manager.metrics(step)) and metric in figures
        }
        return min(values, key=lambda step: values[step], default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict[str, Any],
        figures: dict[str, float] | None = None,
    ) -> None:
        """Start to save; returns when the arrays are copied off the devices.

        Raises:
            SaveError: this save could not start or the one before did not finish.
        """
        arrays = flatten(state)
        try:
            self._manager.wait_until_finished()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_nest(arrays)),
                    position=ocp.args.JsonSave(position),
                    checksums=ocp.args.JsonSave(checksums(arrays)),
                ),
                metrics=figures,
                force=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(step, error) from error

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            SaveError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(None, error) from error

    def _save_error(self, step: int | None, error: Exception) -> SaveError:
        which = f"the checkpoint of step {step}" if step is not None else "the last checkpoint"
        kept = self.steps()
        rest = f"the newest on disk is step {kept[-1]}" if kept else "there is none on disk yet"
        return SaveError(f"could not save {which}: {_reason(error)}; {rest}")

    def restore(self, like: TrainState, shardings: Any, step: int | None = None) -> Restored | None:
        """Read the newest checkpoint that is intact, or that of `step`.

        A damaged checkpoint is moved to the folder `damaged` beside `checkpoints` if newer ones
        are to be written here, and named together with the one that is used instead.

        Args:
            like: the state's shapes, from `jax.eval_shape(task.init, key)`.
            shardings: where each array goes.
            step: a step to read instead of the newest.

        Returns:
            What was read, or None if there is no checkpoint.

        Raises:
            UserError: checkpoints exist and none is intact, or they belong to another model.
        """
        steps = self.steps() if step is None else [step]
        damaged = []
        for candidate in reversed(steps):
            try:
                restored = self._read(candidate, like, shardings)
            except CorruptCheckpointError as error:
                damaged.append(candidate)
                self._tell(f"the checkpoint of step {candidate} is damaged: {error}")
                continue
            for bad in damaged if self._writable else ():
                self._set_aside(bad)
            if damaged:
                self._tell(f"going on from the checkpoint of step {candidate} instead")
            return restored
        if damaged:
            raise UserError(
                f"{self.folder}: no checkpoint is intact (damaged: steps {sorted(damaged)}); "
                "start again with a new --workdir"
            )
        return None

    def _read(self, step: int, like: TrainState, shardings: Any) -> Restored:
        templates = flatten(
            jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                _with_key_data(like),
                shardings,
            )
        )
        try:
            saved = _flat(self._manager.item_metadata(step)["state"].tree)
        except Exception as error:
            raise CorruptCheckpointError(f"its list of arrays cannot be read: {error}") from error
        self._check_same_arrays(step, saved, templates)
        try:
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_nest(templates)),
                    position=ocp.args.JsonRestore(),
                    checksums=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise CorruptCheckpointError(_reason(error)) from error
        arrays = _flat(read["state"])
        expected = read["checksums"]
        found = checksums(arrays)
        wrong = [name for name in found if found[name] != expected.get(name)]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CorruptCheckpointError(f"the array {wrong[0]}{more} differs from its checksum")
        return Restored(step, unflatten(arrays, like), read["position"])

    def _check_same_arrays(
        self, step: int, saved: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> None:
        odd = sorted(saved.keys() ^ wanted.keys()) + [
            name
            for name in sorted(saved.keys() & wanted.keys())
            if tuple(saved[name].shape) != wanted[name].shape
        ]
        if odd:
            name = odd[0]
            there = tuple(saved[name].shape) if name in saved else "nothing"
            here = wanted[name].shape if name in wanted else "nothing"
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} belongs to another model: "
                f"{name} is {there} there and {here} in this one ({len(odd)} arrays differ)\n"
                "use the config that the run was started with, or a new --workdir"
            )

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way, so that its step can be saved again."""
        target = self.folder.parent / "damaged" / str(step)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        shutil.move(self.folder / str(step), target)
        self._manager.reload()

    def close(self) -> None:
        """Wait for a save under way and let go."""
        self._manager.close()


def _with_key_data(state: TrainState) -> TrainState:
    """Shapes with random keys as the integers they are saved as."""
    return jax.eval_shape(
        lambda tree: jax.tree.map(
            lambda leaf: (
                jax.random.key_data(leaf)
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                else leaf
            ),
            tree,
        ),
        state,
    )


def _reason(error: BaseException) -> str:
    """The last meaningful words of a chain of errors, in one line."""
    text = str(error).strip() or type(error).__name__
    for words in ("No space left on device", "File too large", "Read-only file system"):
        if words in text:
            return words.lower()
    lines = text.splitlines()
    return lines[0][:200]
