"""StyleGAN2's networks against a float64 reference from the papers."""

import functools

import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autograd import grad, value_and_grad

from genjax.image.stylegan2_discriminator import StyleGAN2Discriminator
from genjax.image.stylegan2_generator import StyleGAN2Generator
from tests.image import stylegan2_reference as reference
from tests.image.stylegan2_small import (
    BATCH,
    LATENTS,
    PRECISIONS,
    arrays,
    cast,
    discriminator,
    generator,
    gradient_error,
    labels_for,
    relative_error,
    variables_of,
)

# Whole networks take seconds to compile; layers are tested in both precisions.
EXACT_FIRST = [PRECISIONS[0], pytest.param(*PRECISIONS[1], marks=pytest.mark.slow)]

SKEWED = (1.0, 2.0, 4.0, 1.0)
"""A filter that shows which way round it goes."""


def constant_noises(image_shape):
    """The noise of each layer as it is without the stream "noise"."""
    sizes = reference.sizes_of(image_shape)[::-1]
    places = [sizes[0]] + [size for size in sizes[1:] for _ in range(2)]
    return [
        np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), n), (1, *size, 1)))
        for n, size in enumerate(places)
    ]


def reference_options(settings):
    """The reference's names for a network's settings."""
    known = {"architecture", "taps"} & settings.keys()
    options = {name: settings[name] for name in known}
    return options | {"circular": settings.get("padding_mode") == "circular"}


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size,settings,of_generator,of_discriminator",
    [
        (256, {"channel_base": 16384}, 24_767_458, 24_001_089),
        (256, {"channel_base": 16384, "mapping_layers": 2}, 23_191_522, None),
        (512, {}, 30_276_583, 28_982_849),
        (1024, {}, 30_370_060, 29_012_513),
        (32, {"mapping_layers": 2, "num_classes": 10}, 20_215_315, None),
        (32, {"architecture": "plain", "num_classes": 10}, None, 23_089_664),
    ],
    ids=str,
)
def test_published_sizes(size, settings, of_generator, of_discriminator):
    def count(module, inputs):
        labels = jnp.zeros(1, jnp.int32) if "num_classes" in settings else None
        shapes = jax.eval_shape(module.init, jax.random.key(0), inputs, labels)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    shape = (size, size, 3)
    if of_generator:
        assert count(StyleGAN2Generator(shape, **settings), jnp.zeros((1, 512))) == of_generator
    if of_discriminator:
        module = StyleGAN2Discriminator(shape, **settings)
        assert count(module, jnp.zeros((1, *shape))) == of_discriminator


GENERATORS = [
    ((64, 64, 3), {"architecture": "skip"}),
    ((64, 64, 3), {"architecture": "residual"}),
    ((32, 32, 1), {"architecture": "skip", "num_classes": 3, "taps": SKEWED}),
    ((32, 64, 4), {"architecture": "residual", "num_classes": 3, "padding_mode": "circular"}),
]


@pytest.mark.parametrize("dtype,bar", EXACT_FIRST)
@pytest.mark.parametrize("image_shape,settings", GENERATORS, ids=str)
def test_generators(image_shape, settings, dtype, bar):
    (latents,) = arrays((BATCH, LATENTS))
    classes = settings.get("num_classes", 0)
    labels = labels_for(classes)
    with jax.enable_x64(dtype == "float64"):
        module = generator(image_shape, dtype, **settings)
        variables = variables_of(module, jnp.asarray(latents, dtype), labels)
        ours = jax.jit(module.apply)(cast(variables, dtype), jnp.asarray(latents, dtype), labels)
        noises = constant_noises(image_shape)
    assert ours.dtype == dtype
    expected = reference.generator(
        variables["params"],
        latents,
        labels,
        noises,
        image_shape,
        classes,
        **reference_options(settings),
    )
    assert relative_error(ours, expected) <= bar


DISCRIMINATORS = [
    ((64, 64, 3), {"architecture": "residual"}),
    ((64, 64, 3), {"architecture": "skip", "num_classes": 3}),
    ((64, 64, 1), {"architecture": "plain"}),
    ((32, 32, 1), {"architecture": "residual", "num_classes": 3, "taps": SKEWED}),
    ((32, 64, 4), {"architecture": "skip", "padding_mode": "circular", "group_size": 2}),
    ((32, 32, 3), {"architecture": "plain", "num_classes": 3, "group_size": 2}),
]


@pytest.mark.parametrize("dtype,bar", EXACT_FIRST)
@pytest.mark.parametrize("image_shape,settings", DISCRIMINATORS, ids=str)
def test_discriminators(image_shape, settings, dtype, bar):
    (images,) = arrays((BATCH, *image_shape))
    classes = settings.get("num_classes", 0)
    labels = labels_for(classes)
    with jax.enable_x64(dtype == "float64"):
        module = discriminator(image_shape, dtype, **settings)
        variables = variables_of(module, jnp.asarray(images, dtype), labels)
        ours = jax.jit(module.apply)(cast(variables, dtype), jnp.asarray(images, dtype), labels)
    assert ours.dtype == dtype and ours.shape == (BATCH,)
    expected = reference.discriminator(
        variables["params"],
        images,
        labels,
        classes,
        group=settings.get("group_size", 4),
        **reference_options(settings),
    )
    assert relative_error(ours, expected) <= bar


# ---- the terms whose gradients are second derivatives ------------------------------------------


@pytest.mark.parametrize("dtype,bar", EXACT_FIRST)
@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "residual", "num_classes": 3},
        pytest.param({"architecture": "skip"}, marks=pytest.mark.slow),
        pytest.param({"architecture": "plain"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradient_penalty_and_its_gradient(settings, dtype, bar):
    """R1 of Mescheder et al. 2018: the squared length of the logit's gradient in the images."""
    (images,) = arrays((BATCH, 32, 32, 3))
    classes = settings.get("num_classes", 0)
    labels = labels_for(classes)
    with jax.enable_x64(dtype == "float64"):
        module = discriminator(images.shape[1:], dtype, **settings)
        inputs = jnp.asarray(images, dtype)
        params = variables_of(module, inputs, labels)["params"]

        def ours(params):
            def total(images):
                return jnp.sum(module.apply({"params": params}, images, labels))

            return jnp.sum(jnp.square(jax.grad(total)(inputs)))

        penalty, gradient = jax.jit(jax.value_and_grad(ours))(cast(params, dtype))

    def theirs(params):
        def total(images):
            return anp.sum(reference.discriminator(params, images, labels, classes, **options))

        return anp.sum(grad(total)(images) ** 2)

    options = reference_options(settings)
    expected, expected_gradient = value_and_grad(theirs)(params)
    assert relative_error(penalty, expected) <= bar
    assert gradient_error(gradient, expected_gradient, dtype) <= bar


@pytest.mark.parametrize("dtype,bar", EXACT_FIRST)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"architecture": "skip"}, marks=pytest.mark.slow),
        {"architecture": "residual", "num_classes": 3},
    ],
    ids=str,
)
def test_path_lengths_and_their_gradient(settings, dtype, bar):
    """How far images move with the styles, Karras et al. 2020, section 3.2."""
    image_shape = (16, 16, 3)
    latents, directions = arrays((BATCH, LATENTS), (BATCH, *image_shape))
    directions /= np.sqrt(16 * 16)
    classes, average = settings.get("num_classes", 0), 0.7
    labels = labels_for(classes)
    with jax.enable_x64(dtype == "float64"):
        module = generator(image_shape, dtype, **settings)
        inputs, weights = jnp.asarray(latents, dtype), jnp.asarray(directions, dtype)
        variables = variables_of(module, inputs, labels)
        noises = constant_noises(image_shape)

        def ours(params):
            apply = functools.partial(module.apply, {**cast(variables, dtype), "params": params})
            styles = apply(inputs, labels, method="styles")

            def moved(styles):
                return jnp.sum(apply(styles, method="synthesis") * weights)

            squares = jnp.sum(jnp.square(jax.grad(moved)(styles)), 2)
            lengths = jnp.sqrt(jnp.mean(squares, 1))
            return jnp.mean(jnp.square(lengths - average)), lengths

        (penalty, lengths), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(
            cast(variables["params"], dtype)
        )

    options = reference_options(settings)

    def path_lengths(params):
        style = reference.mapping(params["mapping_network"], latents, labels, classes)
        styles = style[:, None] * np.ones((1, module.num_styles, 1))

        def moved(styles):
            images = reference.synthesis(
                params["synthesis_network"], styles, noises, image_shape, **options
            )
            return anp.sum(images * directions)

        squares = anp.sum(grad(moved)(styles) ** 2, axis=2)
        return anp.sqrt(anp.mean(squares, axis=1))

    def theirs(params):
        return anp.mean((path_lengths(params) - average) ** 2)

    params = variables["params"]
    expected, expected_gradient = value_and_grad(theirs)(params)
    assert relative_error(lengths, path_lengths(params)) <= bar
    assert relative_error(penalty, expected) <= bar
    assert gradient_error(gradient, expected_gradient, dtype) <= bar
