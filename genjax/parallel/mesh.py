"""The device mesh: four named axes, each 1 unless the config says more."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
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


class MeshConfig(Config):
    """How many devices along each axis; the product is the number of devices used."""

    data: int = Field(default=-1, ge=-1)
    """Copies of the model, each with its part of the batch; -1 takes all devices left."""
    fsdp: int = Field(default=1, ge=-1)
    """Ways to split parameters, optimizer state and batch (fully sharded data parallelism); -1
    takes all devices left."""
    tensor: int = Field(default=1, ge=1)
    """Ways to split each layer's matrices."""
    sequence: int = Field(default=1, ge=1)
    """Ways to split the time axis of a batch."""

    @field_validator("data", "fsdp")
    @classmethod
    def _is_a_size(cls, size: int) -> int:
        if size == 0:
            raise ValueError("0: give -1 (all devices left) or at least 1")
        return size


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config.

    Axis types are written out as Auto: Flax Linen modules need the compiler to place what they
    leave open, and `jax.make_mesh` would otherwise make explicit axes.

    Args:
        config: sizes of the axes.
        devices: the devices to use; all of them by default.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config, len(devices))
    if math.prod(sizes) > len(devices):
        raise UserError(
            f"mesh: {' x '.join(map(str, sizes))} = {math.prod(sizes)} devices are asked for and "
            f"{len(devices)} are here; lower one of {', '.join(AXES)}"
        )
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: math.prod(sizes)]
    )


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
    return tuple(sizes.values())


def batch_size_fits(batch_size: int, mesh: Mesh) -> None:
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
