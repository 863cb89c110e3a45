"""Normalisation over the last axis, with float32 statistics whatever the dtype of the input."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardize(
    inputs: Float[Array, "*B D"], epsilon: float, center: bool
) -> Float[Array, "*B D"]:
    """Divide by the root mean square over the last axis, after taking out the mean if `center`."""
    return _standardize_forward(inputs, epsilon, center)[0]


def _standardize_forward(
    inputs: Array, epsilon: float, center: bool
) -> tuple[Array, tuple[Array, Array]]:
    if center:
        inputs = inputs - inputs.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(inputs).mean(-1, keepdims=True) + epsilon)
    outputs = inputs * inverse
    return outputs, (outputs, inverse)


def _standardize_backward(
    epsilon: float, center: bool, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array]:
    outputs, inverse = residuals
    gradient = cotangent - outputs * (cotangent * outputs).mean(-1, keepdims=True)
    if center:
        gradient -= cotangent.mean(-1, keepdims=True)
    return (gradient * inverse,)


_standardize.defvjp(_standardize_forward, _standardize_backward)


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
        outputs = jnp.multiply(_standardize(inputs.astype(jnp.float32), self.epsilon, True), scale)
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
        outputs = jnp.multiply(_standardize(inputs.astype(jnp.float32), self.epsilon, False), scale)
        return outputs.astype(self.dtype or inputs.dtype)
