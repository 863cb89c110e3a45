"""Whether a layer whose work XLA would not split well over devices has to split it by hand."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS

Result = TypeVar("Result")


def splits_batch(size: int) -> bool:
    """Inside a jitted function: whether a batch of a size is split over devices.

    What is split by hand already (`jax.shard_map`) counts as whole, and so does a batch that the
    devices do not divide, as when a handful of samples is drawn.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return False
    return size % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0


def splits_rows(height: int) -> bool:
    """Inside a jitted function: whether rows of a height can be split over devices, too."""
    ways = jax.sharding.get_abstract_mesh().shape[SEQUENCE_AXIS]
    return ways > 1 and height % ways == 0


def each_device_its_part(
    function: Callable[..., Result],
    kernels: Any,
    shared: Any,
    clips: Any,
    examples: Any = None,
    *,
    unit: int = 1,
) -> Result:
    """`function(kernels, shared, clips, examples)`, each device with its part of the clips.

    For loops over time: the compiler would gather kernels that are kept in parts, and add up their
    gradients over devices, at every step of the loop. Here both are done once, outside of it.
    Clips are split into examples, and into rows where the mesh has an axis for that and it divides
    them; then `neighbouring_rows` gives what a convolution needs of other devices' rows. Kernels
    are split by output features where an axis of the mesh divides them; then a layer's outputs are
    of a device's features alone, and `all_features` gives what the next layer needs.

    Args:
        function: results are clips of its part of the clips.
        kernels: a tree of kernels, whose last axes count output features.
        shared: a tree of arrays that all devices have.
        clips: a tree of arrays [B, T, H, W, C].
        examples: a tree of arrays with one row for each example, or None.
        unit: rows that must stay together.
    """
    first = jax.tree.leaves(clips)[0]
    if not splits_batch(len(first)):
        return function(kernels, shared, clips, examples)
    mesh = jax.sharding.get_abstract_mesh()
    if first.shape[2] % (unit * mesh.shape[SEQUENCE_AXIS]):
        return function(kernels, shared, clips, examples)
    rows = P(BATCH_AXES, None, SEQUENCE_AXIS)

    def features(kernel: Array) -> P:
        divides = kernel.shape[-1] % mesh.shape[TENSOR_AXIS] == 0
        return P(*(None,) * (kernel.ndim - 1), TENSOR_AXIS if divides else None)

    return jax.shard_map(
        function,
        in_specs=(jax.tree.map(features, kernels), P(), rows, P(BATCH_AXES)),
        out_specs=rows,
        # Otherwise a custom derivative would have to add up over devices by itself.
        check_vma=False,
    )(kernels, shared, clips, examples)


def rows_are_split() -> bool:
    """Inside `each_device_its_part`: whether a device has some of the rows, not all."""
    mesh = jax.sharding.get_abstract_mesh()
    return SEQUENCE_AXIS in mesh.manual_axes and mesh.shape[SEQUENCE_AXIS] > 1


def neighbouring_rows(images: Float[Array, "B H W C"], reach: int) -> Float[Array, "B H2 W C"]:
    """Where rows are split by hand: a device's rows, and `reach` of those above and below them.

    Beyond the image's border they are zeros.
    """
    count, height = jax.sharding.get_abstract_mesh().shape[SEQUENCE_AXIS], images.shape[1]
    above, below = [], []
    # Of the next device, and of those behind it if that one has too few.
    for hop in range(1, -(-reach // height) + 1):
        rows = min(height, reach - (hop - 1) * height)
        down = [(device, device + hop) for device in range(count - hop)]
        up = [(device, source) for source, device in down]
        above.append(_moved(images[:, height - rows :], down))
        below.append(_moved(images[:, :rows], up))
    return jnp.concatenate([*above[::-1], images, *below], 1)


def all_features(own: Float[Array, "*B _"], features: int) -> Float[Array, "*B F"]:
    """Where kernels are split by hand: all F `features`, of which a device may have some."""
    if own.shape[-1] == features:
        return own
    return lax.all_gather(own, TENSOR_AXIS, axis=own.ndim - 1, tiled=True)


def own_features(whole: Float[Array, "*B F"], features: int) -> Float[Array, "*B _"]:
    """Of all features those of a device: the inverse of `all_features`."""
    if whole.shape[-1] == features:
        return whole
    start = lax.axis_index(TENSOR_AXIS) * features
    return lax.dynamic_slice_in_dim(whole, start, features, whole.ndim - 1)


def _moved(rows: Array, moves: list[tuple[int, int]]) -> Array:
    """The rows of another device; zeros where none is named."""
    return lax.ppermute(rows, SEQUENCE_AXIS, moves) if moves else jnp.zeros_like(rows)
