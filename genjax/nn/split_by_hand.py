"""Whether a layer whose work XLA would not split well over devices has to split it by hand."""

import math

import jax

from genjax.parallel.mesh import BATCH_AXES


def splits_batch(size: int) -> bool:
    """Inside a jitted function: whether a batch of a size is split over devices.

    What is split by hand already (`jax.shard_map`) counts as whole, and so does a batch that the
    devices do not divide, as when a handful of samples is drawn.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return False
    return size % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0
