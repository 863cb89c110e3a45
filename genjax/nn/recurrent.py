"""Recurrent layers over whole sequences: LSTM, GRU and Elman network as pure functions.

Shapes: T time, B batch, D input features, H hidden size. Sequences are time-major ``[T, B, D]``:
a step then reads and writes one contiguous slab. A cell is the layer at T = 1.

What makes them fast, forward and backward:

* the input projection of all steps is one matmul before the loop, and a step holds one fused
  matmul for all gates;
* the activated gates overwrite the projected inputs, and in the backward pass the gradients of
  the pre-activations overwrite the gates, so that a layer touches little memory;
* the backward loop computes only the gradients of the pre-activations. Gradients of the kernels,
  the bias and the inputs follow as single matmuls over all T * B rows. Differentiating the loop
  itself would add an ``[H, 4H]`` array into memory at every step instead.

Matmuls take their inputs in `compute_dtype` and accumulate in float32 (float64 for float64
inputs); states, gates and everything returned stay in that wider type.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from genjax.errors import UserError
from genjax.nn.recurrent_cudnn import lstm_cudnn
from genjax.nn.recurrent_loop import (
    Slabs,
    Time,
    at,
    keep_mask,
    masked,
    matmul,
    put,
    reverse_loop,
    rows,
    state_dtype_of,
    states_before,
)
from genjax.nn.recurrent_split import (
    among_all_units,
    each_device_its_sequences,
    own_units_of_sum,
)
from genjax.nn.split_by_hand import all_features, own_features
from genjax.nn.target import target_platform

Implementation = Literal["scan", "cudnn"]


def _as_primals(gradients: tuple[Array, ...], primals: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(g.astype(p.dtype) for g, p in zip(gradients, primals, strict=True))


# ---- LSTM ------------------------------------------------------------------------------------


def _lstm_affine(hidden_size: int, dtype: DTypeLike) -> tuple[Array, Array]:
    """Scale and offset that make one tanh the activation of all four gates i, f, g, o.

    sigmoid(z) = tanh(z / 2) / 2 + 1/2 for i, f and o; tanh itself for g.
    """
    is_sigmoid = jnp.repeat(jnp.array([True, True, False, True]), hidden_size)
    return (
        jnp.where(is_sigmoid, 0.5, 1.0).astype(dtype),
        jnp.where(is_sigmoid, 0.5, 0.0).astype(dtype),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm_scan(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Array, ...]:
    return _lstm_forward(dtype, reset, *arguments)[0]


def _lstm_forward(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Any, Any]:
    x, h0, c0, input_kernel, recurrent_kernel, bias = arguments
    (length, batch_size, _), hidden_size, units = x.shape, h0.shape[-1], c0.shape[-1]
    state_dtype = state_dtype_of(dtype)
    keep = keep_mask(reset, state_dtype)
    scale, offset = _lstm_affine(units, state_dtype)
    kernel = recurrent_kernel.astype(dtype)
    projected = matmul(rows(x), input_kernel, dtype).reshape(length, batch_size, -1)

    def step(t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        gates, ys, cs, h, c = state
        h, c = masked(h, keep, t), masked(c, keep, t)
        z = at(gates, t) + matmul(h, kernel, dtype) + bias
        activated = jnp.tanh(z * scale) * scale + offset
        i, f, g, o = jnp.split(activated, 4, axis=-1)
        c = f * c + i * g
        h = all_features(o * jnp.tanh(c), hidden_size)
        return put(gates, activated, t), put(ys, h, t), put(cs, c, t + 1), h, c

    ys = lax.empty((length, batch_size, hidden_size), state_dtype)
    cs = put(lax.empty((length + 1, batch_size, units), state_dtype), c0, 0)
    gates, ys, cs, h, c = lax.fori_loop(0, length, step, (projected, ys, cs, h0, c0))
    return (ys, h, c), (reset, arguments, gates, ys, cs)


def _lstm_backward(dtype: DTypeLike, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    reset, primals, gates, ys, cs = residuals
    x, h0, _, input_kernel, recurrent_kernel, _ = primals
    dys, dh, dc = cotangents
    keep = keep_mask(reset, ys.dtype)
    transposed = recurrent_kernel.T.astype(dtype)

    def step(t: Time, slabs: Slabs, carry: Any) -> tuple[Slabs, Any]:
        i, f, g, o = jnp.split(slabs[0], 4, axis=-1)
        dh, dc = carry
        dh = own_units_of_sum(dh + at(dys, t), dc.shape[-1])
        squashed = jnp.tanh(at(cs, t + 1))
        dc = dc + dh * o * (1 - squashed * squashed)
        dz = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * masked(at(cs, t), keep, t) * f * (1 - f),
                dc * i * (1 - g * g),
                dh * squashed * o * (1 - o),
            ],
            axis=-1,
        )
        return (dz,), (masked(matmul(dz, transposed, dtype), keep, t), masked(dc * f, keep, t))

    (dz,), (dh0, dc0) = reverse_loop(step, (gates,), (dh, dc))
    dz = rows(dz)
    gradients = (
        matmul(dz, input_kernel, dtype, (1, 1)).reshape(x.shape),
        dh0,
        dc0,
        matmul(rows(x), dz, dtype, (0, 0)),
        matmul(rows(states_before(h0, ys, keep)), dz, dtype, (0, 0)),
        dz.sum(axis=0),
    )
    return None, *_as_primals(gradients, primals)


_lstm_scan.defvjp(_lstm_forward, _lstm_backward)


def lstm(
    x: Float[Array, "T B D"],
    h0: Float[Array, "B H"],
    c0: Float[Array, "B H"],
    input_kernel: Float[Array, "D 4*H"],
    recurrent_kernel: Float[Array, "H 4*H"],
    bias: Float[Array, " 4*H"],
    *,
    reset: Bool[Array, "T B"] | None = None,
    compute_dtype: DTypeLike | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"], Float[Array, "B H"]]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

    i, f, o = sigmoid(.) and g = tanh(.) of x W + h R + b, in the order i, f, g, o along the last
    axis (that of PyTorch, Keras and cuDNN); then c' = f c + i g and h' = o tanh(c').

    Args:
        x: inputs of every step.
        h0: hidden state before the first step.
        c0: cell state before the first step.
        input_kernel: W.
        recurrent_kernel: R.
        bias: b; cuDNN's and PyTorch's two biases added.
        reset: True where a sequence starts anew: that step sees zeros for h and c.
        compute_dtype: type of the matmuls' inputs; by default that of `x`.
        implementation: "scan" runs anywhere; "cudnn" needs a GPU, float32 and no `reset`; None
            takes cuDNN where it can run.

    Returns:
        The hidden states of every step, the last hidden state, the last cell state.

    Raises:
        UserError: "cudnn" was asked for where it cannot run.
    """
    dtype = jnp.dtype(x.dtype if compute_dtype is None else compute_dtype)
    obstacle = None
    if target_platform() != "gpu":
        obstacle = "it needs a GPU"
    elif dtype != jnp.float32:
        obstacle = f"it computes in float32, not {dtype.name}"
    elif reset is not None:
        obstacle = "it cannot reset the state within a sequence"
    if implementation == "cudnn" and obstacle is not None:
        raise UserError(f'implementation "cudnn" cannot run here: {obstacle}; use "scan"')
    by_cudnn = implementation != "scan" and obstacle is None

    def layer(reset: Array | None, x: Array, states: Slabs, weights: Slabs) -> Any:
        if by_cudnn:
            return lstm_cudnn(*(a.astype(dtype) for a in (x, *states, *weights)))
        states = tuple(s.astype(state_dtype_of(dtype)) for s in states)
        return _lstm_scan(dtype, reset, x, *states, *weights)

    weights = (input_kernel, recurrent_kernel, bias)
    outputs: Any = each_device_its_sequences(
        layer, reset, x, (h0, c0), weights, by_units=not by_cudnn
    )
    return outputs


# ---- GRU -------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gru_scan(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Array, ...]:
    return _gru_forward(dtype, reset, *arguments)[0]


def _gru_forward(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Any, Any]:
    x, h0, input_kernel, recurrent_kernel, bias, recurrent_bias = arguments
    (length, batch_size, _), hidden_size, units = x.shape, h0.shape[-1], len(recurrent_bias)
    state_dtype = state_dtype_of(dtype)
    keep = keep_mask(reset, state_dtype)
    kernel = recurrent_kernel.astype(dtype)
    gates_kernel, candidate_kernel = jnp.split(input_kernel, [2 * units], axis=1)
    gates_bias, candidate_bias = jnp.split(bias, [2 * units])

    def step(t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        gates, candidates, recalls, ys, h = state
        h = masked(h, keep, t)
        recurrent = matmul(h, kernel, dtype)
        z = at(gates, t) + recurrent[:, : 2 * units] + gates_bias
        gate = 0.5 * jnp.tanh(0.5 * z) + 0.5
        r, u = jnp.split(gate, 2, axis=-1)
        recall = recurrent[:, 2 * units :] + recurrent_bias
        candidate = jnp.tanh(at(candidates, t) + candidate_bias + r * recall)
        h = all_features(candidate + u * (own_features(h, units) - candidate), hidden_size)
        return (
            put(gates, gate, t),
            put(candidates, candidate, t),
            put(recalls, recall, t),
            put(ys, h, t),
            h,
        )

    shape = (length, batch_size)
    buffers = (
        matmul(rows(x), gates_kernel, dtype).reshape(*shape, -1),
        matmul(rows(x), candidate_kernel, dtype).reshape(*shape, -1),
        lax.empty((*shape, units), state_dtype),
        lax.empty((*shape, hidden_size), state_dtype),
    )
    gates, candidates, recalls, ys, h = lax.fori_loop(0, length, step, (*buffers, h0))
    return (ys, h), (reset, arguments, gates, candidates, recalls, ys)


def _gru_backward(dtype: DTypeLike, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    reset, primals, gates, candidates, recalls, ys = residuals
    x, h0, input_kernel, recurrent_kernel, _, recurrent_bias = primals
    dys, dh = cotangents
    hidden_size, units = h0.shape[-1], len(recurrent_bias)
    keep = keep_mask(reset, ys.dtype)
    transposed = recurrent_kernel.T.astype(dtype)
    before = states_before(h0, ys, keep)

    def step(t: Time, slabs: Slabs, dh: Any) -> tuple[Slabs, Any]:
        gate, candidate, recall = slabs
        r, u = jnp.split(gate, 2, axis=-1)
        dh = own_units_of_sum(dh + at(dys, t), units)
        dn = dh * (1 - u) * (1 - candidate * candidate)
        du = dh * (own_features(at(before, t), units) - candidate) * u * (1 - u)
        d_gate = jnp.concatenate([dn * recall * r * (1 - r), du], axis=-1)
        d_recall = dn * r
        d_recurrent = jnp.concatenate([d_gate, d_recall], axis=-1)
        dh = among_all_units(dh * u, hidden_size) + matmul(d_recurrent, transposed, dtype)
        return (d_gate, dn, d_recall), masked(dh, keep, t)

    slabs, dh0 = reverse_loop(step, (gates, candidates, recalls), dh)
    d_gates, d_candidates, d_recalls = (rows(s) for s in slabs)
    gates_kernel, candidate_kernel = jnp.split(input_kernel, [2 * units], axis=1)
    dx = matmul(d_gates, gates_kernel, dtype, (1, 1))
    dx = dx + matmul(d_candidates, candidate_kernel, dtype, (1, 1))
    inputs, states = rows(x), rows(before)

    def kernel_gradient(inputs: Array, d_candidates: Array) -> Array:
        parts = [matmul(inputs, d, dtype, (0, 0)) for d in (d_gates, d_candidates)]
        return jnp.concatenate(parts, axis=1)

    gradients = (
        dx.reshape(x.shape),
        dh0,
        kernel_gradient(inputs, d_candidates),
        kernel_gradient(states, d_recalls),
        jnp.concatenate([d_gates.sum(axis=0), d_candidates.sum(axis=0)]),
        d_recalls.sum(axis=0),
    )
    return None, *_as_primals(gradients, primals)


_gru_scan.defvjp(_gru_forward, _gru_backward)


def gru(
    x: Float[Array, "T B D"],
    h0: Float[Array, "B H"],
    input_kernel: Float[Array, "D 3*H"],
    recurrent_kernel: Float[Array, "H 3*H"],
    bias: Float[Array, " 3*H"],
    recurrent_bias: Float[Array, " H"],
    *,
    reset: Bool[Array, "T B"] | None = None,
    compute_dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"]]:
    """Gated recurrent unit (Cho et al. 2014) as cuDNN and PyTorch compute it.

    r, z = sigmoid(x W + h R + b); n = tanh(x W_n + b_n + r (h R_n + recurrent_bias));
    h' = (1 - z) n + z h. The order along the last axis is r, z, n.

    Args:
        x: inputs of every step.
        h0: hidden state before the first step.
        input_kernel: W.
        recurrent_kernel: R.
        bias: b; for r and z PyTorch's two biases added, for n the input's bias.
        recurrent_bias: the bias of n that the reset gate r multiplies.
        reset: True where a sequence starts anew: that step sees zeros for h.
        compute_dtype: type of the matmuls' inputs; by default that of `x`.

    Returns:
        The hidden states of every step, and the last one.
    """
    dtype = jnp.dtype(x.dtype if compute_dtype is None else compute_dtype)
    weights = (input_kernel, recurrent_kernel, bias, recurrent_bias)

    def layer(reset: Array | None, x: Array, states: Slabs, weights: Slabs) -> Slabs:
        return _gru_scan(dtype, reset, x, *states, *weights)

    states = (h0.astype(state_dtype_of(dtype)),)
    outputs: Any = each_device_its_sequences(layer, reset, x, states, weights)
    return outputs


# ---- Elman -----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _elman_scan(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Array, ...]:
    return _elman_forward(dtype, reset, *arguments)[0]


def _elman_forward(dtype: DTypeLike, reset: Array | None, *arguments: Array) -> tuple[Any, Any]:
    x, h0, input_kernel, recurrent_kernel, bias = arguments
    keep = keep_mask(reset, state_dtype_of(dtype))
    kernel = recurrent_kernel.astype(dtype)
    projected = matmul(rows(x), input_kernel, dtype).reshape(*x.shape[:2], -1)

    def step(t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        ys, h = state
        own = jnp.tanh(at(ys, t) + matmul(masked(h, keep, t), kernel, dtype) + bias)
        return put(ys, own, t), all_features(own, h0.shape[-1])

    ys, h = lax.fori_loop(0, len(x), step, (projected, h0))
    ys = all_features(ys, h0.shape[-1])
    return (ys, h), (reset, arguments, ys)


def _elman_backward(dtype: DTypeLike, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    reset, primals, ys = residuals
    x, h0, input_kernel, recurrent_kernel, bias = primals
    dys, dh = cotangents
    keep = keep_mask(reset, ys.dtype)
    transposed = recurrent_kernel.T.astype(dtype)
    units = len(bias)
    own_ys = own_features(ys, units)

    def step(t: Time, slabs: Slabs, dh: Any) -> tuple[Slabs, Any]:
        dz = (own_units_of_sum(dh, units) + slabs[0]) * (1 - at(own_ys, t) ** 2)
        return (dz,), masked(matmul(dz, transposed, dtype), keep, t)

    (dz,), dh0 = reverse_loop(step, (own_units_of_sum(dys, units),), dh)
    dz = rows(dz)
    gradients = (
        matmul(dz, input_kernel, dtype, (1, 1)).reshape(x.shape),
        dh0,
        matmul(rows(x), dz, dtype, (0, 0)),
        matmul(rows(states_before(h0, ys, keep)), dz, dtype, (0, 0)),
        dz.sum(axis=0),
    )
    return None, *_as_primals(gradients, primals)


_elman_scan.defvjp(_elman_forward, _elman_backward)


def elman(
    x: Float[Array, "T B D"],
    h0: Float[Array, "B H"],
    input_kernel: Float[Array, "D H"],
    recurrent_kernel: Float[Array, "H H"],
    bias: Float[Array, " H"],
    *,
    reset: Bool[Array, "T B"] | None = None,
    compute_dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"]]:
    """Simple recurrent network (Elman 1990): h' = tanh(x W + h R + b).

    Args:
        x: inputs of every step.
        h0: hidden state before the first step.
        input_kernel: W.
        recurrent_kernel: R.
        bias: b.
        reset: True where a sequence starts anew: that step sees zeros for h.
        compute_dtype: type of the matmuls' inputs; by default that of `x`.

    Returns:
        The hidden states of every step, and the last one.
    """
    dtype = jnp.dtype(x.dtype if compute_dtype is None else compute_dtype)
    weights = (input_kernel, recurrent_kernel, bias)

    def layer(reset: Array | None, x: Array, states: Slabs, weights: Slabs) -> Slabs:
        return _elman_scan(dtype, reset, x, *states, *weights)

    states = (h0.astype(state_dtype_of(dtype)),)
    outputs: Any = each_device_its_sequences(layer, reset, x, states, weights)
    return outputs
