"""Structural similarity of frames (SSIM), as a metric and as a loss.

Paper: Wang et al. 2004, "Image quality assessment: from error visibility to structural
similarity". Within a window around a pixel with weights that sum to one, from the means m, the
variances v and the covariance c of the two frames x and y,

    SSIM = (2 m_x m_y + C1) (2 c + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2)),
    C1 = (0.01 R)^2, C2 = (0.03 R)^2, R the range of the data,

averaged over the positions where the window lies inside the frame, and over channels. Windows,
kind of covariance and R differ between publications, and with them the figure by 0.02 and more.

Letters: B batch, T frames, N of both together, H height, W width, C channels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.video.metrics.frame_errors import Frames, FrameValues, clipped

_Fields = Float[Array, "2 N _ _"]


def gaussian_window(size: int, standard_deviation: float) -> tuple[float, ...]:
    """Weights of a Gaussian window along one axis, with sum one."""
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / standard_deviation) ** 2)
    return tuple((weights / weights.sum()).tolist())


GAUSSIAN = gaussian_window(11, 1.5)
"""The window of the paper."""
UNIFORM = (1 / 7,) * 7
"""The window of scikit-image, and with it OpenSTL's."""


def ssim(predictions: Frames, truth: Frames) -> FrameValues:
    """SSIM of clipped predictions as in the paper: Gaussian window of 11 pixels, range 1."""
    return structural_similarity(clipped(predictions), truth)


def openstl_ssim(predictions: Frames, truth: Frames) -> FrameValues:
    """SSIM of clipped predictions as OpenSTL's tables have it.

    It calls scikit-image up to 0.19.3 on floats without their range, which is then taken for 2:
    uniform window of 7 pixels, sample covariance, R = 2. Values are higher than with R = 1, by
    about 0.02 for a good prediction of Moving MNIST.
    """
    return structural_similarity(
        clipped(predictions), truth, window=UNIFORM, data_range=2.0, sample_covariance=True
    )


def structural_similarity(
    predictions: Frames,
    truth: Frames,
    *,
    window: Sequence[float] = GAUSSIAN,
    data_range: float = 1.0,
    sample_covariance: bool = False,
) -> FrameValues:
    """SSIM of every frame, from -1 to 1, which only equal frames reach; differentiable.

    Moments are taken along one axis after the other, and about the mean each time (the variance
    is the mean variance of the rows plus the variance of their means): E[x^2] - E[x]^2 cancels
    in float32, where C2 is as small as the rounding of bright windows allows to notice. Sums of
    shifted slices keep full precision on accelerators whose convolutions round their inputs.

    Args:
        predictions: [B, T, H, W, C], not clipped here: as a loss it must pull from outside too.
        truth: the same shape.
        window: weights along height and along width, with sum one.
        data_range: R, the difference of the largest and the smallest value that data can take.
        sample_covariance: divide by n - 1 rather than n for the n pixels of a uniform window.

    Raises:
        UserError: a frame is smaller than the window.
    """
    batch, frames, height, width, channels = predictions.shape
    size = len(window)
    if min(height, width) < size:
        raise UserError(
            f"frames of {height} x {width} pixels are smaller than the window of SSIM, "
            f"{size} x {size}; use larger frames, or do without SSIM"
        )
    kind = jnp.promote_types(jnp.promote_types(predictions.dtype, truth.dtype), jnp.float32)
    # A pixel's neighbour along the width is `channels` further on: one long axis for the slices.
    x, y = (
        clips.astype(kind).reshape(batch * frames, height, width * channels)
        for clips in (predictions, truth)
    )
    # The moments of x + y and x - y give those of x and y, and are one fewer:
    # v(x + y) = v_x + v_y + 2c and v(x - y) = v_x + v_y - 2c, and squared means alike.
    moments: tuple[_Fields, _Fields] = _moments(jnp.stack([x + y, x - y]), tuple(window), channels)
    mean, variance = moments
    pixels = size * size
    norm = pixels / (pixels - 1) if sample_covariance else 1.0
    luminance = _likeness(jnp.square(mean), (0.01 * data_range) ** 2)
    structure = _likeness(norm * variance, (0.03 * data_range) ** 2)
    return (luminance * structure).mean((1, 2)).reshape(batch, frames)


def _likeness(squares: _Fields, constant: float) -> Float[Array, "N _ _"]:
    """(2 x y + constant) / (x^2 + y^2 + constant) from the squares of x + y and of x - y."""
    plus, minus = squares
    return (0.5 * (plus - minus) + constant) / (0.5 * (plus + minus) + constant)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moments(fields: _Fields, window: tuple[float, ...], channels: int) -> tuple[_Fields, _Fields]:
    """Mean and variance at every position of the window inside the frame."""
    mean, variance = fields, None
    for axis, stride in _axes(channels):
        shifted = _shifted(mean, len(window), axis, stride)
        mean = _weighted(shifted, window)
        between = _weighted([jnp.square(value - mean) for value in shifted], window)
        if variance is None:
            variance = between
        else:
            within = _weighted(_shifted(variance, len(window), axis, stride), window)
            variance = within + between
        # Fused into the sums of the second axis, those of the first would be made over and over.
        mean, variance = lax.optimization_barrier((mean, variance))
    assert variance is not None
    return mean, variance


def _moments_forward(
    fields: _Fields, window: tuple[float, ...], channels: int
) -> tuple[tuple[_Fields, _Fields], tuple[_Fields, _Fields]]:
    moments: tuple[_Fields, _Fields] = _moments(fields, window, channels)
    return moments, (fields, moments[0])


def _moments_backward(
    window: tuple[float, ...],
    channels: int,
    saved: tuple[_Fields, _Fields],
    cotangents: tuple[_Fields, _Fields],
) -> tuple[_Fields]:
    """With weights w, d mean / d x_j = w_j and d variance / d x_j = 2 w_j (x_j - mean)."""
    fields, mean = saved
    of_mean, of_variance = cotangents
    constant, slope = (
        _spread(values, window, channels)
        for values in (of_mean - 2 * of_variance * mean, 2 * of_variance)
    )
    return (constant + slope * fields,)


_moments.defvjp(_moments_forward, _moments_backward)


def _spread(values: _Fields, window: tuple[float, ...], channels: int) -> _Fields:
    """The transpose of the weighted mean: from positions of the window back to pixels."""
    for axis, stride in _axes(channels):
        margin = (len(window) - 1) * stride
        padding = [(margin, margin) if place == axis else (0, 0) for place in range(values.ndim)]
        shifted = _shifted(jnp.pad(values, padding), len(window), axis, stride)
        values = lax.optimization_barrier(_weighted(shifted, window[::-1]))
    return values


def _axes(channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The axes of width and height, and how far apart pixels are on them."""
    return (3, channels), (2, 1)


def _shifted(values: _Fields, size: int, axis: int, stride: int) -> list[_Fields]:
    """What lies under each weight of the window, for every position of it along an axis."""
    positions = values.shape[axis] - (size - 1) * stride
    return [
        lax.slice_in_dim(values, k * stride, k * stride + positions, axis=axis) for k in range(size)
    ]


def _weighted(values: Sequence[_Fields], window: Sequence[float]) -> _Fields:
    total = window[0] * values[0]
    for weight, value in zip(window[1:], values[1:], strict=True):
        total = total + weight * value
    return total
