"""The kernel distance between two sets of features, the KID where they are Inception's."""

import numpy as np
from jaxtyping import Float


def kernel_distance(
    features_a: Float[np.ndarray, "N D"],
    features_b: Float[np.ndarray, "M D"],
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 0,
) -> float:
    """Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased.

    The mean over random subsets of the U-statistic: within a set, pairs of different examples
    only. It is 0 in expectation where the distributions are equal, whatever the number of
    examples, and can therefore come out negative.

    Args:
        features_a: [N, D], N at least 2.
        features_b: [M, D], M at least 2.
        subset_size: examples of each set in a subset, drawn without repetition; at most
            min(N, M) are taken.
        num_subsets: number of subsets.
        seed: of the draws.

    Paper: Binkowski et al. 2018, "Demystifying MMD GANs".
    """
    size = min(subset_size, len(features_a), len(features_b))
    assert size > 1, "pairs need two examples"
    random = np.random.default_rng(seed)
    features_a, features_b = features_a.astype(np.float64), features_b.astype(np.float64)
    total = 0.0
    for _ in range(num_subsets):
        a = features_a[random.choice(len(features_a), size, replace=False)]
        b = features_b[random.choice(len(features_b), size, replace=False)]
        within = _kernel(a, a) + _kernel(b, b)
        pairs = size * (size - 1)
        total += (within.sum() - np.trace(within)) / pairs - 2 * _kernel(a, b).mean()
    return float(total / num_subsets)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
