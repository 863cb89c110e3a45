import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.dense import Dense, matmul


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize(("features", "outputs"), [(4, 7), (7, 4)])
def test_product_and_gradients_match_float64(leading, features, outputs):
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(*leading, features)), rng.normal(size=(features, outputs))
    cotangent = rng.normal(size=(*leading, outputs))
    result, pullback = jax.vjp(matmul, *(jnp.asarray(x, jnp.float32) for x in (inputs, kernel)))
    inputs_gradient, kernel_gradient = pullback(jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(result, inputs @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inputs_gradient, cotangent @ kernel.T, rtol=1e-5, atol=1e-5)
    expected = inputs.reshape(-1, features).T @ cotangent.reshape(-1, outputs)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-5, atol=1e-5)


def test_layer_computes_in_its_dtype_and_keeps_float32_parameters():
    inputs = jnp.ones((3, 4))
    layer = Dense(5, dtype=jnp.bfloat16)
    outputs, variables = layer.init_with_output(jax.random.key(0), inputs)
    assert outputs.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    params = {"kernel": variables["params"]["kernel"], "bias": jnp.arange(5.0)}
    shifted = Dense(5).apply({"params": params}, inputs)
    np.testing.assert_allclose(shifted, inputs @ params["kernel"] + np.arange(5), rtol=1e-5)
    assert set(Dense(5, use_bias=False).init(jax.random.key(0), inputs)["params"]) == {"kernel"}
