"""Upsample, filter, downsample: `upfirdn2d` and what is made of it.

Resampling by a FIR filter as StyleGAN does it (Karras et al. 2020, "Analyzing and improving the
image quality of StyleGAN", and 2021, "Alias-free generative adversarial networks"): insert zeros
between the pixels, pad or crop, convolve, keep every n-th pixel.

Letters: B batch, H height, W width, C channels.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.convolution import PaddingMode, wrap

Filter = Sequence[float]
"""Taps of a filter that is applied along height and along width, such as (1, 3, 3, 1)."""

Images = Float[Array, "B H W C"]


def normalized(taps: Filter) -> tuple[float, ...]:
    """The taps divided by their sum, so that a flat image stays as it is."""
    total = float(sum(taps))
    return tuple(float(tap) / total for tap in taps)


def upfirdn2d(
    images: Images,
    taps: Filter,
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 C"]:
    """Insert zeros, pad, convolve with the outer product of the taps, and thin out.

    The backends want opposite forms: a depthwise convolution, which costs a TPU a third of the
    memory traffic of anything else, has no fast path on XLA:CPU, where sums of shifted slices of
    each phase are a hundred times faster.

    Args:
        images: [B, H, W, C].
        taps: the filter along height and along width. It is convolved with, in the sense of signal
            processing: flipped as the kernel of a neural network's convolution.
        up: each pixel is followed by up - 1 zeros, the last one too.
        down: keep every `down`-th pixel of the result, beginning with the first.
        padding: pixels (top, bottom, left, right) to add after zeros were inserted; negative ones
            crop.
        gain: factor of the result.
        padding_mode: "circular" continues the images periodically instead of with zeros.

    Returns:
        [B, (H up + top + bottom - len(taps)) // down + 1, .., C].
    """
    top, bottom, left, right = padding
    if padding_mode == "circular":
        rows, columns = (max(-(-max(pair) // up), 0) for pair in ((top, bottom), (left, right)))
        images = wrap(images, rows, rows, columns, columns)
        top, bottom = top - rows * up, bottom - rows * up
        left, right = left - columns * up, right - columns * up
    scaled = np.asarray(taps, np.float64) * gain**0.5
    if gain < 0:
        raise ValueError(f"gain should not be negative, and is {gain}")
    settings = {"taps": scaled, "up": up, "down": down, "padding": (top, bottom, left, right)}
    return lax.platform_dependent(
        images,
        cpu=functools.partial(_by_phase, **settings),
        default=functools.partial(_depthwise, **settings),
    )


def _by_phase(
    images: Array, *, taps: np.ndarray, up: int, down: int, padding: tuple[int, int, int, int]
) -> Array:
    """One axis after the other, as sums of shifted slices."""
    rows = _axis(images, 1, taps, up, down, padding[0], padding[1])
    return _axis(rows, 2, taps, up, down, padding[2], padding[3])


def _axis(
    images: Array, axis: int, taps: np.ndarray, up: int, down: int, before: int, after: int
) -> Array:
    """`upfirdn2d` along one axis.

    Output n reads the zero-inserted signal at n down + k - before for the flipped taps k; only the
    multiples of `up` among these are not zero. Outputs whose n down have the same remainder by
    `up` (a phase) read with the same taps, so each phase is a sum of slices.
    """
    size = images.shape[axis]
    length = (size * up + before + after - len(taps)) // down + 1
    period = up // math.gcd(up, down)  # outputs until the phase repeats
    stride = down * period // up  # pixels by which the input moves on meanwhile
    count = -(-length // period)
    terms: list[list[tuple[int, float]]] = []  # first pixel and tap, for each phase
    for phase in range(period):
        places = [divmod(phase * down + k - before, up) for k in range(len(taps))]
        pairs = zip(places, taps[::-1], strict=True)
        terms.append([(pixel, float(tap)) for (pixel, rest), tap in pairs if not rest])
    first = min(0, *(pixel for term in terms for pixel, _ in term))
    last = max(pixel for term in terms for pixel, _ in term) + (count - 1) * stride
    sides = [(0, 0)] * images.ndim
    sides[axis] = (-first, max(last - size + 1, 0))
    padded = jnp.pad(images, sides)

    def slices(pixel: int) -> Array:
        start = pixel - first
        return lax.slice_in_dim(padded, start, start + (count - 1) * stride + 1, stride, axis)

    phases = []
    for term in terms:
        # A filter shorter than `up` leaves phases without a tap.
        products = [
            slices(pixel) * jnp.asarray(tap, images.dtype) for pixel, tap in term or [(0, 0.0)]
        ]
        phases.append(functools.reduce(jnp.add, products))
    if period == 1:
        return phases[0]
    shape = list(images.shape)
    shape[axis] = count * period
    return lax.slice_in_dim(jnp.stack(phases, axis + 1).reshape(shape), 0, length, axis=axis)


def _depthwise(
    images: Array, *, taps: np.ndarray, up: int, down: int, padding: tuple[int, int, int, int]
) -> Array:
    """A depthwise convolution whose input is dilated."""
    channels = images.shape[-1]
    # The zeros behind the last pixel count too, which dilation leaves out.
    sides = [(padding[0], padding[1] + up - 1), (padding[2], padding[3] + up - 1)]
    dilation = (up, up)
    if min(padding) < 0:
        # XLA:CPU computes a strided convolution with one negative and one positive padding
        # wrongly; `lax.pad` crops rightly.
        inner = [(low, high, up - 1) for low, high in sides]
        images = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
        sides, dilation = [(0, 0), (0, 0)], (1, 1)
    kernel = np.outer(taps[::-1], taps[::-1])[:, :, None, None]
    return lax.conv_general_dilated(
        images,
        jnp.asarray(np.tile(kernel, (1, 1, 1, channels)), images.dtype),
        (down, down),
        sides,
        lhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def filter2d(
    images: Images, taps: Filter, *, gain: float = 1.0, padding_mode: PaddingMode = "zeros"
) -> Images:
    """Convolve with a filter; the size stays as it is."""
    size = len(taps)
    pads = _both(size // 2, (size - 1) // 2)
    return upfirdn2d(images, taps, padding=pads, gain=gain, padding_mode=padding_mode)


def upsample2d(
    images: Images,
    taps: Filter,
    *,
    up: int = 2,
    gain: float = 1.0,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 C"]:
    """Grow `up` times, the filter interpolating; for normalised taps brightness stays the same."""
    pads = _both((len(taps) + up - 1) // 2, (len(taps) - up) // 2)
    return upfirdn2d(
        images, taps, up=up, padding=pads, gain=gain * up**2, padding_mode=padding_mode
    )


def downsample2d(
    images: Images,
    taps: Filter,
    *,
    down: int = 2,
    gain: float = 1.0,
    padding_mode: PaddingMode = "zeros",
) -> Float[Array, "B H2 W2 C"]:
    """Shrink `down` times, the filter averaging."""
    pads = _both((len(taps) - down + 1) // 2, (len(taps) - down) // 2)
    return upfirdn2d(images, taps, down=down, padding=pads, gain=gain, padding_mode=padding_mode)


def _both(before: int, after: int) -> tuple[int, int, int, int]:
    """The same padding for height and width."""
    return before, after, before, after
