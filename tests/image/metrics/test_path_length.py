import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.metrics.path_length import (
    lerp,
    path_distances,
    perceptual_path_length,
    slerp,
)

pytestmark = pytest.mark.fast


def latents(seed, batch=6, size=8):
    return np.random.default_rng(seed).normal(size=(batch, size)).astype(np.float32)


def test_slerp_matches_the_sine_formula():
    start, end = latents(0), latents(1)
    position = np.linspace(0, 1, 6, dtype=np.float32)
    found = slerp(jnp.asarray(start), jnp.asarray(end), jnp.asarray(position))
    lengths = [np.linalg.norm(x.astype(np.float64), axis=1) for x in (start, end)]
    a, b = (x / length[:, None] for x, length in zip((start, end), lengths, strict=True))
    angle = np.arccos((a * b).sum(1))
    direction = (
        np.sin((1 - position) * angle)[:, None] * a + np.sin(position * angle)[:, None] * b
    ) / np.sin(angle)[:, None]
    length = (1 - position) * lengths[0] + position * lengths[1]
    np.testing.assert_allclose(found, direction * length[:, None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0], start[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[-1], end[-1], rtol=1e-5, atol=1e-5)


def test_slerp_turns_at_constant_speed():
    start, end = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
    found = slerp(start, end, jnp.array([1 / 3]))
    np.testing.assert_allclose(found, [[3 * np.cos(np.pi / 6), 1.5]], rtol=1e-5)


def test_slerp_between_equal_latents_stays():
    start = jnp.asarray(latents(2))
    np.testing.assert_allclose(slerp(start, start, jnp.full(6, 0.3)), start, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        slerp(start, 2 * start, jnp.full(6, 0.5)), 1.5 * start, rtol=1e-4, atol=1e-5
    )


def test_path_length_of_a_linear_generator():
    # In W with linear features, every path has the squared length of its end points' features.
    start, end = latents(3), latents(4)
    matrix = latents(5, 8, 4)
    position = jnp.linspace(0.1, 0.9, 6)
    at, further = (
        lerp(jnp.asarray(start), jnp.asarray(end), position + step) @ matrix for step in (0, 0.01)
    )
    expected = np.square((end - start) @ matrix).sum(1)
    np.testing.assert_allclose(path_distances(at, further, 0.01), expected, rtol=1e-3)


def test_aggregation_drops_the_extremes():
    distances = np.random.default_rng(6).permutation(np.arange(1000.0))
    # Percentiles lie between ranks 9 and 10, and 989 and 990: the wider ones are kept.
    assert perceptual_path_length(distances) == pytest.approx(np.arange(9, 991).mean())
    distances[distances > 995] = 1e9
    assert perceptual_path_length(distances) == pytest.approx(np.arange(9, 991).mean())
    assert perceptual_path_length(np.array([4.0])) == 4.0
