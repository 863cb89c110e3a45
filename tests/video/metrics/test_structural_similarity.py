import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.metrics import structural_similarity as module
from genjax.video.metrics.structural_similarity import gaussian_window

ssim, openstl_ssim = jax.jit(module.ssim), jax.jit(module.openstl_ssim)
structural_similarity = jax.jit(
    module.structural_similarity, static_argnames=("window", "data_range", "sample_covariance")
)


def by_window(x, y, weights, data_range, sample=False):
    """The mean over windows and channels of one frame [H, W, C], in float64 from the equations."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    size = len(weights)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(x.shape[0] - size + 1):
        for column in range(x.shape[1] - size + 1):
            for channel in range(x.shape[2]):
                place = (slice(row, row + size), slice(column, column + size), channel)
                a, b = x[place].ravel(), y[place].ravel()
                w = weights.ravel()
                cov = np.cov(a, b, aweights=w, ddof=0)
                if sample:
                    cov = cov * a.size / (a.size - 1)
                m, n = w @ a, w @ b
                values.append(
                    (2 * m * n + c1)
                    * (2 * cov[0, 1] + c2)
                    / ((m**2 + n**2 + c1) * (cov[0, 0] + cov[1, 1] + c2))
                )
    return np.mean(values)


def gaussian():
    row, column = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    return weights / weights.sum()


UNIFORM = np.full((7, 7), 1 / 49)
REFERENCES = {
    ssim: lambda x, y: by_window(x, y, gaussian(), 1.0),
    openstl_ssim: lambda x, y: by_window(x, y, UNIFORM, 2.0, sample=True),
}


def frames(kind):
    rng = np.random.default_rng(3)
    shape = (2, 2, 13, 16, 3)
    if kind == "noise":
        truth, noise = rng.uniform(0, 1, shape), rng.normal(0, 0.3, shape)
    elif kind == "bright":
        # Nearly flat, where E[x^2] - E[x]^2 loses its digits.
        truth, noise = 0.9 + rng.normal(0, 1e-2, shape), rng.normal(0, 1e-2, shape)
    else:
        # Black with a few strokes.
        truth = np.where(rng.uniform(size=shape) < 0.05, rng.uniform(size=shape), 0)
        noise = 0.05 * rng.uniform(size=shape)
    return (truth + noise).astype(np.float32), np.clip(truth, 0, 1).astype(np.float32)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["noise", "bright", "dark"])
@pytest.mark.parametrize("metric", [ssim, openstl_ssim])
def test_matches_windows_in_float64(metric, kind):
    predictions, truth = frames(kind)
    found = np.asarray(metric(predictions, truth))
    reference = REFERENCES[metric]
    expected = [
        [reference(np.clip(p, 0, 1), t) for p, t in zip(*pair, strict=True)]
        for pair in zip(predictions, truth, strict=True)
    ]
    assert 0.01 < np.mean(expected) < 0.99
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.fast
def test_flat_frames_have_a_closed_form():
    dark, bright = (np.full((1, 1, 11, 11, 1), value, np.float32) for value in (0.2, 0.6))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert structural_similarity(dark, bright).item() == pytest.approx(expected, abs=1e-6)
    assert ssim(bright, bright).item() == 1.0


@pytest.mark.fast
def test_clipping_is_the_metrics_and_not_the_loss():
    predictions, truth = frames("noise")
    clipped = np.asarray(ssim(predictions, truth))
    np.testing.assert_array_equal(ssim(np.clip(predictions, 0, 1), truth), clipped)
    difference = np.asarray(structural_similarity(predictions, truth)) - clipped
    assert (np.abs(difference) > 1e-3).all()


def test_gradient_is_that_of_the_definition():
    """Against central differences of the float64 reference, for each pixel of both frames."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(0, 1, (2, 9, 8, 2))
    x = 0.5 * x + 0.5 * y
    row = np.array(gaussian_window(7, 1.5))
    reference = functools.partial(by_window, weights=np.outer(row, row), data_range=1.0)

    def slopes(function, values):
        found = np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            step = np.zeros(values.shape)
            step[place] = 1e-6
            found[place] = (function(values + step) - function(values - step)) / 2e-6
        return found

    expected = slopes(lambda v: reference(v, y), x), slopes(lambda v: reference(x, v), y)
    loss = functools.partial(structural_similarity, window=tuple(row))
    gradient = jax.jit(jax.grad(lambda a, b: loss(a, b).sum(), (0, 1)))
    with jax.enable_x64(True):
        exact = gradient(x[None, None], y[None, None])
    for found, value in zip(exact, expected, strict=True):
        np.testing.assert_allclose(np.asarray(found)[0, 0], value, rtol=1e-6, atol=1e-9)
    single = gradient(*(jnp.asarray(value[None, None], jnp.float32) for value in (x, y)))
    for found, value in zip(single, expected, strict=True):
        error = np.abs(np.asarray(found)[0, 0] - value).max()
        assert error < 1e-5 * np.abs(value).max()


@pytest.mark.fast
def test_gradients_are_finite_where_nothing_varies():
    black = np.zeros((1, 1, 12, 12, 1), np.float32)
    gradient = jax.jit(jax.grad(lambda x, y: structural_similarity(x, y).sum()))
    for other in (black, black + 1):
        assert np.isfinite(gradient(black, other)).all()


@pytest.mark.fast
def test_frames_smaller_than_the_window():
    small = jnp.zeros((1, 1, 10, 32, 1))
    with pytest.raises(UserError, match=r"10 x 32 pixels are smaller.*11 x 11"):
        ssim(small, small)
    assert openstl_ssim(small, small).item() == 1.0
