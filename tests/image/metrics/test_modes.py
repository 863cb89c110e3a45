import numpy as np
import pytest

from genjax.image.metrics.modes import (
    mixture_coverage,
    mode_coverage,
    mode_coverage_floor,
    stacked_labels,
)

pytestmark = pytest.mark.fast

GRID = np.stack(np.meshgrid(*[np.arange(-4.0, 5, 2)] * 2), -1).reshape(-1, 2)


def test_mode_coverage_by_hand():
    assert mode_coverage(np.arange(12) % 6, 6) == (6, 0.0)
    modes, kl = mode_coverage(np.zeros(7, np.int64), 8)
    assert (modes, kl) == (1, pytest.approx(np.log(8)))
    # p = (3/4, 1/4, 0, 0).
    modes, kl = mode_coverage(np.array([0, 0, 1, 0], np.int32), 4)
    assert (modes, kl) == (2, pytest.approx(0.75 * np.log(3)))


def test_stacked_digits_are_read_as_a_number():
    digits = np.array([[0, 4, 2], [9, 9, 9], [1, 0, 0]])
    probabilities = 0.1 + np.eye(10)[digits]
    assert stacked_labels(probabilities).tolist() == [42, 999, 100]


def test_floor_of_a_uniform_sampler():
    floor = mode_coverage_floor(np.full(1000, 1e-3), 26_000)
    # The chi-square approximation of the likelihood ratio, (K - 1) / 2n, and its deviation.
    assert floor.kl == pytest.approx(999 / 52_000, rel=0.03)
    assert floor.kl_standard_deviation == pytest.approx(np.sqrt(2 * 999) / 52_000, rel=0.5)
    assert floor.modes == pytest.approx(1000, abs=0.1)


def test_floor_holds_the_divergence_of_the_real_shares():
    shares = np.array([0.5, 0.3, 0.2])
    expected = (shares * np.log(3 * shares)).sum()
    assert mode_coverage_floor(shares, 1_000_000).kl == pytest.approx(expected, rel=0.01)
    # Of two draws, one in four (1/2 each) or so finds a single mode of two.
    assert mode_coverage_floor(np.array([1.0, 1.0]), 2, trials=2000).modes == pytest.approx(
        1.5, abs=0.05
    )


def test_perfect_mixture():
    rng = np.random.default_rng(0)
    points = GRID[np.arange(50_000) % 25] + 0.05 * rng.normal(size=(50_000, 2))
    found = mixture_coverage(points, GRID, 0.05)
    assert found.modes == 25
    # The radius of a plane Gaussian is within 3 with probability 1 - exp(-9 / 2).
    assert found.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.002)
    assert found.kl < 1e-3


def test_mixture_by_hand():
    modes = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = [
        [0, 0.2],
        [0.1, 0],
        [0, -0.2],
        [10.0, 0.31],
        [10, 0.1],
        [np.nan, 0],
        [5, 5],
        [9.9, 10],
    ]
    found = mixture_coverage(np.array(points, np.float32), modes, 0.1)
    assert found.modes == 3
    assert found.high_quality == 5 / 8
    shares = np.array([3, 1, 1]) / 5
    assert found.kl == pytest.approx((shares * np.log(4 * shares)).sum())


def test_no_point_near_a_mode_is_the_worst():
    found = mixture_coverage(np.full((5, 2), 100.0), GRID, 0.05)
    assert found == (0, 0.0, pytest.approx(np.log(25)))
