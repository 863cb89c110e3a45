"""Convolutional recurrent layers: ConvLSTM, ConvGRU and PredRNN's spatiotemporal LSTM.

A step of each is a pure function with one fused convolution for its gates; `conv_lstm` and
`conv_gru` run a layer over a whole sequence that is known beforehand, with the convolution of all
its inputs taken at once, outside the loop. The Linen modules hold the parameters.

Letters: B batch, T time, H height, W width, C input channels, F features, G features of all gates,
CF = C + F, K kernel size. Sequences are time-major [T, B, H, W, C]: a step then reads and writes
one contiguous slab. Convolutions take their inputs in `dtype`; gates and cell states are float32
(float64 for float64 inputs).

Where kernels are split over devices by hand (`genjax.nn.split_by_hand`), a device's kernel is that
of some features, all gates of them; its cell state has these alone, its hidden state has all.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.loop_convolution import loop_conv2d
from genjax.nn.recurrent_loop import state_dtype_of
from genjax.nn.split_by_hand import all_features, own_features

State = tuple[Float[Array, "B H W F"], Float[Array, "B H W O"]]
"""Hidden and cell state: O is F, or a device's own part of it where they share the features."""

kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Uniform in +- sqrt(3 / fan_in)."""


def convolve(
    images: Float[Array, "B H W C"], kernel: Float[Array, "K K C F"], dtype: DTypeLike
) -> Float[Array, "B H W F"]:
    """A convolution with inputs in `dtype` and its result in the type of states."""
    result = loop_conv2d(images.astype(dtype), kernel.astype(dtype))
    return result.astype(state_dtype_of(dtype))


# ---- ConvLSTM --------------------------------------------------------------------------------


@jax.custom_vjp
def lstm_gates(gates: Float[Array, "B H W G"], cell: Float[Array, "B H W F"]) -> State:
    """The states after a step, from pre-activations in the order i, f, g, o.

    Its own derivative keeps the activated gates and the two cell states, half of what JAX's would.
    """
    return _lstm_forward(gates, cell)[0]


def _lstm_forward(gates: Array, cell: Array) -> tuple[State, tuple[Array, Array, Array]]:
    # One tanh for all: sigmoid(z) = tanh(z / 2) / 2 + 1/2.
    is_sigmoid = np.repeat([True, True, False, True], cell.shape[-1])
    scale = np.where(is_sigmoid, 0.5, 1.0).astype(gates.dtype)
    activated = jnp.tanh(gates * scale) * scale + (1.0 - scale)
    i, f, g, o = jnp.split(activated, 4, axis=-1)
    new = f * cell + i * g
    return (o * jnp.tanh(new), new), (activated, cell, new)


def _lstm_backward(saved: tuple[Array, Array, Array], cotangents: State) -> tuple[Array, Array]:
    activated, cell, new = saved
    d_hidden, d_new = cotangents
    i, f, g, o = jnp.split(activated, 4, axis=-1)
    squashed = jnp.tanh(new)
    d_new = d_new + d_hidden * o * (1.0 - squashed * squashed)
    d_gates = [
        d_new * g * i * (1.0 - i),
        d_new * cell * f * (1.0 - f),
        d_new * i * (1.0 - g * g),
        d_hidden * squashed * o * (1.0 - o),
    ]
    return jnp.concatenate(d_gates, -1), d_new * f


lstm_gates.defvjp(_lstm_forward, _lstm_backward)


def _with_forget_bias(
    bias: Float[Array, " G"] | float, forget_bias: float, features: int
) -> Float[Array, " G"] | float:
    """The bias of all gates, with what is added to the forget gate."""
    if not forget_bias:
        return bias
    return bias + jnp.repeat(jnp.array([0.0, forget_bias, 0.0, 0.0]), features)


def conv_lstm_step(
    kernel: Float[Array, "K K CF G"],
    bias: Float[Array, " G"] | float,
    state: State,
    x: Float[Array, "B H W C"],
    *,
    forget_bias: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> State:
    """One step of a ConvLSTM without peepholes (Shi et al. 2015).

    Args:
        kernel: of inputs and hidden state, in this order along its third axis; gates i, f, g, o.
        bias: of the gates, or 0.
        state: hidden and cell state before.
        x: the input.
        forget_bias: added to the forget gate.
        dtype: of the convolution's inputs.
    """
    both = jnp.concatenate([x.astype(dtype), state[0].astype(dtype)], -1)
    bias = _with_forget_bias(bias, forget_bias, state[1].shape[-1])
    hidden, cell = lstm_gates(convolve(both, kernel, dtype) + bias, state[1])
    return all_features(hidden, state[0].shape[-1]), cell


def conv_lstm(
    kernel: Float[Array, "K K CF G"],
    bias: Float[Array, " G"] | float,
    state: State,
    xs: Float[Array, "T B H W C"],
    *,
    forget_bias: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> tuple[State, Float[Array, "T B H W F"]]:
    """A ConvLSTM over a sequence; the arguments are those of `conv_lstm_step`.

    Args:
        kernel: see there.
        bias: see there.
        state: before the first step.
        xs: the inputs.
        forget_bias: see there.
        dtype: see there.
        remat: forget the gates of each step, and compute them again in the backward pass.

    Returns:
        The state after the last step, and the hidden states of all.
    """
    channels = xs.shape[-1]
    bias = _with_forget_bias(bias, forget_bias, state[1].shape[-1])
    projected = convolve_sequence(xs, kernel[:, :, :channels], dtype) + bias
    recurrent = kernel[:, :, channels:]

    def step(state: State, gates: Array) -> tuple[State, Array]:
        hidden, cell = lstm_gates(gates + convolve(state[0], recurrent, dtype), state[1])
        hidden = all_features(hidden, state[0].shape[-1])
        return (hidden, cell), hidden

    return lax.scan(_forgetting(step, remat), state, projected)


class ConvLSTMCell(nn.Module):
    """One step of a ConvLSTM with its parameters; see `conv_lstm_step`.

    Attributes:
        features: F, channels of the states.
        kernel_size: K, odd.
        use_bias: whether gates have a bias.
        forget_bias: added to the forget gate.
        dtype: of the convolution's inputs. Parameters are float32.
    """

    features: int
    kernel_size: int = 5
    use_bias: bool = False
    forget_bias: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, state: State, x: Float[Array, "B H W C"]) -> State:
        """The states after a step."""
        kernel, bias = _parameters(self, x.shape[-1] + self.features, 4)
        return conv_lstm_step(
            kernel, bias, state, x, forget_bias=self.forget_bias, dtype=self.dtype
        )


class ConvLSTM(nn.Module):
    """A ConvLSTM over a sequence with its parameters, the same as the cell's; see `conv_lstm`.

    Attributes:
        features: F, channels of the states.
        kernel_size: K, odd.
        use_bias: whether gates have a bias.
        forget_bias: added to the forget gate.
        dtype: of the convolutions' inputs. Parameters are float32.
        remat: compute gates again in the backward pass instead of keeping them.
    """

    features: int
    kernel_size: int = 5
    use_bias: bool = False
    forget_bias: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, xs: Float[Array, "T B H W C"], state: State | None = None
    ) -> tuple[State, Float[Array, "T B H W F"]]:
        """The last state, and the hidden states of all steps; zeros before the first by default."""
        kernel, bias = _parameters(self, xs.shape[-1] + self.features, 4)
        zeros = zero_state(xs[0], self.features, self.dtype)
        return conv_lstm(
            kernel,
            bias,
            (zeros, zeros) if state is None else state,
            xs,
            forget_bias=self.forget_bias,
            dtype=self.dtype,
            remat=self.remat,
        )


# ---- ConvGRU ---------------------------------------------------------------------------------


def conv_gru(
    kernel: Float[Array, "K K CF G"],
    bias: Float[Array, " G"] | float,
    hidden: Float[Array, "B H W F"],
    xs: Float[Array, "T B H W C"],
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> tuple[Float[Array, "B H W F"], Float[Array, "T B H W F"]]:
    """A convolutional gated recurrent unit over a sequence (Ballas et al. 2016).

    h = (1 - z) h + z tanh(W x + U (r h)) with the update gate z and the reset gate r.

    Args:
        kernel: of inputs and hidden state, in this order along its third axis; update gate, reset
            gate, candidate.
        bias: of the three, or 0.
        hidden: the state before the first step.
        xs: the inputs.
        dtype: of the convolutions' inputs.
        remat: forget the gates of each step, and compute them again in the backward pass.

    Returns:
        The state after the last step, and those of all steps.
    """
    channels, features = xs.shape[-1], hidden.shape[-1]
    projected = convolve_sequence(xs, kernel[:, :, :channels], dtype) + bias
    gate_kernel = kernel[:, :, channels:, : 2 * features]
    candidate_kernel = kernel[:, :, channels:, 2 * features :]

    def step(hidden: Array, projected: Array) -> tuple[Array, Array]:
        gates, candidate = jnp.split(projected, [2 * features], axis=-1)
        gates = jax.nn.sigmoid(gates + convolve(hidden, gate_kernel, dtype))
        update, reset = jnp.split(gates, 2, axis=-1)
        candidate = jnp.tanh(candidate + convolve(reset * hidden, candidate_kernel, dtype))
        hidden = hidden + update * (candidate - hidden)
        return hidden, hidden

    return lax.scan(_forgetting(step, remat), hidden, projected)


class ConvGRUCell(nn.Module):
    """One step of a convolutional GRU with its parameters; see `conv_gru`.

    Attributes:
        features: F, channels of the state.
        kernel_size: K, odd.
        use_bias: whether gates and candidate have a bias.
        dtype: of the convolutions' inputs. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B H W F"], x: Float[Array, "B H W C"]
    ) -> Float[Array, "B H W F"]:
        """The state after a step."""
        kernel, bias = _parameters(self, x.shape[-1] + self.features, 3)
        return conv_gru(kernel, bias, hidden, x[None], dtype=self.dtype)[0]


class ConvGRU(nn.Module):
    """A convolutional GRU over a sequence with its parameters; see `conv_gru`.

    Attributes:
        features: F, channels of the state.
        kernel_size: K, odd.
        use_bias: whether gates and candidate have a bias.
        dtype: of the convolutions' inputs. Parameters are float32.
        remat: compute gates again in the backward pass instead of keeping them.
    """

    features: int
    kernel_size: int = 3
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, xs: Float[Array, "T B H W C"], hidden: Float[Array, "B H W F"] | None = None
    ) -> tuple[Float[Array, "B H W F"], Float[Array, "T B H W F"]]:
        """The last state, and those of all steps; zeros before the first by default."""
        kernel, bias = _parameters(self, xs.shape[-1] + self.features, 3)
        if hidden is None:
            hidden = zero_state(xs[0], self.features, self.dtype)
        return conv_gru(kernel, bias, hidden, xs, dtype=self.dtype, remat=self.remat)


# ---- PredRNN's spatiotemporal LSTM -----------------------------------------------------------


def spatiotemporal_lstm_step(
    kernels: dict[str, Array],
    state: State,
    memory: Float[Array, "B H W F"],
    x: Float[Array, "B H W C"],
    *,
    forget_bias: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[State, Float[Array, "B H W F"]]:
    """One step of a spatiotemporal LSTM (Wang et al. 2017, "PredRNN").

    Beside its own cell state, a layer reads and writes a memory that goes through all layers of a
    time step, and from the last layer to the first one of the next step.

    Args:
        kernels: "temporal" [K, K, C + F, 4F] of input and hidden state (gates i, f, g and o's
            part), "spatial" [K, K, C + F, 3F] of input and memory (i', f', g'), "output"
            [K, K, 2F, F] and "merge" [1, 1, 2F, F] of new cell state and new memory.
        state: hidden and cell state before.
        memory: as the layer before left it.
        x: the input.
        forget_bias: added to both forget gates.
        dtype: of the convolutions' inputs.

    Returns:
        The states and the memory after the step.
    """
    x, hidden, cell = x.astype(dtype), *state
    gates = convolve(jnp.concatenate([x, hidden.astype(dtype)], -1), kernels["temporal"], dtype)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    gates = convolve(jnp.concatenate([x, memory.astype(dtype)], -1), kernels["spatial"], dtype)
    spatial_i, spatial_f, spatial_g = jnp.split(gates, 3, axis=-1)
    sigmoid = jax.nn.sigmoid
    cell = sigmoid(f + forget_bias) * cell + sigmoid(i) * jnp.tanh(g)
    features, own = hidden.shape[-1], own_features(memory, cell.shape[-1])
    memory = sigmoid(spatial_f + forget_bias) * own + sigmoid(spatial_i) * jnp.tanh(spatial_g)
    memory = all_features(memory, features)
    both = jnp.concatenate([all_features(cell, features), memory], -1)
    o = sigmoid(o + convolve(both, kernels["output"], dtype))
    hidden = o * jnp.tanh(convolve(both, kernels["merge"], dtype))
    return (all_features(hidden, features), cell), memory


def spatiotemporal_lstm_kernels(
    module: nn.Module, channels: int, features: int, kernel_size: int, prefix: str = ""
) -> dict[str, Array]:
    """The kernels of a layer as parameters PREFIX + NAME + "_kernel" of a compact module."""
    size = kernel_size
    shapes = {
        "temporal": (size, size, channels + features, 4 * features),
        "spatial": (size, size, channels + features, 3 * features),
        "output": (size, size, 2 * features, features),
        "merge": (1, 1, 2 * features, features),
    }
    return {
        name: module.param(f"{prefix}{name}_kernel", kernel_init, shape)
        for name, shape in shapes.items()
    }


class SpatioTemporalLSTMCell(nn.Module):
    """One step of PredRNN's layer with its parameters; see `spatiotemporal_lstm_step`.

    Attributes:
        features: F, channels of states and memory.
        kernel_size: K, odd.
        forget_bias: added to both forget gates.
        dtype: of the convolutions' inputs. Parameters are float32.
    """

    features: int
    kernel_size: int = 5
    forget_bias: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, state: State, memory: Float[Array, "B H W F"], x: Float[Array, "B H W C"]
    ) -> tuple[State, Float[Array, "B H W F"]]:
        """The states and the memory after a step."""
        kernels = spatiotemporal_lstm_kernels(self, x.shape[-1], self.features, self.kernel_size)
        return spatiotemporal_lstm_step(
            kernels, state, memory, x, forget_bias=self.forget_bias, dtype=self.dtype
        )


# ---- shared ----------------------------------------------------------------------------------


def zero_state(
    x: Float[Array, "B H W C"], features: int, dtype: DTypeLike
) -> Float[Array, "B H W F"]:
    """A state of zeros for inputs like `x`."""
    return jnp.zeros((*x.shape[:-1], features), state_dtype_of(dtype))


def convolve_sequence(
    xs: Float[Array, "T B H W C"], kernel: Float[Array, "K K C F"], dtype: DTypeLike
) -> Float[Array, "T B H W F"]:
    """The convolution of all slabs of a sequence at once; see `convolve`."""
    # The batch comes first in what is merged, so that a device keeps the sequences that it has.
    merged = jnp.swapaxes(xs, 0, 1).reshape(-1, *xs.shape[2:])
    result = convolve(merged, kernel, dtype)
    return jnp.swapaxes(result.reshape(xs.shape[1], -1, *result.shape[1:]), 0, 1)


def gates_apart(kernel: Float[Array, "K K CF G"], gates: int) -> Float[Array, "K K CF _ F"]:
    """A kernel of all gates with one axis for the gates and one for the features.

    Split along the last one, each part is the kernel of some features.
    """
    return kernel.reshape(*kernel.shape[:-1], gates, -1)


def gates_joined(kernel: Float[Array, "K K CF _ F"]) -> Float[Array, "K K CF G"]:
    """What undoes `gates_apart`."""
    return kernel.reshape(*kernel.shape[:-2], -1)


def _forgetting(step: Any, remat: bool) -> Any:
    # Inside a scan nothing could merge the two computations of a step.
    return jax.checkpoint(step, prevent_cse=False) if remat else step


def _parameters(module: Any, channels: int, gates: int) -> tuple[Array, Array | float]:
    """The kernel of all gates, and their bias or 0."""
    size, width = module.kernel_size, gates * module.features
    kernel = module.param("kernel", kernel_init, (size, size, channels, width))
    if not module.use_bias:
        return kernel, 0.0
    return kernel, module.param("bias", nn.initializers.zeros, (width,))
