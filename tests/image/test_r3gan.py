import autograd
import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.errors import UserError
from genjax.image.r3gan import PRESETS, R3Discriminator, R3Generator
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh
from tests.image import gan_reference as reference

LABELS = np.array([2, 0, 1], np.int32)
WIDTHS = (8, 6, 6)
KINDS = [("zeros", 0, 4), ("circular", 3, None)]


def in_both(kinds):
    """Cases in float64, and one of them in float32."""
    return [("float64", 1e-12, *kind) for kind in kinds] + [("float32", 1e-5, *kinds[-1])]


def block_reference(params, states, group_size, circular):
    inner = reference.conv(states, params["expand"]["kernel"])
    inner = reference.leaky_relu(inner + params["activation0"]["bias"])
    groups = 1 if group_size is None else inner.shape[-1] // group_size
    inner = reference.grouped_conv(inner, params["grouped"]["kernel"], groups, circular)
    inner = reference.leaky_relu(inner + params["activation1"]["bias"])
    return states + reference.conv(inner, params["project"]["kernel"])


def generator_reference(params, latents, labels, group_size, circular):
    if labels is not None:
        latents = np.concatenate([latents, params["class_embedding"][labels]], 1)
    scales = latents @ params["basis_scales"]["kernel"]
    states = params["basis"] * scales[:, None, None]
    for stage in range(3):
        if stage:
            if f"stage{stage}_upsample" in params:
                mix = params[f"stage{stage}_upsample"]["mix"]["kernel"]
                states = reference.conv(states, mix)
            states = reference.interpolated(states, circular)
        for number in range(2):
            block = params[f"stage{stage}_block{number}"]
            states = block_reference(block, states, group_size, circular)
    return reference.conv(states, params["to_image"]["kernel"])


def discriminator_reference(params, images, labels, group_size, circular):
    states = reference.conv(images, params["from_image"]["kernel"])
    for stage in (2, 1, 0):
        for number in range(2):
            block = params[f"stage{stage}_block{number}"]
            states = block_reference(block, states, group_size, circular)
        if stage:
            states = reference.averaged(states, circular)
            if f"stage{stage}_downsample" in params:
                mix = params[f"stage{stage}_downsample"]["mix"]["kernel"]
                states = reference.conv(states, mix)
    features = (states * params["basis"]).sum((1, 2))
    outputs = anp.dot(features, params["basis_outputs"]["kernel"])
    if labels is None:
        return outputs[:, 0]
    return (outputs * params["class_embedding"][labels]).sum(1)


def make_generator(padding_mode, num_classes, group_size, dtype="float32", widths=WIDTHS, blocks=2):
    return R3Generator(
        stage_widths=widths,
        blocks_per_stage=blocks,
        group_size=group_size,
        padding_mode=padding_mode,
        dtype=jnp.dtype(dtype),
        image_shape=(12, 8, 3),
        latent_size=5,
        num_classes=num_classes,
    )


def make_discriminator(
    padding_mode, num_classes, group_size, dtype="float32", widths=WIDTHS, blocks=2
):
    return R3Discriminator(
        stage_widths=widths,
        blocks_per_stage=blocks,
        group_size=group_size,
        padding_mode=padding_mode,
        dtype=jnp.dtype(dtype),
        num_classes=num_classes,
    )


def problem(module, inputs, num_classes, dtype):
    """Inputs, and parameters in float64 and in the dtype of computation."""
    labels = LABELS if num_classes else None
    given = jax.tree.map(jnp.asarray, (inputs.astype(dtype), labels))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given))
    assert set(shapes) == {"params"}
    params = reference.randomized(shapes["params"], scale=0.4)
    return given, labels, params, jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def latents_of(batch=3):
    return np.random.default_rng(0).normal(size=(batch, 5))


def images_of(batch=3):
    return np.random.default_rng(0).normal(size=(batch, 12, 8, 3))


@pytest.mark.parametrize(
    ("dtype", "bound", "padding_mode", "num_classes", "group_size"), in_both(KINDS)
)
def test_the_generator_equals_its_equations(dtype, bound, padding_mode, num_classes, group_size):
    latents = latents_of()
    with jax.enable_x64(True):
        module = make_generator(padding_mode, num_classes, group_size, dtype)
        given, labels, params, cast = problem(module, latents, num_classes, dtype)
        images = jax.jit(lambda p, *a: module.apply({"params": p}, *a))(cast, *given)
    circular = padding_mode == "circular"
    expected = generator_reference(params, latents, labels, group_size, circular)
    assert images.dtype == dtype
    assert reference.relative_error(images, expected) < bound


@pytest.mark.parametrize(
    ("dtype", "bound", "padding_mode", "num_classes", "group_size"), in_both(KINDS)
)
def test_the_discriminator_equals_its_equations(
    dtype, bound, padding_mode, num_classes, group_size
):
    images = images_of()
    with jax.enable_x64(True):
        module = make_discriminator(padding_mode, num_classes, group_size, dtype)
        given, labels, params, cast = problem(module, images, num_classes, dtype)
        logits = jax.jit(lambda p, *a: module.apply({"params": p}, *a))(cast, *given)
    circular = padding_mode == "circular"
    expected = discriminator_reference(params, images, labels, group_size, circular)
    assert logits.dtype == dtype
    assert reference.relative_error(logits, expected) < bound


def test_the_gradient_penalty_and_its_gradient_equal_autograd():
    images = images_of(2)
    labels = LABELS[:2]
    with jax.enable_x64(True):
        module = make_discriminator("circular", 3, 4, "float64")
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.asarray(images), jnp.asarray(labels))
        )
        params = reference.randomized(shapes["params"], scale=0.4)

        def penalty(params):
            def total(images):
                return module.apply({"params": params}, images, jnp.asarray(labels)).sum()

            return jnp.square(jax.grad(total)(jnp.asarray(images))).sum()

        actual = jax.jit(jax.value_and_grad(penalty))(params)

    def expected_penalty(params):
        def total(images):
            return discriminator_reference(params, images, labels, 4, True).sum()

        return (autograd.grad(total)(images) ** 2).sum()

    value, gradients = autograd.value_and_grad(expected_penalty)(params)
    assert reference.relative_error(actual[0], value) < 1e-12
    # The penalty's gradient with respect to biases is zero: the activation is piecewise linear.
    for one, other in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10 * float(value))


PUBLISHED = {
    "cifar10": (32, 10, 20_781_952, 21_280_512),
    "ffhq64": (64, 0, 22_429_824, 22_381_440),
    "ffhq256": (256, 0, 23_057_952, 23_009_568),
    "imagenet64": (64, 1000, 103_570_432, 107_205_120),
}


def count(module, *arguments):
    variables = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def counts(preset, size, num_classes):
    labels = jnp.zeros(2, jnp.int32) if num_classes else None
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    generator = R3Generator(image_shape=(size, size, 3), num_classes=num_classes, **PRESETS[preset])
    discriminator = R3Discriminator(num_classes=num_classes, **PRESETS[preset])
    return count(generator, jnp.zeros((2, 64)), labels), count(discriminator, images, labels)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_configurations_have_the_published_numbers_of_parameters(preset):
    size, num_classes, *expected = PUBLISHED[preset]
    assert counts(preset, size, num_classes) == tuple(expected)


@pytest.mark.parametrize(
    ("preset", "alike"),
    [
        ("tpu32", "cifar10"),
        ("tpu32_dense", "cifar10"),
        ("tpu64", "ffhq64"),
        ("tpu256", "ffhq256"),
    ],
)
def test_presets_for_tpus_are_of_about_the_published_size(preset, alike):
    size, num_classes, *expected = PUBLISHED[alike]
    for own, published in zip(counts(preset, size, num_classes), expected, strict=True):
        assert 1 < own / published < 1.12


def test_blocks_start_as_the_identity_and_kernels_with_their_variance():
    module = R3Generator(stage_widths=(64, 32), image_shape=(8, 8, 3), latent_size=32)
    latents = jax.random.normal(jax.random.key(1), (2, 32))
    images, variables = jax.jit(module.init_with_output)(jax.random.key(0), latents)
    params = jax.tree.map(np.asarray, variables["params"])
    states = (
        params["basis"] * (np.asarray(latents) @ params["basis_scales"]["kernel"])[:, None, None]
    )
    states = reference.conv(states, params["stage1_upsample"]["mix"]["kernel"])
    states = reference.interpolated(states, False)
    expected = reference.conv(states, params["to_image"]["kernel"])
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    # Four blocks in all: 4**-1/4 of what keeps the mean square through the activation.
    gain = np.sqrt(2 / 1.04) * 4**-0.25
    block = params["stage0_block0"]
    np.testing.assert_allclose(block["expand"]["kernel"].std(), gain / 8, rtol=0.05)
    np.testing.assert_allclose(block["grouped"]["kernel"].std(), gain / np.sqrt(144), rtol=0.05)
    np.testing.assert_allclose(params["basis"].std(), 1, rtol=0.1)
    images = jnp.zeros((1, 8, 8, 3))
    module = R3Discriminator(stage_widths=(64, 32))
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    np.testing.assert_allclose(params["basis"].std(), 1 / 4, rtol=0.1)


def test_circular_networks_know_no_border():
    generator = make_generator("circular", 3, 4)
    given, _, _, params = problem(generator, latents_of(), 3, "float32")
    apply = jax.jit(generator.apply)
    images = apply({"params": params}, *given)
    moved = params | {"basis": jnp.roll(params["basis"], (1, -1), (0, 1))}
    rolled = apply({"params": moved}, *given)
    scale = jnp.abs(images).max()
    np.testing.assert_allclose(rolled, jnp.roll(images, (4, -4), (1, 2)), atol=1e-5 * scale)
    assert jnp.abs(rolled - images).max() > 0.1 * scale

    discriminator = make_discriminator("circular", 3, 4)
    _, _, _, params = problem(discriminator, images_of(), 3, "float32")
    apply = jax.jit(discriminator.apply)
    logits = apply({"params": params}, images, given[1])
    moved = params | {"basis": jnp.roll(params["basis"], (1, -1), (0, 1))}
    rolled = apply({"params": moved}, jnp.roll(images, (4, -4), (1, 2)), given[1])
    np.testing.assert_allclose(rolled, logits, rtol=1e-4)
    module = make_discriminator("zeros", 3, 4)
    bordered = jax.jit(module.apply)({"params": params}, images, given[1])
    assert jnp.abs(bordered - logits).max() > 1e-2 * jnp.abs(logits).max()


def discriminator_step(generator, discriminator, params, others, latents, images, labels):
    """Gradients of the discriminator's relativistic loss with both penalties."""

    def loss(others):
        fakes = generator.apply({"params": params}, latents, labels)

        def logits(images):
            return discriminator.apply({"params": others}, images, labels)

        total = 0.0
        for batch in (images, fakes):
            gradient = jax.grad(lambda x: logits(x).sum())(batch)
            total += jnp.square(gradient).sum((1, 2, 3)).mean()
        return total + jax.nn.softplus(logits(fakes) - logits(images)).mean()

    return jax.value_and_grad(loss)(others)


def generator_step(generator, discriminator, params, others, latents, images, labels):
    """Gradients of the generator's relativistic loss."""

    def loss(params):
        fakes = generator.apply({"params": params}, latents, labels)
        logits = [
            discriminator.apply({"params": others}, batch, labels) for batch in (fakes, images)
        ]
        return jax.nn.softplus(logits[1] - logits[0]).mean()

    return jax.value_and_grad(loss)(params)


@pytest.mark.slow
@pytest.mark.parametrize("step", [discriminator_step, generator_step])
def test_eight_devices_gather_no_batch_and_agree_with_one(step):
    generator = make_generator("zeros", 3, 4, widths=(8, 6), blocks=1)
    discriminator = make_discriminator("zeros", 3, 4, widths=(8, 6), blocks=1)
    labels = jnp.arange(8) % 3
    latents, images = (jnp.asarray(x, jnp.float32) for x in (latents_of(8), images_of(8)))
    params, others = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), reference.randomized(shapes, scale=0.3))
        for shapes in (
            jax.eval_shape(generator.init, jax.random.key(0), latents, labels)["params"],
            jax.eval_shape(discriminator.init, jax.random.key(0), images, labels)["params"],
        )
    )

    def run(*arguments):
        return step(generator, discriminator, *arguments)

    expected = jax.jit(run)(params, others, latents, images, labels)
    mesh = make_mesh(MeshConfig())
    whole = jax.device_put((params, others), NamedSharding(mesh, P()))
    split = jax.device_put((latents, images, labels), NamedSharding(mesh, P(BATCH_AXES)))
    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(*whole, *split).compile()
        actual = compiled(*whole, *split)
    program = compiled.as_text()
    assert "all-reduce" in program
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program
    errors = jax.tree.map(reference.relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < 1e-4


def test_half_precision_spares_the_lowest_stage():
    (latents, labels), _, _, own = problem(
        make_generator("zeros", 3, 4), latents_of(), 3, "float32"
    )
    images = jnp.asarray(images_of(), jnp.float32)
    (_, _), _, _, others = problem(make_discriminator("zeros", 3, 4), images_of(), 3, "float32")
    for make, params, inputs in (
        (make_generator, own, latents),
        (make_discriminator, others, images),
    ):
        exact = jax.jit(make("zeros", 3, 4).apply)({"params": params}, inputs, labels)
        module = make("zeros", 3, 4, "bfloat16")
        outputs, found = jax.jit(
            lambda v, *a, module=module: module.apply(v, *a, capture_intermediates=True)
        )({"params": params}, inputs, labels)
        assert outputs.dtype == jnp.float32
        assert 0 < reference.relative_error(outputs, exact) < 0.1
        dtypes = {
            name: value["__call__"][0].dtype
            for name, value in found["intermediates"].items()
            if "block" in name
        }
        assert len(dtypes) == 6
        for name, dtype in dtypes.items():
            assert dtype == (jnp.float32 if "stage0" in name else jnp.bfloat16)


def test_images_may_come_down_to_another_size_than_four():
    generator = R3Generator(stage_widths=(16,) * 3, image_shape=(28, 28, 1))
    images, variables = jax.eval_shape(
        generator.init_with_output, jax.random.key(0), jnp.zeros((2, 64))
    )
    assert images.shape == (2, 28, 28, 1)
    assert variables["params"]["basis"].shape == (7, 7, 16)


@pytest.mark.fast
def test_fields_that_do_not_fit_are_refused():
    def start(module, inputs):
        return jax.eval_shape(module.init, jax.random.key(0), inputs)

    latents = jnp.zeros((1, 64))
    with pytest.raises(UserError, match=r"28x28 cannot be halved 3 times; .* multiples of 8"):
        start(R3Generator(image_shape=(28, 28, 1)), latents)
    with pytest.raises(UserError, match="group_size = 16 must divide the 12 channels"):
        start(R3Generator(stage_widths=(6,) * 4), latents)
    with pytest.raises(UserError, match="blocks_per_stage has 1 entries for the 4"):
        start(R3Generator(blocks_per_stage=(2,)), latents)
    with pytest.raises(UserError, match="num_classes = 2, but no labels were given"):
        start(R3Discriminator(num_classes=2), jnp.zeros((1, 32, 32, 3)))
