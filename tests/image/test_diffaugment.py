"""DiffAugment against its definition, with draws recovered from the images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.augmentation_pixels import erase, translate
from genjax.image.diffaugment import (
    diffaugment,
    scale_contrast,
    scale_saturation,
    shift_brightness,
)

pytestmark = pytest.mark.fast

KEY = jax.random.key(3)


@functools.partial(jax.jit, static_argnames=("policies", "circular"))
def augment(images, policies, circular=False):
    return diffaugment(images, KEY, policies=policies, circular=circular)


def images_of(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def colour_reference(images, brightness, saturation, contrast):
    """One image after the other, straight from the paper's code listing."""
    result = []
    for image, b, s, c in zip(images, brightness, saturation, contrast, strict=True):
        image = image + b
        grey = image.mean(axis=-1, keepdims=True)
        image = (image - grey) * s + grey
        result.append((image - image.mean()) * c + image.mean())
    return np.stack(result)


def test_colour_functions_equal_their_definition_in_float64():
    rng = np.random.default_rng(1)
    images = images_of((3, 5, 4, 3))
    b, s, c = rng.normal(size=(3, 3))
    with jax.enable_x64(True):
        actual = shift_brightness(jnp.asarray(images), jnp.asarray(b))
        actual = scale_contrast(scale_saturation(actual, jnp.asarray(s)), jnp.asarray(c))
    np.testing.assert_allclose(actual, colour_reference(images, b, s, c), atol=1e-14)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_draws_have_the_papers_ranges_and_spare_alpha(channels):
    # Brightness is the one that moves an image's mean, and contrast the one that scales greys.
    images = images_of((2000, 3, 5, channels)).astype(np.float32)
    actual = np.asarray(augment(jnp.asarray(images), policies=("color",)))
    before, after = images[..., :3].astype(float), actual[..., :3].astype(float)
    brightness = after.mean((1, 2, 3)) - before.mean((1, 2, 3))
    grey_before, grey_after = before.mean(-1), after.mean(-1)
    contrast = grey_after.std((1, 2)) / grey_before.std((1, 2))
    saturation = np.ones_like(contrast)
    if channels > 1:
        colourful = [x - x.mean(-1, keepdims=True) for x in (before, after)]
        saturation = colourful[1].std((1, 2, 3)) / colourful[0].std((1, 2, 3)) / contrast
        assert abs(saturation.mean() - 1) < 0.05 and abs(saturation.std() - 2 / 12**0.5) < 0.03
        assert 0 <= saturation.min() < 0.02 and 1.98 < saturation.max() < 2.00001
    for draws, low, high in ((brightness, -0.5, 0.5), (contrast, 0.5, 1.5)):
        assert low - 1e-5 < draws.min() < low + 0.01 and high - 0.01 < draws.max() < high + 1e-5
        assert abs(draws.mean() - (low + high) / 2) < 0.03
        assert abs(draws.std() - 1 / 12**0.5) < 0.015
    assert abs(np.corrcoef([brightness, contrast])[0, 1]) < 0.1
    expected = colour_reference(before, brightness, saturation, contrast)
    np.testing.assert_allclose(after, expected, atol=2e-5)
    np.testing.assert_array_equal(actual[..., 3:], images[..., 3:])


def test_colour_of_two_channels_is_refused():
    with pytest.raises(UserError, match="2 channels"):
        diffaugment(jnp.zeros((1, 4, 4, 2)), KEY)


def moved(image, rows, columns, boundary):
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source = [y - rows, x - columns]
            for axis, size in enumerate((height, width)):
                if boundary == "wrap":
                    source[axis] %= size
                elif boundary == "reflect":
                    source[axis] = abs(source[axis])
                    source[axis] = size - 1 - abs(size - 1 - source[axis])
            if 0 <= source[0] < height and 0 <= source[1] < width:
                result[y, x] = image[source[0], source[1]]
    return result


@pytest.mark.parametrize("boundary", ["zeros", "reflect", "wrap"])
def test_translation_moves_whole_pixels_down_and_right(boundary):
    images = images_of((4, 5, 7, 2)).astype(np.float32)
    offsets = [(0, 0), (2, -3), (-2, 3), (1, 2)]
    actual = translate(jnp.asarray(images), jnp.asarray(offsets), (2, 3), boundary)
    for image, offset, result in zip(images, offsets, actual, strict=True):
        np.testing.assert_array_equal(result, moved(image, *offset, boundary))


@pytest.mark.parametrize("circular", [False, True])
def test_translations_are_uniform_up_to_an_eighth(circular):
    # One bright pixel in the middle tells the offset; 9 x 20 pixels move by up to 1 and 3.
    images = np.zeros((4000, 9, 20, 1), np.float32)
    images[:, 4, 10] = 1
    images[:, 0, 0] = 0.5
    actual = augment(jnp.asarray(images), policies=("translation",), circular=circular)
    actual = np.asarray(actual)
    places = np.argwhere(actual[..., 0] == 1)[:, 1:] - (4, 10)
    offsets, counts = np.unique(places, axis=0, return_counts=True)
    assert [tuple(o) for o in offsets] == [(y, x) for y in (-1, 0, 1) for x in range(-3, 4)]
    assert np.all(np.abs(counts - 4000 / 21) < 5 * (4000 / 21) ** 0.5)
    corners = np.sum(actual == 0.5)
    inside = np.sum(np.all(places >= 0, axis=1))
    assert corners == (4000 if circular else inside)


def test_erasing_takes_the_rectangle_and_nothing_else():
    images = images_of((2, 4, 6, 3)).astype(np.float32)
    low, high = jnp.asarray([[1, 2], [-3, 4]]), jnp.asarray([[3, 4], [2, 9]])
    expected = images.copy()
    expected[0, 1:3, 2:4] = 0
    expected[1, :2, 4:] = 0
    np.testing.assert_array_equal(erase(jnp.asarray(images), low, high), expected)


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
def test_cutout_covers_each_pixel_as_often_as_the_paper_says(shape):
    height, width = shape
    actual = augment(jnp.ones((4000, height, width, 1)), policies=("cutout",))
    erased = np.mean(np.asarray(actual)[..., 0] == 0, axis=0)

    def share(size):
        side = int(size * 0.5 + 0.5)
        places = size + 1 - side % 2
        covered = np.zeros(size)
        for place in range(places):
            for pixel in range(place - side // 2, place - side // 2 + side):
                if 0 <= pixel < size:
                    covered[pixel] += 1 / places
        return covered

    np.testing.assert_allclose(erased, np.outer(share(height), share(width)), atol=0.035)


def test_policies_draw_independently_of_each_other():
    images = jnp.asarray(images_of((6, 8, 8, 3)).astype(np.float32))
    both = augment(images, policies=("cutout", "translation"))
    apart = augment(augment(images, policies=("translation",)), policies=("cutout",))
    np.testing.assert_array_equal(both, apart)
    assert not np.array_equal(both, images)


def test_gradients_equal_finite_differences_and_go_through_twice():
    rng = np.random.default_rng(5)
    images, direction, weights = rng.normal(size=(3, 3, 8, 6, 4))
    with jax.enable_x64(True):

        @jax.jit
        def penalty(x):
            inner = jax.grad(lambda y: jnp.sum(jnp.tanh(diffaugment(y, KEY)) * weights))(x)
            return jnp.sum(inner**2)

        gradient = np.asarray(jax.jit(jax.grad(penalty))(jnp.asarray(images)))
        step = 1e-5
        ahead, behind = (penalty(jnp.asarray(images + s * direction)) for s in (step, -step))
    difference = (float(ahead) - float(behind)) / (2 * step)
    assert abs(difference) > 1e-2
    np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-7)
