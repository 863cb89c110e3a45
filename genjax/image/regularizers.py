"""Penalties on gradients: of the discriminator at images, of the generator along its styles.

Letters: B batch, H height, W width, C channels, L layers, D style size.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Aux = TypeVar("Aux")
Images = Float[Array, "B H W C"]
Logits = Float[Array, "B"]


def logits_and_squared_gradient(
    score: Callable[[Images], tuple[Logits, Aux]], images: Images
) -> tuple[Logits, Float[Array, "B"], Aux]:
    """Logits of images, and the squared L2 norm of each logit's gradient at its image.

    The gradient of the sum of the logits is that of each, as long as no logit depends on another
    example; where one does (minibatch statistics), this is the usual approximation.

    Args:
        score: the discriminator, with whatever else it returns.
        images: where to look, float32 [B, H, W, C].
    """

    def total(images: Array) -> tuple[Array, tuple[Array, Aux]]:
        logits, aux = score(images)
        return jnp.sum(logits), (logits, aux)

    gradient, (logits, aux) = jax.grad(total, has_aux=True)(images)
    return logits, jnp.sum(jnp.square(gradient), (1, 2, 3)), aux


def zero_centered_penalty(squared: Float[Array, "B"]) -> Float[Array, ""]:
    """Half the mean squared gradient norm: R1 at real images, R2 at generated ones.

    Paper: Mescheder et al. 2018, "Which training methods for GANs do actually converge?".
    """
    return 0.5 * jnp.mean(squared)


def one_centered_penalty(squared: Float[Array, "B"]) -> Float[Array, ""]:
    """Mean squared distance of the gradient norm from one, at images between real and generated.

    Paper: Gulrajani et al. 2017, "Improved training of Wasserstein GANs".
    """
    # The root has no gradient at zero.
    return jnp.mean(jnp.square(jnp.sqrt(squared + 1e-12) - 1.0))


def between(real: Images, fake: Images, key: Key[Array, ""]) -> Images:
    """A random point on the line from each real image to a generated one."""
    share = jax.random.uniform(key, (len(real), 1, 1, 1))
    return real + share * (fake - real)


def path_lengths(
    synthesis: Callable[[Float[Array, "B L D"]], Images],
    styles: Float[Array, "B L D"],
    key: Key[Array, ""],
) -> Float[Array, "B"]:
    """How far each image moves, in a random direction, when its styles move by one.

    The norm of the gradient, with respect to the styles, of the image's product with normal
    noise; the noise is scaled so that the expectation does not depend on the resolution.

    Paper: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", section 3.2.

    Args:
        synthesis: from styles to images.
        styles: [B, L, D].
        key: chooses the noise.
    """

    def product(styles: Array) -> Array:
        images = synthesis(styles)
        height, width = images.shape[1:3]
        noise = jax.random.normal(key, images.shape, images.dtype)
        return jnp.sum(images * noise) / math.sqrt(height * width)

    gradient: Any = jax.grad(product)(styles)
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(gradient), -1), -1))


def path_length_penalty(
    lengths: Float[Array, "B"], mean: Float[Array, ""], decay: float = 0.01
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean squared distance of path lengths from their running mean.

    Args:
        lengths: of `path_lengths`.
        mean: the running mean so far.
        decay: how far it moves towards the mean of these lengths.

    Returns:
        The penalty, and the moved mean, through which no gradient flows back into later steps.
    """
    moved = mean + decay * (jax.lax.stop_gradient(jnp.mean(lengths)) - mean)
    return jnp.mean(jnp.square(lengths - moved)), moved
