"""The clip discriminator of StyleGAN2 blocks: what it sees, its classes, its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.clip_discriminator import EqualizedTemporalConv, StyleGAN2ClipDiscriminator
from tests.image.gan_reference import leaky_relu, randomized, relative_error
from tests.nn.convolution3d_reference import conv3d
from tests.video import small_networks as small


def discriminator(classes=0, shape=small.SMALLER, **settings):
    fields = {"channel_base": 64, "channel_max": 6, "mapping_layers": 1, "group_size": 1}
    return StyleGAN2ClipDiscriminator(shape, classes, **(fields | settings))


def test_logits_labels_and_gradients():
    judge = discriminator(small.CLASSES, group_size=2)
    clips, labels = small.clip_of(shape=small.SMALLER), jnp.arange(2, dtype=jnp.int32)
    variables = small.started(judge, clips, labels, scale=1.0)
    assert set(variables) == {"params"}
    logits, _, without = small.run_backward(judge, variables, clips, labels)
    assert (logits.shape, logits.dtype) == ((2,), jnp.float32)
    assert without == []
    other, *_ = small.run_backward(judge, variables, clips, labels + 1)
    assert np.abs(other - logits).min() > 1e-4
    alike, *_ = small.run_backward(judge, variables, clips.at[1].set(clips[0]), labels)
    assert abs(float(alike[0] / logits[0]) - 1) > 1e-4
    with pytest.raises(UserError, match="no labels"):
        judge.init(jax.random.key(0), clips)


def test_the_order_of_frames_matters_and_other_clips_do_not():
    judge = discriminator()
    clips = small.clip_of(shape=small.SMALLER)
    variables = small.started(judge, clips, scale=1.0)
    logits, _ = small.run(judge, variables, clips)
    backwards, _ = small.run(judge, variables, clips[:, ::-1])
    beside, _ = small.run(judge, variables, clips.at[1].set(0.0))
    assert np.abs(backwards - logits).min() > 1e-3
    np.testing.assert_allclose(beside[0], logits[0], rtol=1e-4)


@pytest.mark.fast
def test_time_is_mixed_from_the_mixing_size_on_and_halves():
    """64x64 and 16 frames: the two largest blocks see frames; 16, 8, 4 pixels halve time."""
    judge = discriminator(shape=(16, 64, 64, 3))
    shapes = jax.eval_shape(judge.init, jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))["params"]
    mixed = {name for name in shapes if name.endswith("_time")}
    assert mixed == {"16x16_time", "8x8_time", "4x4_time"}
    # Two frames of 4x4 are left, of six channels each.
    assert shapes["dense"]["kernel"].shape == (2 * 4 * 4 * 6, 6)


def test_the_convolution_over_time_equals_the_reference():
    layer = EqualizedTemporalConv(4, dtype=jnp.float64)
    clips = np.random.default_rng(0).normal(size=(2, 5, 2, 3, 3))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(clips))
        variables = randomized(shapes)
        found = jax.jit(layer.apply)(variables, jnp.asarray(clips))
    params = variables["params"]
    outputs = conv3d(clips, params["kernel"][:, None, None] / 3.0, (2, 1), (1, 0)) + params["bias"]
    assert relative_error(found, leaky_relu(outputs) * np.sqrt(2)) < 1e-12


def test_a_gradient_penalty_has_gradients():
    judge = discriminator()
    clips = small.clip_of(shape=small.SMALLER)
    variables = small.started(judge, clips, scale=1.0)

    @jax.jit
    def gradient(variables):
        def penalty(variables):
            slope = jax.grad(lambda clips: judge.apply(variables, clips).sum())(clips)
            return jnp.sum(jnp.square(slope))

        return jax.value_and_grad(penalty)(variables)

    value, grads = jax.device_get(gradient(variables))
    assert value > 0
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert len(kernels) == 8
    assert all(np.any(leaf != 0) for leaf in kernels)
