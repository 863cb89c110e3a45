"""The Frechet distance between Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^1/2 cov_b cov_a^1/2)^1/2)

Over Inception features this is the FID of Heusel et al. 2017, "GANs trained by a two time-scale
update rule converge to a local Nash equilibrium". Their covariance is the unbiased one, over
N - 1, and so is ours; NVIDIA's programs divide by N, which lowers the trace terms by 1/N (2e-5 of
them at 50,000 images).
"""

import numpy as np
from jaxtyping import Float


def moments(
    features: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """The mean and the unbiased covariance (over N - 1) of features [N, D], in float64.

    N must be at least 2.
    """
    assert len(features) > 1, "a covariance needs two examples"
    wide = features.astype(np.float64)
    mean = wide.mean(0)
    wide -= mean
    return mean, wide.T @ wide / (len(wide) - 1)


def frechet_distance(
    features_a: Float[np.ndarray, "N D"], features_b: Float[np.ndarray, "M D"]
) -> float:
    """The Frechet distance between two sets of features, 0 or more; nan if a feature is.

    It is biased upwards by about D / N: compare figures of equal N and M only, and let both be
    well above D.
    """
    return frechet_distance_from_moments(*moments(features_a), *moments(features_b))


def frechet_distance_from_moments(
    mean_a: Float[np.ndarray, " D"],
    covariance_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, " D"],
    covariance_b: Float[np.ndarray, "D D"],
) -> float:
    """The Frechet distance between two Gaussians, 0 or more; nan if a moment is not finite.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric product in
    the module's formula: real and stable where the covariances are singular, as they are with
    fewer examples than features.
    """
    if not all(np.isfinite(x).all() for x in (mean_a, covariance_a, mean_b, covariance_b)):
        return float("nan")
    mean_a, mean_b, covariance_a, covariance_b = (
        x.astype(np.float64) for x in (mean_a, mean_b, covariance_a, covariance_b)
    )
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ covariance_b @ root
    squares = np.linalg.eigvalsh((product + product.T) / 2)
    root_trace = np.sqrt(np.maximum(squares, 0.0)).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    distance = np.square(mean_a - mean_b).sum() + traces - 2 * root_trace
    # Equal sets leave rounding of either sign.
    return float(max(distance, 0.0))
