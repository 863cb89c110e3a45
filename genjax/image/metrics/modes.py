"""How many modes of a distribution are generated, and how evenly.

A figure of "kl" is the reverse Kullback-Leibler divergence, in nats, of the histogram of generated
modes p against the uniform distribution over all K modes:

    KL(p || uniform) = sum_k p_k log(K p_k),  from 0 (even) to log K (one mode only)
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer


class ModeCoverage(NamedTuple):
    """Modes that are generated, and the divergence from all modes equally often."""

    modes: int
    kl: float


class ModeCoverageFloor(NamedTuple):
    """What a perfect generator gets, over many trials."""

    modes: float
    """Mean number of modes found."""
    kl: float
    """Mean divergence."""
    kl_standard_deviation: float


class MixtureCoverage(NamedTuple):
    """How well points fit a mixture of Gaussians."""

    modes: int
    """Modes with at least one point of high quality."""
    high_quality: float
    """Share of points within three standard deviations of the nearest mode."""
    kl: float
    """Divergence of the high-quality points' modes from uniform."""


def mode_coverage(labels: Integer[np.ndarray, " M"], num_modes: int) -> ModeCoverage:
    """Modes found and their KL(p || uniform), from the mode of every generated example.

    Args:
        labels: [M] in [0, num_modes), M at least 1.
        num_modes: how many there are, 1000 for Stacked MNIST (see `stacked_labels`).

    Paper: Srivastava et al. 2017, "VEEGAN" (26,000 examples); Metz et al. 2017, "Unrolled
    generative adversarial networks".
    """
    counts = np.bincount(labels, minlength=num_modes)
    assert len(labels) > 0 and len(counts) == num_modes, "a label is outside the modes"
    return ModeCoverage(int(np.count_nonzero(counts)), float(_divergence(counts)))


def stacked_labels(probabilities: Float[np.ndarray, "M C K"]) -> Integer[np.ndarray, " M"]:
    """The mode of images whose C channels each show one of K classes, in [0, K^C).

    Args:
        probabilities: of each class for each channel, [M, C, K]; the likeliest counts. The first
            channel is the leading digit.
    """
    num_classes = probabilities.shape[2]
    labels = np.zeros(len(probabilities), np.int64)
    for digit in probabilities.argmax(2).T:
        labels = labels * num_classes + digit
    return labels


def mode_coverage_floor(
    probabilities: Float[np.ndarray, " K"], count: int, trials: int = 20, seed: int = 0
) -> ModeCoverageFloor:
    """The figures of `count` draws from the real distribution itself, by simulation.

    A finite sample is never even: the divergence of a uniform sampler is about (K - 1) / (2 count).

    Args:
        probabilities: real share of each mode, [K]; for Stacked MNIST the products of three
            digits' shares.
        count: examples in a trial.
        trials: how many to average.
        seed: of the draws.
    """
    shares = probabilities.astype(np.float64)
    counts = np.random.default_rng(seed).multinomial(count, shares / shares.sum(), size=trials)
    divergences = _divergence(counts)
    return ModeCoverageFloor(
        float(np.count_nonzero(counts, axis=1).mean()),
        float(divergences.mean()),
        float(divergences.std()),
    )


def mixture_coverage(
    points: Float[np.ndarray, "M D"], modes: Float[np.ndarray, "K D"], standard_deviation: float
) -> MixtureCoverage:
    """Modes found, share of high quality and divergence on a mixture of equal round Gaussians.

    A point is of high quality within three standard deviations (Euclidean distance) of the mode
    nearest to it; in the plane 98.9% of real points are. A mode is found if one such point is
    nearest to it, and the divergence is that of the histogram p of those points' modes,
    sum_k p_k log(K p_k). Without any such point the divergence is log K, the worst.

    Args:
        points: generated points, [M, D], M at least 1; a point that is not finite has no quality.
        modes: centres of the Gaussians, [K, D], such as a ring of 8 or a grid of 25.
        standard_deviation: of every Gaussian in every direction.

    Paper: Srivastava et al. 2017, "VEEGAN"; Lin et al. 2018, "PacGAN".
    """
    distances = np.linalg.norm(
        points[:, None].astype(np.float64) - modes.astype(np.float64), axis=2
    )
    good = distances.min(1) <= 3 * standard_deviation
    counts = np.bincount(distances.argmin(1)[good], minlength=len(modes))
    kl = float(_divergence(counts)) if good.any() else float(np.log(len(modes)))
    return MixtureCoverage(int(np.count_nonzero(counts)), float(good.mean()), kl)


def _divergence(counts: np.ndarray) -> Any:
    """KL(p || uniform) of histograms, [..., K] to [...]."""
    shares = counts / counts.sum(-1, keepdims=True)
    ratio = np.where(shares > 0, shares * counts.shape[-1], 1.0)
    # The sum is 0 or more; an even histogram leaves rounding of either sign.
    return np.maximum((shares * np.log(ratio)).sum(-1), 0.0)
