"""The LSTM layer through cuDNN: float32, GPUs only, one layer a call.

Calling layer by layer leaves dropout to the model, where it can be seeded and locked over time.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import rnn as cudnn_rnn
from jaxtyping import Array, Float


def pack_cudnn_weights(
    input_kernel: Float[Array, "D G"],
    recurrent_kernel: Float[Array, "H G"],
    bias: Float[Array, " G"],
) -> Float[Array, " N"]:
    """Flattens one LSTM layer as cuDNN wants it: G = 4H, N = 4H (D + H + 2).

    The order is W_ih ``[4H, D]``, W_hh ``[4H, H]``, b_ih, b_hh, each with gates i, f, g, o.
    cuDNN adds two biases: ours goes into b_ih, and b_hh is zero.
    """
    return jnp.concatenate(
        [input_kernel.T.ravel(), recurrent_kernel.T.ravel(), bias, jnp.zeros_like(bias)]
    )


def lstm_cudnn(
    x: Float[Array, "T B D"],
    h0: Float[Array, "B H"],
    c0: Float[Array, "B H"],
    input_kernel: Float[Array, "D G"],
    recurrent_kernel: Float[Array, "H G"],
    bias: Float[Array, " G"],
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"], Float[Array, "B H"]]:
    """One LSTM layer in float32 on a GPU; returns all hidden states, the last one, and c."""
    length, batch_size, input_size = x.shape
    outputs: Any = cudnn_rnn.lstm(
        x.swapaxes(0, 1),
        h0[None],
        c0[None],
        pack_cudnn_weights(input_kernel, recurrent_kernel, bias),
        jnp.full((batch_size,), length, jnp.int32),
        input_size,
        h0.shape[-1],
        1,  # layers
        0.0,  # dropout between layers
        False,  # bidirectional
    )
    ys, h, c = outputs
    return ys.swapaxes(0, 1), h[0], c[0]
