import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from genjax.nn.spectral import SpectralConv, SpectralDense, SpectralNorm


def converge(module, variables, *arguments, calls=60):
    @jax.jit
    def call(variables):
        return module.apply(variables, *arguments, train=True, mutable=["statistics"])

    for _ in range(calls):
        outputs, changed = call(variables)
        variables = {**variables, **changed}
    return outputs, variables


@pytest.mark.parametrize("shape", [(7, 4), (3, 3, 2, 6)])
def test_the_norm_converges_to_the_largest_singular_value(shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    norm = SpectralNorm()
    with jax.enable_x64(True):
        variables = norm.init(jax.random.key(0), jnp.asarray(kernel), train=True)
        assert variables["statistics"]["left"].dtype == jnp.float32
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        outputs, _ = converge(norm, variables, jnp.asarray(kernel))
    largest = np.linalg.svd(kernel.reshape(-1, shape[-1]), compute_uv=False)[0]
    np.testing.assert_allclose(outputs, kernel / largest, rtol=1e-9)


def test_the_gradient_is_the_papers():
    # Equation 12: with W = sigma * normalised, (G - <G, normalised> u v^T) / sigma.
    rng = np.random.default_rng(1)
    kernel, cotangent = rng.normal(size=(2, 6, 4))
    norm = SpectralNorm()
    with jax.enable_x64(True):
        variables = norm.init(jax.random.key(0), jnp.asarray(kernel), train=True)
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        _, variables = converge(norm, variables, jnp.asarray(kernel))
        _, pullback = jax.vjp(lambda k: norm.apply(variables, k, train=True), jnp.asarray(kernel))
        (gradient,) = pullback(jnp.asarray(cotangent))
    left, sigma, right = np.linalg.svd(kernel)
    outer = np.outer(left[:, 0], right[0])
    expected = (cotangent - (cotangent * kernel).sum() / sigma[0] * outer) / sigma[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-8)


def test_vectors_move_only_in_training():
    kernel = jax.random.normal(jax.random.key(0), (5, 4))
    norm = SpectralNorm()
    variables = norm.init(jax.random.key(1), kernel, train=True)
    start = variables["statistics"]["left"]
    np.testing.assert_allclose(jnp.linalg.norm(start), 1, rtol=1e-6)
    trained, changed = norm.apply(variables, kernel, train=True, mutable=["statistics"])
    same, unchanged = norm.apply(variables, kernel, train=False, mutable=["statistics"])
    np.testing.assert_array_equal(trained, same)
    np.testing.assert_array_equal(norm.apply(variables, kernel, train=True), same)
    np.testing.assert_array_equal(unchanged["statistics"]["left"], start)
    assert jnp.abs(changed["statistics"]["left"] - start).max() > 1e-2


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_layers_use_the_normalized_kernel(padding_mode):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 5, 4, 3))
    with jax.enable_x64(True):
        for layer in (
            SpectralDense(6, dtype=jnp.float64),
            SpectralConv(6, padding_mode=padding_mode, dtype=jnp.float64),
        ):
            variables = layer.init(jax.random.key(0), jnp.asarray(images), train=True)
            variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), variables)
            outputs, variables = converge(layer, variables, jnp.asarray(images), calls=300)
            kernel, bias = (np.asarray(variables["params"][n]) for n in ("kernel", "bias"))
            kernel = kernel / np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
            if isinstance(layer, SpectralDense):
                expected = images @ kernel
            else:
                boundary = "wrap" if padding_mode == "circular" else "fill"
                expected = np.stack(
                    [
                        [
                            sum(
                                correlate2d(image[..., c], kernel[..., c, f], "same", boundary)
                                for c in range(3)
                            )
                            for f in range(6)
                        ]
                        for image in images
                    ]
                ).transpose(0, 2, 3, 1)
            np.testing.assert_allclose(outputs, expected + bias, rtol=1e-9, atol=1e-9)


def test_half_precision_keeps_parameters_and_vectors_in_float32():
    layer = SpectralConv(4, dtype=jnp.bfloat16)
    images = jnp.ones((1, 4, 4, 3))
    outputs, variables = layer.init_with_output(jax.random.key(0), images, train=True)
    assert outputs.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
