"""Where a step's own arrays lie: parameters gathered for their use, images split.

The partitioner of XLA chooses the layout of what a step makes from those of its arguments. Two
hints keep it from moving feature maps between devices; without a mesh they change nothing.

Letters: B batch, H height, W width, C channels.
"""

import math
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS

Tree = TypeVar("Tree")


def gathered(params: Tree) -> Tree:
    """Inside a jitted step: parameters whole on every device, however they are kept.

    Kept in parts, they are gathered where a convolution or a product reads them, and their
    gradients are summed over devices. Left to itself, the partitioner may instead make feature maps
    of the kernel's layout, and exchanges those between devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return params
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), params)


def split_images(images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Inside a jitted step: feature maps split as a batch of images is.

    Examples over the data and fsdp axes, rows over the sequence axis; an axis that does not divide
    its dimension is left out. A convolution of images that are split by rows exchanges the few rows
    at the seams alone.

    Raises:
        UserError: the mesh has a tensor axis as well.
    """
    return _split(images, (BATCH_AXES, (SEQUENCE_AXIS,)))


def split_clips(clips: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Inside a jitted step: clips or their features split as `split_images` splits frames."""
    return _split(clips, (BATCH_AXES, (), (SEQUENCE_AXIS,)))


def _split(array: Array, axes: tuple[tuple[str, ...], ...]) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return array
    if mesh.shape[SEQUENCE_AXIS] > 1 and mesh.shape[TENSOR_AXIS] > 1:
        # Found by comparing gradients: those of kernels come out too large.
        raise UserError(
            f"mesh.sequence = {mesh.shape[SEQUENCE_AXIS]} and mesh.tensor = "
            f"{mesh.shape[TENSOR_AXIS]}: XLA adds up the gradients of convolutions wrongly where "
            "images are split by rows and an axis repeats them; set mesh.tensor = 1"
        )
    names = [
        names if size % math.prod(mesh.shape[name] for name in names) == 0 else None
        for names, size in zip(axes, array.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(array, P(*names))


def split_examples(images: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Inside a jitted step: each example whole on one device, over as many devices as there are.

    The sequence axis splits the examples too where it divides them; otherwise its devices have the
    same ones.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return images
    for axes in ((*BATCH_AXES, SEQUENCE_AXIS), BATCH_AXES):
        if len(images) % math.prod(mesh.shape[name] for name in axes) == 0:
            return jax.lax.with_sharding_constraint(images, P(axes))
    return images
