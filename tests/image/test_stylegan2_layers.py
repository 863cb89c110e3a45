"""The layers of StyleGAN2 against a float64 reference written from the papers."""

import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autograd import grad

from genjax.image.sizes import resolutions
from genjax.image.stylegan2_layers import (
    EqualizedConv,
    EqualizedDense,
    MappingNetwork,
    channels_at,
    minibatch_standard_deviation,
    modulated_conv2d,
    resampled_convolution,
)
from tests.image import stylegan2_reference as reference
from tests.image.stylegan2_small import PRECISIONS, arrays, cast, drawn, relative_error

pytestmark = pytest.mark.fast

FILTERS = [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0), (3.0, 1.0)]
"""The usual one, and two that are not symmetric, of odd and even length."""


def check_with_gradients(ours, theirs, arguments, dtype, bar, seed=9):
    """Values, and the gradients of a random sum of them in all arguments."""
    expected = theirs(*arguments)
    (weights,) = arrays(expected.shape, seed=seed)
    numbers = tuple(range(len(arguments)))

    def run(*arguments):
        outputs, pullback = jax.vjp(ours, *arguments)
        return outputs, pullback(jnp.asarray(weights, dtype))

    with jax.enable_x64(dtype == "float64"):
        outputs, gradients = jax.jit(run)(*(jnp.asarray(a, dtype) for a in arguments))
    assert outputs.dtype == dtype
    assert relative_error(outputs, expected) <= bar
    for number in numbers:
        of_sum = grad(lambda *a: anp.sum(theirs(*a) * weights), number)(*arguments)
        assert relative_error(gradients[number], of_sum) <= bar


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("up,down", [(1, 1), (2, 1), (1, 2)])
def test_convolutions_that_resample(up, down, size, padding_mode, dtype, bar):
    images, kernel = arrays((2, 8, 6, 3), (size, size, 3, 4))
    sampling = {"up": up, "down": down}

    def with_each_filter(images, kernel):
        return [
            resampled_convolution(images, kernel, taps=taps, padding_mode=padding_mode, **sampling)
            for taps in FILTERS
        ]

    with jax.enable_x64(dtype == "float64"):
        ours = jax.jit(with_each_filter)(jnp.asarray(images, dtype), jnp.asarray(kernel, dtype))
    for taps, outputs in zip(FILTERS, ours, strict=True):
        circular = padding_mode == "circular"
        expected = reference.resampled_convolution(
            images, kernel, taps=taps, circular=circular, **sampling
        )
        assert outputs.shape == (2, 8 * up // down, 6 * up // down, 4)
        assert relative_error(outputs, expected) <= bar


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
@pytest.mark.parametrize(
    "size,up,demodulate,padding_mode",
    [
        (3, 1, True, "zeros"),
        (3, 2, True, "zeros"),
        (3, 2, True, "circular"),
        (3, 1, False, "circular"),
        (1, 1, False, "zeros"),
        (1, 2, True, "zeros"),
    ],
)
def test_modulated_convolutions_and_their_gradients(size, up, demodulate, padding_mode, dtype, bar):
    def ours(images, kernel, styles):
        return modulated_conv2d(
            images, kernel, styles, demodulate=demodulate, up=up, padding_mode=padding_mode
        )

    def theirs(images, kernel, styles):
        circular = padding_mode == "circular"
        return reference.modulated_convolution(
            images, kernel, styles, demodulate=demodulate, up=up, circular=circular
        )

    arguments = arrays((3, 6, 8, 3), (size, size, 3, 4), (3, 3))
    check_with_gradients(ours, theirs, arguments, dtype, bar)


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
def test_demodulation_forgives_styles_of_zero(dtype, bar):
    images, kernel, styles = arrays((2, 4, 4, 3), (3, 3, 3, 4), (2, 3))
    styles[0] = 0
    styles[1] *= 1e-5  # such that the small number added to the squares counts
    check_with_gradients(
        modulated_conv2d, reference.modulated_convolution, [images, kernel, styles], dtype, bar
    )


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
@pytest.mark.parametrize(
    "batch,asked,group,features",
    [(8, 4, 4, 1), (4, 4, 4, 1), (6, 4, 3, 1), (3, 4, 3, 1), (5, 4, 1, 1), (8, 2, 2, 2)],
)
def test_minibatch_standard_deviation(batch, asked, group, features, dtype, bar):
    def ours(images):
        return minibatch_standard_deviation(images, asked, features)

    def theirs(images):
        return reference.minibatch_standard_deviation(images, group, features)

    check_with_gradients(ours, theirs, arrays((batch, 4, 3, 6)), dtype, bar)


def test_examples_of_another_group_do_not_matter():
    (images,) = arrays((8, 4, 4, 2))
    changed = images.copy()
    changed[5] += 1
    run = jax.jit(minibatch_standard_deviation)
    before, after = (run(jnp.asarray(x, "float32")) for x in (images, changed))
    same = np.all(np.asarray(before == after), (1, 2, 3))
    np.testing.assert_array_equal(same, [True] * 4 + [False] * 4)


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
@pytest.mark.parametrize("latent_size,classes,num_layers", [(5, 0, 8), (5, 3, 2), (None, 3, 8)])
def test_mapping_networks(latent_size, classes, num_layers, dtype, bar):
    latents = None if latent_size is None else arrays((4, latent_size))[0]
    labels = np.asarray([2, 0, 1, 2], np.int32) if classes else None
    with jax.enable_x64(dtype == "float64"):
        module = MappingNetwork(7, num_layers, classes)
        inputs = None if latents is None else jnp.asarray(latents, dtype)
        shapes = jax.eval_shape(module.init, jax.random.key(0), inputs, labels)
        params = drawn(shapes["params"])
        variables = {"params": cast(params, dtype)}
        ours = jax.jit(module.apply)(variables, inputs, labels)
    assert relative_error(ours, reference.mapping(params, latents, labels, classes)) <= bar


@pytest.mark.parametrize("dtype,bar", PRECISIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activate": False, "use_bias": False},
        {"activate": False},
        {"kernel_size": 1, "down": 2},
    ],
    ids=str,
)
def test_gains_multiply_the_whole_result(settings, dtype, bar):
    (images,) = arrays((2, 6, 6, 3))
    with jax.enable_x64(dtype == "float64"):
        module = EqualizedConv(4, gain=0.7, dtype=jnp.dtype(dtype), **settings)
        inputs = jnp.asarray(images, dtype)
        params = drawn(jax.eval_shape(module.init, jax.random.key(0), inputs)["params"])
        assert ("bias" in params) == settings.get("use_bias", True)
        variables = {"params": cast(params, dtype)}
        ours = jax.jit(module.apply)(variables, inputs)
    activate, down = settings.get("activate", True), settings.get("down", 1)
    expected = 0.7 * reference.equalized(params, images, activate=activate, down=down)
    assert relative_error(ours, expected) <= bar


@pytest.mark.parametrize(
    "module",
    [
        EqualizedDense(256),
        EqualizedDense(256, learning_rate_multiplier=0.01),
        EqualizedConv(256, activate=False),
    ],
    ids=["dense", "slow dense", "convolution"],
)
def test_equalized_layers_begin_with_unit_variance(module):
    """The scale is applied in the layer, so that parameters of every layer have the same size."""
    shape = (64, 256) if isinstance(module, EqualizedDense) else (64, 3, 3, 64)

    def run(key):
        inputs = jax.random.normal(key, shape)
        outputs, variables = module.init_with_output(jax.random.fold_in(key, 1), inputs)
        away_from_borders = outputs[:, 1, 1] if outputs.ndim == 4 else outputs
        return jnp.std(away_from_borders), jnp.std(variables["params"]["kernel"])

    outputs, kernel = jax.jit(run)(jax.random.key(0))
    np.testing.assert_allclose(outputs, 1, atol=0.05)
    expected = 1 / getattr(module, "learning_rate_multiplier", 1.0)
    np.testing.assert_allclose(kernel, expected, rtol=0.02)


def test_sizes_and_channels():
    assert resolutions((32, 32, 3)) == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert resolutions((32, 64, 3)) == [(4, 8), (8, 16), (16, 32), (32, 64)]
    assert resolutions((96, 64, 3))[0] == (6, 4)
    assert resolutions((48, 80))[0] == (6, 10)
    for size in [(36, 32), (32, 36), (4, 4), (2, 64), (30, 30), (0, 8)]:
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*such as 64x64"):
            resolutions(size)
    channels = [channels_at((size, size // 2), 32768, 512) for size in (4, 64, 128, 1024)]
    assert channels == [512, 512, 256, 32]
