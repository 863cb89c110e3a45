"""VGAN: the streams against float64 numpy, the paper's sizes, masks, labels, first frames."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.conditions import Conditions
from genjax.video.model_config import VGANConfig
from genjax.video.vgan import VGANDiscriminator, VGANGenerator, time_doublings
from tests.image.gan_reference import batch_normalized, leaky_relu, randomized, relative_error
from tests.nn.convolution3d_reference import conv3d, conv_transpose3d
from tests.video import small_networks as small

BOTH = ((2, 2), (1, 1))
SPACE = ((1, 2), (0, 1))


def normed(params, name, hidden):
    return batch_normalized(hidden, params[name]["scale"], params[name]["bias"], 1e-5, None)


def spread2d(images, kernel):
    return conv_transpose3d(images[:, None], kernel[None], *SPACE)[:, 0]


def generated(params, inputs, in_time, start):
    """Clips and masks from the paper's equations, with the batch's statistics."""
    levels = len(in_time) - 1
    front = (inputs @ params["foreground_input"]["kernel"]).reshape(len(inputs), *start, -1)
    back = (inputs @ params["background_input"]["kernel"]).reshape(len(inputs), *start[1:], -1)
    front = np.maximum(normed(params, "foreground_norm_0", front), 0)
    back = np.maximum(normed(params, "background_norm_0", back), 0)
    for level in range(levels):
        kernel = params[f"foreground_up_{level}"]["kernel"]
        front = conv_transpose3d(front, kernel, *(BOTH if in_time[level] else SPACE))
        front = np.maximum(normed(params, f"foreground_norm_{level + 1}", front), 0)
        back = spread2d(back, params[f"background_up_{level}"]["kernel"])
        back = np.maximum(normed(params, f"background_norm_{level + 1}", back), 0)
    last = BOTH if in_time[-1] else SPACE
    foreground, mask = (
        conv_transpose3d(front, params[name]["kernel"], *last) + params[name]["bias"]
        for name in ("foreground", "mask")
    )
    background = spread2d(back, params["background"]["kernel"]) + params["background"]["bias"]
    mask = 1 / (1 + np.exp(-mask))
    return mask * np.tanh(foreground) + (1 - mask) * np.tanh(background)[:, None], mask


@pytest.mark.parametrize(
    ("shape", "in_time", "start"),
    [
        pytest.param((8, 16, 16, 2), [True, True], (2, 4, 4), marks=pytest.mark.slow),
        ((8, 32, 32, 1), [False, True, True], (2, 4, 4)),
    ],
)
def test_the_streams_equal_the_reference(shape, in_time, start):
    settings = {"clip_shape": shape, "base_channels": 2, "max_channels": 4, "dtype": jnp.float64}
    generator = VGANGenerator(latent_size=3, num_classes=3, **settings)
    latents, labels = np.random.default_rng(0).normal(size=(3, 3)), np.array([0, 2, 1], np.int32)
    assert time_doublings(shape) == in_time
    with jax.enable_x64(True):
        inputs = (jnp.asarray(latents), Conditions(jnp.asarray(labels)))
        variables = randomized(jax.eval_shape(generator.init, jax.random.key(0), *inputs))

        @jax.jit
        def run(variables, *inputs):
            return generator.apply(
                variables,
                *inputs,
                train=True,
                mutable=["statistics"],
                method="clip_and_mask",
            )

        (clips, masks), _ = run(variables, *inputs)
    both = np.concatenate([latents, np.eye(3)[labels]], 1)
    expected = generated(variables["params"], both, in_time, start)
    assert relative_error(clips, expected[0]) < 1e-12
    assert relative_error(masks, expected[1]) < 1e-12


def test_the_discriminator_equals_the_reference():
    settings = {"clip_shape": (8, 32, 32, 1), "base_channels": 2, "max_channels": 4}
    discriminator = VGANDiscriminator(num_classes=3, dtype=jnp.float64, **settings)
    clips, labels = np.random.default_rng(0).normal(size=(3, 8, 32, 32, 1)), np.array([0, 2, 2])
    with jax.enable_x64(True):
        inputs = (jnp.asarray(clips), jnp.asarray(labels, jnp.int32))
        variables = randomized(jax.eval_shape(discriminator.init, jax.random.key(0), *inputs))
        found, _ = small.run(discriminator, variables, *inputs, train=True)
    params = variables["params"]
    hidden = clips
    for level, where in enumerate((BOTH, BOTH, SPACE)):
        layer = params[f"down_{level}"]
        hidden = conv3d(hidden, layer["kernel"], *where) + layer.get("bias", 0.0)
        hidden = leaky_relu(hidden if level == 0 else normed(params, f"norm_{level}", hidden))
    flat = hidden.reshape(3, -1)
    logits = (flat @ params["output"]["kernel"])[:, 0] + params["output"]["bias"]
    assert relative_error(found, logits + (flat * params["class_embedding"][labels]).sum(1)) < 1e-12


@pytest.mark.fast
def test_the_papers_sizes():
    """64x64 and 32 frames: 512, 256, 128, 64 channels from 2x4x4, five layers a stream."""
    networks = VGANConfig().make((32, 64, 64, 3), 0, False)
    assert networks.frame_discriminator is None
    widths = (512, 256, 128, 64)
    pairs = sum(a * b for a, b in itertools.pairwise(widths))
    norms = 2 * sum(widths)
    foreground = 100 * 512 * 2 * 4 * 4 + 64 * pairs + norms + 64 * 64 * 3 + 3
    mask = 64 * 64 + 1
    background = 100 * 512 * 4 * 4 + 16 * pairs + norms + 16 * 64 * 3 + 3
    count = small.parameter_count(networks.generator, jnp.zeros((1, 100)), Conditions())
    assert count == foreground + mask + background
    judge = 64 * 64 * 3 + 64 + 64 * pairs + 2 * (128 + 256 + 512) + 512 * 2 * 4 * 4 + 1
    clips = jnp.zeros((1, 32, 64, 64, 3))
    assert small.parameter_count(networks.clip_discriminator, clips, None) == judge


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "in_time"),
    [
        ((32, 64, 64, 3), [True] * 4),
        ((16, 64, 64, 3), [False, True, True, True]),
        ((16, 16, 24, 3), [True, True]),
    ],
)
def test_time_doubles_last(shape, in_time):
    assert time_doublings(shape) == in_time


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((12, 64, 64, 3), "power of two"),
        ((4, 64, 64, 3), "at least 8"),
        ((8, 8, 8, 3), "16 at least"),
        ((8, 17, 17, 3), "doubling"),
    ],
)
def test_sizes_that_do_not_fit_say_what_would(shape, message):
    with pytest.raises(ValueError, match=message):
        VGANConfig().make(shape, 0, False)


def test_statistics_and_gradients():
    generator = small.VGAN.make(small.CLIP_SHAPE, small.CLASSES, True).generator
    inputs = small.inputs_of(small.VGAN, classes=small.CLASSES, first=True)
    variables = small.started(generator, *inputs)
    clips, statistics, without = small.run_backward(generator, variables, *inputs)
    assert (clips.shape, clips.dtype) == ((2, *small.CLIP_SHAPE), jnp.float32)
    assert without == []
    before, after = jax.tree.leaves(variables["statistics"]), jax.tree.leaves(statistics)
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))
    judged, kept = small.run(generator, variables, *inputs)
    assert np.any(judged != clips)
    jax.tree.map(np.testing.assert_array_equal, kept, variables["statistics"])


def test_masks_lie_between_foreground_and_background():
    generator = small.VGAN.make(small.CLIP_SHAPE, 0, False).generator
    inputs = small.inputs_of(small.VGAN)
    variables = small.started(generator, *inputs)
    run = jax.jit(lambda v: generator.apply(v, *inputs, method="clip_and_mask"))
    clips, masks = jax.device_get(run(variables))
    assert np.abs(clips).max() <= 1
    assert masks.shape == (2, *small.CLIP_SHAPE[:3], 1)
    assert 0 < masks.min() < masks.max() < 1
    # Without foreground, what is left stands still.
    params = variables["params"]
    kernel = np.zeros_like(params["mask"]["kernel"])
    closed = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(np.float32([-40.0]))}
    clips, masks = jax.device_get(run(variables | {"params": params | {"mask": closed}}))
    assert masks.max() < 1e-15
    np.testing.assert_array_equal(clips[:, 1:], clips[:, :-1])
    assert np.std(clips) > 1e-3


def test_labels_and_first_frame_change_the_clip():
    generator = small.VGAN.make(small.CLIP_SHAPE, small.CLASSES, True).generator
    latents, conditions = small.inputs_of(small.VGAN, classes=small.CLASSES, first=True)
    variables = small.started(generator, latents, conditions)
    clips, _ = small.run(generator, variables, latents, conditions)
    np.testing.assert_array_equal(clips[:, 0], conditions.first)
    for other in (
        conditions._replace(labels=conditions.labels + 1),
        conditions._replace(first=-conditions.first),
    ):
        changed, _ = small.run(generator, variables, latents, other)
        assert np.abs(changed - clips)[:, 1:].max((1, 2, 3, 4)).min() > 1e-4
    with pytest.raises(UserError, match="first frame"):
        generator.init(jax.random.key(0), latents, conditions._replace(first=None))
    with pytest.raises(UserError, match="no labels"):
        generator.init(jax.random.key(0), latents, conditions._replace(labels=None))


def test_logits_without_batch_normalisation_stand_alone():
    config = small.VGAN.model_copy(update={"discriminator_batch_norm": False})
    judge = config.make(small.CLIP_SHAPE, small.CLASSES, False).clip_discriminator
    clips, labels = small.clip_of(), jnp.arange(2, dtype=jnp.int32)
    variables = small.started(judge, clips, labels)
    assert "statistics" not in variables
    logits, _, without = small.run_backward(judge, variables, clips, labels)
    assert without == []
    other, _ = small.run(judge, variables, clips.at[1].set(0.0), labels, train=True)
    assert (logits.shape, logits.dtype) == ((2,), jnp.float32)
    np.testing.assert_allclose(logits[0], other[0], rtol=1e-5)
    assert logits[1] != other[1]
