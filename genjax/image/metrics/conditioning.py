"""Whether images show the class that was asked for."""

import numpy as np
from jaxtyping import Float, Integer


def conditioning_accuracy(
    probabilities: Float[np.ndarray, "M K"], labels: Integer[np.ndarray, " M"]
) -> float:
    """Share of images whose likeliest class is the one asked for.

    The classifier's own accuracy on real images is the ceiling to print beside it.

    Args:
        probabilities: of each class by a trained classifier, [M, K], M at least 1.
        labels: classes asked for, [M] in [0, K).
    """
    assert len(labels) > 0
    return float((probabilities.argmax(1) == labels).mean())
