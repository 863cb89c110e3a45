"""Colour transforms against the paper's 4 x 4 matrices in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.ada_colour import Colour, apply_colour, colour_matrix, draw_colour

pytestmark = pytest.mark.fast

NEUTRAL = (0.0, 1.0, 0.0, 0.0, 1.0)


def rotate3d(axis, angle):
    """The matrix exponential of the cross product with the axis, by its series."""
    x, y, z = axis[:3]
    generator = angle * np.array([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]])
    term, total = np.eye(4), np.eye(4)
    for power in range(1, 60):
        term = term @ generator / power
        total = total + term
    return total


def paper_matrix(brightness, contrast, luma_flip, hue, saturation):
    matrix = np.eye(4)
    matrix[:3, 3] = brightness
    matrix = np.diag([contrast, contrast, contrast, 1]) @ matrix
    v = np.array([[1, 1, 1, 0]]) / 3**0.5
    matrix = (np.eye(4) - 2 * v.T @ v * luma_flip) @ matrix
    matrix = rotate3d(v[0], hue) @ matrix
    along = v.T @ v
    keep_last = np.diag([0, 0, 0, 1])
    return (along + (np.eye(4) - along - keep_last) * saturation + keep_last) @ matrix


def parameters(count, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=count),
        2 ** rng.normal(size=count),
        (np.arange(count) % 2).astype(float),
        rng.uniform(-np.pi, np.pi, count),
        2 ** rng.normal(size=count),
    )


def test_matrices_equal_the_papers_product():
    values = parameters(12)
    with jax.enable_x64(True):
        actual = np.asarray(jax.jit(colour_matrix)(Colour(*map(jnp.asarray, values))))
    for number in range(12):
        expected = paper_matrix(*(v[number] for v in values))
        np.testing.assert_allclose(actual[number], expected[:3], atol=1e-13)
        np.testing.assert_array_equal(expected[3], [0, 0, 0, 1])


@pytest.mark.parametrize("channels", [3, 4])
def test_images_are_multiplied_pixel_by_pixel(channels):
    values = parameters(5, seed=1)
    images = np.random.default_rng(2).uniform(-1, 1, (5, 3, 4, channels))
    with jax.enable_x64(True):
        actual = jax.jit(apply_colour)(jnp.asarray(images), Colour(*map(jnp.asarray, values)))
    ones = np.ones((3, 4, 1))
    for number in range(5):
        matrix = paper_matrix(*(v[number] for v in values))
        extended = np.concatenate([images[number][..., :3], ones], axis=-1)
        expected = np.einsum("ij,hwj->hwi", matrix, extended)[..., :3]
        np.testing.assert_allclose(actual[number][..., :3], expected, atol=1e-13)
        np.testing.assert_array_equal(actual[number][..., 3:], images[number][..., 3:])


def test_known_colours():
    red, white, black = [1.0, -1, -1], [1.0, 1, 1], [-1.0, -1, -1]
    images = jnp.asarray([[[red, white, black]]] * 4)
    rows = [
        (0.0, 1.0, 0.0, 2 * np.pi / 3, 1.0),  # a third of a turn: red becomes green
        (0.0, 1.0, 1.0, 0.0, 1.0),  # the luma flip swaps black and white
        (0.0, 1.0, 0.0, 0.0, 0.0),  # no saturation: grey
        (0.5, 2.0, 0.0, 0.0, 1.0),
    ]
    actual = jax.jit(apply_colour)(images, Colour(*map(jnp.asarray, np.float32(rows).T)))[:, 0]
    np.testing.assert_allclose(actual[0], [[-1, 1, -1], white, black], atol=1e-6)
    np.testing.assert_allclose(actual[1], [[5 / 3, -1 / 3, -1 / 3], black, white], atol=1e-6)
    np.testing.assert_allclose(actual[2], [[-1 / 3] * 3, white, black], atol=1e-6)
    np.testing.assert_allclose(actual[3], [[3, -1, -1], [3, 3, 3], [-1, -1, -1]], atol=1e-6)


def test_one_channel_takes_brightness_and_contrast_alone():
    images = np.random.default_rng(3).uniform(-1, 1, (6, 4, 5, 1)).astype(np.float32)
    values = parameters(6)
    actual = jax.jit(apply_colour)(jnp.asarray(images), Colour(*map(jnp.float32, values)))
    brightness, contrast = (v[:, None, None, None] for v in values[:2])
    np.testing.assert_allclose(actual, contrast * (images + brightness), rtol=1e-5, atol=1e-6)


def test_two_channels_are_refused():
    with pytest.raises(UserError, match="2 channels"):
        apply_colour(jnp.zeros((1, 2, 2, 2)), Colour(*(jnp.asarray([v]) for v in NEUTRAL)))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_draws_have_the_papers_distribution(probability):
    count = 20_000
    run = jax.jit(draw_colour, static_argnums=1)
    drawn = [np.asarray(v) for v in run(jax.random.key(0), count, probability)]
    shares = [np.mean(value != neutral) for value, neutral in zip(drawn, NEUTRAL, strict=True)]
    expected = np.full(5, probability) * [1, 1, 0.5, 1, 1]
    np.testing.assert_allclose(shares, expected, atol=0.015)
    if probability == 1.0:
        brightness, contrast, _, hue, saturation = drawn
        assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.03
        for value, deviation in (
            (brightness, 0.2),
            (np.log2(contrast), 0.5),
            (hue, np.pi / 3**0.5),
            (np.log2(saturation), 1.0),
        ):
            assert abs(value.mean()) < 4 * deviation / count**0.5
            assert abs(value.std() / deviation - 1) < 0.02
        assert np.abs(hue).max() <= np.pi
