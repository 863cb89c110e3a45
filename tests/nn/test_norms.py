import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.norms import LayerNorm, RMSNorm


def reference(inputs, scale, bias, epsilon, center):
    if center:
        inputs = inputs - inputs.mean(-1, keepdims=True)
    return inputs / np.sqrt((inputs**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def problem(center, use_bias):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 5, 12)) * 2 + 1
    scale = rng.normal(size=12)
    bias = rng.normal(size=12) if use_bias else np.zeros(12)
    params = {"scale": jnp.asarray(scale, jnp.float32)}
    if use_bias:
        params["bias"] = jnp.asarray(bias, jnp.float32)
    norm = LayerNorm(use_bias, epsilon=1e-3) if center else RMSNorm(epsilon=1e-3)
    return norm, params, inputs, scale, bias


@pytest.mark.parametrize(("center", "use_bias"), [(True, True), (True, False), (False, False)])
def test_matches_float64(center, use_bias):
    norm, params, inputs, scale, bias = problem(center, use_bias)
    outputs = norm.apply({"params": params}, jnp.asarray(inputs, jnp.float32))
    np.testing.assert_allclose(
        outputs, reference(inputs, scale, bias, 1e-3, center), rtol=1e-5, atol=1e-5
    )
    shapes = jax.eval_shape(lambda: norm.init(jax.random.key(0), jnp.zeros((2, 12))))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(("center", "use_bias"), [(True, True), (True, False), (False, False)])
def test_gradients_match_finite_differences(center, use_bias):
    norm, params, inputs, scale, bias = problem(center, use_bias)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=inputs.shape)

    def total(params, inputs):
        return (norm.apply({"params": params}, inputs) * weights.astype(np.float32)).sum()

    gradients, inputs_gradient = jax.grad(total, argnums=(0, 1))(
        params, jnp.asarray(inputs, jnp.float32)
    )

    def slope(name, direction, step=1e-5):
        values = {"inputs": inputs, "scale": scale, "bias": bias}
        both = []
        for sign in (1, -1):
            moved = values | {name: values[name] + sign * step * direction}
            both.append((reference(**moved, epsilon=1e-3, center=center) * weights).sum())
        return (both[0] - both[1]) / (2 * step)

    for name, gradient in {**gradients, "inputs": inputs_gradient}.items():
        direction = rng.normal(size=gradient.shape)
        np.testing.assert_allclose(
            (np.asarray(gradient, np.float64) * direction).sum(), slope(name, direction), rtol=1e-4
        )


def test_statistics_are_float32_for_half_precision():
    # A mean of 256 with a spread below bfloat16's resolution there: in bfloat16 all would be equal.
    inputs = (256 + jnp.arange(8) * 2).astype(jnp.bfloat16)[None]
    outputs, _ = LayerNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), inputs)
    assert outputs.dtype == jnp.bfloat16
    expected = reference(256 + np.arange(8.0) * 2, 1.0, 0.0, 1e-5, True)[None]
    np.testing.assert_allclose(np.asarray(outputs, np.float64), expected, atol=1e-2)
