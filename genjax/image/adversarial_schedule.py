"""What changes over an adversarial run: rates, weights, the average, augmentation, Adam's steps.

Pure functions of the config and of the images (or clips) seen so far.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from genjax.image.ada_controller import ControllerState, init_controller, update_controller
from genjax.image.augmentation import ADAConfig
from genjax.image.game_config import AdamConfig, GameConfig
from genjax.task import Tree

Share = Float[Array, ""]
"""How much of the annealing is done, from 0 to 1."""


def annealed_share(config: GameConfig, seen: Int[Array, ""]) -> Share:
    """How much of the annealing is done after so many images: half a cosine."""
    images = config.annealing.images
    if images is None:
        return jnp.zeros(())
    return 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(seen / images, 1.0))


def towards(start: float, end: float | None, share: Share) -> Any:
    """Between two values; a plain number where there is nothing to change."""
    return start if end is None or end == start else start + (end - start) * share


def adam_step(
    config: GameConfig,
    role: Literal["generator", "discriminator"],
    params: Tree,
    opt_state: Tree,
    grads: Tree,
    share: Share,
) -> tuple[Tree, Tree]:
    """One step of Adam for a network of a role.

    A regulariser that every k-th step takes a step of its own makes k + 1 steps of k, so rate and
    betas are those of k / (k + 1) of a step (Karras et al. 2020, "Analyzing and improving the
    image quality of StyleGAN", appendix B).

    Returns:
        The parameters and the optimizer state after it.
    """
    adam: AdamConfig = getattr(config, f"{role}_optimizer")
    objective, annealing = config.objective, config.annealing
    if role == "discriminator":
        lazy = objective.has_penalties and objective.penalty_interval > 1
        interval = objective.penalty_interval
    else:
        lazy = objective.path_length_weight > 0
        interval = objective.path_length_interval
    part = interval / (interval + 1) if lazy else 1.0
    beta2 = towards(adam.beta2, annealing.beta2, share)
    method = optax.scale_by_adam(adam.beta1**part, beta2**part, adam.epsilon)
    updates, opt_state = method.update(grads, opt_state)
    rate = part * adam.learning_rate * towards(1.0, annealing.learning_rate, share)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state


def average_weight(config: GameConfig, seen: Int[Array, ""], share: Share) -> Float[Array, ""]:
    """What the average takes of the new parameters after a batch: 1 - 2^(-batch / half-life)."""
    average, batch_size = config.average, config.data.batch_size
    half_life = average.half_life_images * towards(1.0, config.annealing.half_life, share)
    if average.ramp_up is not None:
        half_life = jnp.minimum(half_life, average.ramp_up * (seen + batch_size))
    # Not one minus a power: of a long half-life little would be left of that in float32.
    return -jnp.expm1(-jnp.log(2.0) * batch_size / jnp.maximum(half_life, 1e-8))


def init_augmentation(config: GameConfig) -> ControllerState | None:
    """The controller's first state, or None where nothing adapts."""
    augmentation = config.augmentation
    if isinstance(augmentation, ADAConfig) and augmentation.probability is None:
        return init_controller(augmentation.initial_probability)
    return None


def augmentation_probability(
    config: GameConfig, controller: ControllerState | None, share: Share
) -> Float[Array, ""]:
    """The probability of each augmentation in this step: the controller's, or the held one."""
    if controller is not None:
        return controller["probability"]
    augmentation = config.augmentation
    held = augmentation.probability if isinstance(augmentation, ADAConfig) else None
    return jnp.float32(towards(held or 0.0, config.annealing.augmentation, share))


def control_augmentation(
    config: GameConfig,
    controller: ControllerState,
    real_logits: Float[Array, "N"],
    step: Int[Array, ""],
) -> ControllerState:
    """Let the controller see what the discriminators said of a step's real examples.

    An example counts once in `adjustment_images`, however many logits it has got.
    """
    augmentation = config.augmentation
    assert isinstance(augmentation, ADAConfig)
    examples = config.data.batch_size * config.objective.discriminator_steps
    return update_controller(
        controller,
        real_logits,
        step,
        target=augmentation.target,
        interval=augmentation.interval,
        adjustment_images=augmentation.adjustment_images * real_logits.size / examples,
    )
