"""Adversarial runs that compile in seconds: configs, tasks, and a styled generator of two layers.

Letters: B batch, L layers, D style size, P numbers of an image.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.config import check
from genjax.image.adversarial import Adversarial
from genjax.image.adversarial_config import AdversarialConfig
from genjax.image.dense_gan import DenseDiscriminator
from genjax.image.model_config import Networks, StyleGAN2Config
from genjax.task import Shard

POINTS = {"kind": "gaussian_mixture", "samples": 200}
DIGITS = {"kind": "digits", "size": 8}

DENSE = {"kind": "dense", "latent_size": 3, "generator_sizes": [6], "discriminator_sizes": [6]}
DCGAN = {"kind": "dcgan", "latent_size": 8, "base_channels": 4, "max_channels": 8}
SNGAN = {
    "kind": "sngan",
    "latent_size": 8,
    "base_channels": 8,
    "generator_channels": [8],
    "discriminator_channels": [8],
    "num_downsample": 1,
}
STYLEGAN2 = {
    "kind": "stylegan2",
    "latent_size": 8,
    "style_size": 8,
    "mapping_layers": 1,
    "channel_base": 32,
    "channel_max": 4,
}
R3GAN = {
    "kind": "r3gan",
    "latent_size": 8,
    "stage_widths": [8, 8],
    "blocks_per_stage": 1,
    "group_size": 8,
}

MODELS = {"dense": DENSE, "dcgan": DCGAN, "sngan": SNGAN, "stylegan2": STYLEGAN2, "r3gan": R3GAN}


class StyledGenerator(nn.Module):
    """StyleGAN2's interface over two layers: styles are linear in latents, images in styles.

    With `linear = False` images end in a tanh.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 4
    num_classes: int = 0
    linear: bool = False
    num_styles: int = 4
    style_size: int = 3

    def setup(self):
        normal, size = nn.initializers.normal(0.5), math.prod(self.image_shape)
        inputs = self.latent_size + self.num_classes
        self.mapping = self.param("mapping", normal, (inputs, self.style_size))
        self.layers = self.param("layers", normal, (self.num_styles, self.style_size, size))
        self.w_average = self.variable("statistics", "w_average", jnp.zeros, (self.style_size,))

    def __call__(self, latents, labels=None, *, train=False):
        return self.synthesis(self.styles(latents, labels, train=train))

    def styles(self, latents, labels=None, *, train=False):
        assert (labels is None) == (self.num_classes == 0)
        if labels is not None:
            latents = jnp.concatenate([latents, jax.nn.one_hot(labels, self.num_classes)], -1)
        style = latents @ self.mapping
        if train and not self.is_initializing():
            self.w_average.value += 0.1 * (style.mean(0) - self.w_average.value)
        return jnp.broadcast_to(style[:, None], (len(style), self.num_styles, self.style_size))

    def truncated_styles(self, latents, labels, truncation, cutoff=None):
        styles = self.styles(latents, labels)
        pulled = self.w_average.value + truncation * (styles - self.w_average.value)
        kept = self.num_styles if cutoff is None else cutoff
        return jnp.where(jnp.arange(self.num_styles)[:, None] < kept, pulled, styles)

    def synthesis(self, styles):
        images = jnp.einsum("bld,ldp->bp", styles, self.layers)
        images = images if self.linear else jnp.tanh(images)
        return images.reshape(-1, *self.image_shape)


class StyledConfig(StyleGAN2Config):
    """Makes the generator above, and a dense discriminator."""

    latent_size: int = 4
    linear: bool = False

    def make(self, image_shape, num_classes):
        generator = StyledGenerator(image_shape, self.latent_size, num_classes, self.linear)
        return Networks(generator, DenseDiscriminator(num_classes, (6,)))


def configured(model, source=DIGITS, *, batch_size=8, **tables):
    """A checked config; features of real images are kept nowhere unless a folder is given."""
    tables["evaluation"] = {"cache": None, **tables.get("evaluation", {})}
    tables["data"] = {"source": source, "batch_size": batch_size, **tables.get("data", {})}
    return check({"kind": "adversarial", "model": model, **tables}, AdversarialConfig)


def styled(source=DIGITS, *, linear=False, **tables):
    """The same with the styled generator of two layers."""
    config = configured(STYLEGAN2, source, **tables)
    return config.model_copy(update={"model": StyledConfig(linear=linear)})


def labelless(source):
    """The same images without their labels."""
    splits = {
        name: dataclasses.replace(split, labels=None) for name, split in source.splits.items()
    }
    return dataclasses.replace(source, splits=splits, num_classes=0, class_names=())


def unlabelled_task(config, monkeypatch):
    """A task whose source has lost its labels."""
    from genjax.image import adversarial

    opened = adversarial.open_images
    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "open_images", lambda source: labelless(opened(source)))
        return Adversarial(config)


def trained(task, steps, seed=0):
    """The state after some steps, the one before, and the metrics of each step."""
    init = jax.jit(task.init)
    step = jax.jit(task.train_step, static_argnames="variant")
    first = state = init(jax.random.key(seed))
    batches, metrics = task.dataset("train", Shard()), []
    for number in range(steps):
        state, new = step(state, batches[number], variant=task.variant(number))
        metrics.append({name: float(value) for name, value in new.items()})
    return state, first, metrics


def numbers(tree):
    """A tree in float64 numpy."""
    return jax.tree.map(functools.partial(np.asarray, dtype=np.float64), tree)
