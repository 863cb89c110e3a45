"""How arrays shard over the mesh: regular expressions on paths, then a generic FSDP fallback."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from genjax.parallel.mesh import BATCH_AXES, ways_across_slices
from genjax.task import PartitionRules, TrainState, Tree

FSDP_MINIMUM_SIZE = 2**14
"""Arrays with fewer elements stay whole: splitting them costs more than it saves."""

STACK = re.compile(r"(^|/)layers/")
"""Paths of arrays whose first dimension counts scanned layers."""

UNSHARDED_TOLERANCE = 0.02
"""A larger share of the parameters' bytes that FSDP leaves whole is told."""


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as "params/language_model/embedding"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _divides(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None, size: int) -> bool:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return size % math.prod(mesh.shape[name] for name in names) == 0


def _rule_for(
    name: str, shape: tuple[int, ...], rules: PartitionRules
) -> tuple[str | tuple[str, ...] | None, ...] | None:
    """The axes that the first rule for an array gives its trailing dimensions."""
    for expression, axes in rules:
        if re.search(expression, name) and len(axes) <= len(shape):
            return axes
    return None


def partition_spec(
    name: str, shape: tuple[int, ...], rules: PartitionRules, mesh: Mesh | AbstractMesh
) -> P:
    """The partition of one array.

    The first rule whose expression is found in `name` gives the axes of the trailing dimensions;
    an axis that does not divide its dimension is left out. Without a rule, a large array is split
    over the "fsdp" axis: the larger of its last two dimensions that the axis divides. Those before
    are taps of a convolution or the layers of a stack, which a step reads one after another.
    """
    axes = _rule_for(name, shape, rules)
    if axes is not None:
        entries = (None,) * (len(shape) - len(axes)) + tuple(axes)
        return P(
            *(
                entry if _divides(mesh, entry, size) else None
                for entry, size in zip(entries, shape, strict=True)
            )
        )
    if math.prod(shape) >= FSDP_MINIMUM_SIZE and mesh.shape["fsdp"] > 1:
        # Of a stack of layers even the first of two dimensions, as of means over rows, is no
        # feature.
        first = max(len(shape) - 2, 1 if STACK.search(name) else 0)
        for dimension in sorted(range(first, len(shape)), key=lambda d: -shape[d]):
            if _divides(mesh, "fsdp", shape[dimension]):
                return P(*("fsdp" if d == dimension else None for d in range(len(shape))))
    return P()


def state_shardings(shapes: Tree, rules: PartitionRules, mesh: Mesh | AbstractMesh) -> Tree:
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
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...] = (), sequence_dimension: int | None = 1
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


def repeats_work(shardings: Tree, mesh: Mesh | AbstractMesh, axis: str = "tensor") -> bool:
    """Whether devices along an axis do the same work: no array is split over it.

    Args:
        shardings: of the train state, for the tensor axis; of a batch, for the sequence axis.
        mesh: the mesh.
        axis: which.
    """
    if mesh.shape[axis] == 1:
        return False
    return not any(axis in jax.tree.leaves(tuple(one.spec)) for one in jax.tree.leaves(shardings))


def layout_remarks(
    shapes: TrainState,
    shardings: TrainState,
    batch: Tree,
    rules: PartitionRules,
    mesh: Mesh | AbstractMesh,
) -> list[str]:
    """What a user should know of a layout: a sentence for whatever costs more than it need.

    Args:
        shapes: of the train state.
        shardings: of the same.
        batch: shardings of those arrays of a batch that the sequence axis may split.
        rules: the task's partition rules.
        mesh: the mesh.
    """
    found: list[str] = []
    whole = unsharded_share(shapes.params, shardings.params)
    if mesh.shape["fsdp"] > 1 and whole > UNSHARDED_TOLERANCE:
        found.append(
            f"{100 * whole:.1f}% of the parameters' bytes are whole on every device in spite of "
            f"mesh.fsdp = {mesh.shape['fsdp']}: they are small, or it divides no dimension of "
            "theirs; a smaller mesh.fsdp beside mesh.data may divide more"
        )
    tensor = f"mesh.tensor = {mesh.shape['tensor']}"
    if repeats_work(shardings, mesh):
        found.append(
            f"{tensor} splits nothing of this model, so devices repeat each other's work; give "
            "them to mesh.data or mesh.fsdp"
        )
    elif whole_along := _left_whole(shapes.params, shardings.params, rules, "tensor"):
        name, shape = max(whole_along.items(), key=lambda item: math.prod(item[1]))
        more = f" and {len(whole_along) - 1} more" if len(whole_along) > 1 else ""
        found.append(
            f"{tensor} does not divide {name} {list(shape)}{more}, so devices repeat each other's "
            "work there; a size that is a multiple of it is faster"
        )
    # What makes its examples on the devices has no such array, and is not judged.
    if batch and repeats_work(batch, mesh, "sequence"):
        found.append(
            f"mesh.sequence = {mesh.shape['sequence']} does not divide the examples, neither time "
            "nor height, so devices repeat each other's work; give them to mesh.data or mesh.fsdp"
        )
    across = ways_across_slices(mesh)
    for axis in ("tensor", "sequence"):
        if axis in across:
            found.append(
                f"mesh.{axis} goes over {across[axis]} slices or machines, and every layer waits "
                f"for the network between them; set mesh.data to a multiple of {across[axis]}"
            )
    return found


def _left_whole(
    params: Tree, shardings: Tree, rules: PartitionRules, axis: str
) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of large parameters that a rule splits over an axis that does not divide."""
    found: dict[str, tuple[int, ...]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = path_name(path)
        axes = _rule_for(f"params/{name}", leaf.shape, rules)
        if axes is None or axis not in jax.tree.leaves(axes) or leaf.size < FSDP_MINIMUM_SIZE:
            continue
        if axis not in jax.tree.leaves(tuple(sharding.spec)):
            found[name] = leaf.shape
    return found
