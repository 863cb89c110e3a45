"""How arrays shard over the mesh: regular expressions on paths, then a generic FSDP fallback."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from genjax.parallel.mesh import BATCH_AXES
from genjax.task import PartitionRules, Tree

FSDP_MINIMUM_SIZE = 2**14
"""Arrays with fewer elements stay whole: splitting them costs more than it saves."""


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as "params/language_model/embedding"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _divides(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None, size: int) -> bool:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return size % math.prod(mesh.shape[name] for name in names) == 0


def partition_spec(name: str, shape: tuple[int, ...], rules: PartitionRules, mesh: Mesh) -> P:
    """The partition of one array.

    The first rule whose expression is found in `name` gives the axes of the trailing dimensions;
    an axis that does not divide its dimension is left out. Without a rule, the largest dimension
    that the "fsdp" axis divides is split over it, if the array is large.
    """
    for expression, axes in rules:
        if re.search(expression, name) and len(axes) <= len(shape):
            entries = (None,) * (len(shape) - len(axes)) + tuple(axes)
            return P(
                *(
                    entry if _divides(mesh, entry, size) else None
                    for entry, size in zip(entries, shape, strict=True)
                )
            )
    if math.prod(shape) >= FSDP_MINIMUM_SIZE and mesh.shape["fsdp"] > 1:
        for dimension in sorted(range(len(shape)), key=lambda d: -shape[d]):
            if _divides(mesh, "fsdp", shape[dimension]):
                return P(*("fsdp" if d == dimension else None for d in range(len(shape))))
    return P()


def state_shardings(shapes: Tree, rules: PartitionRules, mesh: Mesh) -> Tree:
    """A sharding for every array of a train state.

    Optimizer states and averages hold copies of the parameters under paths that end in the
    parameter's own, so one rule shards all of them alike. Where an optimizer keeps something of
    another shape for a parameter, such as means over its rows, the parameter's rule says nothing
    about it, and only the FSDP fallback applies.

    Args:
        shapes: the state, or its shapes from `jax.eval_shape`.
        rules: the task's partition rules.
        mesh: the mesh.
    """
    parameters = {
        tuple(path_name(path).split("/")[1:]): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path_name(path).startswith("params/")
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        shape = _parameter_shape(tuple(name.split("/")), parameters)
        own_rules = rules if shape in (None, leaf.shape) else ()
        return NamedSharding(mesh, partition_spec(name, leaf.shape, own_rules, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def _parameter_shape(
    path: tuple[str, ...], parameters: Mapping[tuple[str, ...], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The shape of the parameter whose path within its network ends `path`, if there is one."""
    network = path[1:2]
    for start in range(2, len(path)):
        shape = parameters.get((*network, *path[start:]))
        if shape is not None:
            return shape
    return None


def batch_sharding(
    mesh: Mesh, shape: tuple[int, ...] = (), sequence_dimension: int | None = 1
) -> NamedSharding:
    """The sharding of an array of a batch.

    Examples are split over the data and fsdp axes, and one more dimension (time, or the height of
    an image) over the sequence axis where that divides it.

    Args:
        mesh: the mesh.
        shape: the array's.
        sequence_dimension: which dimension that is; None for none. See `sequence_dimension_of`.
    """
    dimension = sequence_dimension
    if mesh.shape["sequence"] == 1 or dimension is None or dimension >= len(shape):
        return NamedSharding(mesh, P(BATCH_AXES))
    if not _divides(mesh, "sequence", shape[dimension]):
        return NamedSharding(mesh, P(BATCH_AXES))
    return NamedSharding(mesh, P(BATCH_AXES, *(None,) * (dimension - 1), "sequence"))


def sequence_dimension_of(dimensions: Mapping[str, int] | None, name: str) -> int | None:
    """The dimension of a batch's array to split by `Task.sequence_dimensions`, or None."""
    return 1 if dimensions is None else dimensions.get(name)


def split_like_batch(array: Array) -> Array:
    """Inside a jitted step: split an array that the step made itself as a batch is split.

    Without it every device would make, and go on with, all examples. Where there is no mesh, or it
    does not divide the leading axis, the array stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _divides(mesh, BATCH_AXES, len(array)):
        return array
    return jax.lax.with_sharding_constraint(array, P(BATCH_AXES))


def unsharded_share(shapes: Tree, shardings: Tree) -> float:
    """The share of a tree's bytes that every device holds whole, between 0 and 1."""
    whole = total = 0
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        whole += size if sharding.is_fully_replicated else 0
    return whole / max(total, 1)


def repeats_work(shardings: Tree, mesh: Mesh | AbstractMesh) -> bool:
    """Whether devices along the tensor axis do the same work: no array is split over it."""
    if mesh.shape["tensor"] == 1:
        return False
    return not any(
        "tensor" in jax.tree.leaves(tuple(one.spec)) for one in jax.tree.leaves(shardings)
    )
