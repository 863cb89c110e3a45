"""One step of the game against a second implementation: float64 numpy, its own Adam, no optax.

Both use the same draws: those of the step are taken from it, and played back to the reference.
"""

import dataclasses
import itertools
import math
from contextlib import ExitStack
from unittest import mock

import autograd.numpy as anp
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autograd import elementwise_grad, grad

from genjax.image import adversarial, adversarial_judge, adversarial_step
from genjax.image.adversarial import make_step
from genjax.image.adversarial_step import Variant
from genjax.nn.batch_norm import BatchNorm
from genjax.task import Shard
from tests.image.small_gans import DENSE, POINTS, configured, numbers, styled, trained

GAME = {"generator_optimizer": {"learning_rate": 0.02, "beta1": 0.5, "beta2": 0.9}}
GAME["discriminator_optimizer"] = {"learning_rate": 0.03, "beta1": 0.4, "beta2": 0.8}
for _adam in GAME.values():
    # Large enough that a gradient of rounding errors does not become a step of full length.
    _adam["epsilon"] = 1e-3

ANNEALING = {"images": 24, "learning_rate": 0.3, "gamma": 0.1, "beta2": 0.99, "half_life": 4.0}


# ---- the step's own draws ------------------------------------------------------------------------


def played(task):
    """The step, compiled; it also returns what was drawn, in the order of the draws."""

    def step(state, batch, variant):
        draws = {"latents": [], "between": [], "directions": [], "mirrored": []}

        def kept(name, function):
            def call(*arguments):
                draws[name].append(function(*arguments))
                return draws[name][-1]

            return call

        lengths = adversarial_step.path_lengths

        def path_lengths(synthesis, styles, key):
            shape = jax.eval_shape(synthesis, styles).shape
            draws["directions"].append(jax.random.normal(key, shape))
            return lengths(synthesis, styles, key)

        with ExitStack() as patches:
            for module, target, new in (
                (adversarial_step, "_latents", kept("latents", adversarial_step._latents)),
                (adversarial_judge, "between", kept("between", adversarial_judge.between)),
                (adversarial, "mirror", kept("mirrored", adversarial.mirror)),
                (adversarial_step, "path_lengths", path_lengths),
            ):
                patches.enter_context(mock.patch.object(module, target, new))
            return *task.step(state, batch, variant), draws

    return jax.jit(step, static_argnames="variant")


# ---- the reference -------------------------------------------------------------------------------


def rectified(x, slope):
    return anp.where(x > 0, x, slope * x)


def dense(params, inputs, slope):
    hidden = inputs
    for number in range(len(params) - 1):
        layer = params[f"hidden{number}"]
        hidden = rectified(anp.dot(hidden, layer["kernel"]) + layer["bias"], slope)
    return anp.dot(hidden, params["output"]["kernel"]) + params["output"]["bias"]


def with_classes(inputs, labels):
    flat = anp.reshape(inputs, (len(inputs), -1))
    return flat if labels is None else anp.concatenate([flat, np.eye(10)[labels]], 1)


def score(params, images, labels):
    return dense(params, with_classes(images, labels), 0.2)[:, 0]


def styles_of(params, latents, labels):
    return anp.dot(with_classes(latents, labels), params["mapping"])


def synthesis(params, styles):
    return anp.tanh(anp.einsum("bld,ldp->bp", styles, params["layers"]))


def generate(params, latents, labels, shape):
    if "mapping" in params:
        style = styles_of(params, latents, labels)[:, None]
        images = synthesis(params, style * np.ones((1, 4, 1)))
    else:
        images = dense(params, with_classes(latents, labels), 0.0)
    return anp.reshape(images, (-1, *shape))


def softplus(x):
    return anp.logaddexp(0.0, x)


def relu(x):
    return anp.maximum(x, 0)


DISCRIMINATOR_LOSS = {
    "non_saturating": lambda r, f: softplus(-r).mean() + softplus(f).mean(),
    "hinge": lambda r, f: relu(1 - r).mean() + relu(1 + f).mean(),
    "wasserstein": lambda r, f: f.mean() - r.mean(),
    "relativistic": lambda r, f: softplus(f - r).mean(),
}
GENERATOR_LOSS = {
    "non_saturating": lambda r, f: softplus(-f).mean(),
    "hinge": lambda r, f: -f.mean(),
    "wasserstein": lambda r, f: -f.mean(),
    "relativistic": lambda r, f: softplus(r - f).mean(),
}


def squared_gradient(params, images, labels):
    gradient = elementwise_grad(lambda x: score(params, x, labels))(images)
    return (gradient**2).sum((1, 2, 3))


class Reference:
    """The game of a config, from the state before the first step on."""

    def __init__(self, config, state, shape):
        self.config, self.shape, self.step = config, shape, int(state.step)
        self.params, self.average = numbers(state.params), numbers(state.ema["generator"])
        zeros = {name: jax.tree.map(np.zeros_like, tree) for name, tree in self.params.items()}
        self.moments = {name: (tree, tree, 0) for name, tree in zeros.items()}
        self.path_length_mean, self.monitors = 0.0, {}

    def share(self):
        images = self.config.annealing.images
        if images is None:
            return 0.0
        seen = self.step * self.config.data.batch_size
        return (1 - math.cos(math.pi * min(seen / images, 1))) / 2

    def annealed(self, start, end):
        return start if end is None else start + (end - start) * self.share()

    def adam(self, network, gradient, lazy):
        """Lazy regularisers of interval k: k / (k + 1) of the rate, and betas to that power."""
        settings = getattr(self.config, f"{network}_optimizer")
        part = 1.0 if lazy is None else lazy / (lazy + 1)
        beta1 = settings.beta1**part
        beta2 = self.annealed(settings.beta2, self.config.annealing.beta2) ** part
        rate = part * settings.learning_rate
        rate *= self.annealed(1.0, self.config.annealing.learning_rate)
        first, second, count = self.moments[network]
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, second, gradient)
        count += 1
        self.moments[network] = first, second, count
        self.params[network] = jax.tree.map(
            lambda p, m, v: (
                p
                - rate
                * (m / (1 - beta1**count))
                / (np.sqrt(v / (1 - beta2**count)) + settings.epsilon)
            ),
            self.params[network],
            first,
            second,
        )

    def penalty(self, params, real, fake, labels, points, weight):
        objective = self.config.objective
        gamma = self.annealed(1.0, self.config.annealing.gamma)
        total = 0.0
        if objective.r1_gamma:
            value = squared_gradient(params, real, labels).mean() / 2
            self.monitors["r1_penalty"] = value
            total = total + objective.r1_gamma * gamma * value
        if objective.r2_gamma:
            value = squared_gradient(params, fake, labels).mean() / 2
            self.monitors["r2_penalty"] = value
            total = total + objective.r2_gamma * gamma * value
        if objective.gradient_penalty:
            norm = anp.sqrt(squared_gradient(params, points, labels))
            value = ((norm - 1) ** 2).mean()
            self.monitors["gradient_penalty"] = value
            total = total + objective.gradient_penalty * value
        return weight * total

    def __call__(self, batch, draws, variant):
        objective, turns = self.config.objective, self.config.objective.discriminator_steps
        draws = {name: [np.asarray(draw) for draw in some] for name, some in draws.items()}
        latents = iter([draw.astype(np.float64) for draw in draws["latents"]])
        points = iter([draw.astype(np.float64) for draw in draws["between"]])
        labels, lazy = None, objective.penalty_interval > 1
        for turn in range(turns):
            images = batch["images"][turn::turns]
            if self.config.data.mirror:
                mirrored = draws["mirrored"][-turns:][turn]
                for image, changed in zip(images, mirrored, strict=True):
                    assert (changed == image).all() or (changed == image[:, ::-1]).all()
                images = mirrored
            real = images.astype(np.float64)
            if images.dtype == np.uint8:
                real = real / 127.5 - 1
            if "labels" in batch:
                labels = batch["labels"][turn::turns]
            fake = generate(self.params["generator"], next(latents), labels, self.shape)
            between = next(points) if objective.gradient_penalty and variant.penalties else None
            if objective.gradient_penalty and variant.penalties:
                share = (between - real) / (fake - real)
                assert (share > 0).all() and (share < 1).all()

            def loss(params, real=real, fake=fake, labels=labels, between=between):
                logits = score(params, real, labels), score(params, fake, labels)
                value = DISCRIMINATOR_LOSS[objective.loss](*logits)
                if variant.penalties and not lazy:
                    value = value + self.penalty(params, real, fake, labels, between, 1)
                return value

            def penalty(params, real=real, fake=fake, labels=labels, between=between):
                interval = objective.penalty_interval
                return self.penalty(params, real, fake, labels, between, interval)

            interval = objective.penalty_interval if lazy else None
            self.adam("discriminator", grad(loss)(self.params["discriminator"]), interval)
            if variant.penalties and lazy:
                self.adam("discriminator", grad(penalty)(self.params["discriminator"]), interval)

        judge, noise = self.params["discriminator"], next(latents)

        def generator_loss(params):
            fake = generate(params, noise, labels, self.shape)
            logits = score(judge, real, labels), score(judge, fake, labels)
            return GENERATOR_LOSS[objective.loss](*logits)

        weight = objective.path_length_weight
        interval = objective.path_length_interval if weight else None
        self.adam("generator", grad(generator_loss)(self.params["generator"]), interval)
        if variant.path_length:
            noise = next(latents)
            assert len(noise) == self.config.data.batch_size // objective.path_length_share
            if labels is not None:
                labels = labels[:: objective.path_length_share][: len(noise)]
            (direction,) = draws["directions"]
            scaled = direction.reshape(len(noise), -1) / math.sqrt(math.prod(self.shape[:2]))

            def lengths(params):
                styles = styles_of(params, noise, labels)[:, None] * np.ones((1, 4, 1))
                moved = elementwise_grad(lambda s: (synthesis(params, s) * scaled).sum(1))(styles)
                return anp.sqrt((moved**2).sum(-1).mean(-1))

            now = lengths(self.params["generator"])
            mean = self.path_length_mean + 0.01 * (now.mean() - self.path_length_mean)

            def path_penalty(params):
                return weight * interval * ((lengths(params) - mean) ** 2).mean()

            self.adam("generator", grad(path_penalty)(self.params["generator"]), interval)
            self.path_length_mean, self.monitors["path_length"] = mean, now.mean()
        self.move_average()
        self.step += 1

    def move_average(self):
        average, size = self.config.average, self.config.data.batch_size
        half_life = average.half_life_images * self.annealed(1.0, self.config.annealing.half_life)
        if average.ramp_up is not None:
            half_life = min(half_life, average.ramp_up * (self.step + 1) * size)
        decay = 0.5 ** (size / half_life)
        self.average = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * p, self.average, self.params["generator"]
        )


LINEAR = DENSE | {"output": "linear"}
CASES = {
    "plain": configured(LINEAR, POINTS, average={"half_life_images": 30, "ramp_up": 0.7}, **GAME),
    "penalties in every step": configured(
        LINEAR,
        batch_size=6,
        data={"mirror": True},
        objective={"loss": "relativistic", "r1_gamma": 0.7, "r2_gamma": 0.4},
        average={"half_life_images": 10, "ramp_up": None},
        **GAME,
    ),
    "lazy penalties, annealed": configured(
        LINEAR,
        POINTS,
        objective={"loss": "hinge", "r1_gamma": 0.5, "gradient_penalty": 2, "penalty_interval": 2},
        annealing=ANNEALING,
        average={"half_life_images": 5, "ramp_up": None},
        **GAME,
    ),
    "two discriminator steps": configured(
        LINEAR,
        batch_size=4,
        data={"mirror": True},
        objective={"loss": "wasserstein", "discriminator_steps": 2, "gradient_penalty": 1.5},
        **GAME,
    ),
    "path lengths": styled(
        batch_size=7,
        objective={"path_length_weight": 0.8, "path_length_interval": 3, "path_length_share": 3},
        **GAME,
    ),
    "path lengths in every step": styled(
        objective={"path_length_weight": 0.8, "path_length_interval": 1, "path_length_share": 1},
        **GAME,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_reference(name):
    config = CASES[name]
    task = config.make_task()
    state = jax.jit(task.init)(jax.random.key(1))
    reference = Reference(config, state, task.source.image_shape)
    step, batches = played(task), task.dataset("train", Shard())
    for number in range(5):
        variant, batch = task.variant(number), batches[number]
        state, metrics, draws = step(state, batch, variant)
        reference(batch, jax.device_get(draws), variant)
        for found, expected in (
            (state.params, reference.params),
            (state.ema["generator"], reference.average),
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
                found,
                expected,
            )
        counts = {name: int(moments.count) for name, moments in state.opt_state.items()}
        assert counts == {name: moments[2] for name, moments in reference.moments.items()}
        for monitor, value in state.carry["monitors"].items():
            expected = reference.monitors[monitor]
            expected = expected if isinstance(expected, float) else float(_plain(expected))
            np.testing.assert_allclose(value, expected, rtol=1e-4, err_msg=monitor)
            assert metrics[monitor] == value
        # A relativistic discriminator's logits have no zero but each other's.
        mirrored = metrics["real_sign"] == -metrics["fake_sign"]
        assert mirrored or config.objective.loss != "relativistic"
        if "path_length_mean" in state.carry:
            found = state.carry["path_length_mean"]
            np.testing.assert_allclose(found, reference.path_length_mean, rtol=1e-5)
    assert int(state.step) == 5


def _plain(value):
    while hasattr(value, "_value"):
        value = value._value
    return value


# ---- what the reference leaves out ---------------------------------------------------------------


def test_held_augmentation_is_annealed_along_half_a_cosine():
    config = configured(
        DENSE,
        batch_size=4,
        augmentation={"kind": "ada", "categories": ["blit"], "probability": 0.8},
        annealing={"images": 16, "augmentation": 0.2},
    )
    _, _, metrics = trained(config.make_task(), 6)
    found = [step["augmentation_probability"] for step in metrics]
    expected = 0.2 + 0.6 * (1 + np.cos(np.pi * np.minimum(np.arange(6) / 4, 1))) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == pytest.approx(0.8) and found[2] == pytest.approx(0.5)
    assert found[4] == found[5] == pytest.approx(0.2)


@pytest.mark.parametrize("turns", [1, 2])
def test_the_controller_adjusts_once_in_an_interval(turns):
    """By the signs of all real images since, whatever the number of discriminator steps."""
    config = configured(
        DENSE,
        batch_size=5,
        objective={"discriminator_steps": turns},
        augmentation={
            "kind": "ada",
            "categories": ["blit"],
            "initial_probability": 0.5,
            "target": -1.0,
            "interval": 3,
            "adjustment_images": 100,
        },
    )
    state, _, metrics = trained(config.make_task(), 5)
    # A sign above -1 on average raises it by 3 batches of 5 images each turn.
    after = 0.5 + 3 * 5 * turns / 100
    found = [step["augmentation_probability"] for step in metrics]
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, after, after], rtol=1e-6)
    controller = state.carry["augmentation"]
    assert controller["count"] == 2 * 5 * turns
    if turns == 1:
        signs = sum(5 * step["real_sign"] for step in metrics[3:])
        np.testing.assert_allclose(controller["sign_sum"], signs, atol=1e-5)


class Brightness(nn.Module):
    """Takes bright images to be real."""

    @nn.compact
    def __call__(self, images, labels=None, *, train=False):
        return self.param("scale", nn.initializers.ones, ()) * images.mean((1, 2, 3))


def test_the_controller_decides_by_all_turns_together():
    """Signs are +1 in one turn and -1 in the other, 0 on average, which is below the target."""
    config = configured(
        DENSE,
        batch_size=5,
        objective={"discriminator_steps": 2},
        augmentation={
            "kind": "ada",
            "categories": ["blit"],
            "initial_probability": 0.5,
            "target": 0.1,
            "interval": 3,
            "adjustment_images": 100,
        },
    )
    task = config.make_task()
    shape = task.source.image_shape
    task.step = make_step(config, task.step.generator, Brightness(), shape, 10)
    state = jax.jit(task.init)(jax.random.key(0))
    images = np.zeros((10, *shape), np.uint8)
    images[::2] = 255
    step = jax.jit(task.train_step)
    for _ in range(3):
        state, _ = step(state, {"images": images, "labels": np.zeros(10, np.int32)})
    controller = state.carry["augmentation"]
    np.testing.assert_allclose(controller["probability"], 0.5 - 30 / 100, rtol=1e-6)
    assert controller["count"] == 0


class NormedDiscriminator(nn.Module):
    num_classes: int = 0

    @nn.compact
    def __call__(self, images, labels=None, *, train=False):
        flat = images.reshape(len(images), -1)
        return nn.Dense(1)(BatchNorm(momentum=0.5, name="norm")(flat, train))[:, 0]


def test_whose_statistics_move_when():
    """D's by real, then by generated images, in its steps on the loss alone; G's in its own."""
    config = styled(
        POINTS,
        objective={"r1_gamma": 1.0, "penalty_interval": 2, "path_length_weight": 1.0},
    )
    task = config.make_task()
    shape = task.source.image_shape
    generator = task.step.generator
    task.step = make_step(config, generator, NormedDiscriminator(), shape, 0)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = task.dataset("train", Shard())[0]
    assert task.variant(0) == Variant(True, True)
    new, _, draws = played(task)(state, batch, task.variant(0))
    ours, theirs = (latents.astype(np.float64) for latents in jax.device_get(draws["latents"][:2]))
    params = numbers(state.params["generator"])

    fake = generate(params, ours, None, shape).reshape(-1, 2)
    mean, variance = np.zeros(2), np.ones(2)
    for flat in (batch["images"].reshape(-1, 2).astype(np.float64), fake):
        mean, variance = (mean + flat.mean(0)) / 2, (variance + flat.var(0)) / 2
    norm = new.carry["statistics"]["discriminator"]["norm"]
    np.testing.assert_allclose(norm["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm["variance"], variance, rtol=1e-5)

    average = 0.1 * (theirs @ params["mapping"]).mean(0)
    found = new.carry["statistics"]["generator"]["w_average"]
    np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-7)


def test_metrics_and_the_last_penalties():
    config = styled(
        objective={
            "r1_gamma": 1.0,
            "r2_gamma": 1.0,
            "gradient_penalty": 1.0,
            "penalty_interval": 4,
            "path_length_weight": 1.0,
            "path_length_interval": 3,
        },
    )
    _, _, metrics = trained(config.make_task(), 5)
    names = "discriminator_loss discriminator_grad_norm generator_loss generator_grad_norm "
    names += "real_score fake_score real_sign fake_sign "
    names += "r1_penalty r2_penalty gradient_penalty path_length"
    for step in metrics:
        assert step.keys() == set(names.split())
        assert all(math.isfinite(value) for value in step.values())
        assert -1 <= step["fake_sign"] <= 1 and step["discriminator_grad_norm"] > 0
    for name, interval in (("r1_penalty", 4), ("gradient_penalty", 4), ("path_length", 3)):
        values = [step[name] for step in metrics]
        assert [a == b for a, b in itertools.pairwise(values)] == [
            number % interval != 0 for number in range(1, 5)
        ]


def test_without_an_average_there_is_none():
    config = configured(DENSE, POINTS, average={"half_life_images": 0})
    state = jax.eval_shape(config.make_task().init, jax.random.key(0))
    assert state.ema == {} and state.carry["monitors"] == {}
    assert state.evaluation_params()["generator"] is state.params["generator"]


def test_randomness_comes_from_the_key_and_the_step():
    task = configured(DENSE, POINTS).make_task()
    step, batch = played(task), task.dataset("train", Shard())[0]
    state = jax.jit(task.init)(jax.random.key(0))
    _, _, draws = step(state, batch, task.variant(0))
    first, second = (np.asarray(latents) for latents in draws["latents"])
    assert abs(first - second).min() > 0, "the two networks see other latents"
    again = step(state, batch, task.variant(0))[2]["latents"][0]
    np.testing.assert_array_equal(again, first)
    for other in (
        dataclasses.replace(state, step=jnp.int32(1)),
        dataclasses.replace(state, key=jax.random.key(9)),
    ):
        latents = step(other, batch, task.variant(0))[2]["latents"][0]
        assert abs(np.asarray(latents) - first).min() > 0
