"""Perceptual path length: how much an image changes along short paths between latents.

Two latents are interpolated at t and at t + epsilon (1e-4), t uniform in [0, 1]: by `slerp` in Z,
by `lerp` in W. The squared distance of the two images' features over epsilon^2 is one sample of
the path length; `perceptual_path_length` averages them without the extremes. The figure belongs
to the features it was taken in, and its name says which. Images must not be rounded to 256 levels
on the way (`quantize=False` in the extractors): the differences are far below one level.

Paper: Karras et al. 2019, "A style-based generator architecture for generative adversarial
networks".
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def lerp(
    start: Float[Array, "B Z"], end: Float[Array, "B Z"], position: Float[Array, " B"]
) -> Float[Array, "B Z"]:
    """Points on straight lines, [B, Z], `start` at position 0 and `end` at 1."""
    return start + (end - start) * position[:, None]


def slerp(
    start: Float[Array, "B Z"], end: Float[Array, "B Z"], position: Float[Array, " B"]
) -> Float[Array, "B Z"]:
    """Points on great circles, [B, Z], `start` at position 0 and `end` at 1.

    The direction turns at constant speed; the length goes linearly from one latent's to the
    other's, so that Gaussian latents stay where the generator knows them. Between opposite
    latents, which no circle connects uniquely, the path is undefined.

    Args:
        start: latents, none of them 0.
        end: latents, none of them 0.
        position: [B] in [0, 1].
    """
    start_length = jnp.linalg.norm(start, axis=1)
    end_length = jnp.linalg.norm(end, axis=1)
    start, end = start / start_length[:, None], end / end_length[:, None]
    cosine = (start * end).sum(1, keepdims=True)
    across = end - cosine * start
    sine = jnp.linalg.norm(across, axis=1, keepdims=True)
    angle = jnp.arctan2(sine, cosine) * position[:, None]
    # Equal directions have no "across"; their angle is 0, and so is its weight.
    direction = jnp.cos(angle) * start + jnp.sin(angle) * across / jnp.maximum(sine, 1e-12)
    return direction * lerp(start_length[:, None], end_length[:, None], position)


def path_distances(
    features_start: Float[Array, "B D"], features_end: Float[Array, "B D"], epsilon: float = 1e-4
) -> Float[Array, " B"]:
    """Squared distances between features [B, D] of images `epsilon` apart, over epsilon^2."""
    return jnp.square((features_end - features_start) / epsilon).sum(1)


def perceptual_path_length(
    distances: Float[np.ndarray, " M"], low: float = 1, high: float = 99
) -> float:
    """The mean of path distances between two of their percentiles, both included.

    Args:
        distances: [M] from `path_distances`, M at least 1.
        low: percentile below which distances are dropped, rounded down to a distance.
        high: percentile above which distances are dropped, rounded up to a distance.
    """
    distances = distances.astype(np.float64)
    least = np.percentile(distances, low, method="lower")
    most = np.percentile(distances, high, method="higher")
    return float(distances[(distances >= least) & (distances <= most)].mean())
