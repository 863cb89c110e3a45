import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.dense_gan import DenseDiscriminator, DenseGenerator
from tests.image import gan_reference as reference

LABELS = np.array([2, 0, 1, 1], np.int32)


def generator_reference(variables, latents, labels, activation, batch_norm, train, output):
    params, statistics = variables["params"], variables.get("statistics", {})
    states = latents if labels is None else np.concatenate([latents, np.eye(3)[labels]], 1)
    for number in range(2):
        layer = params[f"hidden{number}"]
        states = states @ layer["kernel"]
        if batch_norm:
            norm, averages = params[f"norm{number}"], statistics[f"norm{number}"]
            states = reference.batch_normalized(
                states, norm["scale"], norm["bias"], 1e-5, None if train else averages
            )
        else:
            states = states + layer["bias"]
        states = reference.relu(states) if activation == "relu" else reference.leaky_relu(states)
    states = states @ params["output"]["kernel"] + params["output"]["bias"]
    states = np.tanh(states) if output == "tanh" else states
    return states.reshape(-1, 4, 2, 3)


def discriminator_reference(params, images, labels, activation):
    states = images.reshape(len(images), -1)
    if labels is not None:
        states = np.concatenate([states, np.eye(3)[labels]], 1)
    for number in range(2):
        layer = params[f"hidden{number}"]
        if activation == "maxout":
            maps = states @ layer["maps"]["kernel"] + layer["maps"]["bias"]
            states = np.stack([maps[:, i::4] for i in range(4)]).max(0)
        else:
            states = states @ layer["kernel"] + layer["bias"]
            rectify = reference.relu if activation == "relu" else reference.leaky_relu
            states = rectify(states)
    return (states @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(
    ("conditional", "activation", "batch_norm", "train", "output"),
    [
        (False, "relu", False, False, "linear"),
        (True, "leaky_relu", True, True, "tanh"),
        (False, "relu", True, False, "linear"),
    ],
)
def test_the_generator_equals_its_equations(
    dtype, bound, conditional, activation, batch_norm, train, output
):
    latents = np.random.default_rng(0).normal(size=(4, 5))
    labels = LABELS if conditional else None
    with jax.enable_x64(True):
        module = DenseGenerator(
            (4, 2, 3), 5, 3 * conditional, (6, 7), activation, batch_norm, output, jnp.dtype(dtype)
        )
        given = jax.tree.map(jnp.asarray, (latents.astype(dtype), labels))
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given))
        variables = reference.randomized(shapes)
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        images = module.apply(cast, *given, train=train)
    expected = generator_reference(
        variables, latents, labels, activation, batch_norm, train, output
    )
    assert images.dtype == dtype
    assert reference.relative_error(images, expected) < bound


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(
    ("conditional", "activation"), [(False, "relu"), (True, "leaky_relu"), (True, "maxout")]
)
def test_the_discriminator_equals_its_equations(dtype, bound, conditional, activation):
    images = np.random.default_rng(0).normal(size=(4, 4, 2, 3))
    labels = LABELS if conditional else None
    with jax.enable_x64(True):
        module = DenseDiscriminator(3 * conditional, (6, 7), activation, 4, jnp.dtype(dtype))
        given = jax.tree.map(jnp.asarray, (images.astype(dtype), labels))
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given))
        variables = reference.randomized(shapes)
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        logits = module.apply(cast, *given)
    expected = discriminator_reference(variables["params"], images, labels, activation)
    assert logits.dtype == dtype
    assert reference.relative_error(logits, expected) < bound


@pytest.mark.fast
def test_points_in_the_plane_are_images_too():
    generator = DenseGenerator((1, 1, 2), latent_size=2, hidden_sizes=(8,), output="linear")
    key = jax.random.key(0)
    points, variables = jax.eval_shape(generator.init_with_output, key, jnp.ones((3, 2)))
    assert points.shape == (3, 1, 1, 2)
    discriminator = DenseDiscriminator(hidden_sizes=(8,))
    logits = jax.eval_shape(discriminator.init_with_output, key, points)[0]
    assert logits.shape == (3,)
    assert set(variables) == {"params"}


@pytest.mark.fast
def test_half_precision_gives_float32_images_and_logits():
    generator = DenseGenerator((2, 2, 1), latent_size=4, batch_norm=True, dtype=jnp.bfloat16)
    key = jax.random.key(0)
    images, variables = jax.eval_shape(generator.init_with_output, key, jnp.ones((3, 4)))
    discriminator = DenseDiscriminator(dtype=jnp.bfloat16)
    logits, others = jax.eval_shape(discriminator.init_with_output, key, images)
    leaves = jax.tree.leaves((images, logits, variables, others))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}


@pytest.mark.fast
def test_labels_that_lack_or_would_be_ignored_are_refused():
    key, latents, labels = jax.random.key(0), jnp.ones((2, 4)), jnp.zeros(2, jnp.int32)
    with pytest.raises(UserError, match="num_classes = 3, but no labels were given"):
        DenseGenerator((1, 1, 2), 4, num_classes=3).init(key, latents)
    with pytest.raises(UserError, match="num_classes = 0, which knows no classes"):
        DenseGenerator((1, 1, 2), 4).init(key, latents, labels)
