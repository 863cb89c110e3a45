"""ADA's image-space filtering and corruptions: octave bands amplified, noise, cutout.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B.

Shapes: B batch, H height, W width, C channels; images are in about [-1, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.image.augmentation_pixels import (
    PAD_MODES,
    Boundary,
    Probability,
    draw_type,
    drawn_or,
    erase,
    on_colour,
    per_image,
    select,
    uniform_and_normal,
)

# H(z) H(1/z) / 2 of the sym2 wavelet's low-pass H, by distance from the middle. It is a half-band
# filter, and the high-pass' counterpart is one minus it.
_LOW_PASS = {0: 1 / 2, 1: 9 / 32, 3: -1 / 32}
_LEVELS = 3

_EXPECTED_POWER = np.array([10, 1, 1, 1]) / 13
_NOISE = 0.1
_CUTOUT = 0.5


def draw_gains(
    key: Key[Array, ""],
    batch: int,
    probability: Probability,
    dtype: jnp.dtype | type = jnp.float32,
) -> Float[Array, "B 4"]:
    """Draw gains of the four bands, the lowest first; 1 where no band was amplified.

    Each band is amplified with the given probability by a log-normal factor; then all bands are
    scaled so that the power of a natural image (as 1 / frequency) stays as it was.
    """
    uniform, normal = uniform_and_normal(key, batch, 4, 4, dtype)
    # The bands' powers add up to 1, so that this is 1 to the bit where nothing was drawn.
    share = jnp.asarray(_EXPECTED_POWER, dtype)
    gains = jnp.ones((batch, 4), dtype)
    for band in range(4):
        factor = drawn_or(uniform[band], probability, jnp.exp2(normal[band]), 1.0)
        power = 1.0 + share[band] * (factor**2 - 1.0)
        amplified = jnp.where(jnp.arange(4) == band, factor[:, None], 1.0)
        gains = gains * amplified / jnp.sqrt(power)[:, None]
    return gains


def _low_pass(images: Array, axis: int, spacing: int, boundary: Boundary) -> Array:
    reach = max(_LOW_PASS) * spacing
    widths = [(reach, reach) if one == axis else (0, 0) for one in range(images.ndim)]
    padded = jnp.pad(images, widths, mode=PAD_MODES[boundary])
    size = images.shape[axis]

    def moved(distance: int) -> Array:
        start = reach + distance * spacing
        return jax.lax.slice_in_dim(padded, start, start + size, axis=axis)

    total = _LOW_PASS[0] * images
    for distance, weight in _LOW_PASS.items():
        if distance:
            total = total + weight * (moved(distance) + moved(-distance))
    return total


def amplify_bands(
    images: Float[Array, "B H W C"],
    gains: Float[Array, "B 4"],
    boundary: Boundary = "reflect",
) -> Float[Array, "B H W C"]:
    """Amplify the octave bands of each image along rows and along columns.

    The bands end at 1/8, 1/4, 1/2 and 1 of the highest frequency. With L_k the image after k
    low-pass filters, each twice as wide as the one before, they are L_3, L_2 - L_3, L_1 - L_2 and
    L_0 - L_1, which add up to the image. No filter depends on the image, so that it takes no
    grouped convolution: three filters of five taps, then a weighted sum.
    """
    gain = per_image(gains.astype(images.dtype).T, 5)
    for axis in (1, 2):
        level = images
        images = gain[3] * level
        for number in range(_LEVELS):
            level = _low_pass(level, axis, 2**number, boundary)
            images = images + (gain[2 - number] - gain[3 - number]) * level
    return images


def random_filter(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    probability: Probability,
    boundary: Boundary = "reflect",
) -> Float[Array, "B H W C"]:
    """Amplify each band of the colours with the given probability; alpha stays.

    Raises:
        UserError: the images have neither 1 nor 3 nor 4 channels.
    """
    gains = draw_gains(key, images.shape[0], probability, draw_type(images))
    new = on_colour(lambda colours: amplify_bands(colours, gains, boundary), images)
    return select(jnp.any(gains != 1, axis=1), new, images)


def random_noise(
    images: Float[Array, "B H W C"], key: Key[Array, ""], probability: Probability
) -> Float[Array, "B H W C"]:
    """Add normal noise of a half-normal deviation (0.1) to the colours of some images.

    Raises:
        UserError: the images have neither 1 nor 3 nor 4 channels.
    """
    dtype = draw_type(images)
    parameter_key, noise_key = jax.random.split(key)
    uniform, normal = uniform_and_normal(parameter_key, images.shape[0], 1, 1, dtype)
    deviation = drawn_or(uniform[0], probability, _NOISE * jnp.abs(normal[0]), 0.0)

    def change(colours: Array) -> Array:
        noise = per_image(deviation) * jax.random.normal(noise_key, colours.shape, dtype)
        return colours + noise.astype(colours.dtype)

    return select(deviation != 0, on_colour(change, images), images)


def random_cutout(
    images: Float[Array, "B H W C"], key: Key[Array, ""], probability: Probability
) -> Float[Array, "B H W C"]:
    """Set a rectangle of half of each size, anywhere, to zero in some images, alpha included."""
    uniform = jax.random.uniform(key, (3, images.shape[0]), jnp.float32)
    sizes = jnp.asarray(images.shape[1:3], jnp.float32)
    # Far outside where there is to be none.
    centre = drawn_or(uniform[0], probability, uniform[1:].T, -2.0)
    low = jnp.round((centre - _CUTOUT / 2) * sizes)
    high = jnp.round((centre + _CUTOUT / 2) * sizes)
    return erase(images, low, high)
