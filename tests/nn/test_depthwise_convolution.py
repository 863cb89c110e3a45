"""Depthwise convolutions against float64 numpy, on every platform's form, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.errors import UserError
from genjax.nn import depthwise_convolution
from genjax.nn.depthwise_convolution import depthwise_conv2d
from genjax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh
from tests.image.gan_reference import relative_error
from tests.video import simvp_reference


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """Each platform's form, whatever runs the tests."""

    def choose(*arguments, **branches):
        return branches[request.param](*arguments)

    monkeypatch.setattr(depthwise_convolution.lax, "platform_dependent", choose)
    return request.param


@pytest.mark.parametrize(("size", "dilation"), [((3, 5), 1), ((7, 7), 3)])
def test_depthwise_convolution_and_its_gradients_equal_the_reference(platform, size, dilation):
    """It is linear in images and in kernel: each gradient times a direction is known exactly."""
    rng = np.random.default_rng(0)
    inputs, other = rng.normal(size=(2, 2, 5, 7, 3))
    kernel, tilted = rng.normal(size=(2, *size, 3))
    weights = rng.normal(size=inputs.shape)

    def reference(inputs, kernel):
        # The reference's kernels are square.
        side = max(size)
        borders = [((side - length) // 2,) * 2 for length in size]
        square = np.pad(kernel, [*borders, (0, 0)])
        return simvp_reference.depthwise(inputs, square, dilation=dilation)

    def total(inputs, kernel):
        outputs = depthwise_conv2d(inputs, kernel, dilation=dilation)
        return (outputs * weights).sum(), outputs

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.grad(total, (0, 1), has_aux=True))
        gradients, outputs = differentiate(inputs, kernel)
    assert relative_error(outputs, reference(inputs, kernel)) < 1e-12
    slopes = [
        (np.asarray(gradient) * direction).sum()
        for gradient, direction in zip(gradients, (other, tilted), strict=True)
    ]
    expected = [(weights * reference(*pair)).sum() for pair in ((other, kernel), (inputs, tilted))]
    np.testing.assert_allclose(slopes, expected, rtol=1e-12)


@pytest.mark.fast
def test_depthwise_convolution_adds_up_in_float32():
    ones = jnp.full((1, 7, 7, 1), 1.0078125, jnp.bfloat16)
    outputs = np.asarray(jax.jit(depthwise_conv2d)(ones, jnp.ones((7, 7, 1))))
    assert outputs[0, 3, 3, 0] == jnp.bfloat16(49 * 1.0078125)


def test_depthwise_convolution_gathers_no_batch_from_eight_devices(platform):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(16, 4, 4, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2)), jnp.float32)
    function = jax.grad(lambda x, k: jnp.tanh(depthwise_conv2d(x, k)).sum(), (0, 1))
    expected = jax.jit(function)(inputs, kernel)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    split = jax.device_put(inputs, NamedSharding(mesh, P(BATCH_AXES)))
    whole = jax.device_put(kernel, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(split, whole).compile()
        actual = compiled(split, whole)
    assert "all-gather" not in compiled.as_text()
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.fast
def test_even_depthwise_kernels_are_refused():
    with pytest.raises(UserError, match=r"kernel sizes \(2, 3\) .* must be odd"):
        depthwise_conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((2, 3, 1)))
