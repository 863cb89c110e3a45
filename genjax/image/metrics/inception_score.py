"""The Inception Score, which is one only for the class probabilities of Inception v3."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class InceptionScore(NamedTuple):
    """Over the splits; between 1 and the number of classes."""

    mean: float
    standard_deviation: float


def inception_score(probabilities: Float[np.ndarray, "M K"], splits: int = 10) -> InceptionScore:
    """The score exp E KL(p(class | image) || p(class)), in each of several splits.

    Args:
        probabilities: of each class for each image, [M, K], rows that sum to 1; in random order,
            since splits are runs of rows. M at least `splits`.
        splits: number of splits; the score is their mean.

    Paper: Salimans et al. 2016, "Improved techniques for training GANs".
    """
    assert len(probabilities) >= splits, "every split needs an image"
    scores = []
    bounds = len(probabilities) * np.arange(splits + 1) // splits
    for start, end in itertools.pairwise(bounds):
        part = probabilities[start:end].astype(np.float64)
        marginal = part.mean(0)
        # Where a probability is 0, so is its term, whatever the marginal.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part != 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
