"""StyleGAN2 in motion: shapes, first frames, labels, longer clips, and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.stylegan2_discriminator import StyleGAN2Discriminator
from genjax.video.model_config import StyleGAN2VideoConfig
from tests.video import small_networks as small


def inputs_of(**settings):
    return small.inputs_of(small.STYLEGAN2, **({"shape": small.SMALLER} | settings))


def test_shape_and_gradients():
    generator = small.STYLEGAN2.make(small.SMALLER, small.CLASSES, True).generator
    inputs = inputs_of(classes=small.CLASSES, first=True)
    variables = small.started(generator, *inputs, scale=1.0)
    assert set(variables) == {"params"}
    clips, _, without = small.run_backward(generator, variables, *inputs)
    assert (clips.shape, clips.dtype) == ((2, *small.SMALLER), jnp.float32)
    assert without == []


def test_labels_and_first_frame_change_the_clip():
    generator = small.STYLEGAN2.make(small.SMALLER, small.CLASSES, True).generator
    latents, conditions = inputs_of(classes=small.CLASSES, first=True)
    variables = small.started(generator, latents, conditions, scale=1.0)
    clips, *_ = small.run_backward(generator, variables, latents, conditions)
    np.testing.assert_array_equal(clips[:, 0], conditions.first)
    touched = conditions.first.at[:, 3, 5].add(1.0)
    for other in (
        conditions._replace(labels=conditions.labels + 1),
        conditions._replace(first=touched),
    ):
        changed, *_ = small.run_backward(generator, variables, latents, other)
        assert np.abs(changed - clips)[:, 1:].max((2, 3, 4)).min() > 1e-4


def test_a_longer_clip_begins_as_the_shorter_one():
    generator = small.STYLEGAN2.make(small.SMALLER, 0, False).generator
    latents, conditions = inputs_of(shape=(11, 8, 8, 1))
    short = latents[:, : small.STYLEGAN2.latent_size(8)]
    variables = small.started(generator, short, conditions, scale=1.0)
    longer, _ = small.run(generator, variables, latents, conditions)
    shorter, _ = small.run(generator, variables, short, conditions)
    assert longer.shape[1] == 11
    np.testing.assert_allclose(longer[:, :8], shorter, rtol=1e-4, atol=1e-4)


def test_noise_of_a_frame_changes_it_and_those_after():
    generator = small.STYLEGAN2.make(small.SMALLER, 0, False).generator
    latents, conditions = inputs_of()
    variables = small.started(generator, latents, conditions, scale=1.0)
    clips, _ = small.run(generator, variables, latents, conditions)
    start = small.STYLEGAN2.latent_size(3)
    other, _ = small.run(generator, variables, latents.at[:, start : start + 3].add(1), conditions)
    change = np.abs(other - clips).max((2, 3, 4))
    assert change[:, :3].max() < 1e-5
    assert change[:, 3].min() > 1e-3


@pytest.mark.slow
def test_at_its_start_the_synthesis_has_the_scale_of_images():
    config = StyleGAN2VideoConfig(channel_base=256, style_size=32, content_size=16)
    generator = config.make((4, 8, 8, 3), 0, False).generator
    latents, conditions = small.inputs_of(config, batch=4, shape=(4, 8, 8, 3))
    start = jax.jit(generator.init_with_output)
    clips = np.asarray(start(jax.random.key(1), latents, conditions)[0])
    assert 0.2 < np.std(clips) < 5
    moved = np.std(clips - clips.mean(1, keepdims=True))
    assert moved > 0.1 * np.std(clips)


@pytest.mark.fast
def test_the_frame_discriminator_is_that_of_images():
    networks = small.STYLEGAN2.make(small.CLIP_SHAPE, small.CLASSES, False)
    assert isinstance(networks.frame_discriminator, StyleGAN2Discriminator)
    assert networks.frame_discriminator.image_shape == (16, 16, 1)
    assert networks.frame_discriminator.num_classes == small.CLASSES


@pytest.mark.fast
def test_sizes_that_do_not_fit_say_what_would():
    with pytest.raises(ValueError, match="doubling"):
        StyleGAN2VideoConfig().make((8, 17, 17, 3), 0, False)


@pytest.mark.fast
def test_bfloat16_computes_and_float32_comes_out():
    config = small.STYLEGAN2.model_copy(update={"dtype": "bfloat16"})
    networks = config.make(small.CLIP_SHAPE, 0, True)
    inputs = small.inputs_of(config, first=True)
    variables = jax.eval_shape(networks.generator.init, jax.random.key(0), *inputs)
    clips = jax.eval_shape(networks.generator.apply, variables, *inputs)
    judge = networks.clip_discriminator
    assert judge is not None
    judged = jax.eval_shape(judge.init, jax.random.key(0), small.clip_of(), None)
    logits = jax.eval_shape(judge.apply, judged, small.clip_of(), None)
    assert clips.dtype == logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves((variables, judged))} == {"float32"}
