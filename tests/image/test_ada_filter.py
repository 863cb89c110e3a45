"""Band amplification against a filter bank built from the sym2 wavelet, noise and cutout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.ada_filter import (
    amplify_bands,
    draw_gains,
    random_cutout,
    random_filter,
    random_noise,
)

pytestmark = pytest.mark.fast

ROOT = 3**0.5
SYM2 = np.array([1 + ROOT, 3 + ROOT, 3 - ROOT, 1 - ROOT]) / (4 * 2**0.5)


def spread(taps, spacing):
    wide = np.zeros((len(taps) - 1) * spacing + 1)
    wide[::spacing] = taps
    return wide


def filter_bank():
    """The paper's four filters of 43 taps, the lowest band first, from H(z) H(1/z) / 2 alone."""
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high_pass = SYM2 * (-1.0) ** np.arange(4)
    high = np.convolve(high_pass, high_pass[::-1]) / 2
    np.testing.assert_allclose(low + high, np.eye(7)[3], atol=1e-15)
    bands, below = [], np.ones(1)
    for level in range(3):
        bands.append(np.convolve(below, spread(high, 2**level)))
        below = np.convolve(below, spread(low, 2**level))
    bands.append(below)
    return np.stack([np.pad(b, (43 - len(b)) // 2) for b in reversed(bands)])


def filtered(image, taps, mode):
    """A two-dimensional convolution with the outer product of the taps."""
    height, width, _ = image.shape
    padded = np.pad(image, ((21, 21), (21, 21), (0, 0)), mode=mode)
    result = np.zeros_like(image)
    for i in range(43):
        for j in range(43):
            result += taps[i] * taps[j] * padded[i : i + height, j : j + width]
    return result


def test_the_bands_of_the_bank_add_up_to_the_identity():
    np.testing.assert_allclose(filter_bank().sum(0), np.eye(43)[21], atol=1e-15)


@pytest.mark.parametrize("boundary", ["reflect", "wrap"])
@pytest.mark.parametrize("shape", [(9, 12, 3), (32, 5, 1)])
def test_images_equal_the_convolution_with_the_mixed_filter(shape, boundary):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, *shape))
    gains = 2 ** rng.normal(size=(3, 4))
    gains[0] = (0, 0, 1, 0)  # a single band
    with jax.enable_x64(True):
        run = jax.jit(amplify_bands, static_argnums=2)
        actual = run(jnp.asarray(images), jnp.asarray(gains), boundary)
    for number in range(3):
        expected = filtered(images[number], gains[number] @ filter_bank(), boundary)
        np.testing.assert_allclose(actual[number], expected, atol=1e-13)


def test_gains_of_one_give_the_image_back():
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 10, 3)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(amplify_bands)(jnp.asarray(images), jnp.ones((2, 4))), images, atol=1e-6
    )


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_gains_are_drawn_band_by_band_and_keep_the_expected_power(probability):
    count = 20_000
    with jax.enable_x64(True):
        run = jax.jit(draw_gains, static_argnums=(1, 3))
        gains = np.asarray(run(jax.random.key(0), count, probability, jnp.float64))
    untouched = np.all(gains == 1, axis=1)
    assert abs(untouched.mean() - (1 - probability) ** 4) < 0.015
    if not probability:
        return
    # Amplified alone, band i has t_i = f / n while the others have 1 / n, n^2 = l_i f^2 + 1 - l_i.
    weights = np.array([10, 1, 1, 1]) / 13
    for band in range(4):
        others = [b for b in range(4) if b != band]
        alone = ~untouched & np.all(gains[:, others] == gains[:, others[:1]], axis=1)
        assert abs(alone.mean() - probability * (1 - probability) ** 3) < 0.015
        np.testing.assert_allclose(gains[alone] ** 2 @ weights, 1.0, atol=1e-12)
        powers = np.log2(gains[alone, band] / gains[alone, others[0]])
        assert abs(powers.mean()) < 0.07 and abs(powers.std() - 1) < 0.05


def test_filters_and_noise_spare_alpha():
    images = np.random.default_rng(2).uniform(-1, 1, (4, 8, 8, 4)).astype(np.float32)
    for augment in (random_filter, random_noise):
        actual = np.asarray(jax.jit(augment)(jnp.asarray(images), jax.random.key(0), 1.0))
        np.testing.assert_array_equal(actual[..., 3], images[..., 3])
        assert np.all(np.any(actual[..., :3] != images[..., :3], axis=(1, 2, 3)))


def test_noise_has_a_half_normal_deviation():
    images = jnp.zeros((4000, 8, 8, 3))
    actual = np.asarray(jax.jit(random_noise)(images, jax.random.key(0), 0.5))
    noisy = np.any(actual != 0, axis=(1, 2, 3))
    assert abs(noisy.mean() - 0.5) < 0.03
    deviation = actual[noisy].std((1, 2, 3))
    assert abs(deviation.mean() - 0.1 * (2 / np.pi) ** 0.5) < 0.005
    assert abs((deviation**2).mean() ** 0.5 - 0.1) < 0.005
    standard = actual[noisy] / deviation[:, None, None, None]
    assert abs(np.mean(standard**4) - 3) < 0.05
    assert abs(np.mean(standard[..., 0] * standard[..., 1])) < 0.01


def test_cutout_takes_half_of_each_size_somewhere():
    actual = np.asarray(jax.jit(random_cutout)(jnp.ones((4000, 10, 6, 2)), jax.random.key(0), 0.5))
    erased = actual == 0
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
    hit = np.any(erased, axis=(1, 2, 3))
    assert abs(hit.mean() - 0.5) < 0.03
    rows, columns = erased[hit].any((2, 3)), erased[hit].any((1, 3))
    np.testing.assert_array_equal(erased[hit][..., 0], rows[:, :, None] & columns[:, None, :])
    assert rows.sum(1).max() in (5, 6) and columns.sum(1).max() in (3, 4)
    # Row y + 1/2 is within a quarter of the centre, which is uniform.
    place = (np.arange(10) + 0.5) / 10
    expected = np.minimum(place + 0.25, 1) - np.maximum(place - 0.25, 0)
    np.testing.assert_allclose(rows.mean(0), expected, atol=0.04)
