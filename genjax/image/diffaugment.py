"""DiffAugment: strong, differentiable augmentation of all images that a discriminator sees.

Zhao, Liu, Lin, Zhu & Han 2020, "Differentiable Augmentation for Data-Efficient GAN Training".

Shapes: B batch, H height, W width, C channels; images are in about [-1, 1].
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.image.augmentation_pixels import draw_type, erase, on_colour, per_image, translate

Policy = Literal["color", "translation", "cutout"]
"""The paper's names of its three policies."""

POLICIES: tuple[Policy, ...] = ("color", "translation", "cutout")
"""The policies, in the order in which they are applied."""

_TRANSLATION = 1 / 8
_CUTOUT = 1 / 2


def shift_brightness(
    images: Float[Array, "B H W C"], shift: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Add a number to all channels."""
    return images + per_image(shift)


def scale_saturation(
    images: Float[Array, "B H W C"], factor: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Scale the distance of each pixel's channels from their mean; nothing changes at C = 1."""
    if images.shape[-1] == 1:
        return images
    mean = jnp.mean(images, axis=-1, keepdims=True)
    return (images - mean) * per_image(factor) + mean


def scale_contrast(
    images: Float[Array, "B H W C"], factor: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Scale the distance of all values from the image's mean."""
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * per_image(factor) + mean


def _colour(images: Array, key: Array) -> Array:
    draws = jax.random.uniform(key, (3, images.shape[0]), draw_type(images))
    draws = draws.astype(images.dtype)

    def change(colours: Array) -> Array:
        colours = shift_brightness(colours, draws[0] - 0.5)
        colours = scale_saturation(colours, 2.0 * draws[1])
        return scale_contrast(colours, draws[2] + 0.5)

    return on_colour(change, images)


def _rounded(size: int, share: float) -> int:
    return int(size * share + 0.5)


def _translation(images: Array, key: Array, circular: bool) -> Array:
    batch, height, width, _ = images.shape
    limits = (_rounded(height, _TRANSLATION), _rounded(width, _TRANSLATION))
    bound = jnp.asarray(limits, jnp.int32)
    offsets = jax.random.randint(key, (batch, 2), -bound, bound + 1, jnp.int32)
    return translate(images, offsets, limits, "wrap" if circular else "zeros")


def _cutout(images: Array, key: Array) -> Array:
    batch, height, width, _ = images.shape
    sizes = (_rounded(height, _CUTOUT), _rounded(width, _CUTOUT))
    size = jnp.asarray(sizes, jnp.int32)
    # The centre lies anywhere in the image, so that the square may stick out of it.
    last = jnp.asarray((height + 1 - sizes[0] % 2, width + 1 - sizes[1] % 2), jnp.int32)
    low = jax.random.randint(key, (batch, 2), 0, last, jnp.int32) - size // 2
    return erase(images, low, low + size)


def diffaugment(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    *,
    policies: tuple[Policy, ...] = POLICIES,
    circular: bool = False,
) -> Float[Array, "B H W C"]:
    """Augment every image, each with its own draws.

    "color": brightness + U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5); an alpha
    channel stays, and one channel has no saturation. "translation": by up to an eighth of each
    size, zeros moving in. "cutout": a rectangle of half of each size becomes zero.

    Args:
        images: the images, of 1, 3 or 4 channels.
        key: random key.
        policies: which to apply; their order is always that of `POLICIES`.
        circular: for textures that tile: translations wrap.

    Raises:
        UserError: "color" is asked for with another number of channels.
    """
    for number, policy in enumerate(POLICIES):
        if policy not in policies:
            continue
        # By number, so that a policy's draws do not depend on which others there are.
        policy_key = jax.random.fold_in(key, number)
        match policy:
            case "color":
                images = _colour(images, policy_key)
            case "translation":
                images = _translation(images, policy_key, circular)
            case "cutout":
                images = _cutout(images, policy_key)
    return images
