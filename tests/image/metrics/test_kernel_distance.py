import itertools

import numpy as np
import pytest

from genjax.image.metrics.kernel_distance import kernel_distance

pytestmark = pytest.mark.fast


def by_pairs(a, b):
    def mean(pairs):
        return np.mean([(x @ y / len(x) + 1) ** 3 for x, y in pairs])

    within = (mean(itertools.permutations(side, 2)) for side in (a, b))
    return sum(within) - 2 * mean(itertools.product(a, b))


def test_matches_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)), rng.normal(0.5, 1, (9, 3))
    # A subset of everything is everything, in whatever order.
    found = kernel_distance(a, b, subset_size=100, num_subsets=3)
    assert found == pytest.approx(by_pairs(a, b), rel=1e-12)


def test_point_masses_have_a_closed_form():
    a, b = np.full((6, 2), 2.0), np.full((4, 2), -1.0)
    # k(a, a) = (4 + 1)^3, k(b, b) = (1 + 1)^3, k(a, b) = (-2 + 1)^3.
    assert kernel_distance(a, b) == pytest.approx(125 + 8 + 2, rel=1e-12)


def test_unbiased_where_the_distributions_are_equal():
    rng = np.random.default_rng(1)
    same = [
        kernel_distance(*rng.normal(size=(2, 60, 4)), subset_size=20, num_subsets=20)
        for _ in range(60)
    ]
    error = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    assert min(same) < 0 < max(same)
    apart = kernel_distance(
        rng.normal(size=(60, 4)), rng.normal(1, 1, (60, 4)), subset_size=20, num_subsets=20
    )
    assert apart > 30 * error


def test_the_seed_decides_the_subsets():
    a, b = np.random.default_rng(2).normal(size=(2, 50, 3)).astype(np.float32)
    first = kernel_distance(a, b, subset_size=10, num_subsets=4, seed=1)
    assert kernel_distance(a, b, subset_size=10, num_subsets=4, seed=1) == first
    assert kernel_distance(a, b, subset_size=10, num_subsets=4, seed=2) != first
