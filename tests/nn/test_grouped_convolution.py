import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.signal import correlate2d

from genjax.errors import UserError
from genjax.nn import grouped_convolution
from genjax.nn.grouped_convolution import grouped_conv2d
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh

GROUPS = 3


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """Each platform's form, whatever runs the tests."""

    def choose(*arguments, **branches):
        return branches[request.param](*arguments)

    monkeypatch.setattr(grouped_convolution.lax, "platform_dependent", choose)
    return request.param


def problem(batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, 5, 4, 6)), rng.normal(size=(3, 3, 2, 9))


def penalty_gradients(padding_mode):
    def penalty(inputs, kernel):
        def total(inputs):
            return jnp.tanh(grouped_conv2d(inputs, kernel, GROUPS, padding_mode)).sum()

        return jnp.square(jax.grad(total)(inputs)).sum()

    return jax.value_and_grad(penalty, argnums=(0, 1))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_each_group_is_a_convolution(platform, padding_mode):
    inputs, kernel = problem()
    boundary = "wrap" if padding_mode == "circular" else "fill"
    expected = np.zeros((2, 5, 4, 9))
    for f in range(9):
        for c in range(2):
            for image, output in zip(inputs, expected, strict=True):
                channel = image[..., f // 3 * 2 + c]
                output[..., f] += correlate2d(channel, kernel[..., c, f], "same", boundary)
    with jax.enable_x64(True):
        outputs = grouped_conv2d(jnp.asarray(inputs), jnp.asarray(kernel), GROUPS, padding_mode)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
    outputs = grouped_conv2d(
        jnp.asarray(inputs, jnp.float32), jnp.asarray(kernel, jnp.float32), GROUPS, padding_mode
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives_match_finite_differences(platform):
    inputs, kernel = problem()
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        function = jax.jit(penalty_gradients("circular"))
        _, gradients = function(inputs, kernel)
        for number, gradient in enumerate(gradients):
            direction = rng.normal(size=gradient.shape)
            both = []
            for sign in (1, -1):
                moved = [inputs, kernel]
                moved[number] = moved[number] + sign * 1e-5 * direction
                both.append(float(function(*moved)[0]))
            slope = (both[0] - both[1]) / 2e-5
            np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-7)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}])
def test_eight_devices_gather_no_batch_and_agree_with_one(platform, axes):
    inputs, kernel = (jnp.asarray(x, jnp.float32) for x in problem(16))
    function = penalty_gradients("zeros")
    expected = jax.jit(function)(inputs, kernel)
    mesh = make_mesh(MeshConfig(**axes))
    split = jax.device_put(inputs, NamedSharding(mesh, P(BATCH_AXES)))
    whole = jax.device_put(kernel, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(split, whole).compile()
        actual = compiled(split, whole)
    assert "all-gather" not in compiled.as_text()
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_batch_too_small_for_the_devices_works():
    inputs, kernel = (jnp.asarray(x, jnp.float32) for x in problem(3))
    expected = grouped_conv2d(inputs, kernel, GROUPS)
    with jax.set_mesh(make_mesh(MeshConfig())):
        outputs = jax.jit(lambda x, k: grouped_conv2d(x, k, GROUPS))(inputs, kernel)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


@pytest.mark.fast
def test_groups_that_do_not_fit_are_refused():
    inputs, kernel = (jnp.asarray(x, jnp.float32) for x in problem())
    with pytest.raises(UserError, match="groups = 4 must divide the 6 input and 9 output"):
        grouped_conv2d(inputs, kernel, 4)
    with pytest.raises(UserError, match=r"1 groups of 6 channels need a kernel of 6 .* not 2"):
        grouped_conv2d(inputs, kernel, 1)
