"""Recurrent layers over several devices: each its sequences and, of these, its units of the state.

Left to the compiler, the loop over time would exchange activations that are split one way in one
step and another way in the next, and parts of kernels, at every turn. By hand, kernels are brought
together once before the loop and their gradients added up once after it. Along the batch nothing
is sent within the loop.

Along the mesh's tensor axis a device computes all gates of some units. A step's product needs the
whole hidden state, so every step gathers it; backward in time every step adds up the state's
gradient. Kernels are split by units: what a step reads from memory, which bounds it, shrinks with
the number of devices.

Letters: T time, B batch, D input features, H hidden size, G gates, U units of a device, at most H.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from genjax.nn.split_by_hand import own_features, splits_batch
from genjax.parallel.mesh import BATCH_AXES, TENSOR_AXIS

Arrays = tuple[Array, ...]

Layer = Callable[[Array | None, Array, Arrays, Arrays], Arrays]
"""From reset, inputs, states and weights to the hidden states of all steps and the last states."""


def each_device_its_sequences(
    layer: Layer,
    reset: Bool[Array, "T B"] | None,
    x: Float[Array, "T B D"],
    states: Arrays,
    weights: Arrays,
    *,
    by_units: bool = True,
) -> Arrays:
    """`layer(reset, x, states, weights)`, each device with its part.

    Args:
        layer: the layer; the first of its states is the hidden one, of all units.
        reset: where sequences start anew.
        x: inputs.
        states: before the first step, [B, H].
        weights: kernels and biases, whose last axes count units, gate after gate.
        by_units: whether the layer can compute some of its units.
    """
    if not splits_batch(x.shape[1]):
        return layer(reset, x, states, weights)
    hidden_size = states[0].shape[-1]
    ways = jax.sharding.get_abstract_mesh().shape[TENSOR_AXIS]
    by_units = by_units and ways > 1 and hidden_size % ways == 0
    units = TENSOR_AXIS if by_units else None

    def gates_apart(weight: Array) -> Array:
        """Gates apart, so that a device gets the same units of each."""
        weight = weight.reshape(*weight.shape[:-1], -1, hidden_size)
        if by_units and weight.ndim == 3 and len(weight) % ways == 0:
            # By way of rows, from where one exchange leads to units: else it would be gathered.
            weight = lax.with_sharding_constraint(weight, P(TENSOR_AXIS))
        return weight

    def run(reset: Array | None, x: Array, states: Arrays, gates: Arrays) -> Arrays:
        own = hidden_size // (ways if by_units else 1)
        gates = tuple(own_features(weight, own) for weight in gates)
        return layer(reset, x, states, tuple(w.reshape(*w.shape[:-2], -1) for w in gates))

    gates = tuple(gates_apart(weight) for weight in weights)
    # Biases are whole on every device, and so are their gradients.
    weight_specs = tuple(P(None, None, units) if w.ndim == 3 else P() for w in gates)
    sequences = P(None, BATCH_AXES)
    state_specs = (P(BATCH_AXES), *(P(BATCH_AXES, units) for _ in states[1:]))
    return jax.shard_map(
        run,
        in_specs=(None if reset is None else sequences, sequences, state_specs, weight_specs),
        out_specs=(sequences, *state_specs),
        # What leaves a device the same as its neighbours' comes back, in a derivative, divided
        # among them; what entered the same is added up. The layers' derivatives count on it.
        check_vma=False,
    )(reset, x, states, gates)


def own_units_of_sum(parts: Float[Array, "*B H"], units: int) -> Float[Array, "*B U"]:
    """Of arrays that are to be added up over devices, this device's units of the sum."""
    if parts.shape[-1] == units:
        return parts
    return lax.psum_scatter(parts, TENSOR_AXIS, scatter_dimension=parts.ndim - 1, tiled=True)


def among_all_units(own: Float[Array, "*B U"], hidden_size: int) -> Float[Array, "*B H"]:
    """This device's units in their place among all, with zeros for those of the others."""
    if own.shape[-1] == hidden_size:
        return own
    start = lax.axis_index(TENSOR_AXIS) * own.shape[-1]
    zeros = jnp.zeros((*own.shape[:-1], hidden_size), own.dtype)
    return lax.dynamic_update_slice_in_dim(zeros, own, start, own.ndim - 1)
