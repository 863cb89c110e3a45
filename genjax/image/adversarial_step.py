"""One step of an adversarial game: both networks, their regularisers, the average, the controller.

Everything is a pure function of the train state and a batch. The networks are Linen modules:

    generator(latents [B, Z], labels [B] or None, train=..) -> images [B, H, W, C]
    discriminator(images, labels, train=..) -> logits [B]

What they keep beside parameters lives in their collection "statistics"; the random streams "noise"
and "mixing" are the generator's. A generator that also has the methods `styles` and `synthesis` can
be path-length regularised.

Letters: B batch, H height, W width, C channels, Z latent size.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num

from genjax import optim
from genjax.image import adversarial_schedule as schedule
from genjax.image.adversarial_config import AdversarialConfig
from genjax.image.augmentation import ADAConfig, make_augmentation, mirror
from genjax.image.losses import LOSSES
from genjax.image.regularizers import (
    between,
    logits_and_squared_gradient,
    one_centered_penalty,
    path_length_penalty,
    path_lengths,
    zero_centered_penalty,
)
from genjax.parallel.partition import split_like_batch
from genjax.task import Batch, TrainState, Tree

Network = Literal["generator", "discriminator"]
"""The names of the networks in the train state's dicts."""

GENERATOR: Network = "generator"
DISCRIMINATOR: Network = "discriminator"

Images = Float[Array, "B H W C"]
Labels = Int[Array, "B"] | None


class Variant(NamedTuple):
    """Which regularisers a step has."""

    penalties: bool = False
    path_length: bool = False


def to_float(images: Num[Array, "B H W C"]) -> Images:
    """Stored images in about [-1, 1]: uint8 is scaled, points in the plane stay as they are."""
    return images / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


class AdversarialStep:
    """The step of a config's game, and the state before the first one."""

    def __init__(
        self,
        config: AdversarialConfig,
        generator: nn.Module,
        discriminator: nn.Module,
        image_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        """Set up the game between two networks of images of a shape."""
        self.config = config
        self.generator = generator
        self.discriminator = discriminator
        self.image_shape = image_shape
        self.num_classes = num_classes
        self._turns = config.objective.discriminator_steps
        self._loss = LOSSES[config.objective.loss]
        self._augment = make_augmentation(config.augmentation, config.model.circular)

    # ---- before the first step ----------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Fresh networks, optimizers and controllers."""
        generator_key, discriminator_key, run_key = jax.random.split(key, 3)
        labels = jnp.zeros((1,), jnp.int32) if self.num_classes else None
        latents = jnp.zeros((1, self.config.model.latent_size))
        images = jnp.zeros((1, *self.image_shape))
        variables = {
            GENERATOR: self.generator.init(generator_key, latents, labels),
            DISCRIMINATOR: self.discriminator.init(discriminator_key, images, labels),
        }
        params = {name: tree["params"] for name, tree in variables.items()}
        averaged = {GENERATOR: params[GENERATOR]} if self.config.average.half_life_images else {}
        carry: dict[str, Tree] = {
            "statistics": {name: tree.get("statistics", {}) for name, tree in variables.items()},
            "monitors": {name: jnp.zeros(()) for name in self._monitors()},
        }
        if (controller := schedule.init_augmentation(self.config)) is not None:
            carry["augmentation"] = controller
        if self.config.objective.path_length_weight:
            carry["path_length_mean"] = jnp.zeros(())
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={name: optax.scale_by_adam().init(tree) for name, tree in params.items()},
            ema=jax.tree.map(jnp.copy, averaged),
            carry=carry,
            key=run_key,
        )

    def _monitors(self) -> list[str]:
        """Penalties, whose last values stand in for those of steps that leave them out."""
        objective = self.config.objective
        weights = {
            "r1_penalty": objective.r1_gamma,
            "r2_penalty": objective.r2_gamma,
            "gradient_penalty": objective.gradient_penalty,
            "path_length": objective.path_length_weight,
        }
        return [name for name, weight in weights.items() if weight]

    def variant(self, step: int) -> Variant:
        """Which regularisers run at a step."""
        objective = self.config.objective
        return Variant(
            bool(objective.has_penalties and step % objective.penalty_interval == 0),
            bool(objective.path_length_weight and step % objective.path_length_interval == 0),
        )

    # ---- the step -----------------------------------------------------------------------------

    def __call__(
        self, state: TrainState, batch: Batch, variant: Variant
    ) -> tuple[TrainState, dict[str, Array]]:
        """The discriminator's steps, then one of the generator.

        Args:
            state: the state before.
            batch: "images" (uint8, or float32 points) and, with classes, "labels": the batch size
                times the number of discriminator steps.
            variant: which regularisers to take.

        Returns:
            The next state and metrics.
        """
        config, key = self.config, state.step_key()
        seen = state.step * config.data.batch_size
        share = schedule.annealed_share(config, seen)
        controller = state.carry.get("augmentation")
        probability = schedule.augmentation_probability(config, controller, share)
        metrics: dict[str, Array] = {}
        keys = [jax.random.split(jax.random.fold_in(key, 1 + turn)) for turn in range(self._turns)]
        parts = [self._real(batch, turn, keys[turn][0]) for turn in range(self._turns)]
        scores = []
        for (real, labels), (_, turn_key) in zip(parts, keys, strict=True):
            state, new, real_logits = self._train_discriminator(
                state, real, labels, probability, share, variant, turn_key
            )
            metrics |= new
            scores.append(real_logits)
        if controller is not None:
            controller = schedule.control_augmentation(
                config, controller, jnp.concatenate(scores), state.step
            )
            state = dataclasses.replace(state, carry=state.carry | {"augmentation": controller})
        real, labels = parts[-1]
        generator_key, path_key = jax.random.split(jax.random.fold_in(key, 0))
        state, new = self._train_generator(state, real, labels, probability, share, generator_key)
        metrics |= new
        if variant.path_length:
            state = self._regularize_generator(state, labels, share, path_key)
        metrics |= state.carry["monitors"]
        if isinstance(config.augmentation, ADAConfig):
            metrics["augmentation_probability"] = probability
        weight = schedule.average_weight(config, seen, share)
        average = {
            name: optim.move_average(old, state.params[name], weight)
            for name, old in state.ema.items()
        }
        return dataclasses.replace(state, step=state.step + 1, ema=average), metrics

    def _real(self, batch: Batch, turn: int, key: Array) -> tuple[Images, Labels]:
        """A turn's real images and labels: every n-th row, so that a device keeps what it has."""
        images, labels = batch["images"][turn :: self._turns], batch.get("labels")
        if self.config.data.mirror:
            images = mirror(images, key)
        return to_float(images), None if labels is None else labels[turn :: self._turns]

    # ---- the discriminator --------------------------------------------------------------------

    def _train_discriminator(
        self,
        state: TrainState,
        real: Images,
        labels: Labels,
        probability: Array,
        share: Array,
        variant: Variant,
        key: Array,
    ) -> tuple[TrainState, dict[str, Array], Array]:
        """A step on the loss, and one on the penalties if they are lazy and due.

        Returns:
            The next state, metrics and the logits of the real images.
        """
        fake_key, score_key, penalty_key = jax.random.split(key, 3)
        # The average style and the like follow the generator's own steps alone.
        fake, _ = self._generate(state, state.params[GENERATOR], labels, len(real), fake_key)
        fake = jax.lax.stop_gradient(fake)
        lazy = self.config.objective.penalty_interval > 1

        def objective(params: Tree) -> tuple[Array, Any]:
            together = variant.penalties and not lazy
            judged = self._judge(
                state, params, real, fake, labels, probability, score_key, together
            )
            assert judged.real is not None and judged.fake is not None
            loss = self._loss.discriminator(judged.real, judged.fake)
            return loss + self._weighted(judged.penalties, share, 1), (loss, judged)

        params = state.params[DISCRIMINATOR]
        grads, (loss, judged) = jax.grad(objective, has_aux=True)(params)
        state = self._apply(state, DISCRIMINATOR, grads, share)
        state = self._with_carry(
            state, DISCRIMINATOR, statistics=judged.statistics, monitors=judged.penalties
        )
        # A relativistic discriminator's logits have no zero but each other's.
        real_logits, fake_logits = judged.real, judged.fake
        if self._loss.pairs:
            real_logits, fake_logits = real_logits - fake_logits, fake_logits - real_logits
        metrics = {
            "discriminator_loss": loss,
            "discriminator_grad_norm": optax.tree.norm(grads),
            "real_score": jnp.mean(judged.real),
            "fake_score": jnp.mean(judged.fake),
            "real_sign": jnp.mean(jnp.sign(real_logits)),
            "fake_sign": jnp.mean(jnp.sign(fake_logits)),
        }
        if variant.penalties and lazy:

            def penalty(params: Tree) -> tuple[Array, dict[str, Array]]:
                judged = self._judge(
                    state, params, real, fake, labels, probability, penalty_key, True, False
                )
                interval = self.config.objective.penalty_interval
                return self._weighted(judged.penalties, share, interval), judged.penalties

            grads, penalties = jax.grad(penalty, has_aux=True)(state.params[DISCRIMINATOR])
            state = self._apply(state, DISCRIMINATOR, grads, share)
            state = self._with_carry(state, DISCRIMINATOR, monitors=penalties)
        return state, metrics, real_logits

    def _judge(
        self,
        state: TrainState,
        params: Tree,
        real: Images,
        fake: Images,
        labels: Labels,
        probability: Array,
        key: Array,
        penalties: bool,
        logits: bool = True,
    ) -> "Judged":
        """Logits of real and generated images, the penalties in use, or both."""
        objective = self.config.objective
        real_key, fake_key, between_key, place_key = jax.random.split(key, 4)
        statistics = state.carry["statistics"][DISCRIMINATOR]
        scores: dict[str, Array] = {}
        found: dict[str, Array] = {}
        for name, images, image_key, gamma in (
            ("r1_penalty", real, real_key, objective.r1_gamma),
            ("r2_penalty", fake, fake_key, objective.r2_gamma),
        ):
            score = functools.partial(
                self._score, params, statistics, labels, probability, image_key
            )
            if penalties and gamma:
                scores[name], squared, statistics = logits_and_squared_gradient(score, images)
                found[name] = zero_centered_penalty(squared)
            elif logits:
                scores[name], statistics = score(images)
        if penalties and objective.gradient_penalty:
            score = functools.partial(
                self._score, params, statistics, labels, probability, between_key
            )
            _, squared, _ = logits_and_squared_gradient(score, between(real, fake, place_key))
            found["gradient_penalty"] = one_centered_penalty(squared)
        return Judged(scores.get("r1_penalty"), scores.get("r2_penalty"), statistics, found)

    def _score(
        self,
        params: Tree,
        statistics: Tree,
        labels: Labels,
        probability: Array,
        key: Array,
        images: Images,
    ) -> tuple[Float[Array, "B"], Tree]:
        """Logits of augmented images, and the moved statistics."""
        augmented = self._augment(images, key, probability)
        logits, updates = self.discriminator.apply(
            {"params": params, "statistics": statistics},
            augmented,
            labels,
            train=True,
            mutable=["statistics"],
        )
        return logits, updates.get("statistics", {})

    def _weighted(self, penalties: dict[str, Array], share: Array, interval: int) -> Any:
        """The sum of penalties by their weights, stronger by how rarely they are taken."""
        objective = self.config.objective
        anneal = self.config.annealing.gamma
        gammas = {
            "r1_penalty": objective.r1_gamma * schedule.towards(1.0, anneal, share),
            "r2_penalty": objective.r2_gamma * schedule.towards(1.0, anneal, share),
            "gradient_penalty": objective.gradient_penalty,
        }
        return sum((interval * gammas[name] * value for name, value in penalties.items()), 0.0)

    # ---- the generator ------------------------------------------------------------------------

    def _train_generator(
        self,
        state: TrainState,
        real: Images,
        labels: Labels,
        probability: Array,
        share: Array,
        key: Array,
    ) -> tuple[TrainState, dict[str, Array]]:
        """A step on the loss, against the discriminator as it is now."""
        fake_key, fake_score_key, real_score_key = jax.random.split(key, 3)
        judge = state.params[DISCRIMINATOR], state.carry["statistics"][DISCRIMINATOR]

        def objective(params: Tree) -> tuple[Array, Tree]:
            fake, statistics = self._generate(state, params, labels, len(real), fake_key)
            fake_logits, _ = self._score(*judge, labels, probability, fake_score_key, fake)
            real_logits = fake_logits
            if self._loss.pairs:
                real_logits, _ = self._score(*judge, labels, probability, real_score_key, real)
            return self._loss.generator(real_logits, fake_logits), statistics

        params = state.params[GENERATOR]
        (loss, statistics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        state = self._apply(state, GENERATOR, grads, share)
        state = self._with_carry(state, GENERATOR, statistics=statistics)
        return state, {"generator_loss": loss, "generator_grad_norm": optax.tree.norm(grads)}

    def _generate(
        self, state: TrainState, params: Tree, labels: Labels, count: int, key: Array
    ) -> tuple[Images, Tree]:
        """Images of new latents, and the moved statistics."""
        latents_key, noise_key, mixing_key = jax.random.split(key, 3)
        latents = _latents(latents_key, count, self.config.model.latent_size)
        images, updates = self.generator.apply(
            {"params": params, "statistics": state.carry["statistics"][GENERATOR]},
            latents,
            labels,
            train=True,
            mutable=["statistics"],
            rngs={"noise": noise_key, "mixing": mixing_key},
        )
        return images, updates.get("statistics", {})

    def _regularize_generator(
        self, state: TrainState, labels: Labels, share: Array, key: Array
    ) -> TrainState:
        """A step on the path-length penalty."""
        objective = self.config.objective
        latents_key, noise_key, mixing_key, direction_key = jax.random.split(key, 4)
        count = max(self.config.data.batch_size // objective.path_length_share, 1)
        latents = _latents(latents_key, count, self.config.model.latent_size)
        if labels is not None:
            # Every n-th, so that a device keeps the labels that it has.
            labels = labels[:: objective.path_length_share][:count]
        statistics = state.carry["statistics"][GENERATOR]

        def penalty(params: Tree) -> tuple[Array, tuple[Array, Array]]:
            variables = {"params": params, "statistics": statistics}
            styles, _ = self.generator.apply(
                variables,
                latents,
                labels,
                train=True,
                mutable=["statistics"],
                rngs={"mixing": mixing_key},
                method="styles",
            )

            def synthesis(styles: Array) -> Any:
                return self.generator.apply(
                    variables, styles, rngs={"noise": noise_key}, method="synthesis"
                )

            lengths = path_lengths(synthesis, styles, direction_key)
            value, mean = path_length_penalty(lengths, state.carry["path_length_mean"])
            weight = objective.path_length_weight * objective.path_length_interval
            return weight * value, (mean, jnp.mean(lengths))

        grads, (mean, length) = jax.grad(penalty, has_aux=True)(state.params[GENERATOR])
        state = self._apply(state, GENERATOR, grads, share)
        state = self._with_carry(state, GENERATOR, monitors={"path_length": length})
        carry = state.carry | {"path_length_mean": mean}
        return dataclasses.replace(state, carry=carry)

    # ---- the state ----------------------------------------------------------------------------

    def _apply(self, state: TrainState, network: Network, grads: Tree, share: Array) -> TrainState:
        """The state after a step of Adam for one network."""
        params, opt_state = schedule.adam_step(
            self.config, network, state.params[network], state.opt_state[network], grads, share
        )
        return dataclasses.replace(
            state,
            params=state.params | {network: params},
            opt_state=state.opt_state | {network: opt_state},
        )

    def _with_carry(
        self,
        state: TrainState,
        network: Network,
        *,
        statistics: Tree = None,
        monitors: dict[str, Array] | None = None,
    ) -> TrainState:
        """The state with new statistics of a network, or new values of penalties."""
        carry = dict(state.carry)
        if statistics is not None:
            carry["statistics"] = carry["statistics"] | {network: statistics}
        if monitors:
            carry["monitors"] = carry["monitors"] | monitors
        return dataclasses.replace(state, carry=carry)


class Judged(NamedTuple):
    """What the discriminator says of a batch."""

    real: Float[Array, "B"] | None
    fake: Float[Array, "B"] | None
    statistics: Tree
    penalties: dict[str, Array]


def _latents(key: Key[Array, ""], count: int, size: int) -> Float[Array, "B Z"]:
    """Normal latents, split over the devices like a batch.

    Nothing else says so where there are no labels.
    """
    return split_like_batch(jax.random.normal(key, (count, size)))
