"""Sequences split over devices along time: whether they are, and moves between the devices.

Letters: B batch, T time, D features, P pieces of a device's time, S their length.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from genjax.nn.split_by_hand import splits_batch
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS

Tree = TypeVar("Tree")
State = TypeVar("State")
Block = TypeVar("Block")


def splits_time(length: int, *, pieces: int = 1) -> bool:
    """Inside a jitted function: whether a sequence is split over devices along time.

    Args:
        length: T; devices have equal parts or all of it.
        pieces: parts of equal length that each device's part must have.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return False
    ways = mesh.shape[SEQUENCE_AXIS]
    return ways > 1 and length % (pieces * ways) == 0


def split_time(states: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Inside a jitted function: features split over devices along time, and by example.

    They stay as they are where the mesh does not split time, or not into equal parts.
    """
    if not splits_time(states.shape[1]):
        return states
    batch = BATCH_AXES if splits_batch(len(states)) else None
    return lax.with_sharding_constraint(states, P(batch, SEQUENCE_AXIS))


# Where time is split by hand (`jax.shard_map`).


def num_parts() -> int:
    """Devices along time, each with its part of it."""
    return jax.sharding.get_abstract_mesh().shape[SEQUENCE_AXIS]


def pass_on(tree: Tree) -> Tree:
    """Everything one device further, so that at turn t a device has that of t devices before."""
    parts = num_parts()
    return _moved(tree, [(device, (device + 1) % parts) for device in range(parts)])


def around_the_ring(
    visit: Callable[[State, Any, Block], State], state: State, block: Block
) -> State:
    """`visit(state, turn, block)` once with the block of each device along time, its own first.

    Args:
        visit: gives the new state. At turn t, the number 0 and arrays after it, the block is that
            of t devices before, and of those at the end for the first devices.
        state: what each visit gets from the one before.
        block: a tree of arrays. The next block is on its way while one is being visited.
    """
    parts = num_parts()

    def body(carry: tuple[State, Block], turn: Array) -> tuple[tuple[State, Block], None]:
        state, block = carry
        coming = pass_on(block)
        return (visit(state, turn, block), coming), None

    coming = pass_on(block)
    state = visit(state, 0, block)
    # The last turn is outside of the loop, for nothing needs to be sent then.
    (state, block), _ = lax.scan(body, (state, coming), jnp.arange(1, parts - 1))
    return visit(state, jnp.int32(parts - 1), block)


def pieces_of_time(array: Array, causal: bool) -> Array:
    """From a device's part of time [B, T, ...] to its pieces [P, B, S, ...].

    Causally, device i of n has pieces 2 i and 2 i + 1 of time, and gets i and 2 n - 1 - i. Either
    move is a permutation of the devices, and each brings a device one piece: even devices an early
    one by the first move and a late one by the second, odd devices the other way round.
    """
    if not causal:
        return array[None]
    first, second = (
        _moved(part, moves)
        for part, moves in zip(jnp.split(array, 2, axis=1), _balancing(), strict=True)
    )
    return jnp.where(_is_even(), jnp.stack((first, second)), jnp.stack((second, first)))


def whole_time(pieces: Array, causal: bool) -> Array:
    """The inverse of `pieces_of_time`."""
    if not causal:
        return pieces[0]
    parts = jnp.where(_is_even(), pieces, pieces[::-1])
    back = [[(target, source) for source, target in moves] for moves in _balancing()]
    return jnp.concatenate([_moved(*each) for each in zip(parts, back, strict=True)], axis=1)


def _is_even() -> Array:
    return lax.axis_index(SEQUENCE_AXIS) % 2 == 0


def _balancing() -> list[list[tuple[int, int]]]:
    """From which device to which each first piece goes, and each second one."""
    parts = num_parts()
    return [
        [
            (device, min(2 * device + second, 2 * parts - 1 - 2 * device - second))
            for device in range(parts)
        ]
        for second in range(2)
    ]


def _moved(tree: Tree, moves: list[tuple[int, int]]) -> Tree:
    return jax.tree.map(lambda array: lax.ppermute(array, SEQUENCE_AXIS, moves), tree)
