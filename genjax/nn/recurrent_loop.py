"""What the recurrent layers share: products, slabs of a sequence, and the loop backward in time."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

Time = Int[Array, ""] | int
Slabs = tuple[Array, ...]


def state_dtype_of(compute_dtype: DTypeLike) -> jnp.dtype:
    """The type of states, gates and accumulators: float32, or float64 for float64 inputs."""
    return jnp.promote_types(compute_dtype, jnp.float32)


def matmul(
    a: Float[Array, "_ _"],
    b: Float[Array, "_ _"],
    dtype: DTypeLike,
    contract: tuple[int, int] = (1, 0),
) -> Float[Array, "_ _"]:
    """Product over axis `contract[0]` of `a` and `contract[1]` of `b`, with inputs in `dtype`."""
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        preferred_element_type=state_dtype_of(dtype),
    )


def rows(x: Float[Array, "T B D"]) -> Float[Array, "N D"]:
    """All steps of all sequences under one another, N = T B."""
    return x.reshape(-1, x.shape[-1])


def at(sequence: Float[Array, "T ..."], t: Time) -> Float[Array, "..."]:
    """The slab at time `t`."""
    return lax.dynamic_index_in_dim(sequence, t, axis=0, keepdims=False)


def put(
    sequence: Float[Array, "T ..."], slab: Float[Array, "..."], t: Time
) -> Float[Array, "T ..."]:
    """The sequence with the slab at time `t` replaced."""
    return lax.dynamic_update_index_in_dim(sequence, slab, t, axis=0)


def keep_mask(reset: Bool[Array, "T B"] | None, dtype: DTypeLike) -> Float[Array, "T B 1"] | None:
    """1 where the state goes on and 0 where it starts anew; None where it always goes on."""
    return None if reset is None else (~reset).astype(dtype)[..., None]


def masked(
    state: Float[Array, "B H"], keep: Float[Array, "T B 1"] | None, t: Time
) -> Float[Array, "B H"]:
    """The state that step `t` sees."""
    return state if keep is None else state * at(keep, t)


def states_before(
    initial: Float[Array, "B H"],
    states: Float[Array, "T B H"],
    keep: Float[Array, "T B 1"] | None,
) -> Float[Array, "T B H"]:
    """The state that every step sees."""
    before = jnp.concatenate([initial[None], states[:-1]])
    return before if keep is None else before * keep


def reverse_loop(
    step: Callable[[Time, Slabs, Any], tuple[Slabs, Any]],
    buffers: tuple[Float[Array, "T ..."], ...],
    carry: Any,
) -> tuple[tuple[Float[Array, "T ..."], ...], Any]:
    """Runs `step` from the last time to the first, replacing slab t of every buffer.

    The slabs of the next step are read after this step's write and travel in the loop's state:
    reading a buffer and writing it in no fixed order would make XLA copy it whole at every step.

    Args:
        step: from the time, the slabs of that time and the carry to new slabs and a new carry.
        buffers: sequences to replace; all of the same length.
        carry: what flows from step to step.

    Returns:
        The replaced buffers and the last carry.
    """
    length = len(buffers[0])

    def body(index: Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
        buffers, slabs, carry = state
        t = length - 1 - index
        slabs, carry = step(t, slabs, carry)
        buffers = tuple(put(b, s, t) for b, s in zip(buffers, slabs, strict=True))
        return buffers, tuple(at(b, jnp.maximum(t - 1, 0)) for b in buffers), carry

    first = tuple(b[-1] for b in buffers)
    buffers, _, carry = lax.fori_loop(0, length, body, (buffers, first, carry))
    return buffers, carry
