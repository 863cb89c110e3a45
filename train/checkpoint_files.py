"""The files of checkpoints: read and compared with their checksums, without the model."""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from genjax.errors import UserError
from genjax.parallel.processes import first_text
from train.integrity import checksums
from train.storage_errors import all_text, quiet, reason

_GROUP_BYTES = 256 * 2**20
"""Bytes of the arrays that are checked at once without their model."""


class CorruptCheckpointError(Exception):
    """A checkpoint on disk is damaged."""


def nest(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays by path as nested dicts, as Orbax has them."""
    return traverse_util.unflatten_dict(arrays, sep="/")


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `nest`."""
    return traverse_util.flatten_dict(tree, sep="/")


class CheckpointFiles:
    """What lies on disk, a folder a step. Each process reads alone; nothing is changed."""

    def __init__(self, folder: Path, describe: Callable[[int], Any]) -> None:
        """Read below a folder.

        Args:
            folder: of the checkpoints.
            describe: Orbax's account of the state saved at a step, None where it cannot be read.
        """
        self._folder = folder
        self._describe = describe

    def forms(self, step: int) -> dict[str, Any]:
        """What the arrays of a checkpoint look like, by path.

        Raises:
            ValueError: the account of them cannot be read.
        """
        saved = self._describe(step)
        if saved is None:
            raise ValueError("the list of its arrays is missing or damaged")
        return flat(saved.tree)

    def names(self, step: int) -> list[str]:
        """The paths of a checkpoint's arrays, by its own account: no model is needed.

        Raises:
            CorruptCheckpointError: the account cannot be read.
        """
        forms, sums = self._contents(step)
        return sorted(forms.keys() | sums.keys())

    def read_arrays(
        self, step: int, names: Iterable[str]
    ) -> Iterator[tuple[str, jax.Array | None, str]]:
        """Read arrays of a checkpoint onto one device, without the model that they belong to.

        Args:
            step: which checkpoint.
            names: paths of arrays, from `names`.

        Yields:
            The path of each array, the array or None, and what is wrong with it, or "".

        Raises:
            CorruptCheckpointError: it cannot be told what the checkpoint holds.
        """
        forms, sums = self._contents(step)
        group, size = [], 0
        for name in names:
            if name not in forms:
                yield name, None, f"the array {name} is missing"
                continue
            form = forms[name]
            bytes_here = math.prod(form.shape) * form.dtype.itemsize
            if group and size + bytes_here > _GROUP_BYTES:
                yield from self._read_group(step, group, forms, sums)
                group, size = [], 0
            group.append(name)
            size += bytes_here
        if group:
            yield from self._read_group(step, group, forms, sums)

    def _read_group(
        self,
        step: int,
        names: list[str],
        forms: dict[str, jax.ShapeDtypeStruct],
        sums: dict[str, int],
    ) -> Iterator[tuple[str, jax.Array | None, str]]:
        try:
            with damage(names):
                arrays = self.load(step, {name: forms[name] for name in names})
                found = checksums(arrays)
        except CorruptCheckpointError:
            arrays = found = None
        if arrays is None or found is None:
            if len(names) == 1:
                yield names[0], None, f"the array {names[0]} cannot be read"
                return
            # The first array that fails takes the others with it: narrow it down.
            half = len(names) // 2
            yield from self._read_group(step, names[:half], forms, sums)
            yield from self._read_group(step, names[half:], forms, sums)
            return
        for name in names:
            wrong = found[name] != sums.get(name)
            yield (
                name,
                arrays[name],
                f"the array {name} differs from its checksum" if wrong else "",
            )

    def _contents(self, step: int) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, int]]:
        """The form of each array of a checkpoint, on one device, and their checksums."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with damage(()):
            forms = {
                name: jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=device)
                for name, form in self.forms(step).items()
            }
            sums = self.read_json(step, "checksums")["arrays"]
            return forms, dict(sums)

    def load(self, step: int, forms: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Read arrays of a checkpoint; of each, this process reads the parts of its devices."""
        item = nest(dict(forms))
        with _reader(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(
                self._folder / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                    partial_restore=True,
                ),
            )
        return flat(read)

    def read_json(self, step: int, item: str) -> Any:
        """What a checkpoint holds beside arrays: "position", "checksums" or "figures"."""
        with _reader(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self._folder / str(step) / item, args=ocp.args.JsonRestore())

    def problems(self, step: int) -> list[str]:
        """All that is damaged in a checkpoint, a text for each array; nothing is changed.

        Raises:
            UserError: this process may not read the files.
        """
        try:
            arrays = self.read_arrays(step, self.names(step))
            found = [problem for _, _, problem in arrays if problem]
        except CorruptCheckpointError as error:
            return [str(error)]
        try:
            with damage(()):
                position = self.read_json(step, "position")
                expected = self.read_json(step, "checksums")["position"]
            if json_checksum(position) != expected:
                found.append("the position in the data differs from its checksum")
        except CorruptCheckpointError:
            found.append("the position in the data cannot be read")
        try:
            with damage(()):
                self.read_json(step, "figures")
        except CorruptCheckpointError:
            found.append("the figures of its evaluation cannot be read")
        return found


def _reader(handler: Any) -> ocp.Checkpointer:
    """Reads in this process alone: no other waits for it if it fails, nor it for them."""
    own = jax.process_index()
    return ocp.Checkpointer(
        handler,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
        ),
    )


def json_checksum(value: Any) -> int:
    """The CRC-32 of a value as JSON."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@contextmanager
def damage(names: Iterable[str]) -> Iterator[None]:
    """Turn errors of reading into `CorruptCheckpointError`s that name the array, if they tell it.

    Errors of the machine that reads (no memory, no permission) pass: the checkpoint may be sound.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        text = all_text(error)
        if isinstance(error, MemoryError | PermissionError) or "RESOURCE_EXHAUSTED" in text:
            raise
        if "PERMISSION_DENIED" in text:
            raise UserError(f"the checkpoint cannot be read: {reason(error)}") from error
        for name in names:
            dotted = name.replace("/", ".")
            if f"'{dotted}/'" in text or f'"{dotted}/' in text:
                raise CorruptCheckpointError(f"the array {name} cannot be read") from error
        raise CorruptCheckpointError(f"it cannot be read ({reason(error)})") from error


@contextmanager
def damage_anywhere(names: Iterable[str]) -> Iterator[None]:
    """The same where what one process cannot read is damaged for all."""
    problem, cause = "", None
    try:
        with damage(names):
            yield
    except CorruptCheckpointError as error:
        problem, cause = str(error), error
    if problem := first_text(problem):
        raise CorruptCheckpointError(problem) from cause
