"""Resampling against float64 sums from its definition, on both of its forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import resample
from genjax.nn.resample import downsample2d, filter2d, normalized, upfirdn2d, upsample2d

pytestmark = pytest.mark.fast

CASES = [
    (up, down, padding, taps)
    for up, down in [(1, 1), (2, 1), (1, 2), (3, 2), (4, 1)]
    for padding in [(2, 1, 1, 3), (-1, 2, 3, -2), (-2, -1, -1, -3)]
    for taps in [(1.0, 3.0, 3.0, 1.0), (0.2, -0.5, 1.1)]
]


def reference(images, taps, up, down, padding, gain=1.0):
    """The definition in float64: zeros, pads or crops, flipped outer product, thinning."""
    batch, height, width, channels = images.shape
    wide = np.zeros((batch, height * up, width * up, channels))
    wide[:, ::up, ::up] = images
    top, bottom, left, right = padding
    wide = np.pad(
        wide, ((0, 0), *((max(a, 0), max(b, 0)) for a, b in (padding[:2], padding[2:])), (0, 0))
    )
    wide = wide[:, max(-top, 0) : wide.shape[1] - max(-bottom, 0)]
    wide = wide[:, :, max(-left, 0) : wide.shape[2] - max(-right, 0)]
    size = len(taps)
    kernel = gain * np.outer(taps, taps)[::-1, ::-1]
    out = np.zeros((batch, wide.shape[1] - size + 1, wide.shape[2] - size + 1, channels))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = wide[:, i : i + size, j : j + size]
            out[:, i, j] = np.einsum("bijc,ij->bc", window, kernel)
    return out[:, ::down, ::down]


def images(height=11, width=9, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, width, 3))


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("up,down,padding,taps", CASES)
def test_both_forms_follow_the_definition_in_float64(up, down, padding, taps):
    x = images()
    theirs = reference(x, taps, up, down, padding)
    with jax.enable_x64(True):
        settings = {"taps": np.asarray(taps), "up": up, "down": down, "padding": padding}
        for form in (resample._by_phase, resample._depthwise):
            ours = form(jnp.asarray(x), **settings)
            assert ours.shape == theirs.shape
            assert relative(ours, theirs) <= 1e-12


def test_float32_and_gain():
    x = images()
    ours = upfirdn2d(jnp.asarray(x, jnp.float32), (1, 3, 3, 1), up=2, padding=(2, 1, 2, 1), gain=4)
    assert ours.dtype == jnp.float32
    assert relative(ours, reference(x, (1, 3, 3, 1), 2, 1, (2, 1, 2, 1), 4.0)) <= 1e-5


def test_a_flat_image_stays_flat_inside():
    flat = jnp.ones((1, 8, 8, 1))
    taps = normalized((1, 3, 3, 1))
    for form in (upsample2d, downsample2d, filter2d):
        inside = form(flat, taps)[:, 2:-2, 2:-2]
        np.testing.assert_allclose(inside, 1.0, atol=1e-6)
        np.testing.assert_allclose(form(flat, taps, padding_mode="circular"), 1.0, atol=1e-6)


@pytest.mark.parametrize("form,step", [(upsample2d, 2), (downsample2d, 0.5), (filter2d, 1)])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1)])
def test_circular_resampling_of_a_shifted_image_is_shifted(form, step, taps):
    x = jnp.asarray(images(8, 8), jnp.float32)
    taps = normalized(taps)
    ours = form(jnp.roll(x, (2, 4), (1, 2)), taps, padding_mode="circular")
    there = form(x, taps, padding_mode="circular")
    shift = (int(2 * step), int(4 * step))
    np.testing.assert_allclose(ours, jnp.roll(there, shift, (1, 2)), atol=1e-6)


def test_the_forms_have_equal_gradients():
    x = jnp.asarray(images(), jnp.float32)
    settings = {
        "taps": np.asarray(normalized((1, 3, 3, 1))),
        "up": 2,
        "down": 1,
        "padding": (2, 1, 2, 1),
    }

    def total(form, x):
        return jnp.sum(jnp.sin(form(x, **settings)))

    both = [
        jax.grad(functools.partial(total, form))(x)
        for form in (resample._by_phase, resample._depthwise)
    ]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_a_negative_gain_is_refused():
    with pytest.raises(ValueError, match="gain"):
        upfirdn2d(jnp.ones((1, 4, 4, 1)), (1, 1), gain=-1.0)
