"""One discriminator of a game: what it is shown, what it minimises, and what is told of it.

Letters: B batch, N what a discriminator sees of it, P patches judged apart, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.image import adversarial_schedule as schedule
from genjax.image.augmentation import Augmentation
from genjax.image.game_config import GameConfig
from genjax.image.losses import LOSSES
from genjax.image.regularizers import (
    between,
    logits_and_squared_gradient,
    one_centered_penalty,
    zero_centered_penalty,
)
from genjax.nn.layout import gathered
from genjax.task import Tree

Examples = Float[Array, "B ..."]
"""Images [B, H, W, C] or clips [B, T, H, W, C], in about [-1, 1]."""

Conditions = Any
"""What an example is conditioned on: a pytree whose arrays count the examples, or None."""

View = Callable[[Examples, Conditions, Key[Array, ""]], tuple[Float[Array, "N ..."], Any]]
"""What a discriminator is shown of examples: inputs and their labels, which no key changes."""

_VIEW = 2**20
"""Told apart from the numbers that augmentations fold into the same key."""


class Judge(NamedTuple):
    """A discriminator of the game.

    Attributes:
        network: Linen module (inputs, labels, train=..) -> logits [N], or [N, P] for P patches.
        view: what it is shown.
        augment: how that is changed before.
    """

    network: nn.Module
    view: View
    augment: Augmentation


class Shown(NamedTuple):
    """What one discriminator has before it."""

    real: Float[Array, "N ..."]
    fake: Float[Array, "N ..."]
    labels: Any


class Judged(NamedTuple):
    """What it says: all logits in one row."""

    real: Float[Array, "M"] | None
    fake: Float[Array, "M"] | None
    statistics: Tree
    penalties: dict[str, Array]


class JudgeObjective:
    """What one discriminator minimises, as pure functions of its parameters."""

    def __init__(self, config: GameConfig, judge: Judge) -> None:
        """Set up the objective of a config for one discriminator."""
        self.config = config
        self.network, self.view, self._augment = judge
        self._loss = LOSSES[config.objective.loss]

    @property
    def penalties(self) -> list[str]:
        """The penalties in use."""
        objective = self.config.objective
        weights = {
            "r1_penalty": objective.r1_gamma,
            "r2_penalty": objective.r2_gamma,
            "gradient_penalty": objective.gradient_penalty,
        }
        return [name for name, weight in weights.items() if weight]

    def look(self, examples: Examples, conditions: Conditions, key: Array) -> tuple[Array, Any]:
        """What the discriminator sees of examples, before augmentation, and labels."""
        return self.view(examples, conditions, jax.random.fold_in(key, _VIEW))

    def show(self, real: Examples, fake: Examples, conditions: Conditions, key: Array) -> Shown:
        """The same of real and of generated examples, which share their conditions."""
        real_key, fake_key = jax.random.split(jax.random.fold_in(key, _VIEW))
        inputs, labels = self.view(real, conditions, real_key)
        return Shown(inputs, self.view(fake, conditions, fake_key)[0], labels)

    # ---- the two losses -----------------------------------------------------------------------

    def loss(
        self,
        params: Tree,
        statistics: Tree,
        shown: Shown,
        probability: Array,
        share: Array,
        key: Array,
        *,
        penalties: bool,
    ) -> tuple[Array, tuple[Array, Judged]]:
        """The adversarial loss, with penalties where they are not lazy.

        Returns:
            What to minimise; the adversarial loss alone, and what was said.
        """
        judged = self._judge(params, statistics, shown, probability, key, penalties)
        assert judged.real is not None and judged.fake is not None
        loss = self._loss.discriminator(judged.real, judged.fake)
        return loss + self._weighted(judged.penalties, share, 1), (loss, judged)

    def penalty(
        self,
        params: Tree,
        statistics: Tree,
        shown: Shown,
        probability: Array,
        share: Array,
        key: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The penalties alone, stronger by how rarely they are taken.

        Returns:
            What to minimise, and each penalty without its weight.
        """
        judged = self._judge(params, statistics, shown, probability, key, True, logits=False)
        interval = self.config.objective.penalty_interval
        return self._weighted(judged.penalties, share, interval), judged.penalties

    def metrics(self, loss: Array, judged: Judged) -> tuple[dict[str, Array], Array]:
        """What a log says, and the logits of real examples that tell overfitting."""
        assert judged.real is not None and judged.fake is not None
        real_logits, fake_logits = judged.real, judged.fake
        # A relativistic discriminator's logits have no zero but each other's.
        if self._loss.pairs:
            real_logits, fake_logits = real_logits - fake_logits, fake_logits - real_logits
        metrics = {
            "discriminator_loss": loss,
            "real_score": jnp.mean(judged.real),
            "fake_score": jnp.mean(judged.fake),
            "real_sign": jnp.mean(jnp.sign(real_logits)),
            "fake_sign": jnp.mean(jnp.sign(fake_logits)),
        }
        return metrics, real_logits

    # ---- what they are made of ----------------------------------------------------------------

    def score(
        self,
        params: Tree,
        statistics: Tree,
        inputs: Float[Array, "N ..."],
        labels: Any,
        probability: Array,
        key: Array,
    ) -> tuple[Float[Array, "N"] | Float[Array, "N P"], Tree]:
        """Logits of augmented inputs, and the moved statistics."""
        logits, updates = self.network.apply(
            {"params": gathered(params), "statistics": statistics},
            self._augment(inputs, key, probability),
            labels,
            train=True,
            mutable=["statistics"],
        )
        return logits, updates.get("statistics", {})

    def _judge(
        self,
        params: Tree,
        statistics: Tree,
        shown: Shown,
        probability: Array,
        key: Array,
        penalties: bool,
        logits: bool = True,
    ) -> Judged:
        """Logits of real and generated inputs, the penalties in use, or both."""
        objective = self.config.objective
        real_key, fake_key, between_key, place_key = jax.random.split(key, 4)
        scores: dict[str, Array] = {}
        found: dict[str, Array] = {}

        def gradients(inputs: Array, key: Array, statistics: Tree) -> tuple[Array, Array, Tree]:
            """All logits in a row, the squared gradient of each input's mean one, statistics."""

            def score(tall: Array) -> tuple[Array, tuple[Array, Tree]]:
                # Of a clip the penalties see one image, its frames below each other.
                seen = tall.reshape(inputs.shape)
                all_logits, moved = self.score(
                    params, statistics, seen, shown.labels, probability, key
                )
                return _means(all_logits), (all_logits.reshape(-1), moved)

            _, squared, (row, moved) = logits_and_squared_gradient(score, _as_images(inputs))
            return row, squared, moved

        for name, inputs, input_key, gamma in (
            ("r1_penalty", shown.real, real_key, objective.r1_gamma),
            ("r2_penalty", shown.fake, fake_key, objective.r2_gamma),
        ):
            if penalties and gamma:
                scores[name], squared, statistics = gradients(inputs, input_key, statistics)
                found[name] = zero_centered_penalty(squared)
            elif logits:
                all_logits, statistics = self.score(
                    params, statistics, inputs, shown.labels, probability, input_key
                )
                scores[name] = all_logits.reshape(-1)
        if penalties and objective.gradient_penalty:
            middle = between(_as_images(shown.real), _as_images(shown.fake), place_key)
            _, squared, _ = gradients(middle.reshape(shown.real.shape), between_key, statistics)
            found["gradient_penalty"] = one_centered_penalty(squared)
        return Judged(scores.get("r1_penalty"), scores.get("r2_penalty"), statistics, found)

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


def _as_images(inputs: Float[Array, "N ..."]) -> Float[Array, "N H W C"]:
    """Clips as images of all their frames below each other; images as they are."""
    return inputs.reshape(len(inputs), -1, *inputs.shape[-2:])


def _means(logits: Array) -> Float[Array, "N"]:
    """One logit an input: the mean over its patches."""
    return logits if logits.ndim == 1 else jnp.mean(logits.reshape(len(logits), -1), 1)
