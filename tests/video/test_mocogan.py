"""MoCoGAN: published counts, motion and clip logits against float64 numpy, longer clips, labels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.dcgan import DCGANGenerator
from genjax.video.conditions import Conditions
from genjax.video.mocogan import PatchClipDiscriminator
from genjax.video.model_config import MoCoGANConfig
from genjax.video.motion import split_latents
from tests.image.gan_reference import leaky_relu, randomized, relative_error
from tests.nn.convolution3d_reference import conv3d
from tests.video import small_networks as small


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def motion_codes(params, noise):
    """The gated recurrent unit of every frame, noise [B, T, M] from a state of zeros."""
    wide, recurrent, bias = (params[n] for n in ("input_kernel", "recurrent_kernel", "bias"))
    size = len(recurrent)
    state, codes = np.zeros((len(noise), size)), []
    for frame in noise.swapaxes(0, 1):
        inputs, before = frame @ wide + bias, state @ recurrent
        reset = sigmoid(inputs[:, :size] + before[:, :size])
        update = sigmoid(inputs[:, size : 2 * size] + before[:, size : 2 * size])
        recall = before[:, 2 * size :] + params["recurrent_bias"]
        state = (1 - update) * np.tanh(inputs[:, 2 * size :] + reset * recall) + update * state
        codes.append(state)
    return np.stack(codes, 1)


@pytest.mark.fast
def test_the_published_counts():
    """3.25 M, 0.66 M and 2.65 M, which is without categories; each of six adds 512 x 4 x 4."""
    config, shape = MoCoGANConfig(), (16, 64, 64, 3)
    counts = {}
    for classes in (0, 6):
        networks = config.make(shape, classes, False)
        labels = jnp.zeros(1, jnp.int32) if classes else None
        latents = jnp.zeros((1, config.latent_size(16)))
        clips = jnp.zeros((1, *shape))
        assert networks.frame_discriminator is not None
        counts[classes] = (
            small.parameter_count(networks.generator, latents, Conditions(labels)),
            small.parameter_count(networks.frame_discriminator, clips[:, 0], labels),
            small.parameter_count(networks.clip_discriminator, clips, labels),
        )
    widths = (512, 256, 128, 64)
    pairs = sum(a * b for a, b in itertools.pairwise(widths))
    images = 16 * (60 * 512 + pairs + 64 * 3) + 3 + 2 * sum(widths)
    motion = 3 * (10 * 10 + 10 * 10) + 4 * 10
    body = 3 * 64 + 64 * 128 + 128 * 256 + 256
    norms = 2 * (128 + 256)
    assert counts[0] == (images + motion, 16 * body + norms, 64 * body + norms)
    assert [round(count / 1e6, 2) for count in counts[0]] == [3.25, 0.66, 2.65]
    assert counts[6][0] - counts[0][0] == 6 * 512 * 16
    assert counts[6][2] - counts[0][2] == 6 * 256 * 64


def test_frames_are_images_of_content_motion_and_class():
    generator = small.MOCOGAN.make(small.CLIP_SHAPE, small.CLASSES, False).generator
    latents, conditions = small.inputs_of(small.MOCOGAN, classes=small.CLASSES)
    with jax.enable_x64(True):
        generator = generator.clone(dtype=jnp.float64)
        latents = jnp.asarray(latents, jnp.float64)
        shapes = jax.eval_shape(generator.init, jax.random.key(0), latents, conditions)
        variables = randomized(shapes)
        clips, _ = small.run(generator, variables, latents, conditions)

        content, noise = np.split(np.asarray(latents), [4], 1)
        motion = motion_codes(variables["params"]["motion"], noise.reshape(2, 8, 3))
        images = DCGANGenerator((16, 16, 1), 7, small.CLASSES, 3, 6, dtype=jnp.float64)
        frames = {name: tree["frames"] for name, tree in variables.items()}
        draw = jax.jit(images.apply)
        for time in range(8):
            codes = jnp.asarray(np.concatenate([content, motion[:, time]], 1))
            expected = draw(frames, codes, conditions.labels)
            assert relative_error(clips[:, time], expected) < 1e-12


def test_clip_logits_equal_the_reference():
    judge = PatchClipDiscriminator(3, 2, 2, use_batch_norm=False, dtype=jnp.float64)
    clips, labels = np.random.default_rng(0).normal(size=(3, 6, 32, 16, 1)), np.array([0, 2, 2])
    with jax.enable_x64(True):
        inputs = (jnp.asarray(clips), jnp.asarray(labels, jnp.int32))
        variables = randomized(jax.eval_shape(judge.init, jax.random.key(0), *inputs))
        found, _ = small.run(judge, variables, *inputs)
    hidden = clips
    for level in range(3):
        kernel = variables["params"][f"down_{level}"]["kernel"]
        hidden = leaky_relu(conv3d(hidden, kernel, (1, 2), (0, 1)))
    maps = conv3d(hidden, variables["params"]["output"]["kernel"], (1, 2), (0, 1))
    assert maps.shape == (3, 2, 2, 1, 4)
    chosen = np.stack([maps[n, ..., 1 + label] for n, label in enumerate(labels)])
    assert relative_error(found, (maps[..., 0] + chosen).reshape(3, -1)) < 1e-12


@pytest.mark.parametrize("player", range(3))
def test_shapes_statistics_and_gradients(player):
    latents, conditions = small.inputs_of(small.MOCOGAN, classes=small.CLASSES, first=True)
    clips = small.clip_of()
    inputs, shape = (
        ((latents, conditions), (2, *small.CLIP_SHAPE)),
        ((clips[:, 0], conditions.labels), (2, 1)),
        ((clips, conditions.labels), (2, 4)),
    )[player]
    network = small.MOCOGAN.make(small.CLIP_SHAPE, small.CLASSES, True)[player]
    variables = small.started(network, *inputs)
    outputs, statistics, without = small.run_backward(network, variables, *inputs)
    assert (outputs.shape, outputs.dtype) == (shape, jnp.float32)
    assert without == []
    before, after = jax.tree.leaves(variables["statistics"]), jax.tree.leaves(statistics)
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))
    judged, kept = small.run(network, variables, *inputs)
    jax.tree.map(np.testing.assert_array_equal, kept, variables["statistics"])
    assert np.any(judged != outputs)


def test_a_longer_clip_begins_as_the_shorter_one():
    generator = small.MOCOGAN.make(small.CLIP_SHAPE, 0, False).generator
    latents, conditions = small.inputs_of(small.MOCOGAN, shape=(11, *small.CLIP_SHAPE[1:]))
    short = latents[:, : small.MOCOGAN.latent_size(8)]
    variables = small.started(generator, short, conditions)
    longer, _ = small.run(generator, variables, latents, conditions)
    shorter, _ = small.run(generator, variables, short, conditions)
    assert longer.shape[1] == 11
    np.testing.assert_allclose(longer[:, :8], shorter, atol=1e-5)
    assert np.abs(longer[:, 1:] - longer[:, :-1]).max((2, 3, 4)).min() > 1e-4
    with pytest.raises(ValueError, match="4 numbers of content and 3 for each frame"):
        split_latents(latents[:, :-1], 4, 3)


def test_labels_and_first_frame_change_the_clip():
    generator = small.MOCOGAN.make(small.CLIP_SHAPE, small.CLASSES, True).generator
    latents, conditions = small.inputs_of(small.MOCOGAN, classes=small.CLASSES, first=True)
    variables = small.started(generator, latents, conditions)
    clips, _ = small.run(generator, variables, latents, conditions)
    np.testing.assert_array_equal(clips[:, 0], conditions.first)
    for other in (
        conditions._replace(labels=conditions.labels + 1),
        conditions._replace(first=-conditions.first),
    ):
        changed, _ = small.run(generator, variables, latents, other)
        assert np.abs(changed - clips)[:, 1:].max((2, 3, 4)).min() > 1e-4


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((12, 64, 64, 3), "13 frames at least, and they have 12; 3 would fit"),
        ((16, 8, 8, 3), "16 at least"),
        ((16, 17, 17, 3), "doubling"),
    ],
)
def test_sizes_that_do_not_fit_say_what_would(shape, message):
    with pytest.raises(ValueError, match=message):
        MoCoGANConfig().make(shape, 0, False)


@pytest.mark.fast
def test_the_kernel_that_the_message_names_fits():
    for frames in (5, 9, 12):
        config = MoCoGANConfig(temporal_kernel_size=(frames - 1) // 4 + 1)
        assert config.make((frames, 16, 16, 1), 0, False).clip_discriminator is not None
