"""Small StyleGAN2 networks with random parameters, and how far from a reference they may be."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.image.stylegan2_discriminator import StyleGAN2Discriminator
from genjax.image.stylegan2_generator import StyleGAN2Generator

BATCH, LATENTS = 4, 6

FEW = {"channel_base": 256, "channel_max": 12}
"""Channels: 12 at small sizes, 4 at 64."""

PRECISIONS = [("float64", 1e-12), ("float32", 1e-5)]
"""Dtypes and the greatest relative error in each."""


def drawn(shapes, seed=0):
    """Random float64 parameters: about those of initialisation, but no bias or strength is zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [key.key for key in path]
        slow = 100.0 if any(name.startswith("layers_") for name in names) else 1.0
        if names[-1] in ("kernel", "constant"):
            return slow * rng.normal(size=leaf.shape)
        first = 1.0 if names[-2:] == ["affine", "bias"] else 0.0
        return first + 0.5 * slow * rng.normal(size=leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def relative_error(actual, expected):
    """The greatest difference over the greatest number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def gradient_error(actual, expected, dtype):
    """The greatest relative error of a tree of gradients.

    In float64 of each array by itself. In float32 of the whole as one vector: biases move a
    gradient penalty through the minibatch standard deviation alone, which leaves of their gradients
    what sums of numbers a thousand times as large have not cancelled.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    ours, theirs = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if dtype == "float32":
        return relative_error(*(np.concatenate([np.ravel(a) for a in x]) for x in (ours, theirs)))
    zero = [not np.any(array) for array in theirs]
    assert zero == [not np.any(array) for array in ours]
    pairs = zip(ours, theirs, zero, strict=True)
    return max(relative_error(a, b) for a, b, nothing in pairs if not nothing)


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def labels_for(classes):
    return jnp.arange(BATCH, dtype=jnp.int32) % classes if classes else None


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def generator(image_shape, dtype="float32", **settings):
    fields = {**FEW, "latent_size": LATENTS, "style_size": 8, "mapping_layers": 2}
    return StyleGAN2Generator(image_shape, dtype=jnp.dtype(dtype), **(fields | settings))


def discriminator(image_shape, dtype="float32", **settings):
    fields = {**FEW, "mapping_layers": 2}
    return StyleGAN2Discriminator(image_shape, dtype=jnp.dtype(dtype), **(fields | settings))


def variables_of(module, inputs, labels=None):
    """Random parameters (float64) and statistics, without compiling an initialisation."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs, labels)
    return {name: drawn(tree) for name, tree in shapes.items()}
