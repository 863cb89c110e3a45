"""The whole pipeline: identity, derivatives, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.ada import CATEGORIES, ada

KEY = jax.random.key(7)


def images_of(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)


@functools.partial(jax.jit, static_argnames=("categories", "circular"))
def augment(images, key, probability, categories=CATEGORIES, circular=False):
    return ada(images, key, probability, categories=categories, circular=circular)


@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (4, 5, 12, 4), (4, 7, 3, 1)])
def test_probability_zero_changes_no_bit(shape):
    images = images_of(*shape)
    images[0] *= -0.0
    actual = np.asarray(augment(images, KEY, jnp.float32(0)))
    np.testing.assert_array_equal(actual.view(np.int32), images.view(np.int32))


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_shape_and_type_stay(dtype):
    images = jax.ShapeDtypeStruct((4, 6, 10, 3), dtype)
    result = jax.eval_shape(augment, images, KEY, jnp.float32(0.5))
    assert (result.shape, result.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_category_leaves_the_images_it_spares_to_the_bit(category):
    images = images_of(64, 8, 8, 3)
    # Chosen so that about half of the images are spared.
    probability = {"geometry": 0.16, "colour": 0.13, "filter": 0.16}.get(category, 0.4)
    actual = np.asarray(augment(images, KEY, jnp.float32(probability), categories=(category,)))
    assert np.all(np.isfinite(actual))
    spared = np.all(actual == images, axis=(1, 2, 3))
    assert 15 < spared.sum() < 60


def test_images_are_augmented_each_on_its_own():
    images = np.repeat(images_of(1, 8, 8, 3), 6, axis=0)
    actual = np.asarray(augment(images, KEY, jnp.float32(1)))
    assert len(np.unique(actual.reshape(6, -1), axis=0)) == 6
    images[3] = 0.0
    changed = np.asarray(augment(images, KEY, jnp.float32(1)))
    others = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(changed[others], actual[others], atol=1e-6)
    assert np.abs(changed[3] - actual[3]).max() > 0.1


@pytest.mark.slow
def test_derivatives_equal_finite_differences_in_float64():
    rng = np.random.default_rng(5)
    images, direction, weights = rng.normal(size=(3, 3, 6, 7, 3))

    def objective(x):
        """A score and its gradient penalty, through the augmentation as R1 goes."""

        def score(y):
            return jnp.sum(jnp.tanh(ada(y, KEY, 0.8, categories=CATEGORIES)) * weights)

        value, gradient = jax.value_and_grad(score)(x)
        return jnp.stack([value, jnp.sum(gradient**2)])

    @jax.jit
    def run(x, chosen):
        values, vjp = jax.vjp(objective, x)
        return values, vjp(chosen)[0]

    with jax.enable_x64(True):
        step = 1e-5
        score_alone, penalty_alone = jnp.eye(2)
        ahead, _ = run(jnp.asarray(images + step * direction), score_alone)
        behind, _ = run(jnp.asarray(images - step * direction), score_alone)
        differences = (np.asarray(ahead) - np.asarray(behind)) / (2 * step)
        assert np.abs(differences).min() > 1e-2
        for chosen, difference in zip((score_alone, penalty_alone), differences, strict=True):
            gradient = np.asarray(run(jnp.asarray(images), chosen)[1])
            np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-6)


@pytest.mark.slow
def test_eight_devices_keep_their_rows():
    """Nothing of the batch moves between devices, forward or in a gradient penalty."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def penalty(x, key, probability):
        def score(y):
            return jnp.sum(jnp.tanh(ada(y, key, probability, categories=CATEGORIES)))

        return jnp.sum(jax.grad(score)(x) ** 2)

    step = jax.jit(jax.grad(penalty), in_shardings=(sharding, None, None), out_shardings=sharding)
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32)
    text = step.lower(images, KEY, jnp.float32(0.5)).compile().as_text()
    assert "all-reduce" in text  # the partitioner was at work: has any device drawn a transform?
    for move in ("all-gather", "all-to-all", "collective-permute"):
        assert move not in text
