"""The device mesh: four named axes, each 1 unless the config says more."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh
from pydantic import Field, field_validator

from genjax.config import Config
from genjax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
"""Copies of the model; shards of its parameters; shards of its layers; shards of time."""

BATCH_AXES = ("data", "fsdp")
"""The mesh axes over which a batch's examples are split."""

SEQUENCE_AXIS = "sequence"
"""The mesh axis over which an example is split: along time, or an image along its height."""

TENSOR_AXIS = "tensor"
"""The mesh axis over which the features of a layer are split."""


_ACROSS_SLICES = ("data", "fsdp", "sequence", "tensor")
"""Which axes go from slice to slice, first those that send the least in a step."""


class MeshConfig(Config):
    """How many devices along each axis; the product is the number of devices used.

    Devices that a network joins, such as several TPU slices or machines with GPUs, are split over
    `data` first, then over `fsdp`, `sequence` and `tensor`: with `data` a multiple of their number,
    the other axes stay within one of them.
    """

    data: int = Field(default=-1, ge=-1)
    """Copies of the model, each with its part of the batch; -1 takes all devices left."""
    fsdp: int = Field(default=1, ge=-1)
    """Ways to split parameters, optimizer state and batch (fully sharded data parallelism); -1
    takes all devices left."""
    tensor: int = Field(default=1, ge=1)
    """Ways to split each layer's matrices."""
    sequence: int = Field(default=1, ge=1)
    """Ways to split each example: texts along time, where attention passes keys and values round
    (ring attention); images and clips along height."""

    @field_validator("data", "fsdp")
    @classmethod
    def _is_a_size(cls, size: int) -> int:
        if size == 0:
            raise ValueError("0: give -1 (all devices left) or at least 1")
        return size


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config.

    Axis types are written out as Auto: Flax Linen modules need the compiler to place what they
    leave open. Within a slice devices are ordered so that neighbours on the mesh are neighbours on
    the torus; slices are the outer part of the axes that go from one to the next.

    Args:
        config: sizes of the axes.
        devices: the devices to use; all of them by default.

    Raises:
        UserError: the sizes do not fit the number of devices, or of those of a slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config, len(devices))
    slices = _whole_slices(devices, math.prod(sizes))
    across = _ways_across(sizes, len(slices))
    within = [size // ways for size, ways in zip(sizes, across, strict=True)]
    mesh = _tiled(across, [_ordered(within, part) for part in slices])
    return Mesh(mesh, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh of a config on devices that need not be here: shapes and shardings, no placement.

    Args:
        config: sizes of the axes.
        devices: how many there are.

    Raises:
        UserError: the sizes do not fit that number.
    """
    sizes = _sizes(config, devices)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def ways_across_slices(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """Over how many slices each axis goes that goes over more than one; empty where none is known.

    A slice is what a fast network connects: a TPU slice, or the GPUs of a machine.
    """
    if isinstance(mesh, AbstractMesh):
        return {}
    slices = np.vectorize(_slice_of, otypes=[int])(mesh.devices)
    found: dict[str, int] = {}
    for number, name in enumerate(AXES):
        line = slices[tuple(slice(None) if axis == number else 0 for axis in range(len(AXES)))]
        if len(set(line)) > 1:
            found[name] = len(set(line))
    return found


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def _whole_slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
    """The first `count` devices by slice: of one, or the same number of each of several."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(_slice_of(device), []).append(device)
    parts = [slices[number] for number in sorted(slices)]
    if count <= len(parts[0]):
        return [parts[0][:count]]
    used = parts[: count // len(parts[0])]
    if count % len(parts[0]) or any(len(part) != len(parts[0]) for part in used):
        raise UserError(
            f"mesh: {count} devices are not whole slices, which have "
            f"{', '.join(str(len(part)) for part in parts)} devices; use all devices of each, or "
            "those of one alone"
        )
    return used


def _ways_across(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """Over how many of the slices each axis goes; their product is the number of slices."""
    ways = dict.fromkeys(AXES, 1)
    for name in _ACROSS_SLICES:
        ways[name] = math.gcd(sizes[AXES.index(name)], slices)
        slices //= ways[name]
    # The sizes' product is a multiple of it, so every prime factor has found an axis.
    assert slices == 1
    return tuple(ways.values())


def _ordered(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of a slice as an array of these sizes, neighbours next to each other.

    A process reads rows of a batch that lie together, so its devices have to: where the order along
    the torus takes them apart, each process' devices become a block instead.
    """
    try:
        # An axis may take a part of a torus' side.
        found = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError):
        # JAX knows no order for a part of a slice, or for chips that show their cores apart.
        found = np.reshape(np.array(devices, object), sizes)
    return found if _rows_lie_together(found) else _by_process(sizes, devices)


def _rows_lie_together(mesh: np.ndarray) -> bool:
    """Whether each process holds one of equal parts of a batch's rows."""
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.reshape(mesh.shape[0] * mesh.shape[1], -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    return len({len(rows) for rows in held.values()}) == 1 and all(
        min(rows) % len(rows) == 0 and max(rows) - min(rows) < len(rows) for rows in held.values()
    )


def _by_process(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as blocks, one for each process: its last axes first, which send the most."""
    processes: dict[int, list[Any]] = {}
    for device in devices:
        processes.setdefault(device.process_index, []).append(device)
    parts = [processes[number] for number in sorted(processes)]
    left = len(parts[0])
    if any(len(part) != left for part in parts):
        return np.reshape(np.array(devices, object), sizes)
    block: list[int] = []
    for size in reversed(sizes):
        block.insert(0, math.gcd(size, left))
        left //= block[0]
    outer = [size // inner for size, inner in zip(sizes, block, strict=True)]
    return _tiled(outer, [np.reshape(np.array(part, object), block) for part in parts])


def _tiled(outer: Sequence[int], blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks of one shape side by side: `outer` of them along each axis."""
    grid = np.empty(outer, object)
    for place, block in zip(np.ndindex(*outer), blocks, strict=True):
        grid[place] = block
    return np.block(grid.tolist())


def _sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """The sizes of the axes, with the one that is left open filled in."""
    sizes = {name: getattr(config, name) for name in AXES}
    left_open = [name for name, size in sizes.items() if size == -1]
    if len(left_open) > 1:
        raise UserError(
            f"mesh: {' and '.join(left_open)} are both -1 (all devices left); give a number for one"
        )
    for name in left_open:
        others = [other for other in AXES if other != name]
        fixed = math.prod(sizes[other] for other in others)
        if devices % fixed:
            raise UserError(
                f"mesh: {' x '.join(others)} = {fixed} does not divide the {devices} "
                "devices here; change one of them"
            )
        sizes[name] = devices // fixed
    found = tuple(sizes.values())
    if math.prod(found) > devices:
        raise UserError(
            f"mesh: {' x '.join(map(str, found))} = {math.prod(found)} devices are asked for and "
            f"{devices} are here; lower one of {', '.join(AXES)}"
        )
    return found


def batch_size_fits(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Check that the mesh divides a batch.

    Raises:
        UserError: it does not; names both numbers.
    """
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % ways:
        raise UserError(
            f"the batch of {batch_size} examples does not split over {ways} devices "
            f"({' x '.join(BATCH_AXES)}); make it a multiple of {ways}, or set mesh.data"
        )
