"""Networks of video GANs that compile in seconds, and how tests call them.

Letters: B batch, T time, H height, W width, C channels, Z latent size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.video.conditions import Conditions
from genjax.video.model_config import MoCoGANConfig, StyleGAN2VideoConfig, VGANConfig

CLIP_SHAPE = (8, 16, 16, 1)
CLASSES = 3
# Two resolutions, so one of each kind of block; VGAN starts from 16 pixels.
SMALLER = (8, 8, 8, 1)

VGAN = VGANConfig(content_size=5, base_channels=3, max_channels=6)
MOCOGAN = MoCoGANConfig(
    content_size=4,
    motion_size=3,
    base_channels=3,
    max_channels=6,
    discriminator_channels=3,
    temporal_kernel_size=2,
)
STYLEGAN2 = StyleGAN2VideoConfig(
    content_size=4,
    motion_size=3,
    motion_features=5,
    style_size=6,
    mapping_layers=1,
    channel_base=64,
    channel_max=6,
    group_size=2,
)


# Numbers are numpy's: each operation that JAX does by itself is one more program to compile.


def clip_of(batch=2, shape=CLIP_SHAPE):
    numbers = np.random.default_rng(0).normal(size=(batch, *shape))
    return jnp.asarray(np.tanh(numbers).astype(np.float32))


def inputs_of(config, *, classes=0, first=False, batch=2, shape=CLIP_SHAPE):
    """Latents and conditions of a batch."""
    random = np.random.default_rng(1)
    latents = random.normal(size=(batch, config.latent_size(shape[0]))).astype(np.float32)
    labels = jnp.asarray(np.int32(np.arange(batch) % classes)) if classes else None
    frame = np.tanh(random.normal(size=(batch, *shape[1:]))).astype(np.float32)
    return jnp.asarray(latents), Conditions(labels, jnp.asarray(frame) if first else None)


def started(network, *inputs, scale=0.3):
    """Variables with every number random, so that nothing is zero by its start.

    Networks of equalised learning rates want scale = 1.
    """
    random = np.random.default_rng(0)

    def drawn(path, leaf):
        values = random.normal(size=leaf.shape)
        name = path[-1].key
        values = np.exp(values) if name == "variance" else scale * values
        return jnp.asarray(values.astype(leaf.dtype))

    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(drawn, shapes)


@functools.cache
def _applied(network, train):
    def apply(variables, *inputs):
        outputs, updates = network.apply(variables, *inputs, train=train, mutable=["statistics"])
        return outputs, updates.get("statistics", {})

    return jax.jit(apply)


def run(network, variables, *inputs, train=False):
    """Outputs, and the moved statistics."""
    return jax.device_get(_applied(network, train)(variables, *inputs))


@functools.cache
def _differentiated(network):
    def gradient(variables, *inputs):
        def total(params):
            outputs, statistics = _applied(network, True)(variables | {"params": params}, *inputs)
            weights = np.random.default_rng(7).normal(size=outputs.shape)
            return jnp.sum(weights * outputs), (outputs, statistics)

        return jax.grad(total, has_aux=True)(variables["params"])

    return jax.jit(gradient)


def run_backward(network, variables, *inputs):
    """Outputs in training, the moved statistics, and paths of the parameters without effect."""
    grads, (outputs, statistics) = jax.device_get(_differentiated(network)(variables, *inputs))
    without = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not (np.isfinite(leaf).all() and np.any(leaf != 0))
    ]
    return outputs, statistics, without


def parameter_count(network, *inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
