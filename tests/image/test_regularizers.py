"""Penalties on gradients, where the gradient is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.regularizers import (
    between,
    logits_and_squared_gradient,
    one_centered_penalty,
    path_length_penalty,
    path_lengths,
    zero_centered_penalty,
)

pytestmark = pytest.mark.fast

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(5, 2, 3, 2)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(2, 3, 2)).astype(np.float32)


def linear(weights, images):
    return jnp.einsum("bhwc,hwc->b", images, weights), {"seen": jnp.sum(images)}


def quadratic(scale, images):
    return scale * jnp.sum(jnp.square(images), (1, 2, 3)), None


def test_r1_of_a_linear_discriminator():
    """Its gradient is its weights: the penalty is half their square, and moves them to zero."""

    def r1(weights):
        found = logits_and_squared_gradient(lambda x: linear(weights, x), jnp.asarray(IMAGES))
        return zero_centered_penalty(found[1]), found

    (value, found), gradient = jax.value_and_grad(r1, has_aux=True)(jnp.asarray(WEIGHTS))
    logits, squared, aux = found
    np.testing.assert_allclose(value, (WEIGHTS.astype(float) ** 2).sum() / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(logits, np.einsum("bhwc,hwc->b", IMAGES, WEIGHTS), rtol=1e-5)
    np.testing.assert_allclose(squared, np.full(5, (WEIGHTS**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(aux["seen"], IMAGES.sum(), rtol=1e-5)


def test_r1_of_a_quadratic_discriminator():
    """D = s |x|^2 has the gradient 2 s x: the penalty is 2 s^2 mean |x|^2."""

    def r1(scale):
        images = jnp.asarray(IMAGES)
        _, squared, _ = logits_and_squared_gradient(lambda x: quadratic(scale, x), images)
        return zero_centered_penalty(squared)

    value, gradient = jax.value_and_grad(r1)(jnp.float32(0.7))
    mean = (IMAGES.astype(float) ** 2).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(value, 2 * 0.7**2 * mean, rtol=1e-6)
    np.testing.assert_allclose(gradient, 4 * 0.7 * mean, rtol=1e-6)


def test_the_gradient_penalty_of_a_quadratic_discriminator():
    """(2 s |x| - 1)^2 in the mean, with the derivative 4 |x| (2 s |x| - 1)."""

    def penalty(scale):
        images = jnp.asarray(IMAGES)
        _, squared, _ = logits_and_squared_gradient(lambda x: quadratic(scale, x), images)
        return one_centered_penalty(squared)

    value, gradient = jax.value_and_grad(penalty)(jnp.float32(0.3))
    norm = np.sqrt((IMAGES.astype(float) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(value, ((0.6 * norm - 1) ** 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, (4 * norm * (0.6 * norm - 1)).mean(), rtol=1e-5)


def test_the_gradient_penalty_where_the_gradient_vanishes():
    def penalty(scale):
        images = jnp.zeros((4, 2, 2, 1))
        _, squared, _ = logits_and_squared_gradient(lambda x: quadratic(scale, x), images)
        return one_centered_penalty(squared)

    value, gradient = jax.value_and_grad(penalty)(jnp.float32(0.3))
    np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    assert np.isfinite(gradient)


def test_between_is_on_the_line_and_each_has_its_own_place():
    fake = RANDOM.normal(size=IMAGES.shape).astype(np.float32)
    points = between(jnp.asarray(IMAGES), jnp.asarray(fake), jax.random.key(0))
    shares = (np.asarray(points) - IMAGES) / (fake - IMAGES)
    np.testing.assert_allclose(shares, shares[:, :1, :1, :1] * np.ones_like(shares), atol=1e-3)
    shares = shares[:, 0, 0, 0]
    assert (shares > 0).all() and (shares < 1).all() and len(set(shares.round(3))) == 5


def test_path_lengths_of_a_linear_synthesis():
    """With J the map from one layer's style to the image, and n noise over sqrt(HW) numbers, the
    length is |J^T n| / sqrt(HW): its square is tr(J J^T) / HW in expectation, averaged over layers.
    """
    layers, size, height, width = 3, 4, 6, 5
    kernel = RANDOM.normal(size=(layers, size, height, width, 2)).astype(np.float32)
    styles = jnp.asarray(RANDOM.normal(size=(4000, layers, size)), jnp.float32)

    def synthesis(styles):
        return jnp.einsum("bld,ldhwc->bhwc", styles, kernel)

    lengths = path_lengths(synthesis, styles, jax.random.key(0))
    assert lengths.shape == (4000,)
    expected = (kernel.astype(float) ** 2).sum() / (layers * height * width)
    # The relative deviation of such a mean is about sqrt(2 / (12 * 4000)), 0.6%.
    np.testing.assert_allclose((np.asarray(lengths, float) ** 2).mean(), expected, rtol=0.03)


def test_path_lengths_exactly_for_known_noise():
    kernel = RANDOM.normal(size=(2, 3, 4, 2, 1)).astype(np.float32)
    styles = jnp.asarray(RANDOM.normal(size=(6, 2, 3)), jnp.float32)
    key = jax.random.key(3)

    def lengths(scale):
        def synthesis(styles):
            return jnp.einsum("bld,ldhwc->bhwc", styles, scale * kernel)

        return path_lengths(synthesis, styles, key)

    noise = np.asarray(jax.random.normal(key, (6, 4, 2, 1)), np.float64) / np.sqrt(8)
    gradient = np.einsum("bhwc,ldhwc->bld", noise, kernel.astype(np.float64))
    expected = np.sqrt((gradient**2).sum(-1).mean(-1))
    np.testing.assert_allclose(lengths(jnp.float32(1.0)), expected, rtol=1e-5)
    slope = jax.grad(lambda scale: jnp.mean(lengths(scale)))(jnp.float32(2.0))
    np.testing.assert_allclose(slope, expected.mean(), rtol=1e-5)


def test_path_lengths_do_not_depend_on_the_resolution():
    def synthesis(styles, repeat):
        images = jnp.einsum("bld,d->bl", styles, jnp.arange(1.0, 4.0)).reshape(-1, 2, 2, 1)
        return images.repeat(repeat, 1).repeat(repeat, 2)

    styles = jnp.asarray(RANDOM.normal(size=(3000, 4, 3)), jnp.float32)
    means = [
        float(
            jnp.mean(path_lengths(lambda x: synthesis(x, repeat), styles, jax.random.key(1)) ** 2)  # noqa: B023
        )
        for repeat in (1, 4)
    ]
    # Sixteen equal pixels collect noise of four times the size, over four times the root.
    np.testing.assert_allclose(means[1], means[0], rtol=0.1)


def test_the_running_mean_of_path_lengths():
    lengths = jnp.asarray([1.0, 2.0, 6.0])
    value, mean = path_length_penalty(lengths, jnp.float32(5.0))
    np.testing.assert_allclose(mean, 5.0 - 0.01 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(value, np.mean((np.array([1, 2, 6]) - 4.98) ** 2), rtol=1e-6)
    # No gradient flows through the mean: each length is pulled towards it by itself.
    slopes = jax.grad(lambda x: path_length_penalty(x, jnp.float32(5.0))[0])(lengths)
    np.testing.assert_allclose(slopes, 2 * (np.array([1, 2, 6]) - 4.98) / 3, rtol=1e-6)
    far = jnp.float32(0.0)
    for _ in range(500):
        _, far = path_length_penalty(lengths, far)
    np.testing.assert_allclose(far, 3.0 * (1 - 0.99**500), rtol=1e-4)
