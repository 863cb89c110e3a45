"""Convolutions against float64 sums, with gradients of first and second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import convolution
from genjax.nn.convolution import Conv, ConvTranspose, conv2d, conv_transpose2d

pytestmark = pytest.mark.fast


def reference(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height = (x.shape[1] - size) // stride + 1
    width = (x.shape[2] - size) // stride + 1
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bijc,ijcf->bf", window, kernel)
    return out


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


SIZES = [(3, 1, 1), (3, 2, 1), (4, 2, 1), (1, 1, 0), (5, 2, 2), (4, 1, 0), (1, 2, 0)]


@pytest.mark.parametrize("size,stride,padding", SIZES)
def test_values_and_the_three_linear_maps(size, stride, padding):
    x, kernel = arrays((2, 8, 7, 3), (size, size, 3, 4))
    theirs = reference(x, kernel, stride, padding)
    with jax.enable_x64(True):

        def run(x, kernel):
            return conv2d(x, kernel, stride=stride, padding=padding)

        ours, pullback = jax.vjp(run, jnp.asarray(x), jnp.asarray(kernel))
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()
        (cotangent,) = arrays(theirs.shape, seed=1)
        back_x, back_kernel = pullback(jnp.asarray(cotangent))
        # <A x, y> = <x, A' y>, which with the values above determines the transposes.
        np.testing.assert_allclose(np.vdot(back_x, x), np.vdot(theirs, cotangent), rtol=1e-12)
        np.testing.assert_allclose(
            np.vdot(back_kernel, kernel), np.vdot(theirs, cotangent), rtol=1e-12
        )
        (other_x, other_kernel) = arrays(x.shape, kernel.shape, seed=2)
        np.testing.assert_allclose(
            np.vdot(back_x, other_x),
            np.vdot(reference(other_x, kernel, stride, padding), cotangent),
            rtol=1e-11,
        )
        np.testing.assert_allclose(
            np.vdot(back_kernel, other_kernel),
            np.vdot(reference(x, other_kernel, stride, padding), cotangent),
            rtol=1e-11,
        )


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("wide", [1, 10**9], ids=["gathered", "whole"])
def test_second_derivatives_are_those_of_the_plain_convolution(wide, size, monkeypatch):
    monkeypatch.setattr(convolution, "_WIDE", wide)
    monkeypatch.setattr(convolution, "_WIDE_STRIDED", wide)
    x, kernel = arrays((2, 6, 7, 2), (size, size, 2, 3))
    with jax.enable_x64(True):

        def penalty(conv):
            def score(x, kernel):
                return jnp.sum(jnp.tanh(conv(x, kernel)) ** 2)

            def squared(x, kernel):
                return sum(jnp.sum(g**2) for g in jax.grad(score, argnums=(0, 1))(x, kernel))

            return jax.grad(squared, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(kernel))

        ours = penalty(lambda x, k: conv2d(x, k, stride=2, padding=1))
        theirs = penalty(lambda x, k: convolution._plain(x, k, 2, (1, 1)))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size,stride,padding", [(4, 2, 1), (3, 2, 0), (3, 1, 1), (4, 2, 0)])
def test_the_transpose_is_the_transpose(size, stride, padding):
    y, kernel = arrays((2, 5, 4, 3), (size, size, 2, 3))
    with jax.enable_x64(True):
        ours = conv_transpose2d(jnp.asarray(y), jnp.asarray(kernel), stride=stride, padding=padding)
        full = [stride * (n - 1) + size - 2 * padding for n in (5, 4)]
        assert ours.shape == (2, *full, 2)
        (x,) = arrays(ours.shape, seed=3)
        np.testing.assert_allclose(
            np.vdot(ours, x), np.vdot(reference(x, kernel, stride, padding), y), rtol=1e-12
        )


@pytest.mark.parametrize("size,stride,padding", [(3, 1, 1), (4, 2, 1), (5, 1, 2)])
def test_circular_borders_commute_with_shifts(size, stride, padding):
    x, kernel = arrays((1, 8, 8, 2), (size, size, 2, 3))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    down = {"stride": stride, "padding": padding, "padding_mode": "circular"}
    rolled = conv2d(jnp.roll(x, 2 * stride, 1), kernel, **down)
    np.testing.assert_allclose(rolled, jnp.roll(conv2d(x, kernel, **down), 2, 1), atol=1e-5)
    up = conv_transpose2d(x, kernel.swapaxes(2, 3), **down)
    assert up.shape == (1, 8 * stride, 8 * stride, 3)
    rolled = conv_transpose2d(jnp.roll(x, 3, 2), kernel.swapaxes(2, 3), **down)
    np.testing.assert_allclose(rolled, jnp.roll(up, 3 * stride, 2), atol=1e-5)


def test_circular_transpose_has_the_plain_one_inside():
    x, kernel = arrays((1, 8, 8, 2), (4, 4, 3, 2))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    plain = conv_transpose2d(x, kernel, padding=1)
    circular = conv_transpose2d(x, kernel, padding=1, padding_mode="circular")
    np.testing.assert_allclose(circular[:, 2:-2, 2:-2], plain[:, 2:-2, 2:-2], atol=1e-5)
    assert not np.allclose(circular[:, 0], plain[:, 0])


def test_modules_have_shapes_of_the_field():
    x = jnp.ones((1, 8, 8, 3))
    params = Conv(5, kernel_size=4, stride=2, padding=1).init(jax.random.key(0), x)["params"]
    assert params["kernel"].shape == (4, 4, 3, 5) and params["bias"].shape == (5,)
    up = ConvTranspose(6, use_bias=False)
    variables = up.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (4, 4, 6, 3)
    assert up.apply(variables, x).shape == (1, 16, 16, 6)
