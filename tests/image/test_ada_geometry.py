"""The general geometric transforms against the paper's equations in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.ada_geometry import (
    SYM6,
    Geometry,
    draw_geometry,
    fold,
    inverse_matrix,
    is_drawn,
    random_geometry,
    resample,
)

# The reference: the paper's procedure, with padding that leaves nothing to fold.


def scale2d(x, y):
    return np.diag([x, y, 1.0])


def rotate2d(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def translate2d(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def paper_matrix(scale, pre, stretch, post, translation, height, width):
    matrix = scale2d(scale, scale)
    matrix = rotate2d(-pre) @ matrix
    matrix = scale2d(stretch, 1 / stretch) @ matrix
    matrix = rotate2d(-post) @ matrix
    return translate2d(translation[0] * width, translation[1] * height) @ matrix


def enlarge(signal):
    """Zeros between samples along the first axis, then the filter: sample 2 k + n gets h[n]."""
    zeros = np.zeros((2 * len(signal), *signal.shape[1:]))
    zeros[::2] = signal * 2**0.5
    return sum(
        h * np.concatenate([np.zeros((n, *signal.shape[1:])), zeros[: len(zeros) - n]])
        for n, h in enumerate(SYM6)
    )


def reduce(signal, count):
    return np.stack(
        [sum(h * signal[2 * k + n] for n, h in enumerate(SYM6)) / 2**0.5 for k in range(count)]
    )


def paper_image(image, matrix, mode):
    """The transformed image, and how far beyond the edge its pixels look."""
    height, width, _ = image.shape
    pad = 4 * max(height, width)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
    large = enlarge(enlarge(padded).swapaxes(0, 1)).swapaxes(0, 1)
    centre = np.dot(np.arange(12), SYM6) / np.sum(SYM6)
    inverse = np.linalg.inv(matrix)
    rows, columns = 2 * height + 10, 2 * width + 10
    result = np.zeros((rows, columns, image.shape[-1]))
    beyond = np.zeros((rows, columns))
    for m in range(rows):
        for n in range(columns):
            x = (n - centre) / 2 - (width - 1) / 2
            y = (m - centre) / 2 - (height - 1) / 2
            x, y, _ = inverse @ [x, y, 1]
            x, y = x + (width - 1) / 2, y + (height - 1) / 2
            beyond[m, n] = max(-x, -y, x - width + 1, y - height + 1)
            across, down = 2 * (x + pad) + centre, 2 * (y + pad) + centre
            i, j = int(np.floor(down)), int(np.floor(across))
            a, b = down - i, across - j
            result[m, n] = (1 - a) * ((1 - b) * large[i, j] + b * large[i, j + 1])
            result[m, n] += a * ((1 - b) * large[i + 1, j] + b * large[i + 1, j + 1])
    result = reduce(reduce(result, height).swapaxes(0, 1), width).swapaxes(0, 1)
    reach = [
        [beyond[2 * y : 2 * y + 12, 2 * x : 2 * x + 12].max() for x in range(width)]
        for y in range(height)
    ]
    return result, np.array(reach)


def parameters(rng, count):
    return (
        2 ** (0.4 * rng.normal(size=count)),
        rng.uniform(-np.pi, np.pi, count),
        2 ** (0.4 * rng.normal(size=count)),
        rng.uniform(-np.pi, np.pi, count),
        0.125 * rng.normal(size=(count, 2)),
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _transform(images, geometry, size, boundary):
    return resample(images, inverse_matrix(geometry, *size), boundary)


def transform(images, geometry, boundary="reflect"):
    """`resample` in float64, compiled."""
    with jax.enable_x64(True):
        values = Geometry(*(jnp.asarray(value, jnp.float64) for value in geometry))
        size = images.shape[1:3]
        return np.asarray(_transform(jnp.asarray(images, jnp.float64), values, size, boundary))


def only(count=1, **changes):
    neutral = Geometry(*(np.full(count, v) for v in (1.0, 0.0, 1.0, 0.0)), np.zeros((count, 2)))
    return neutral._replace(**{name: np.asarray(value, float) for name, value in changes.items()})


@pytest.mark.fast
def test_the_filter_is_orthonormal_with_six_vanishing_moments():
    taps = np.array(SYM6)
    for shift in range(6):
        product = np.dot(taps[2 * shift :], taps[: 12 - 2 * shift])
        assert abs(product - (shift == 0)) < 1e-15
    places = np.linspace(-1, 1, 12)
    for power in range(6):
        assert abs(np.sum((-1.0) ** np.arange(12) * places**power * taps)) < 1e-15
    # Of the filters with these properties the symlet is the one with the most linear phase; the
    # extremal-phase one's centroid is near its beginning.
    assert 4.5 < np.dot(np.arange(12), taps) / taps.sum() < 6.5


@pytest.mark.fast
def test_matrices_equal_the_inverse_of_the_papers_product():
    values = parameters(np.random.default_rng(0), 16)
    with jax.enable_x64(True):
        geometry = Geometry(*map(jnp.asarray, values))
        actual = np.asarray(jax.jit(inverse_matrix, static_argnums=(1, 2))(geometry, 24, 40))
    for number in range(16):
        expected = np.linalg.inv(paper_matrix(*(v[number] for v in values), 24, 40))
        np.testing.assert_allclose(actual[number], expected[:2], atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
@pytest.mark.parametrize("boundary", ["reflect", "wrap"])
def test_images_equal_the_papers_procedure(height, width, boundary):
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (4, height, width, 2))
    values = parameters(rng, 4)
    actual = transform(images, values, boundary)
    inside = 0
    for number in range(4):
        matrix = paper_matrix(*(v[number] for v in values), height, width)
        expected, reach = paper_image(images[number], matrix, boundary)
        # Reflected sample by sample, the nearly symmetric filter makes a small difference where
        # the paper pads before it filters. A period has none.
        same = np.full_like(reach, True, bool) if boundary == "wrap" else reach <= 4
        inside += same.sum()
        np.testing.assert_allclose(actual[number][same], expected[same], atol=1e-11)
        np.testing.assert_allclose(actual[number], expected, atol=0.5)
        assert np.sqrt(np.mean((actual[number] - expected) ** 2)) < 0.1
    assert inside > height * width


def test_doing_nothing_gives_the_image_back_up_to_rounding():
    images = np.random.default_rng(2).uniform(-1, 1, (2, 7, 12, 3))
    for boundary in ("reflect", "wrap"):
        np.testing.assert_allclose(transform(images, only(2), boundary), images, atol=1e-12)


def test_whole_pixel_moves_and_turns_equal_numpy_away_from_the_fold():
    images = np.random.default_rng(3).uniform(-1, 1, (1, 8, 8, 2))
    for boundary in ("reflect", "wrap"):
        right = transform(images, only(translation=[[1 / 8, -1 / 8]]), boundary)
        expected = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=boundary)[:, 2:, :-2]
        np.testing.assert_allclose(right, expected, atol=1e-11)
    # A smooth image, since a turned filter is not quite the filter.
    y, x = np.mgrid[:24, :24] / 24
    smooth = np.sin(2 * x + 3 * y + 1)[None, :, :, None]
    turned = transform(smooth, only(pre_rotation=[np.pi / 2]))[0]
    np.testing.assert_allclose(turned[6:-6, 6:-6], np.rot90(smooth[0])[6:-6, 6:-6], atol=5e-4)


@pytest.mark.parametrize(("name", "value"), [("scale", 2.0), ("stretch", 1.5)])
def test_a_gradient_is_magnified_exactly(name, value):
    height, width = 24, 32
    y, x = np.mgrid[:height, :width]
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    image = 0.01 * x - 0.02 * y + 0.1
    actual = transform(image[None, :, :, None], only(**{name: [value]}))[0, ..., 0]
    across, down = (value, value) if name == "scale" else (value, 1 / value)
    expected = 0.01 * x / across - 0.02 * y / down + 0.1
    rows = slice(None) if down > 1 else slice(10, -10)
    np.testing.assert_allclose(actual[rows, 4:-4], expected[rows, 4:-4], atol=1e-12)


def test_turning_back_restores_a_smooth_image():
    y, x = np.mgrid[:32, :32] / 32
    image = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x)], axis=-1)[None]
    there = transform(image, only(pre_rotation=[0.4]))
    back = transform(there, only(post_rotation=[-0.4]))
    middle = (slice(None), slice(9, -9), slice(9, -9))
    assert np.abs(there - image)[middle].max() > 0.3
    np.testing.assert_allclose(back[middle], image[middle], atol=5e-3)


@pytest.mark.fast
def test_folding_is_a_triangle_wave_or_a_period():
    place = jnp.asarray([-7.5, -4.0, -1.5, 0.0, 5.25, 9.0, 11.5, 13.5, 20.25, -1e4 - 0.5])
    reflected = [7.5, -4.0, -1.5, 0.0, 5.25, 9.0, 11.5, 4.5, 2.25, 7.5]
    np.testing.assert_allclose(fold(place, 10, "reflect"), reflected)
    wrapped = [2.5, -4.0, -1.5, 0.0, 5.25, 9.0, 11.5, 3.5, 0.25, 9.5]
    np.testing.assert_allclose(fold(place, 10, "wrap"), wrapped)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 1), (3, 64, 4)])
def test_any_size_stays_in_bounds(shape):
    """An index out of bounds would read memory that is not the image's."""
    images = jnp.ones((32, *shape))
    for boundary in ("reflect", "wrap"):
        actual = jax.jit(random_geometry, static_argnums=3)(
            images, jax.random.key(0), 1.0, boundary
        )
        np.testing.assert_allclose(actual, 1.0, atol=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_draws_have_the_papers_distribution(probability):
    count = 20_000
    run = jax.jit(draw_geometry, static_argnums=1)
    drawn = run(jax.random.key(0), count, probability)
    scale, pre, stretch, post, translation = map(np.asarray, drawn)
    turned = (pre != 0) | (post != 0)
    assert abs(turned.mean() - probability) < 0.015
    assert abs((pre != 0).mean() - (1 - (1 - probability) ** 0.5)) < 0.015
    assert abs((post != 0).mean() - (1 - (1 - probability) ** 0.5)) < 0.015
    moved = np.any(translation != 0, axis=1)
    for flags in (scale != 1, stretch != 1, moved):
        assert abs(flags.mean() - probability) < 0.015
    expected = (1 - probability) ** 4
    assert abs(1 - np.mean(is_drawn(drawn)) - expected) < 0.015
    if probability:
        for factor in (scale, stretch):
            power = np.log2(factor[factor != 1])
            assert abs(power.mean()) < 0.01 and abs(power.std() - 0.2) < 0.01
        for angle in (pre, post):
            angle = angle[angle != 0]
            assert np.abs(angle).max() <= np.pi and abs(angle.std() - np.pi / 3**0.5) < 0.05
        np.testing.assert_allclose(translation[moved].std(0), 0.125, rtol=0.05)
