"""Errors of predicted frames, pixel by pixel, under the two conventions in circulation.

OpenSTL's (Tan et al. 2023, "OpenSTL: A comprehensive benchmark of spatio-temporal predictive
learning") add up the squared or absolute errors of a frame and leave predictions unclipped; the
standard ones average over pixels and clip predictions to [0, 1] first. Figures of the two cannot
be compared, so OpenSTL's carry its name.

Everything is pure JAX, and gives one value a frame. Letters: B batch, T frames, H height, W width,
C channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Frames = Float[Array, "B T H W C"]
FrameValues = Float[Array, "B T"]

PSNR_CAP = 100.0
"""Decibels of a frame without error, whose ratio is infinite: the mean has to stay finite."""

_PIXELS = (-3, -2, -1)


def openstl_mse(predictions: Frames, truth: Frames) -> FrameValues:
    """Squared error summed over the pixels and channels of a frame, predictions unclipped."""
    return jnp.square(_difference(predictions, truth)).sum(_PIXELS)


def openstl_mae(predictions: Frames, truth: Frames) -> FrameValues:
    """Absolute error summed over the pixels and channels of a frame, predictions unclipped."""
    return jnp.abs(_difference(predictions, truth)).sum(_PIXELS)


def openstl_psnr(predictions: Frames, truth: Frames) -> FrameValues:
    """OpenSTL's peak signal-to-noise ratio in decibels, which is the standard one (`psnr`).

    OpenSTL's own mean is infinite as soon as one frame has no error; here it counts `PSNR_CAP`.
    """
    return psnr(predictions, truth)


def mse(predictions: Frames, truth: Frames) -> FrameValues:
    """Mean squared error over the pixels and channels of a frame, predictions clipped."""
    return jnp.square(_difference(clipped(predictions), truth)).mean(_PIXELS)


def mae(predictions: Frames, truth: Frames) -> FrameValues:
    """Mean absolute error over the pixels and channels of a frame, predictions clipped."""
    return jnp.abs(_difference(clipped(predictions), truth)).mean(_PIXELS)


def psnr(predictions: Frames, truth: Frames) -> FrameValues:
    """Peak signal-to-noise ratio of a frame, -10 log10 `mse`, in decibels; at most `PSNR_CAP`."""
    return -10.0 * jnp.log10(jnp.maximum(mse(predictions, truth), 10.0 ** (-PSNR_CAP / 10.0)))


def clipped(predictions: Frames) -> Frames:
    """Predictions in the range of the truth, [0, 1]."""
    return jnp.clip(predictions, 0.0, 1.0)


def _difference(predictions: Frames, truth: Frames) -> Frames:
    """In float32 at least: bfloat16 would round the errors."""
    kind = jnp.promote_types(jnp.promote_types(predictions.dtype, truth.dtype), jnp.float32)
    return predictions.astype(kind) - truth.astype(kind)
