import numpy as np
import pytest

from genjax.image.metrics import neighbours
from genjax.image.metrics.neighbours import (
    density_coverage,
    expected_coverage,
    precision_recall,
)

pytestmark = pytest.mark.fast


def radius(point, points, k):
    return sorted(np.linalg.norm(point - other) for other in points)[k]


def precision_by_loops(real, generated, k):
    def share(points, manifold):
        radii = [radius(one, manifold, k) for one in manifold]
        hits = [
            any(np.linalg.norm(point - one) <= r for one, r in zip(manifold, radii, strict=True))
            for point in points
        ]
        return np.mean(hits)

    return share(generated, real), share(real, generated)


def density_by_loops(real, generated, k):
    radii = [radius(one, real, k) for one in real]
    inside = np.array(
        [
            [np.linalg.norm(one - other) < r for other in generated]
            for one, r in zip(real, radii, strict=True)
        ]
    )
    return inside.sum() / (k * len(generated)), inside.any(1).mean()


@pytest.mark.parametrize("block_elements", [1, 100, 1 << 22])
def test_matches_loops(monkeypatch, block_elements):
    monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", block_elements)
    rng = np.random.default_rng(0)
    # Far from the origin, where squared norms lose the digits that count.
    real, generated = rng.normal(1e4, 1, (40, 3)), rng.normal(1e4 + 0.7, 1.2, (30, 3))
    expected = precision_by_loops(real, generated, 3)
    assert min(expected) > 0.2 and max(expected) < 0.98
    assert precision_recall(real, generated) == pytest.approx(expected, rel=1e-12)
    assert density_coverage(real, generated) == pytest.approx(
        density_by_loops(real, generated, 5), rel=1e-12
    )


def test_the_rim_is_within_for_precision_and_outside_for_density():
    # Balls of radius 1 around 0..3 with k = 1; one generated point on the rim of the last.
    real = np.arange(4.0)[:, None]
    generated = np.array([[4.0], [4.0], [40.0]])
    assert precision_recall(real, generated, k=1).precision == pytest.approx(2 / 3)
    assert density_coverage(real, generated, k=1) == (0.0, 0.0)
    inside = generated - np.array([[0.01], [0.01], [0.0]])
    # Two of three in one ball (density 2 / 3) of four (coverage 1 / 4).
    assert density_coverage(real, inside, k=1) == pytest.approx((2 / 3, 1 / 4))


def test_equal_arrays():
    features = np.random.default_rng(1).normal(5, 1, (300, 20)).astype(np.float32)
    assert precision_recall(features, features.copy()) == (1.0, 1.0)
    # A ball holds its centre and k - 1 others; the k-th is on the rim.
    assert density_coverage(features, features.copy()) == (1.0, 1.0)


def test_far_apart():
    real = np.random.default_rng(2).normal(size=(50, 4))
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = np.random.default_rng(3).normal(size=(60, 3))
    generated = np.repeat(real[:1], 40, axis=0)
    precision, recall = precision_recall(real, generated)
    assert precision == 1.0
    assert recall <= 1 / 60


def test_expectations_of_equal_distributions():
    assert expected_coverage(10_000, 10_000) == pytest.approx(0.96875, abs=1e-4)
    # By hand: N = M = 3 and k = 1, so of five others the nearest is real in 2 of 5.
    assert expected_coverage(3, 3, k=1) == pytest.approx(1 - 2 / 5)
    rng = np.random.default_rng(4)
    found = np.array([density_coverage(*rng.normal(size=(2, 400, 2))) for _ in range(20)])
    error = found.std(0) / np.sqrt(len(found))
    assert abs(found[:, 0].mean() - 1) < 4 * error[0]
    assert abs(found[:, 1].mean() - expected_coverage(400, 400)) < 4 * error[1]


def test_an_image_that_is_not_finite_is_outside():
    real = np.random.default_rng(5).normal(size=(30, 3))
    generated = real.copy()
    generated[:6] = np.nan
    assert precision_recall(real, generated).precision == pytest.approx(24 / 30)
    found, without = (density_coverage(real, some, k=1) for some in (generated, generated[6:]))
    assert found.density == pytest.approx(without.density * 24 / 30)
    assert found.coverage == without.coverage < 1
