"""Flips, quarter turns and whole-pixel moves against numpy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.ada_blit import Blit, apply_blit, draw_blit, random_blit

pytestmark = pytest.mark.fast


draw = jax.jit(draw_blit, static_argnums=1, static_argnames="square")


def images_of(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def reference(image, flip, turns, translation, mode):
    if flip:
        image = image[:, ::-1]
    image = np.rot90(image, int(turns))
    height, width = image.shape[:2]
    rows, columns = np.round(translation * np.float32([height, width])).astype(int)
    if mode == "wrap":
        return np.roll(image, (rows, columns), (0, 1))
    padded = np.pad(image, ((height - 1,) * 2, (width - 1,) * 2, (0, 0)), mode="reflect")
    top, left = height - 1 - rows, width - 1 - columns
    return padded[top : top + height, left : left + width]


@pytest.mark.parametrize("mode", ["reflect", "wrap"])
def test_every_flip_and_turn_equals_numpy_to_the_bit(mode):
    images = images_of(8, 16, 16, 3)
    flip, turns = np.float32([0, 0, 0, 0, 1, 1, 1, 1]), np.float32([0, 1, 2, 3] * 2)
    translation = np.random.default_rng(1).uniform(-0.125, 0.125, (8, 2)).astype(np.float32)
    translation[0] = (0.125, -0.125)
    actual = jax.jit(apply_blit, static_argnums=2)(
        jnp.asarray(images), Blit(*map(jnp.asarray, (flip, turns, translation))), mode
    )
    for number in range(8):
        expected = reference(images[number], flip[number], turns[number], translation[number], mode)
        np.testing.assert_array_equal(actual[number], expected)


@pytest.mark.parametrize("shape", [(3, 11, 1), (20, 9, 4), (1, 1, 3)])
def test_images_that_are_not_square_make_half_turns(shape):
    images = images_of(64, *shape)
    key = jax.random.key(4)
    blit = draw(key, 64, 1.0, square=shape[0] == shape[1])
    if shape[0] != shape[1]:
        assert set(np.asarray(blit.quarter_turns)) == {0.0, 2.0}
    actual = jax.jit(random_blit)(jnp.asarray(images), key, 1.0)
    for number in range(64):
        expected = reference(images[number], *(np.asarray(p)[number] for p in blit), "reflect")
        np.testing.assert_array_equal(actual[number], expected)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_draws_have_the_papers_distribution(probability):
    count = 20_000
    blit = draw(jax.random.key(0), count, probability)
    shares = np.bincount(np.asarray(blit.quarter_turns, int), minlength=4) / count
    expected = np.full(4, probability / 4) + np.float64([1 - probability, 0, 0, 0])
    np.testing.assert_allclose(shares, expected, atol=0.015)
    assert abs(np.mean(blit.flip) - probability / 2) < 0.015
    moved = np.asarray(blit.translation)[np.any(np.asarray(blit.translation) != 0, axis=1)]
    assert abs(len(moved) / count - probability) < 0.015
    if probability:
        assert 0.124 < moved.max() <= 0.125 and -0.125 <= moved.min() < -0.124
        np.testing.assert_allclose(moved.std(0), 0.25 / 12**0.5, rtol=0.03)
        flipped, turned = np.asarray(blit.flip) > 0, np.asarray(blit.quarter_turns) > 0
        together = np.mean(flipped & turned)
        assert abs(together - np.mean(flipped) * np.mean(turned)) < 0.015
