"""Inception score and conditioning accuracy."""

import numpy as np
import pytest

from genjax.image.metrics.conditioning import conditioning_accuracy
from genjax.image.metrics.inception_score import inception_score

pytestmark = pytest.mark.fast


def test_extremes_of_the_inception_score():
    certain = np.tile(np.eye(5), (20, 1))
    assert inception_score(certain) == pytest.approx((5.0, 0.0))
    assert inception_score(np.full((20, 5), 0.2)) == pytest.approx((1.0, 0.0))
    one_class = np.tile(np.eye(5)[:1], (20, 1)).astype(np.float32)
    assert inception_score(one_class) == pytest.approx((1.0, 0.0))


def test_inception_score_matches_a_loop():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 25)
    scores = []
    for rows in ([0, 8], [8, 16], [16, 25]):
        part = probabilities[slice(*rows)]
        marginal = part.sum(0) / len(part)
        divergences = [
            sum(p * np.log(p / m) for p, m in zip(row, marginal, strict=True)) for row in part
        ]
        scores.append(np.exp(np.mean(divergences)))
    found = inception_score(probabilities, splits=3)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_conditioning_accuracy_counts_hits():
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
    assert conditioning_accuracy(probabilities, np.array([0, 1, 1, 1])) == 0.75
