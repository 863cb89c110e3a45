import numpy as np
import pytest
from scipy import linalg

from genjax.image.metrics.frechet import (
    frechet_distance,
    frechet_distance_from_moments,
    moments,
)

pytestmark = pytest.mark.fast


def gaussian(seed, size=6):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size))
    return rng.normal(size=size), factor @ factor.T + 0.1 * np.eye(size)


def test_moments_are_those_of_numpy():
    features = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    mean, covariance = moments(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10
    )


def test_matches_the_square_root_of_scipy():
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(0), gaussian(1)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)
    found = frechet_distance_from_moments(mean_a, cov_a, mean_b, cov_b)
    assert found == pytest.approx(expected, rel=1e-10)
    assert frechet_distance_from_moments(mean_b, cov_b, mean_a, cov_a) == pytest.approx(
        found, rel=1e-10
    )


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(2)
    mean_a, mean_b = rng.normal(size=(2, 5))
    deviation_a, deviation_b = rng.uniform(0.5, 2, (2, 5))
    expected = np.square(mean_a - mean_b).sum() + np.square(deviation_a - deviation_b).sum()
    found = frechet_distance_from_moments(
        mean_a, np.diag(deviation_a**2), mean_b, np.diag(deviation_b**2)
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_dimension_is_mean_and_deviation():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(100, 1)), rng.normal(1, 3, (80, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_fewer_examples_than_features():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(10, 40)).astype(np.float32)
    assert 0 <= frechet_distance(features, features.copy()) < 1e-5
    # A shift moves the mean alone.
    shift = rng.normal(size=40).astype(np.float32)
    assert frechet_distance(features, features + shift) == pytest.approx(
        np.square(shift.astype(np.float64)).sum(), rel=1e-4
    )


def test_a_feature_that_is_not_finite_makes_no_number():
    features = np.random.default_rng(5).normal(size=(10, 3))
    broken = features.copy()
    broken[3, 1] = np.nan
    assert np.isnan(frechet_distance(features, broken))
