"""Precision, recall, density and coverage, from balls that reach to the k-th neighbour.

A set's manifold is the union of balls around its examples; the radius of a ball is the distance to
the k-th nearest other example of the set, that is the (k + 1)-th smallest distance when the
example's own 0 is counted. Distances are made in blocks of rows, so that two sets of 10,000
examples never hold more than a few million of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_BLOCK_ELEMENTS = 1 << 22


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1."""

    precision: float
    """Share of generated examples within the real manifold: are they like real ones?"""
    recall: float
    """Share of real examples within the generated manifold: could they have been generated?"""


class DensityCoverage(NamedTuple):
    """Density is 0 or more, and 1 in expectation for equal distributions; coverage a share."""

    density: float
    """Mean number of real balls around a generated example, over k."""
    coverage: float
    """Share of real examples whose ball holds a generated one."""


def precision_recall(
    real: Float[np.ndarray, "N D"], generated: Float[np.ndarray, "M D"], k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall; on the rim of a ball is within.

    Args:
        real: features of real examples, N above k.
        generated: features of generated examples, M above k.
        k: which neighbour gives the radius.

    Paper: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative
    models".
    """
    real, generated = _centred(real, generated)
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    precise = np.zeros(len(generated), bool)
    recalled = 0
    for rows, distances in _squared_distances(real, generated):
        precise |= (distances <= real_radii[rows, None]).any(0)
        recalled += int((distances <= generated_radii).any(1).sum())
    return PrecisionRecall(float(precise.mean()), recalled / len(real))


def density_coverage(
    real: Float[np.ndarray, "N D"], generated: Float[np.ndarray, "M D"], k: int = 5
) -> DensityCoverage:
    """Density and coverage; on the rim of a ball is outside.

    Args:
        real: features of real examples, N above k.
        generated: features of generated examples.
        k: which neighbour gives the radius.

    Paper: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models".
    """
    real, generated = _centred(real, generated)
    radii = _squared_radii(real, k)
    balls = covered = 0
    for rows, distances in _squared_distances(real, generated):
        within = distances < radii[rows, None]
        balls += int(within.sum())
        covered += int(within.any(1).sum())
    return DensityCoverage(balls / (k * len(generated)), covered / len(real))


def expected_coverage(num_real: int, num_generated: int, k: int = 5) -> float:
    """The coverage to expect where both sets come from one distribution.

    A real example is missed where its k nearest among all others are real, so coverage is
    1 - prod_{i=1..k} (N - i) / (N + M - i), which tends to 1 - 1 / 2^k for equal N and M.
    """
    ranks = np.arange(1, k + 1)
    return float(1 - np.prod((num_real - ranks) / (num_real + num_generated - ranks)))


def _centred(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, about the real mean: the squares below lose digits to a large one."""
    real = real.astype(np.float64)
    mean = real.mean(0)
    return real - mean, generated.astype(np.float64) - mean


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    assert len(features) > k, f"the {k}-th neighbour needs more than {k} examples"
    radii = np.empty(len(features))
    for rows, distances in _squared_distances(features, features):
        radii[rows] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of all pairs, a block of rows at a time."""
    squares = np.square(columns).sum(1)
    size = max(1, _BLOCK_ELEMENTS // len(columns))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        distances = np.square(block).sum(1)[:, None] + squares
        distances -= 2 * (block @ columns.T)
        yield slice(start, start + size), np.maximum(distances, 0.0, out=distances)
