"""The video game: a step against the equations, what each discriminator sees, figures, devices."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import softplus

from genjax.errors import UserError
from genjax.image import adversarial_step
from genjax.image.adversarial_step import AdversarialStep, Variant
from genjax.image.augmentation import ADAConfig, DiffAugmentConfig, make_augmentation
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import batch_sharding, state_shardings
from genjax.task import Shard
from genjax.video.conditions import Conditions
from genjax.video.video_judges import (
    example_material,
    make_material,
    mirror_clips,
    over_time,
    random_frames,
    stored,
)
from tests.image.test_adversarial_sharding import largest_sum, moved
from tests.video.small_video_gans import CONTENT, MOTION, configured, trained, unlabelled
from train.evaluate import Evaluator
from train.stream import place

ADAM = {"learning_rate": 0.02, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}
OPTIMIZERS = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}


# ---- the step ------------------------------------------------------------------------------------


def played(task):
    """The step of a task, compiled, that also tells its latents and which frames were shown."""
    judges = task.step.judges
    chosen = judges["frame_discriminator"].view

    def step(state, batch, variant):
        draws = {"latents": [], "frames": []}

        def view(clips, conditions, key):
            numbers = jnp.arange(clips.shape[1], dtype=jnp.float32)[None, :, None, None, None]
            shown, _ = chosen(
                jnp.broadcast_to(numbers, (len(clips), *numbers.shape[1:])), conditions, key
            )
            draws["frames"].append(shown.reshape(len(clips), -1).astype(jnp.int32))
            return chosen(clips, conditions, key)

        def latents(*arguments, original=adversarial_step._latents):
            draws["latents"].append(original(*arguments))
            return draws["latents"][-1]

        frame = judges["frame_discriminator"]._replace(view=view)
        game = AdversarialStep(
            task.config,
            task.step.generator,
            judges | {"frame_discriminator": frame},
            make_material(task.config, task.source),
            latent_size=task.step.latent_size,
            example=example_material(task.config, task.source),
        )
        with mock.patch.object(adversarial_step, "_latents", latents):
            return *game(state, batch, variant), draws

    return jax.jit(step, static_argnames="variant")


def generate(params, latents, labels, first, shape):
    batch, (frames, *image) = len(latents), shape
    motion = jnp.cumsum(latents[:, CONTENT:].reshape(batch, frames, MOTION), 1)
    clips = []
    for frame in range(frames):
        codes = [latents[:, :CONTENT], motion[:, frame], jnp.eye(4)[labels]]
        if first is not None:
            codes.append(first.mean((1, 2, 3))[:, None])
        made = jnp.tanh(jnp.concatenate(codes, 1) @ params["kernel"]).reshape(-1, *image)
        clips.append(made if first is None or frame else first)
    return jnp.stack(clips, 1)


def judge(params, inputs, labels):
    hidden = jnp.tanh(inputs.reshape(len(inputs), -1) @ params["hidden"] / 8)
    return hidden @ params["output"] + params["classes"][labels][:, None]


def picked(clips, numbers):
    rows = [clip[chosen] for clip, chosen in zip(clips, numbers, strict=True)]
    return jnp.concatenate(rows)


def penalty(params, inputs, labels):
    """Half the mean squared gradient of each input's mean logit."""

    def one(image, label):
        return judge(params, image[None], label[None]).mean()

    gradient = jax.vmap(jax.grad(one))(inputs, labels)
    return 0.5 * jnp.mean(jnp.sum(jnp.square(gradient.reshape(len(inputs), -1)), 1))


def adam(params, grads, moments, count, part=1.0):
    """A step of Adam; `part` corrects rate and betas for a lazy regulariser."""
    beta1, beta2 = ADAM["beta1"] ** part, ADAM["beta2"] ** part
    first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, moments[0], grads)
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, moments[1], grads)
    new = jax.tree.map(
        lambda p, m, v: (
            p
            - part
            * ADAM["learning_rate"]
            * (m / (1 - beta1**count))
            / (jnp.sqrt(v / (1 - beta2**count)) + ADAM["epsilon"])
        ),
        params,
        first,
        second,
    )
    return new, (first, second)


CASES = {
    "frames and clips": {
        "objective": {"r1_gamma": 0.7},
        "frames_judged": 2,
        "image_conditional": True,
    },
    "lazy and relativistic": {
        "objective": {
            "loss": "relativistic",
            "r1_gamma": 0.7,
            "r2_gamma": 0.4,
            "penalty_interval": 2,
        },
    },
}


def reference(config, params, real, labels, draws, shape):
    """Parameters after the first step by the equations, and the losses on the way."""
    objective = config.objective
    lazy, pairs = objective.penalty_interval > 1, objective.loss == "relativistic"
    first = real[:, 0] if config.image_conditional else None
    many = jnp.repeat(labels, config.frames_judged)
    shown = iter(draws["frames"])
    fake = generate(params["generator"], draws["latents"][0], labels, first, shape)
    updated, metrics = {}, {}

    def penalties(tree, real, fake, labels):
        total = objective.r1_gamma * penalty(tree, real, labels)
        return total + (objective.r2_gamma * penalty(tree, fake, labels) if pairs else 0.0)

    def loss(tree, real, fake, labels):
        real, fake = judge(tree, real, labels), judge(tree, fake, labels)
        if pairs:
            return softplus(fake - real).mean()
        return softplus(-real).mean() + softplus(fake).mean()

    def total(tree, *inputs):
        return loss(tree, *inputs) + (0.0 if lazy else penalties(tree, *inputs))

    for which in ("frame", "clip"):
        name = f"{which}_discriminator"
        inputs = [(real, fake, labels)] * (1 + lazy)
        if which == "frame":
            inputs = [(picked(real, next(shown)), picked(fake, next(shown)), many) for _ in inputs]
        tree = params[name]
        zeros, part = jax.tree.map(jnp.zeros_like, tree), 2 / 3 if lazy else 1.0
        metrics[f"{name}_loss"] = loss(tree, *inputs[0])
        one, moments = adam(tree, jax.grad(total)(tree, *inputs[0]), (zeros, zeros), 1, part)
        metrics[f"{which}_r1_penalty"] = penalty(
            one if lazy else tree, inputs[-1][0], inputs[-1][2]
        )
        if lazy:
            grads = jax.tree.map(lambda g: 2 * g, jax.grad(penalties)(one, *inputs[1]))
            one, _ = adam(one, grads, moments, 2, part)
        updated[name] = one
    # What is left was drawn for the generator's step: fake clips and, for pairs, real ones.
    remaining = list(shown)
    assert len(remaining) == 1 + pairs

    def generator_loss(tree):
        fake = generate(tree, draws["latents"][1], labels, first, shape)
        frame, clip = updated["frame_discriminator"], updated["clip_discriminator"]
        of_frames = judge(frame, picked(fake, remaining[0]), many)
        of_clips = judge(clip, fake, labels)
        if not pairs:
            return softplus(-of_frames).mean() + softplus(-of_clips).mean()
        real_frames = judge(frame, picked(real, remaining[1]), many)
        real_clips = judge(clip, real, labels)
        return softplus(real_frames - of_frames).mean() + softplus(real_clips - of_clips).mean()

    tree = params["generator"]
    metrics["generator_loss"], grads = jax.value_and_grad(generator_loss)(tree)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    updated["generator"], _ = adam(tree, grads, (zeros, zeros), 1)
    return updated, metrics


@pytest.mark.parametrize(
    "name",
    ["frames and clips", pytest.param("lazy and relativistic", marks=pytest.mark.slow)],
)
def test_a_step_equals_the_equations(name):
    """Each discriminator follows its own loss and penalties, the generator the sum."""
    config = configured(**CASES[name], **OPTIMIZERS)
    task = config.make_task()
    state = jax.jit(task.init)(jax.random.key(3))
    batch = task.dataset("train", Shard())[0]
    new, metrics, draws = played(task)(state, batch, task.variant(0))
    for numbers in draws["frames"]:
        assert numbers.shape == (8, config.frames_judged)
        assert numbers.min() >= config.image_conditional

    @jax.jit
    def expected(params, batch, draws):
        real = task.source.render(batch) / 127.5 - 1
        return reference(config, params, real, batch["labels"], draws, task.source.clip_shape)

    updated, told = expected(state.params, batch, draws)
    for metric, value in told.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-4, err_msg=metric)
    assert new.params.keys() == updated.keys()
    for network, tree in updated.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            new.params[network],
            tree,
        )
    moved_to = 0.1 * draws["latents"][1][:, :CONTENT].mean(0)
    statistics = new.carry["statistics"]["generator"]["content_mean"]
    np.testing.assert_allclose(statistics, moved_to, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_without_classes_it_trains_and_controls_augmentation_by_clips(monkeypatch):
    unlabelled(monkeypatch)
    ada = {
        "kind": "ada",
        "categories": ["blit"],
        "initial_probability": 0.5,
        "target": -1.0,
        "interval": 2,
        "adjustment_images": 100,
    }
    task = configured(augmentation=ada, frames_judged=3).make_task()
    state, first, metrics = trained(task, 3)
    # Two steps of eight clips, however many logits each of them gets.
    found = [step["augmentation_probability"] for step in metrics]
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5 + 16 / 100], rtol=1e-6)
    assert state.carry["augmentation"]["count"] == 8 * (3 * 2 + 1)
    for network, old in first.params.items():
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(state.params[network]), strict=True)
        assert all((np.asarray(a) != np.asarray(b)).any() for a, b in pairs), network
    names = ["loss", "grad_norm", "real_score", "fake_score", "real_sign", "fake_sign"]
    expected = {"generator_loss", "generator_grad_norm", "augmentation_probability"}
    for which in ("frame", "clip"):
        own = [f"discriminator_{name}" if name in names[:2] else name for name in names]
        expected |= {f"{which}_{name}" for name in own}
    assert metrics[0].keys() == expected


def test_the_mask_is_paid_for():
    config = configured(masked=True, discriminators=["clip"], mask_weight=20.0, **OPTIMIZERS)
    _, first, metrics = trained(config.make_task(), 4)
    assert first.params.keys() == {"generator", "clip_discriminator"}
    masks = [step["mask"] for step in metrics]
    assert masks[0] == pytest.approx(0.5) and masks == sorted(masks, reverse=True)
    assert masks[-1] < 0.49 and metrics[0]["generator_loss"] < 5


# ---- what discriminators see ---------------------------------------------------------------------


@pytest.mark.fast
def test_frames_are_drawn_for_each_clip():
    clips = jnp.arange(64.0 * 6).reshape(64, 6)[..., None, None, None] * jnp.ones((2, 2, 1))
    view = jax.jit(random_frames(2, 1))
    labels = jnp.arange(64)
    frames, repeated = view(clips, Conditions(labels), jax.random.key(0))
    assert frames.shape == (128, 2, 2, 1)
    np.testing.assert_array_equal(repeated, np.repeat(np.arange(64), 2))
    numbers = np.asarray(frames[:, 0, 0, 0]).reshape(64, 2).astype(int)
    np.testing.assert_array_equal(numbers // 6, np.repeat(np.arange(64)[:, None], 2, 1))
    drawn = numbers % 6
    assert (drawn[:, 0] != drawn[:, 1]).all() and set(drawn.ravel()) == {1, 2, 3, 4, 5}
    # What compares neighbours is shown frames of different clips, and each with its own label.
    in_turn, named = random_frames(2, 1, 4)(clips, Conditions(labels), jax.random.key(0))
    of_clips = np.asarray(in_turn[:, 0, 0, 0]).astype(int) // 6
    np.testing.assert_array_equal(of_clips, named)
    expected = np.arange(64).reshape(16, 1, 4).repeat(2, 1).reshape(-1)
    np.testing.assert_array_equal(of_clips, expected)
    assert set(np.asarray(in_turn).ravel()) == set(np.asarray(frames).ravel())
    other, none = view(clips, Conditions(), jax.random.key(1))
    assert (np.asarray(other) != np.asarray(frames)).any() and none is None


@pytest.mark.parametrize(
    "config",
    [
        DiffAugmentConfig(),
        pytest.param(ADAConfig(categories=("blit", "colour")), marks=pytest.mark.slow),
    ],
)
def test_all_frames_of_a_clip_are_augmented_alike(config):
    augment = make_augmentation(config)
    image = jax.random.uniform(jax.random.key(0), (3, 1, 8, 8, 3), minval=-1.0)
    still = jnp.broadcast_to(image, (3, 4, 8, 8, 3))
    key, probability = jax.random.key(2), jnp.float32(0.9)
    found = np.asarray(jax.jit(over_time(augment))(still, key, probability))
    np.testing.assert_allclose(found, np.repeat(found[:, :1], 4, 1), atol=1e-6)
    alone = np.asarray(augment(still[:, 1], key, probability))
    np.testing.assert_allclose(found[:, 1], alone, atol=1e-5)
    assert (abs(found[:, 0] - np.asarray(image[:, 0])) > 1e-3).any((1, 2, 3)).all()


@pytest.mark.fast
def test_clips_are_mirrored_whole_and_rounded():
    clips = np.random.default_rng(0).integers(0, 256, (32, 3, 2, 5, 1), np.uint8)
    found = np.asarray(mirror_clips(jnp.asarray(clips), jax.random.key(0)))
    turned = (found == clips[:, :, :, ::-1]).all((1, 2, 3, 4))
    assert (turned | (found == clips).all((1, 2, 3, 4))).all() and 8 < turned.sum() < 24
    values = jnp.array([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 6, 1)
    assert np.asarray(stored(values)).ravel().tolist() == [0, 0, 64, 128, 255, 255]


# ---- what a config refuses -----------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"masked": True}, r'"vgan" has none for frames; set discriminators = \["clip"\]'),
        ({"discriminators": ["clip", "clip"]}, "each once"),
        ({"mask_weight": 0.1}, 'only model.kind = "vgan" has, not "mocogan"'),
        ({"discriminators": ["clip"], "frames_judged": 2}, "does nothing without the frame"),
        ({"frames_judged": 4, "image_conditional": True}, "more than the 3 frames"),
        ({"objective": {"path_length_weight": 1.0}}, "no generator of clips has styles"),
        ({"objective": {"penalty_interval": 4}}, "penalty_interval: 4 does nothing without"),
        ({"data": {"mirror": True}}, "data.mirror: the classes of .* are directions"),
        ({"frames": 3}, "'repetition' needs clips of 4 frames, and data.frames is 3"),
        ({"checkpoint": {"best_metric": "fvd"}}, "no figure 'fvd'; one of frechet_pixels, content"),
        (
            {"evaluation": {"metrics": ["conditioning_accuracy"]}},
            'set evaluation.features.kind = "classifier"',
        ),
        ({"frames": 5, "model": {"kind": "mocogan"}}, "does not fit shapes in motion.* change the"),
    ],
)
def test_what_does_not_fit_is_refused(tables, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        configured(**tables).make_task()


# ---- evaluation ----------------------------------------------------------------------------------


def evaluated(task, state):
    with jax.set_mesh(make_mesh(MeshConfig(data=1))) as _:
        return Evaluator(task, make_mesh(MeshConfig(data=1)))(state, task.evaluation(Shard()))


def test_figures_and_what_they_stand_beside():
    tables = {"frames": 8, "image_conditional": True}
    task = configured(**tables, evaluation={"count": 10, "batch_size": 4}).make_task()
    state = jax.jit(task.init)(jax.random.key(0))
    found = evaluated(task, state)
    assert found.keys() == {*task.evaluator._figures.names, "clips"} and found["clips"] == 10
    other = configured(**tables, evaluation={"count": 10, "batch_size": 7}).make_task()
    again = evaluated(other, state)
    np.testing.assert_allclose(list(found.values()), list(again.values()), rtol=1e-4)
    # The same clips, drawn outside: their features' distance is the one that was told.
    drawn = list(task.evaluator._drawn(task._variables(state), "validation"))
    clips = np.concatenate(drawn)[:10]
    batches = task.evaluator._batches("validation")
    real = np.concatenate([task.evaluator._clips(batch) for batch in batches])
    np.testing.assert_array_equal(clips[:, 0], real[:10, 0])
    measured = task.evaluator._measure(iter(drawn), 10)
    labels = task.evaluator._labels("validation")
    expected = task.evaluator._figures(task.evaluator._real("validation"), measured, labels)
    np.testing.assert_allclose(
        [found[name] for name in expected], list(expected.values()), rtol=1e-4
    )

    floor, untrained, still, mixed = task.baselines()
    assert "floor" in floor["name"] and "untrained" in untrained["name"]
    assert floor["direction_accuracy"] == 1 and floor["freeze_rate"] == floor["loop_rate"] == 0
    assert floor["content_distance"] < 2 and floor["motion_consistency"] == 1
    assert still["freeze_rate"] == 1 and still["speed"] == still["direction_accuracy"] == 0
    assert mixed["acceleration"] > 5 * floor["acceleration"] and mixed["freeze_rate"] == 0
    assert untrained["frechet_pixels"] > 2 * floor["frechet_pixels"]
    told = task.evaluation(Shard()).protocol
    assert "10 generated clips of 8 frames with the labels and first frames of as many" in told


# ---- devices -------------------------------------------------------------------------------------

SPREAD = {
    "batch_size": 16,
    "frames_judged": 2,
    "image_conditional": True,
    "augmentation": {"kind": "diffaugment"},
    "objective": {"r1_gamma": 1.0},
}


def stepped(task, mesh_config, steps):
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        shardings = state_shardings(shapes, task.partition_rules, mesh)
        state = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
        step = jax.jit(
            functools.partial(task.train_step, variant=Variant(penalties=True)),
            out_shardings=(shardings, None),
        )
        batches, found = task.dataset("train", Shard()), []
        for number in range(steps):
            state, metrics = step(state, place(batches[number], mesh))
            found.append({name: float(value) for name, value in metrics.items()})
        batch = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh, a.shape))
            for name, a in batches[0].items()
        }
        program = step.lower(state, batch).compile()
    return found, program, max(leaf.size for leaf in jax.tree.leaves(shapes.params))


@pytest.mark.slow
def test_eight_devices_train_as_one_and_gather_no_batch():
    task = configured(**SPREAD).make_task()
    expected, _, _ = stepped(task, MeshConfig(data=1), 2)
    found, program, parameters = stepped(task, MeshConfig(data=8), 2)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-3, atol=2e-4)
    assert moved(program) == []
    assert largest_sum(program) <= parameters
