"""Normalisation over the last axis, with float32 statistics whatever the dtype of the input."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation, `(x - mean) / sqrt(variance + epsilon) * scale + bias`.

    Paper: Ba, Kiros and Hinton 2016, "Layer normalization".

    Attributes:
        use_bias: whether to learn a bias beside the scale.
        epsilon: added to the variance.
        dtype: dtype of the result; None keeps the input's. Parameters are float32.
    """

    use_bias: bool = True
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis of `inputs`, [..., D] to [..., D]."""
        features = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        centered = inputs.astype(jnp.float32)
        centered = centered - centered.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        outputs = centered * lax.rsqrt(variance + self.epsilon) * scale
        if self.use_bias:
            outputs += self.param("bias", nn.initializers.zeros, (features,))
        return outputs.astype(self.dtype or inputs.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, `x / sqrt(mean(x**2) + epsilon) * scale`.

    Paper: Zhang and Sennrich 2019, "Root mean square layer normalization".

    Attributes:
        epsilon: added to the mean square.
        dtype: dtype of the result; None keeps the input's. Parameters are float32.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis of `inputs`, [..., D] to [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],))
        values = inputs.astype(jnp.float32)
        mean_square = jnp.square(values).mean(-1, keepdims=True)
        outputs = values * lax.rsqrt(mean_square + self.epsilon) * scale
        return outputs.astype(self.dtype or inputs.dtype)
