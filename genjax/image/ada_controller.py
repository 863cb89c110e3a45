"""How ADA's probability follows overfitting: the share of real images that D is sure of.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 3.1. The
discriminator overfits when its sign on the real images it trains on is positive for nearly all of
them. Augmentation becomes more likely while r_t = E[sign D(real)] is above a target, and less
likely below it.

The state is sums, so that it is global over devices and any number of them gives the same one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ControllerState = dict[str, Float[Array, ""]]
"""What flows from step to step, a plain dict as checkpoints want it.

"probability": of each augmentation, in [0, 1]; "sign_sum": sum of the signs of real images'
logits since the last adjustment; "count": number of these logits.
"""


def init_controller(probability: float = 0.0) -> ControllerState:
    """The state before the first step."""
    # Three arrays, since a donated buffer may not be given twice.
    return {
        "probability": jnp.asarray(probability, jnp.float32),
        "sign_sum": jnp.zeros((), jnp.float32),
        "count": jnp.zeros((), jnp.float32),
    }


def update_probability(
    probability: Float[Array, ""],
    sign_sum: Float[Array, ""],
    count: Float[Array, ""],
    *,
    target: float,
    adjustment_images: float,
) -> Float[Array, ""]:
    """Move the probability by the images seen, towards the side that r_t asks for.

    p + sign(r_t - target) count / adjustment_images, clipped to [0, 1], with
    r_t = sign_sum / count; without images nothing changes.

    Args:
        probability: p so far.
        sign_sum: sum of sign D over the real images since the last adjustment.
        count: number of these images: batch size times steps.
        target: r_t to hold.
        adjustment_images: images over which p would go from 0 to 1.
    """
    overfitting = jnp.sign(sign_sum / jnp.maximum(count, 1.0) - target)
    return jnp.clip(probability + overfitting * count / adjustment_images, 0.0, 1.0)


def update_controller(
    state: ControllerState,
    real_logits: Float[Array, " B"],
    step: Int[Array, ""] | int,
    *,
    target: float,
    interval: int,
    adjustment_images: float,
) -> ControllerState:
    """Take in a step's logits of real images, and adjust the probability every few steps.

    Args:
        state: the state before the step.
        real_logits: what the discriminator said of the (augmented) real images.
        step: number of steps done before this one.
        target: r_t to hold.
        interval: adjust after this many steps.
        adjustment_images: images over which the probability would go from 0 to 1.
    """
    signs = jnp.sign(real_logits.astype(jnp.float32))
    sign_sum = state["sign_sum"] + jnp.sum(signs)
    count = state["count"] + real_logits.size
    adjusted = update_probability(
        state["probability"],
        sign_sum,
        count,
        target=target,
        adjustment_images=adjustment_images,
    )
    due = (jnp.asarray(step) + 1) % interval == 0
    return {
        "probability": jnp.where(due, adjusted, state["probability"]),
        "sign_sum": jnp.where(due, 0.0, sign_sum),
        "count": jnp.where(due, 0.0, count),
    }
