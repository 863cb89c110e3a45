import autograd
import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.errors import UserError
from genjax.image.sngan import (
    DISCRIMINATOR_CHANNELS,
    GENERATOR_CHANNELS,
    SNDiscriminator,
    SNGenerator,
)
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh
from tests.image import gan_reference as reference

LABELS = np.array([2, 0, 1, 1], np.int32)
KINDS = [("zeros", 0, True), ("circular", 3, False), ("circular", 3, True)]


def in_both(kinds):
    """Cases in float64, and one of them in float32."""
    return [("float64", 1e-12, *kind) for kind in kinds] + [("float32", 1e-5, *kinds[-1])]


def generator_reference(variables, latents, labels, circular, train):
    params, statistics = variables["params"], variables["statistics"]

    def affine_conv(name, images):
        return reference.conv(images, name["kernel"], circular) + name["bias"]

    def norm(images, own, averages):
        scale, bias = own["scale"], own["bias"]
        if scale.ndim == 2:
            scale, bias = (x[labels][:, None, None] for x in (scale, bias))
            averages = averages["norm"]
        return reference.batch_normalized(images, scale, bias, 2e-5, None if train else averages)

    states = latents @ params["base"]["kernel"] + params["base"]["bias"]
    states = states.reshape(-1, 2, 1, 4)
    for number in range(2):
        block, averages = params[f"block{number}"], statistics[f"block{number}"]
        inner = reference.relu(norm(states, block["norm0"], averages["norm0"]))
        inner = affine_conv(block["conv0"], reference.doubled(inner))
        inner = reference.relu(norm(inner, block["norm1"], averages["norm1"]))
        inner = affine_conv(block["conv1"], inner)
        states = inner + affine_conv(block["shortcut"], reference.doubled(states))
    states = reference.relu(norm(states, params["norm"], statistics["norm"]))
    return np.tanh(affine_conv(params["to_image"], states))


def discriminator_reference(params, statistics, images, labels, circular):
    def affine_conv(layer, averages, images):
        kernel = reference.spectrally_normalized(layer["kernel"], averages["spectral"]["left"])
        return reference.conv(images, kernel, circular) + layer["bias"]

    states = images
    for number in range(3):
        block, averages = params[f"block{number}"], statistics[f"block{number}"]
        inner = reference.relu(states) if number else states
        inner = affine_conv(block["conv0"], averages["conv0"], inner)
        inner = affine_conv(block["conv1"], averages["conv1"], reference.relu(inner))
        if "shortcut" in block:
            states = affine_conv(block["shortcut"], averages["shortcut"], states)
        states = inner + states
        if number == 0:
            states = reference.halved(states)
    features = reference.relu(states).sum((1, 2))
    left = statistics["output"]["spectral"]["left"]
    kernel = reference.spectrally_normalized(params["output"]["kernel"], left)
    logits = (anp.dot(features, kernel) + params["output"]["bias"])[:, 0]
    if labels is None:
        return logits
    left = statistics["class_spectral"]["left"]
    table = reference.spectrally_normalized(params["class_embedding"], left)
    return logits + (table[labels] * features).sum(1)


def make_generator(padding_mode, num_classes, dtype="float32"):
    return SNGenerator((8, 4, 3), 5, num_classes, 4, (3, 6), padding_mode, dtype=jnp.dtype(dtype))


def make_discriminator(padding_mode, num_classes, dtype="float32"):
    # One block that shrinks, one that changes channels only, one that changes nothing.
    return SNDiscriminator(num_classes, (4, 5, 5), 1, padding_mode, dtype=jnp.dtype(dtype))


def problem(module, inputs, num_classes, dtype):
    """Inputs, and variables in float64 and in the dtype of computation."""
    labels = LABELS if num_classes else None
    given = jax.tree.map(jnp.asarray, (inputs.astype(dtype), labels))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given))
    # Small enough that the images are not all at the ends of tanh.
    variables = reference.randomized(shapes, scale=0.2)
    return given, labels, variables, jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


@pytest.mark.parametrize(("dtype", "bound", "padding_mode", "num_classes", "train"), in_both(KINDS))
def test_the_generator_equals_its_equations(dtype, bound, padding_mode, num_classes, train):
    latents = np.random.default_rng(0).normal(size=(4, 5))
    with jax.enable_x64(True):
        module = make_generator(padding_mode, num_classes, dtype)
        given, labels, variables, cast = problem(module, latents, num_classes, dtype)
        images = jax.jit(lambda v, *a: module.apply(v, *a, train=train))(cast, *given)
    expected = generator_reference(variables, latents, labels, padding_mode == "circular", train)
    assert images.dtype == dtype
    assert 0.1 < np.median(np.abs(expected)) < 0.9
    assert reference.relative_error(images, expected) < bound


@pytest.mark.parametrize(
    ("dtype", "bound", "padding_mode", "num_classes", "train"), in_both(KINDS[:2])
)
def test_the_discriminator_equals_its_equations(dtype, bound, padding_mode, num_classes, train):
    images = np.random.default_rng(0).normal(size=(4, 8, 4, 3))
    with jax.enable_x64(True):
        module = make_discriminator(padding_mode, num_classes, dtype)
        given, labels, variables, cast = problem(module, images, num_classes, dtype)
        logits = jax.jit(lambda v, *a: module.apply(v, *a, train=train))(cast, *given)
    expected = discriminator_reference(
        variables["params"], variables["statistics"], images, labels, padding_mode == "circular"
    )
    assert logits.dtype == dtype
    assert reference.relative_error(logits, expected) < bound


def test_the_gradient_penalty_and_its_gradient_equal_autograd():
    images = np.random.default_rng(0).normal(size=(4, 8, 4, 3))
    with jax.enable_x64(True):
        module = make_discriminator("circular", 3, "float64")
        given, labels, variables, cast = problem(module, images, 3, "float64")
        statistics = variables["statistics"]

        def penalty(params):
            def total(images):
                variables = {"params": params, "statistics": cast["statistics"]}
                return module.apply(variables, images, given[1], train=True).sum()

            return jnp.square(jax.grad(total)(given[0])).sum()

        actual = jax.jit(jax.value_and_grad(penalty))(cast["params"])

    def expected_penalty(params):
        def total(images):
            return discriminator_reference(params, statistics, images, labels, True).sum()

        return (autograd.grad(total)(images) ** 2).sum()

    value, gradients = autograd.value_and_grad(expected_penalty)(variables["params"])
    assert reference.relative_error(actual[0], value) < 1e-12
    # Biases of the last layer do not touch the penalty.
    for one, other in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10 * float(value))


def test_training_moves_the_statistics():
    generator, discriminator = make_generator("zeros", 3), make_discriminator("zeros", 3)
    rng = np.random.default_rng(0)
    cases = [
        (generator, rng.normal(size=(4, 5))),
        (discriminator, rng.normal(size=(4, 8, 4, 3))),
    ]
    for module, inputs in cases:
        given, _, _, variables = problem(module, inputs, 3, "float32")

        def call(train, variables=variables, given=given, module=module):
            return module.apply(variables, *given, train=train, mutable=["statistics"])[1]

        before = variables["statistics"]
        moved = jax.tree.map(
            # The only singular vector of one output is one.
            lambda x, y: x.size == 1 or bool(jnp.abs(x - y).max() > 1e-3),
            before,
            jax.jit(call, static_argnums=0)(True)["statistics"],
        )
        assert all(jax.tree.leaves(moved))
        kept = jax.jit(call, static_argnums=0)(False)["statistics"]
        jax.tree.map(np.testing.assert_array_equal, kept, before)


def test_circular_networks_know_no_border():
    latents = np.random.default_rng(0).normal(size=(4, 5))
    generator = make_generator("circular", 3)
    given, _, _, variables = problem(generator, latents, 3, "float32")
    apply = jax.jit(generator.apply)
    images = apply(variables, *given)

    def roll(leaf, places):
        return jnp.roll(leaf.reshape(-1, 2, 1, 4), places, axis=1).reshape(leaf.shape)

    base = {name: roll(leaf, 1) for name, leaf in variables["params"]["base"].items()}
    moved = variables | {"params": variables["params"] | {"base": base}}
    rolled = apply(moved, *given)
    np.testing.assert_allclose(rolled, jnp.roll(images, 4, axis=1), atol=1e-6)
    assert jnp.abs(rolled - images).max() > 0.1

    discriminator = make_discriminator("circular", 3)
    _, _, _, variables = problem(discriminator, np.asarray(images), 3, "float32")
    apply = jax.jit(discriminator.apply)
    logits = apply(variables, images, given[1])
    rolled = apply(variables, jnp.roll(images, (2, 2), (1, 2)), given[1])
    np.testing.assert_allclose(rolled, logits, rtol=1e-5)
    bordered = jax.jit(make_discriminator("zeros", 3).apply)(variables, images, given[1])
    assert jnp.abs(bordered - logits).max() > 1e-3


@pytest.mark.slow
def test_eight_devices_gather_no_batch_and_agree_with_one():
    generator, discriminator = make_generator("zeros", 3), make_discriminator("zeros", 3)
    latents = jax.random.normal(jax.random.key(0), (16, 5))
    labels = jnp.arange(16) % 3
    images = jnp.zeros((16, 8, 4, 3))
    first = jax.jit(generator.init)(jax.random.key(1), latents, labels)
    second = jax.jit(discriminator.init)(jax.random.key(2), images, labels)

    def step(first, second, latents, labels):
        def loss(params):
            variables = first | {"params": params[0]}
            images, changed = generator.apply(
                variables, latents, labels, train=True, mutable=["statistics"]
            )
            others = second | {"params": params[1]}
            return discriminator.apply(others, images, labels, train=True).mean(), changed

        return jax.grad(loss, has_aux=True)((first["params"], second["params"]))

    expected = jax.jit(step)(first, second, latents, labels)
    mesh = make_mesh(MeshConfig())
    whole = jax.device_put((first, second), NamedSharding(mesh, P()))
    split = jax.device_put((latents, labels), NamedSharding(mesh, P(BATCH_AXES)))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(*whole, *split).compile()
        actual = compiled(*whole, *split)
    assert "all-gather" not in compiled.as_text()
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", sorted(GENERATOR_CHANNELS))
def test_published_sizes_fit_their_images(size):
    def shapes(module, *arguments):
        function = jax.eval_shape(module.init_with_output, jax.random.key(0), *arguments)
        return function[0].shape, sum(x.size for x in jax.tree.leaves(function[1]["params"]))

    latents, images = jnp.zeros((2, 128)), jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    generator = SNGenerator((size, size, 3), **GENERATOR_CHANNELS[size])
    discriminator = SNDiscriminator(**DISCRIMINATOR_CHANNELS[size])
    shape, count = shapes(generator, latents)
    assert shape == (2, size, size, 3)
    other_shape, other_count = shapes(discriminator, images)
    assert other_shape == (2,)
    if size == 32:
        # By hand from the paper's table: kernels, biases and batch normalisations.
        block = 2 * (9 * 256**2 + 256) + (256**2 + 256) + 2 * 2 * 256
        assert count == 128 * 4096 + 4096 + 3 * block + 2 * 256 + 9 * 256 * 3 + 3
        first = 9 * 3 * 128 + 128 + (9 * 128**2 + 128) + (3 * 128 + 128)
        second = 2 * (9 * 128**2 + 128) + 128**2 + 128
        rest = 2 * 2 * (9 * 128**2 + 128)
        assert other_count == first + second + rest + 128 + 1


@pytest.mark.fast
def test_half_precision_gives_float32_images_and_logits():
    generator = make_generator("zeros", 0, "bfloat16")
    key = jax.random.key(0)
    images, variables = jax.eval_shape(generator.init_with_output, key, jnp.ones((2, 5)))
    discriminator = make_discriminator("zeros", 0, "bfloat16")
    logits, others = jax.eval_shape(discriminator.init_with_output, key, images)
    leaves = jax.tree.leaves((images, logits, variables, others))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}


@pytest.mark.fast
def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"28x28 cannot be made by doubling 3 times.* of 8"):
        SNGenerator((28, 28, 1)).init(jax.random.key(0), jnp.zeros((1, 128)))
    with pytest.raises(UserError, match="30x32 cannot be halved num_downsample = 2 times"):
        SNDiscriminator().init(jax.random.key(0), jnp.zeros((1, 30, 32, 1)))
