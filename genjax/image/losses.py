"""Adversarial losses: what a discriminator's logits on real and generated images cost.

Letters: B batch.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LossName = Literal[
    "non_saturating", "saturating", "hinge", "least_squares", "wasserstein", "relativistic"
]
"""The losses that a config can name."""

Logits = Float[Array, "B"]

Loss = Callable[[Logits, Logits], Float[Array, ""]]
"""From the logits of real and of generated images to a mean over the batch."""


class AdversarialLoss(NamedTuple):
    """The two sides of a game.

    Attributes:
        discriminator: what the discriminator minimises.
        generator: what the generator minimises.
        pairs: whether the generator's side looks at the logits of real images.
    """

    discriminator: Loss
    generator: Loss
    pairs: bool = False


def _logistic(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Cross-entropy of telling real from generated images, in nats (summed over the two)."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


LOSSES: Mapping[LossName, AdversarialLoss] = {
    # Goodfellow et al. 2014, "Generative adversarial nets": its practical generator loss, and the
    # minimax one.
    "non_saturating": AdversarialLoss(
        _logistic, lambda real, fake: jnp.mean(jax.nn.softplus(-fake))
    ),
    "saturating": AdversarialLoss(_logistic, lambda real, fake: -jnp.mean(jax.nn.softplus(fake))),
    # Lim and Ye 2017, "Geometric GAN"; Miyato et al. 2018, "Spectral normalization".
    "hinge": AdversarialLoss(
        lambda real, fake: jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)),
        lambda real, fake: -jnp.mean(fake),
    ),
    # Mao et al. 2017, "Least squares generative adversarial networks", with targets 1 and 0.
    "least_squares": AdversarialLoss(
        lambda real, fake: 0.5 * (jnp.mean(jnp.square(real - 1.0)) + jnp.mean(jnp.square(fake))),
        lambda real, fake: 0.5 * jnp.mean(jnp.square(fake - 1.0)),
    ),
    # Arjovsky et al. 2017, "Wasserstein GAN".
    "wasserstein": AdversarialLoss(
        lambda real, fake: jnp.mean(fake) - jnp.mean(real), lambda real, fake: -jnp.mean(fake)
    ),
    # Jolicoeur-Martineau 2018, "The relativistic discriminator"; Huang et al. 2024, "The GAN is
    # dead; long live the GAN!": each generated image is judged against one real one.
    "relativistic": AdversarialLoss(
        lambda real, fake: jnp.mean(jax.nn.softplus(fake - real)),
        lambda real, fake: jnp.mean(jax.nn.softplus(real - fake)),
        pairs=True,
    ),
}
"""Each loss by its name."""
