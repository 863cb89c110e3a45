"""Dropout for recurrent networks: masks that stay the same over time, and dropped weights.

Shapes: T time, B batch, D features, V vocabulary. What is kept is divided by ``1 - rate``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout_mask(key: PRNGKeyArray, shape: tuple[int, ...], rate: float) -> Float[Array, "..."]:
    """Zeros with probability `rate`, and 1 / (1 - rate) elsewhere; `rate` is in [0, 1)."""
    return jax.random.bernoulli(key, 1 - rate, shape).astype(jnp.float32) / (1 - rate)


def locked_dropout(
    key: PRNGKeyArray, x: Float[Array, "T B D"], rate: float
) -> Float[Array, "T B D"]:
    """Drops the same features at every step of a sequence (Gal & Ghahramani 2016)."""
    mask = dropout_mask(key, (1, *x.shape[1:]), rate)
    return x * mask.astype(x.dtype)


def drop_connect(
    key: PRNGKeyArray, kernel: Float[Array, "D H"], rate: float
) -> Float[Array, "D H"]:
    """Drops single weights for a whole forward and backward pass (Wan et al. 2013).

    On the recurrent kernel it is the weight dropping of AWD-LSTM (Merity et al. 2018).
    """
    return kernel * dropout_mask(key, kernel.shape, rate).astype(kernel.dtype)


def word_mask(key: PRNGKeyArray, vocab_size: int, rate: float) -> Float[Array, " V"]:
    """What to multiply each word's embedding by, to drop words wherever they occur."""
    return dropout_mask(key, (vocab_size,), rate)
