import math

import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.activations import gelu


def test_gelu_and_its_gradient_match_float64():
    inputs = np.linspace(-12, 12, 241)
    distribution = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in inputs])
    density = np.exp(-0.5 * inputs**2) / math.sqrt(2 * math.pi)
    outputs, pullback = jax.vjp(gelu, jnp.asarray(inputs, jnp.float32))
    np.testing.assert_allclose(outputs, inputs * distribution, rtol=1e-6, atol=1e-6)
    (gradient,) = pullback(jnp.ones(241))
    np.testing.assert_allclose(gradient, distribution + inputs * density, rtol=1e-6, atol=1e-6)
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
