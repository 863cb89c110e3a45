"""Checkpoints: asynchronous, atomic, verified when they are read.

A thin layer over Orbax. A checkpoint holds the train state as plain nested dicts of arrays, the
position in the data, checksums of both and the figures of the last evaluation.
"""

import dataclasses
import gc
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from genjax.errors import UserError
from genjax.parallel.partition import path_name
from genjax.parallel.processes import agree, first_text, is_first, wait_for_all
from genjax.run_config import BestIs, CheckpointConfig
from genjax.task import TrainState
from train.checkpoint_files import (
    CheckpointFiles,
    CorruptCheckpointError,
    damage_anywhere,
    json_checksum,
    nest,
)
from train.integrity import checksums
from train.save_barrier import OtherProcessFailed, SaveBarrier
from train.storage_errors import quiet, reason, without_orphans

managers = ocp.checkpoint_managers


class SaveError(Exception):
    """A checkpoint could not be written; earlier ones are untouched."""


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
        self._best_metric = config.best_metric if config is not None else None
        self._saving: int | None = None
        policies = None
        if config is not None:
            keep: list[managers.PreservationPolicy] = [managers.LatestN(config.keep_last)]
            if config.keep_every:
                keep.append(managers.EveryNSteps(config.keep_every))
            if config.best_metric is not None:
                keep.append(_Best(self, config.best_metric, config.best_is))
            policies = managers.AnyPreservationPolicy(keep)
        # Orbax logs with tracebacks what it also raises, and its threads print more of the same.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._hooks = without_orphans()
        self._hooks.__enter__()
        self._barrier = SaveBarrier()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies,
                read_only=config is None,
                create=config is not None,
                cleanup_tmp_directories=config is not None,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
            ),
            # Named, so that a program that only reads knows how to.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
                "checksums": ocp.JsonCheckpointHandler(),
                "figures": ocp.JsonCheckpointHandler(),
            },
        )
        self.files = CheckpointFiles(
            self.folder, lambda step: self._manager.item_metadata(step)["state"]
        )
        self._figures: dict[int, dict[str, float]] = {}

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best(self, metric: str, best_is: BestIs = "lowest") -> int | None:
        """The step whose evaluation had the best value of a figure, or None if none was saved.

        Of equal values the earliest step is the best.
        """
        values = {step: self.figures(step).get(metric, math.nan) for step in self.steps()}
        finite = {step: value for step, value in values.items() if math.isfinite(value)}
        pick = min if best_is == "lowest" else max
        return pick(finite, key=lambda step: finite[step], default=None)

    def figures(self, step: int) -> dict[str, float]:
        """The figures saved with a checkpoint; empty if there are none or they are damaged."""
        if step not in self._figures:
            try:
                with quiet():
                    found = self.files.read_json(step, "figures")
            except Exception:
                found = {}
            self._figures[step] = {
                name: value
                for name, value in (found.items() if isinstance(found, dict) else ())
                if isinstance(value, int | float)
            }
        return self._figures[step]

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict[str, Any],
        figures: dict[str, float] | None = None,
    ) -> None:
        """Start to save; returns when the arrays are copied off the devices.

        Raises:
            SaveError: this save could not start, or the one before failed and was not waited for.
            UserError: `checkpoint.best_metric` is none of the figures.
        """
        if figures and self._best_metric not in (None, *figures):
            raise UserError(
                f"checkpoint.best_metric: the evaluation has no figure {self._best_metric!r}; "
                f"it has {', '.join(figures)}"
            )
        arrays = flatten(state)
        sums = {"arrays": checksums(arrays), "position": json_checksum(position)}
        self._figures[step] = dict(figures or {})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(nest(arrays)),
            position=ocp.args.JsonSave(position),
            checksums=ocp.args.JsonSave(sums),
            figures=ocp.args.JsonSave(self._figures[step]),
        )
        self._attempt(step, self._ready_to_save)
        self._attempt(step, lambda: self._manager.save(step, args=args, force=True))
        self._saving = step

    def wait(self) -> None:
        """Wait until the last save is on disk, that of every process.

        Raises:
            SaveError: it could not be written.
        """
        self._attempt(self._saving, self._manager.wait_until_finished)

    def _ready_to_save(self) -> None:
        self._manager.wait_until_finished()
        # Where nothing can be written at all, Orbax's threads would wait for each other.
        with tempfile.TemporaryFile(dir=self.folder) as probe:
            probe.write(b"?")

    def _attempt(self, step: int | None, action: Callable[[], Any]) -> None:
        """Do a part of saving a step. If it fails in one process, it fails in all.

        Raises:
            SaveError: it failed.
        """
        problem, cause = "", None
        try:
            with quiet():
                action()
        except OtherProcessFailed as error:
            # That one has the reason.
            cause = error
        except (OSError, ValueError, RuntimeError) as error:
            problem, cause = reason(error), error
        problem = first_text(problem)
        if problem or cause is not None:
            raise self._save_error(step, problem or str(cause)) from cause

    def _save_error(self, step: int | None, problem: str) -> SaveError:
        self._forget_errors()
        wait_for_all("no save is under way")
        self._barrier.reset()
        # What was written of it would take the room that the next one needs. Other arrays of it may
        # still be on their way, so look more than once.
        for _ in range(5 if is_first() else 0):
            for part in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
            time.sleep(0.05)
        wait_for_all("its files are gone")
        self._manager.reload()
        kept = self.steps()
        rest = f"the newest on disk is step {kept[-1]}" if kept else "there is none on disk yet"
        return SaveError(f"could not save step {step}: {problem}; {rest}")

    def _forget_errors(self) -> None:
        """Let the manager raise what its threads still hold, or it would fail the next save."""
        for _ in range(3):
            try:
                with quiet():
                    self._manager.wait_until_finished()
                    self._manager.check_for_errors()
                return
            except (OSError, ValueError, RuntimeError):
                continue

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
        steps = self._common_steps() if step is None else [step]
        damaged = []
        for candidate in reversed(steps):
            if damaged:
                # What is left of the read that failed complains once it is collected.
                with quiet():
                    gc.collect()
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

    def _common_steps(self) -> list[int]:
        """What the first process finds: on a shared disk others may still see an older list."""
        here = self.steps()
        count = agree(len(here))
        padded = here[:count] + [0] * (count - len(here))
        return [agree(step) for step in padded]

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
        with damage_anywhere(templates):
            saved = self.files.forms(step)
        self._check_same_arrays(step, saved, templates)
        with damage_anywhere(templates):
            arrays = self.files.load(step, templates)
            position = self.files.read_json(step, "position")
            expected, position_sum = (
                self.files.read_json(step, "checksums")[name] for name in ("arrays", "position")
            )
        found = checksums(arrays)
        wrong = [name for name in found if found[name] != expected.get(name)]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CorruptCheckpointError(f"the array {wrong[0]}{more} differs from its checksum")
        if json_checksum(position) != position_sum:
            raise CorruptCheckpointError("the position in the data differs from its checksum")
        return Restored(step, unflatten(arrays, like), position)

    def _check_same_arrays(
        self, step: int, saved: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> None:
        odd = sorted(saved.keys() ^ wanted.keys()) + [
            name
            for name in sorted(saved.keys() & wanted.keys())
            if _form(saved[name]) != _form(wanted[name])
        ]
        if odd:
            name = odd[0]
            there = _form(saved[name]) if name in saved else "nothing"
            here = _form(wanted[name]) if name in wanted else "nothing"
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} belongs to another model: "
                f"{name} is {there} there and {here} in this one ({len(odd)} arrays differ)\n"
                "use the config that the run was started with, or a new --workdir"
            )

    def written(self, step: int) -> float:
        """When a checkpoint was finished, in seconds since 1970; of a damaged one, about when."""
        try:
            with quiet():
                nanoseconds = self._manager.metadata(step).commit_timestamp_nsecs
        except Exception:
            nanoseconds = None
        return nanoseconds / 1e9 if nanoseconds else (self.folder / str(step)).stat().st_mtime

    def delete(self, step: int) -> None:
        """Delete a checkpoint; a process that is killed meanwhile leaves it whole or none.

        Raises:
            OSError: the files cannot be changed.
        """
        # The name of a save that was cut short: what is left of it, the next training clears away.
        part = self.folder / f"{step}.orbax-checkpoint-tmp"
        if part.exists():
            shutil.rmtree(part)
        (self.folder / str(step)).rename(part)
        shutil.rmtree(part)
        self._manager.reload()

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way, so that its step can be saved again."""
        if is_first():
            target = self.folder.parent / "damaged" / str(step)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(self.folder / str(step), target)
        wait_for_all("the damaged checkpoint is set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait for a save under way and let go; `wait` tells whether it succeeded."""
        self._forget_errors()
        self._manager.close()
        self._hooks.__exit__(None, None, None)


class _Best(managers.PreservationPolicy):
    """Keeps the checkpoint with the best value of a figure."""

    def __init__(self, checkpoints: Checkpoints, metric: str, best_is: BestIs) -> None:
        self._checkpoints = checkpoints
        self._metric = metric
        self._best_is: BestIs = best_is

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: Any,
    ) -> Sequence[bool]:
        """Whether to keep each checkpoint."""
        del context
        best = self._checkpoints.best(self._metric, self._best_is)
        return [checkpoint.step == best for checkpoint in checkpoints]


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


def _form(array: Any) -> str:
    """Type and shape of an array, as "float32[4, 8]"."""
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"
