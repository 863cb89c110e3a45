import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.nn.batch_norm import BatchNorm, ConditionalBatchNorm
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh

EPSILON = 1e-2


def reference(inputs, mean, variance, scale, bias):
    return (inputs - mean) / np.sqrt(variance + EPSILON) * scale + bias


def problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(8, 3, 2, 5)) * [1, 2, 3, 4, 5] + 2).astype(dtype)
    variables = {
        "params": {"scale": rng.normal(size=5), "bias": rng.normal(size=5)},
        "statistics": {"mean": rng.normal(size=5), "variance": rng.uniform(1, 2, size=5)},
    }
    return inputs, jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_training_uses_the_batch_and_moves_the_averages(dtype, bound):
    with jax.enable_x64(True):
        inputs, variables = problem(dtype)
        norm = BatchNorm(epsilon=EPSILON, momentum=0.75)
        mean, variance = (np.asarray(x, np.float64) for x in variables["statistics"].values())
        params = {name: np.asarray(x, np.float64) for name, x in variables["params"].items()}
        wide = inputs.astype(np.float64)
        for batch in (wide, 3 * wide + 1):
            outputs, changed = norm.apply(
                variables, jnp.asarray(batch, dtype), train=True, mutable=["statistics"]
            )
            own = batch.mean((0, 1, 2)), batch.var((0, 1, 2))
            mean, variance = 0.75 * mean + 0.25 * own[0], 0.75 * variance + 0.25 * own[1]
            assert outputs.dtype == dtype
            np.testing.assert_allclose(
                outputs, reference(batch, *own, **params), rtol=bound, atol=bound
            )
            np.testing.assert_allclose(changed["statistics"]["mean"], mean, rtol=bound)
            np.testing.assert_allclose(changed["statistics"]["variance"], variance, rtol=bound)
            variables |= changed
        outputs = norm.apply(variables, jnp.asarray(inputs), train=False)
        expected = reference(wide, mean, variance, **params)
        np.testing.assert_allclose(outputs, expected, rtol=bound, atol=bound)


def test_averages_stay_without_training_without_mutability_and_at_the_start():
    inputs, variables = problem(np.float32)
    inputs = jnp.asarray(inputs)
    norm = BatchNorm()
    _, changed = norm.apply(variables, inputs, train=False, mutable=["statistics"])
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(changed["statistics"][name], variables["statistics"][name])
    mutable = norm.apply(variables, inputs, train=True, mutable=["statistics"])[0]
    np.testing.assert_array_equal(norm.apply(variables, inputs, train=True), mutable)
    start = norm.init(jax.random.key(0), inputs, train=True)["statistics"]
    np.testing.assert_array_equal(start["mean"], np.zeros(5))
    np.testing.assert_array_equal(start["variance"], np.ones(5))
    bare = BatchNorm(use_scale=False, use_bias=False)
    assert set(bare.init(jax.random.key(0), inputs, train=True)) == {"statistics"}


def test_statistics_are_float32_for_half_precision():
    # A mean of 256 with a spread near bfloat16's resolution there.
    values = 256 + 2 * np.arange(8.0)
    inputs = jnp.asarray(values, jnp.bfloat16)[:, None]
    norm = BatchNorm(use_scale=False, use_bias=False)
    variables = norm.init(jax.random.key(0), inputs, train=False)
    outputs, changed = norm.apply(variables, inputs, train=True, mutable=["statistics"])
    assert outputs.dtype == jnp.bfloat16
    assert changed["statistics"]["mean"].dtype == jnp.float32
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(np.asarray(outputs, np.float64)[:, 0], expected, atol=1e-2)


def test_classes_have_their_own_scale_and_bias():
    rng = np.random.default_rng(1)
    scale, bias = rng.normal(size=(2, 4, 5))
    with jax.enable_x64(True):
        inputs, labels = jnp.asarray(problem()[0]), jnp.array([0, 3, 1, 1, 2, 0, 3, 3])
        norm = ConditionalBatchNorm(num_classes=4, epsilon=EPSILON)
        start = norm.init(jax.random.key(0), inputs, labels, train=True)
        variables = start | {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
        outputs, changed = norm.apply(variables, inputs, labels, train=True, mutable=["statistics"])
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
    own = (x[labels][:, None, None] for x in (scale, bias))
    np.testing.assert_allclose(outputs, reference(inputs, mean, variance, *own), rtol=1e-12)
    np.testing.assert_allclose(changed["statistics"]["norm"]["mean"], 0.1 * mean, rtol=1e-6)


def test_eight_devices_share_their_statistics():
    inputs, variables = problem(np.float32)
    inputs = jnp.asarray(inputs)
    labels = jnp.arange(8) % 4
    norm = ConditionalBatchNorm(num_classes=4)
    variables = norm.init(jax.random.key(0), inputs, labels, train=True)

    def step(params, statistics, inputs, labels):
        def loss(params, inputs):
            variables = {"params": params, "statistics": statistics}
            outputs, changed = norm.apply(
                variables, inputs, labels, train=True, mutable=["statistics"]
            )
            return (jnp.sin(outputs) * inputs).sum(), changed

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)

    arguments = (variables["params"], variables["statistics"])
    expected = jax.jit(step)(*arguments, inputs, labels)
    mesh = make_mesh(MeshConfig())
    split = jax.device_put((inputs, labels), NamedSharding(mesh, P(BATCH_AXES)))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(*arguments, *split).compile()
        actual = compiled(*jax.device_put(arguments, NamedSharding(mesh, P())), *split)
    assert "all-gather" not in compiled.as_text()
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
