"""One step of an adversarial game: all networks, their regularisers, the average, the controller.

Everything is a pure function of the train state and a batch. The examples are images or clips. The
networks are Linen modules:

    generator(latents [B, Z], conditions or None, train=..) -> examples [B, ...]
    discriminators, one or more: `adversarial_judge.Judge`

What they keep beside parameters lives in their collection "statistics"; the random streams "noise"
and "mixing" are the generator's. A generator that also has the methods `styles` and `synthesis` can
be path-length regularised.

Letters: B batch, Z latent size.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Num

from genjax import optim
from genjax.image import adversarial_schedule as schedule
from genjax.image.adversarial_judge import Conditions, Examples, Judge, JudgeObjective
from genjax.image.augmentation import ADAConfig
from genjax.image.game_config import GameConfig
from genjax.image.losses import LOSSES
from genjax.image.regularizers import path_length_penalty, path_lengths
from genjax.nn.layout import gathered
from genjax.parallel.partition import split_like_batch
from genjax.task import Batch, TrainState, Tree

GENERATOR = "generator"
"""The generator's name in the train state's dicts."""

DISCRIMINATOR = "discriminator"
"""The name of a discriminator that is alone. Of several each name ends so, and what comes before
begins the names of its metrics."""


class Variant(NamedTuple):
    """Which regularisers a step has."""

    penalties: bool = False
    path_length: bool = False


class Material(NamedTuple):
    """Real examples, and what generated ones beside them are to be conditioned on."""

    examples: Examples
    conditions: Conditions


class GeneratorPenalty(NamedTuple):
    """A term of the generator's own loss, which no discriminator gives.

    Attributes:
        name: of its metric.
        weight: of it in the loss.
        method: the generator's method to call in training: it returns examples, and something.
        value: from that something to a scalar.
    """

    name: str
    weight: float
    method: str
    value: Callable[[Any], Float[Array, ""]]


def to_float(examples: Num[Array, "B ..."]) -> Examples:
    """Stored examples in about [-1, 1]: uint8 is scaled, points in the plane stay as they are."""
    return examples / 127.5 - 1.0 if examples.dtype == jnp.uint8 else examples


class AdversarialStep:
    """The step of a config's game, and the state before the first one."""

    def __init__(
        self,
        config: GameConfig,
        generator: nn.Module,
        judges: Mapping[str, Judge],
        material: Callable[[Batch, Key[Array, ""]], Material],
        *,
        latent_size: int,
        example: Material,
        generator_penalty: GeneratorPenalty | None = None,
    ) -> None:
        """Set up the game of a generator against its discriminators.

        Args:
            config: objective, optimizers, augmentation, average and annealing.
            generator: the module.
            judges: the discriminators by name, in the order in which they are trained.
            material: from the rows of a batch that one turn is for, and a random key.
            latent_size: Z.
            example: one example with its conditions, for shapes; arrays of one row.
            generator_penalty: a further term of the generator's loss.
        """
        self.config = config
        self.generator = generator
        self.judges = judges
        self.latent_size = latent_size
        self._material = material
        self._example = example
        self._penalty = generator_penalty
        self._objectives = {name: JudgeObjective(config, judge) for name, judge in judges.items()}
        self._turns = config.objective.discriminator_steps
        self._loss = LOSSES[config.objective.loss]

    # ---- before the first step ----------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Fresh networks, optimizers and controllers."""
        generator_key, *judge_keys, run_key = jax.random.split(key, 2 + len(self.judges))
        example, conditions = self._example
        latents = jnp.zeros((1, self.latent_size))
        variables: dict[str, Any] = {
            GENERATOR: self.generator.init(generator_key, latents, conditions)
        }
        for (name, objective), judge_key in zip(self._objectives.items(), judge_keys, strict=True):
            inputs, labels = objective.look(example, conditions, judge_key)
            variables[name] = objective.network.init(judge_key, inputs, labels)
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
        names = [
            _told(judge, name)
            for judge, objective in self._objectives.items()
            for name in objective.penalties
        ]
        return names + ["path_length"] * bool(self.config.objective.path_length_weight)

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
        """The discriminators' steps, then one of the generator.

        Args:
            state: the state before.
            batch: what makes the material: the batch size times the number of discriminator steps.
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
        parts = [
            self._material(self._part(batch, turn), keys[turn][0]) for turn in range(len(keys))
        ]
        scores: list[Array] = []
        for material, (_, turn_key) in zip(parts, keys, strict=True):
            # Generated once a turn, for all discriminators. The average style and the like follow
            # the generator's own steps alone.
            fake_key, *judge_keys = jax.random.split(turn_key, 1 + 2 * len(self.judges))
            generated = self._generate(state, state.params[GENERATOR], material, fake_key)
            fake = jax.lax.stop_gradient(generated.examples)
            for number, name in enumerate(self.judges):
                state, new, real_logits = self._train_discriminator(
                    state,
                    name,
                    material,
                    fake,
                    probability,
                    share,
                    variant,
                    judge_keys[2 * number],
                    judge_keys[2 * number + 1],
                )
                metrics |= new
                scores.append(real_logits)
        if controller is not None:
            controller = schedule.control_augmentation(
                config, controller, jnp.concatenate(scores), state.step
            )
            state = dataclasses.replace(state, carry=state.carry | {"augmentation": controller})
        generator_key, path_key = jax.random.split(jax.random.fold_in(key, 0))
        state, new = self._train_generator(state, parts[-1], probability, share, generator_key)
        metrics |= new
        if variant.path_length:
            state = self._regularize_generator(state, parts[-1].conditions, share, path_key)
        metrics |= state.carry["monitors"]
        if isinstance(config.augmentation, ADAConfig):
            metrics["augmentation_probability"] = probability
        weight = schedule.average_weight(config, seen, share)
        average = {
            name: optim.move_average(old, state.params[name], weight)
            for name, old in state.ema.items()
        }
        return dataclasses.replace(state, step=state.step + 1, ema=average), metrics

    def _part(self, batch: Batch, turn: int) -> Batch:
        """A turn's rows: every n-th, so that a device keeps what it has."""
        return {name: array[turn :: self._turns] for name, array in batch.items()}

    # ---- a discriminator ----------------------------------------------------------------------

    def _train_discriminator(
        self,
        state: TrainState,
        name: str,
        material: Material,
        fake: Examples,
        probability: Array,
        share: Array,
        variant: Variant,
        score_key: Array,
        penalty_key: Array,
    ) -> tuple[TrainState, dict[str, Array], Array]:
        """A step on the loss, and one on the penalties if they are lazy and due.

        Returns:
            The next state, metrics and the logits of the real examples.
        """
        objective = self._objectives[name]
        lazy = self.config.objective.penalty_interval > 1
        loss = functools.partial(objective.loss, penalties=variant.penalties and not lazy)
        grads, (value, judged) = jax.grad(loss, has_aux=True)(
            state.params[name],
            state.carry["statistics"][name],
            objective.show(material.examples, fake, material.conditions, score_key),
            probability,
            share,
            score_key,
        )
        state = self._apply(state, name, grads, share)
        state = self._with_carry(
            state, name, statistics=judged.statistics, monitors=_all_told(name, judged.penalties)
        )
        metrics, real_logits = objective.metrics(value, judged)
        metrics["discriminator_grad_norm"] = optax.tree.norm(grads)
        if variant.penalties and lazy:
            grads, penalties = jax.grad(objective.penalty, has_aux=True)(
                state.params[name],
                state.carry["statistics"][name],
                objective.show(material.examples, fake, material.conditions, penalty_key),
                probability,
                share,
                penalty_key,
            )
            state = self._apply(state, name, grads, share)
            state = self._with_carry(state, name, monitors=_all_told(name, penalties))
        return state, _all_told(name, metrics), real_logits

    # ---- the generator ------------------------------------------------------------------------

    def _train_generator(
        self,
        state: TrainState,
        material: Material,
        probability: Array,
        share: Array,
        key: Array,
    ) -> tuple[TrainState, dict[str, Array]]:
        """A step on the sum of the losses, against the discriminators as they are now."""
        fake_key, *judge_keys = jax.random.split(key, 1 + 2 * len(self.judges))

        def loss(params: Tree) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
            generated = self._generate(state, params, material, fake_key)
            total: Any = 0.0
            for number, (name, objective) in enumerate(self._objectives.items()):
                judge = state.params[name], state.carry["statistics"][name]

                def logits(
                    examples: Array,
                    key: Array,
                    objective: JudgeObjective = objective,
                    judge: tuple[Tree, Tree] = judge,
                ) -> Array:
                    inputs, labels = objective.look(examples, material.conditions, key)
                    found, _ = objective.score(*judge, inputs, labels, probability, key)
                    return found.reshape(-1)

                fake_logits = logits(generated.examples, judge_keys[2 * number])
                real_logits = fake_logits
                if self._loss.pairs:
                    real_logits = logits(material.examples, judge_keys[2 * number + 1])
                total += self._loss.generator(real_logits, fake_logits)
            metrics = {"generator_loss": total}
            if self._penalty is not None:
                value = self._penalty.value(generated.beside)
                metrics[self._penalty.name] = value
                total += self._penalty.weight * value
            return total, (generated.statistics, metrics)

        grads, (statistics, metrics) = jax.grad(loss, has_aux=True)(state.params[GENERATOR])
        state = self._apply(state, GENERATOR, grads, share)
        state = self._with_carry(state, GENERATOR, statistics=statistics)
        return state, metrics | {"generator_grad_norm": optax.tree.norm(grads)}

    def _generate(
        self, state: TrainState, params: Tree, material: Material, key: Array
    ) -> "Generated":
        """As many examples of new latents as there are real ones, and the moved statistics."""
        latents_key, noise_key, mixing_key = jax.random.split(key, 3)
        latents = _latents(latents_key, len(material.examples), self.latent_size)
        made, updates = self.generator.apply(
            {"params": gathered(params), "statistics": state.carry["statistics"][GENERATOR]},
            latents,
            material.conditions,
            train=True,
            mutable=["statistics"],
            rngs={"noise": noise_key, "mixing": mixing_key},
            method=None if self._penalty is None else self._penalty.method,
        )
        examples, beside = (made, None) if self._penalty is None else made
        return Generated(examples, updates.get("statistics", {}), beside)

    def _regularize_generator(
        self, state: TrainState, conditions: Conditions, share: Array, key: Array
    ) -> TrainState:
        """A step on the path-length penalty."""
        objective = self.config.objective
        latents_key, noise_key, mixing_key, direction_key = jax.random.split(key, 4)
        count = max(self.config.data.batch_size // objective.path_length_share, 1)
        latents = _latents(latents_key, count, self.latent_size)
        # Every n-th, so that a device keeps the conditions that it has.
        some = jax.tree.map(lambda leaf: leaf[:: objective.path_length_share][:count], conditions)
        statistics = state.carry["statistics"][GENERATOR]

        def penalty(params: Tree) -> tuple[Array, tuple[Array, Array]]:
            variables = {"params": gathered(params), "statistics": statistics}
            styles, _ = self.generator.apply(
                variables,
                latents,
                some,
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

    def _apply(self, state: TrainState, network: str, grads: Tree, share: Array) -> TrainState:
        """The state after a step of Adam for one network."""
        params, opt_state = schedule.adam_step(
            self.config,
            "generator" if network == GENERATOR else "discriminator",
            state.params[network],
            state.opt_state[network],
            grads,
            share,
        )
        return dataclasses.replace(
            state,
            params=state.params | {network: params},
            opt_state=state.opt_state | {network: opt_state},
        )

    def _with_carry(
        self,
        state: TrainState,
        network: str,
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


class Generated(NamedTuple):
    """What the generator makes of a batch of latents."""

    examples: Examples
    statistics: Tree
    beside: Any


def _told(judge: str, name: str) -> str:
    """A metric's name: that of a discriminator among several begins with which one it is."""
    return judge.removesuffix(DISCRIMINATOR) + name


def _all_told(judge: str, metrics: dict[str, Array]) -> dict[str, Array]:
    return {_told(judge, name): value for name, value in metrics.items()}


def _latents(key: Key[Array, ""], count: int, size: int) -> Float[Array, "B Z"]:
    """Normal latents, split over the devices like a batch.

    Nothing else says so where there are no labels.
    """
    return split_like_batch(jax.random.normal(key, (count, size)))
