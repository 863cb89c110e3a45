"""What each setting of StyleGAN2's networks does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.stylegan2_generator import StyledConv
from tests.image import stylegan2_reference as reference
from tests.image.stylegan2_small import (
    BATCH,
    LATENTS,
    arrays,
    cast,
    discriminator,
    drawn,
    generator,
    labels_for,
    relative_error,
    variables_of,
)

SMALL = (16, 16, 3)


@pytest.fixture(scope="module")
def small():
    """A small generator with classes, its variables in float32, latents and labels."""
    module = generator(SMALL, num_classes=3)
    latents = jnp.asarray(arrays((BATCH, LATENTS))[0], "float32")
    labels = labels_for(3)
    return module, cast(variables_of(module, latents, labels), "float32"), latents, labels


@pytest.mark.fast
@pytest.mark.parametrize("size", [(36, 32), (32, 36), (4, 4), (30, 30)], ids=str)
def test_impossible_sizes(size):
    shape = (*size, 3)
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        jax.eval_shape(generator(shape).init, jax.random.key(0), jnp.zeros((1, LATENTS)))
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        jax.eval_shape(discriminator(shape).init, jax.random.key(0), jnp.zeros((1, *shape)))


def test_style_mixing(small):
    module, variables, latents, labels = small
    layers = module.num_styles

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def styles(key, probability, train):
        mixing = module.clone(style_mixing_probability=probability)
        return mixing.apply(
            variables,
            latents,
            labels,
            train=train,
            method="styles",
            rngs={"mixing": key},
            mutable=["statistics"],
        )[0]

    keys = jax.random.split(jax.random.key(0), 100)
    unmixed = np.asarray(styles(keys, 1.0, False))
    np.testing.assert_array_equal(unmixed, np.broadcast_to(unmixed[0, :, :1], unmixed.shape))
    own = unmixed[0, :, 0]
    np.testing.assert_array_equal(styles(keys[:2], 0.0, True), unmixed[:2])
    mixed = np.asarray(styles(keys, 1.0, True))
    changed = np.any(mixed != unmixed, -1)
    firsts = changed.argmax(2)
    # Where it begins, it is for all examples and to the end, with one other style for each.
    assert np.all(firsts == firsts[:, :1])
    np.testing.assert_array_equal(changed, np.arange(layers) >= firsts[..., None])
    assert set(firsts.ravel()) == set(range(1, layers))
    for one, first in zip(mixed, firsts[:, 0], strict=True):
        np.testing.assert_array_equal(one[:, first:], np.repeat(one[:, -1:], layers - first, 1))
        assert len(np.unique(one[:, -1], axis=0)) == BATCH
    some = np.asarray(styles(keys, 0.3, True))
    share = np.any(some != own[:, None], (1, 2, 3)).mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 100)


def test_mixed_styles_have_the_same_labels(small):
    module, variables, latents, labels = small
    # A first layer that does not see the latents.
    kernel = variables["params"]["mapping_network"]["layers_0"]["kernel"]
    layer = {"layers_0": {"kernel": kernel.at[:LATENTS].set(0), "bias": jnp.zeros(8)}}
    network = variables["params"]["mapping_network"] | layer
    blind = {**variables, "params": {**variables["params"], "mapping_network": network}}
    module = module.clone(style_mixing_probability=1.0)
    train = functools.partial(
        module.apply,
        train=True,
        method="styles",
        rngs={"mixing": jax.random.key(0)},
        mutable=["statistics"],
    )
    styles, _ = jax.jit(train)(blind, latents, labels)
    np.testing.assert_allclose(styles, np.repeat(styles[:, :1], module.num_styles, 1), rtol=1e-6)
    assert np.any(np.abs(styles[0] - styles[1]) > 0.1)


@pytest.mark.parametrize("mixing", [True, False])
def test_average_of_styles(small, mixing):
    module, variables, latents, labels = small
    mapped = reference.mapping(
        jax.tree.map(np.float64, variables["params"]["mapping_network"]),
        np.float64(latents),
        np.asarray(labels),
        3,
    )
    average = np.float64(variables["statistics"]["w_average"])
    rngs = {"mixing": jax.random.key(1)} if mixing else {}
    train = functools.partial(
        module.apply, method="styles", train=True, rngs=rngs, mutable=["statistics"]
    )
    _, updated = jax.jit(train)(variables, latents, labels)
    expected = 0.995 * average + 0.005 * mapped.mean(0)
    np.testing.assert_allclose(updated["statistics"]["w_average"], expected, rtol=1e-5)


def test_the_average_begins_at_zero_and_stays_when_not_training(small):
    module, variables, latents, labels = small
    fresh = jax.jit(functools.partial(module.init, method="styles", train=True))
    average = fresh(jax.random.key(0), latents, labels)["statistics"]["w_average"]
    np.testing.assert_array_equal(average, np.zeros(8))
    run = functools.partial(module.apply, method="styles", mutable=["statistics"])
    _, after = jax.jit(run)(variables, latents, labels)
    before = variables["statistics"]["w_average"]
    np.testing.assert_array_equal(after["statistics"]["w_average"], before)


def test_truncation(small):
    module, variables, latents, labels = small

    @functools.partial(jax.jit, static_argnums=1)
    def run(truncation, cutoff=None):
        styles = module.apply(
            variables, latents, labels, truncation, cutoff, method="truncated_styles"
        )
        return styles, module.apply(variables, styles, method="synthesis")

    average = np.asarray(variables["statistics"]["w_average"])
    styles, images = run(1.0)
    assert np.std(images, 0).mean() > 0.01
    none, same = run(0.0)
    np.testing.assert_array_equal(none, np.broadcast_to(average, none.shape))
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-5)
    part, _ = run(0.7, 3)
    np.testing.assert_allclose(part[:, 3:], styles[:, 3:], rtol=1e-5, atol=1e-6)
    expected = np.float64(average) + 0.7 * (np.float64(styles[:, :3]) - average)
    np.testing.assert_allclose(part[:, :3], expected, rtol=1e-5, atol=1e-6)


def layer_outputs(module, variables, styles, key):
    """What each modulated convolution with its noise, bias and activation gives."""
    _, captured = module.apply(
        variables,
        styles,
        method="synthesis",
        rngs={} if key is None else {"noise": key},
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, StyledConv),
    )
    layers = captured["intermediates"]["synthesis_network"]
    return {name: outputs["__call__"][0] for name, outputs in layers.items()}


def test_noise(small):
    module, variables, *_ = small
    # Without kernels and biases a layer gives its noise, through the activation.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, path[-1].key == "noise_strength"), variables
    )
    styles = jnp.ones((BATCH, module.num_styles, 8))
    run = jax.jit(functools.partial(layer_outputs, module, variables, styles))
    keys = [None, jax.random.key(0), jax.random.key(1)]
    constant, first, second = (
        {name: np.asarray(x, np.float64) for name, x in run(key).items()} for key in keys
    )
    assert set(constant) == {"4x4_conv1"} | {
        f"{size}_conv{n}" for size in ("8x8", "16x16") for n in (0, 1)
    }

    def same(one, other):
        return np.mean(one == other) > 0.01

    for outputs in (constant, first):
        every = np.concatenate([np.ravel(outputs[name][..., 0]) for name in outputs])
        noise = np.where(every > 0, every, every / 0.2) / np.sqrt(2)
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.1)
        # One number for all channels; other numbers for another layer.
        for each in outputs.values():
            np.testing.assert_array_equal(each, np.broadcast_to(each[..., :1], each.shape))
        for size in ("8x8", "16x16"):
            assert not same(outputs[f"{size}_conv0"], outputs[f"{size}_conv1"])
    for name, outputs in constant.items():
        np.testing.assert_array_equal(outputs, np.broadcast_to(outputs[:1], outputs.shape))
        assert not any(same(first[name][0], first[name][n]) for n in range(1, BATCH))
        assert not same(first[name], second[name])
        assert not same(first[name], outputs)


def test_bfloat16_gives_about_the_same_in_float32(small):
    module, variables, latents, labels = small
    critic = discriminator(SMALL, num_classes=3)
    weights = cast(variables_of(critic, jnp.zeros((1, *SMALL)), labels[:1]), "float32")

    def run(dtype):
        images = jax.jit(module.clone(dtype=dtype).apply)(variables, latents, labels)
        logits = jax.jit(critic.clone(dtype=dtype).apply)(weights, exact_images, labels)
        assert images.dtype == logits.dtype == jnp.float32
        return images, logits

    exact_images = jnp.asarray(arrays((BATCH, *SMALL))[0], "float32")
    for exact, rough in zip(run(jnp.float32), run(jnp.bfloat16), strict=True):
        assert 1e-4 < relative_error(rough, exact) < 0.05


# ---- periodic images ---------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["residual", "skip"])
def test_periodic_discriminators_see_no_border(architecture):
    """With a dense layer that treats all places alike, an image may be shifted by whole cells."""
    shape = (32, 32, 3)
    images = jnp.asarray(arrays((BATCH, *shape))[0], "float32")

    def logits(padding_mode, *shift):
        module = discriminator(shape, architecture=architecture, padding_mode=padding_mode)
        variables = cast(variables_of(module, images), "float32")
        layer = variables["params"]["dense"]
        layer["kernel"] = jnp.tile(layer["kernel"][: len(layer["kernel"]) // 16], (16, 1))
        run = jax.jit(lambda images: module.apply(variables, images))
        return run(images), run(jnp.roll(images, shift, (1, 2)))

    assert relative_error(*logits("circular", 8, 16)) < 1e-5
    assert relative_error(*logits("zeros", 8, 16)) > 1e-3


@pytest.mark.parametrize("architecture", ["skip", "residual"])
def test_periodic_generators_have_no_seam(architecture):
    shape = (32, 32, 3)
    latents = jnp.asarray(arrays((16, LATENTS))[0], "float32")

    def functions(padding_mode):
        module = generator(shape, noise=False, architecture=architecture, padding_mode=padding_mode)
        shapes = jax.eval_shape(module.init, jax.random.key(0), latents)
        draw = functools.partial(drawn, shapes)
        return jax.jit(module.apply), lambda seed: cast(draw(seed), "float32")

    def shifted(variables, shift):
        constant = jnp.roll(variables["params"]["synthesis_network"]["constant"], shift, (0, 1))
        network = variables["params"]["synthesis_network"] | {"constant": constant}
        return {**variables, "params": variables["params"] | {"synthesis_network": network}}

    def seams(run, draw):
        """Squared steps from the last row (column) to the first, over those between other cells."""
        energies = []
        for seed in range(8):
            images = np.asarray(run(draw(seed), latents))
            steps = [np.square(images - np.roll(images, 1, axis)) for axis in (1, 2)]
            rows, columns = steps[0].mean((0, 2, 3)), steps[1].mean((0, 1, 3))
            energies.append(np.stack([rows, columns])[:, ::8] / np.mean(steps))
        energy = np.mean(energies, 0)
        return energy[:, 0] / energy[:, 1:].mean(1)

    def error_of_shift(run, variables):
        images = run(variables, latents)
        rolled = run(shifted(variables, (1, 2)), latents)
        return relative_error(rolled, jnp.roll(images, (8, 16), (1, 2)))

    run, draw = functions("circular")
    assert error_of_shift(run, draw(0)) < 1e-5
    assert np.all(np.abs(np.log(seams(run, draw))) < np.log(1.5))
    run, draw = functions("zeros")
    assert error_of_shift(run, draw(0)) > 1e-2
    assert np.all(seams(run, draw) > 5)
