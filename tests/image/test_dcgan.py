"""DCGAN: sizes, labels, statistics, and both networks against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.dcgan import DCGANDiscriminator, DCGANGenerator
from tests.image.gan_reference import batch_normalized, leaky_relu, randomized, relative_error

WIDTHS = {"base_channels": 3, "max_channels": 5}


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def strided(images, kernel, circular):
    """Kernel 4, stride 2, a border of one."""
    mode = "wrap" if circular else "constant"
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    height, width = images.shape[1] // 2, images.shape[2] // 2
    outputs = np.zeros((len(images), height, width, kernel.shape[-1]))
    for i in range(4):
        for j in range(4):
            part = padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2]
            outputs += part @ kernel[i, j]
    return outputs


def spread(images, kernel, circular):
    """Its transpose: each pixel adds its kernel [4, 4, out, in] around twice its place."""
    batch, height, width, _ = images.shape
    outputs = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for i in range(4):
        for j in range(4):
            outputs[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += images @ kernel[i, j].T
    if circular:
        outputs[:, -2] += outputs[:, 0]
        outputs[:, 1] += outputs[:, -1]
        outputs[:, :, -2] += outputs[:, :, 0]
        outputs[:, :, 1] += outputs[:, :, -1]
    return outputs[:, 1:-1, 1:-1]


def norm(params, statistics, name, x, train):
    part = params[name]
    averages = None if train else statistics[name]
    return batch_normalized(x, part["scale"], part["bias"], 1e-5, averages)


def generate(variables, latents, labels, base, circular, train):
    params, statistics = variables["params"], variables["statistics"]
    inputs = latents if labels is None else np.concatenate([latents, one_hot(labels, 4)], 1)
    hidden = (inputs @ params["input"]["kernel"]).reshape(len(latents), *base, -1)
    hidden = np.maximum(norm(params, statistics, "norm_0", hidden, train), 0)
    for level in range(sum(name.startswith("up_") for name in params)):
        hidden = spread(hidden, params[f"up_{level}"]["kernel"], circular)
        hidden = np.maximum(norm(params, statistics, f"norm_{level + 1}", hidden, train), 0)
    output = params["output"]
    return np.tanh(spread(hidden, output["kernel"], circular) + output["bias"])


def judge(variables, images, labels, conditioning, circular, train):
    params, statistics = variables["params"], variables.get("statistics", {})
    hidden = images
    if labels is not None and conditioning == "concatenation":
        planes = np.broadcast_to(one_hot(labels, 4)[:, None, None], (*images.shape[:3], 4))
        hidden = np.concatenate([images, planes], -1)
    for level in range(sum(name.startswith("down_") for name in params)):
        layer = params[f"down_{level}"]
        hidden = strided(hidden, layer["kernel"], circular) + layer.get("bias", 0.0)
        if f"norm_{level}" in params:
            hidden = norm(params, statistics, f"norm_{level}", hidden, train)
        hidden = leaky_relu(hidden)
    flat = hidden.reshape(len(hidden), -1)
    logits = (flat @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    if labels is not None and conditioning == "projection":
        logits = logits + (flat * params["class_embedding"][labels]).sum(1)
    return logits


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("shape", "base", "classes", "conditioning", "padding"),
    [
        ((16, 24, 3), (4, 6), 0, "projection", "zeros"),
        ((16, 16, 1), (4, 4), 4, "projection", "circular"),
        ((8, 8, 2), (4, 4), 4, "concatenation", "zeros"),
    ],
)
def test_both_networks_equal_the_reference(shape, base, classes, conditioning, padding, train):
    shared = {"image_shape": shape, "num_classes": classes, "padding_mode": padding, **WIDTHS}
    generator = DCGANGenerator(latent_size=6, dtype=jnp.float64, **shared)
    discriminator = DCGANDiscriminator(conditioning=conditioning, dtype=jnp.float64, **shared)
    random = np.random.default_rng(0)
    latents, images = random.normal(size=(5, 6)), random.normal(size=(5, *shape))
    labels = random.integers(0, 4, 5).astype(np.int32) if classes else None
    circular = padding == "circular"
    with jax.enable_x64(True):
        given = None if labels is None else jnp.asarray(labels)
        for network, inputs, reference in (
            (generator, latents, lambda v: generate(v, latents, labels, base, circular, train)),
            (
                discriminator,
                images,
                lambda v: judge(v, images, labels, conditioning, circular, train),
            ),
        ):
            variables = randomized(network.init(jax.random.key(0), jnp.asarray(inputs), given))
            found, _ = network.apply(
                jax.tree.map(jnp.asarray, variables),
                jnp.asarray(inputs),
                given,
                train=train,
                mutable=["statistics"],
            )
            assert found.dtype == jnp.float64
            assert relative_error(found, reference(variables)) < 1e-12


@pytest.mark.fast
def test_the_published_widths():
    """64x64: 1024 channels halve to 128 in the paper; here twice as few, as in most copies."""
    generator = DCGANGenerator(image_shape=(64, 64, 3), base_channels=128, max_channels=1024)
    shapes = jax.eval_shape(generator.init, jax.random.key(0), jnp.zeros((1, 100)))["params"]
    kernels = [shapes[f"up_{level}"]["kernel"].shape for level in range(3)]
    assert shapes["input"]["kernel"].shape == (100, 4 * 4 * 1024)
    assert kernels == [(4, 4, 512, 1024), (4, 4, 256, 512), (4, 4, 128, 256)]
    assert shapes["output"]["kernel"].shape == (4, 4, 3, 128)
    assert not any("bias" in shapes[name] for name in ("input", "up_0", "up_1", "up_2"))


def test_initial_kernels_are_narrow_normals():
    generator = DCGANGenerator(image_shape=(32, 32, 3))
    params = generator.init(jax.random.key(0), jnp.zeros((1, 100)))["params"]
    for name in ("input", "up_0", "up_1", "output"):
        assert np.std(params[name]["kernel"]) == pytest.approx(0.02, rel=0.03)
    assert np.mean(params["norm_0"]["scale"]) == pytest.approx(1.0, abs=0.005)


def test_bfloat16_computes_and_float32_comes_out():
    settings = {"image_shape": (8, 8, 1), "dtype": jnp.bfloat16, **WIDTHS}
    generator, discriminator = (
        DCGANGenerator(latent_size=6, **settings),
        DCGANDiscriminator(**settings),
    )
    latents = jnp.ones((2, 6))
    variables = generator.init(jax.random.key(0), latents)
    images = generator.apply(variables, latents)
    judged = discriminator.init(jax.random.key(1), images)
    assert images.dtype == discriminator.apply(judged, images).dtype == jnp.float32
    for leaf in jax.tree.leaves((variables, judged)):
        assert leaf.dtype == jnp.float32


@pytest.mark.fast
def test_labels_where_they_belong():
    plain = DCGANGenerator(image_shape=(8, 8, 1), **WIDTHS)
    with pytest.raises(UserError, match="knows no classes"):
        plain.init(jax.random.key(0), jnp.zeros((2, 100)), jnp.zeros(2, jnp.int32))
    for conditioning in ("projection", "concatenation"):
        discriminator = DCGANDiscriminator((8, 8, 1), 4, conditioning, **WIDTHS)
        with pytest.raises(UserError, match="no labels were given"):
            discriminator.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))


@pytest.mark.fast
@pytest.mark.parametrize("conditioning", ["projection", "concatenation"])
def test_without_batch_normalisation_logits_stand_alone(conditioning):
    discriminator = DCGANDiscriminator((8, 8, 1), 4, conditioning, use_batch_norm=False, **WIDTHS)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    labels = jnp.arange(4, dtype=jnp.int32)
    variables = discriminator.init(jax.random.key(1), images, labels)
    assert "statistics" not in variables
    whole = discriminator.apply(variables, images, labels, train=True)
    half = discriminator.apply(variables, images[:2], labels[:2], train=True)
    np.testing.assert_allclose(whole[:2], half, rtol=1e-5)
    other = discriminator.apply(variables, images, labels[::-1], train=True)
    assert abs(np.asarray(other - whole)).min() > 0
