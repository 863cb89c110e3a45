"""Counted operations against closed forms: two for each multiply-add of a product."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from genjax.flops import count_flops
from genjax.nn.attention import attention
from genjax.nn.convolution import conv2d, conv_transpose2d
from genjax.nn.convolution3d import conv3d, conv_transpose3d
from genjax.nn.dense import matmul
from genjax.nn.grouped_convolution import grouped_conv2d
from genjax.parallel.mesh import MeshConfig, make_mesh
from tests.image.small_gans import configured

pytestmark = pytest.mark.fast

X, W = jnp.zeros((4, 5)), jnp.zeros((5, 7))
PRODUCT = 2 * 4 * 5 * 7


def test_products_and_their_gradients():
    assert count_flops(matmul, X, W) == PRODUCT
    assert (
        count_flops(jax.grad(lambda x, w: jnp.square(matmul(x, w)).sum(), (0, 1)), X, W)
        == 3 * PRODUCT
    )
    batched = jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 7))
    assert count_flops(jnp.matmul, *batched) == 3 * PRODUCT
    assert count_flops(lambda x: jnp.tanh(x).sum(), X) == 0


def test_loops_count_every_turn():
    def body(carry, _):
        return carry @ jnp.ones((5, 5)), None

    assert count_flops(lambda x: lax.scan(body, x, None, length=11)[0], X) == 11 * 2 * 4 * 5 * 5
    nested = lambda x: lax.scan(lambda c, _: (lax.scan(body, c, None, 3)[0], None), x, None, 2)  # noqa: E731
    assert count_flops(nested, X) == 6 * 2 * 4 * 5 * 5
    assert count_flops(jax.jit(jax.checkpoint(matmul)), X, W) == PRODUCT


def test_of_alternatives_the_largest_counts():
    def chosen(flag, x, w):
        return lax.cond(flag, lambda: x @ w, lambda: (x @ jnp.ones((5, 5))) @ w)

    assert count_flops(chosen, jnp.bool_(True), X, W) == PRODUCT + 2 * 4 * 5 * 5


IMAGES, KERNEL = jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))


def test_convolutions():
    assert count_flops(conv2d, IMAGES, KERNEL) == 2 * (2 * 8 * 6 * 5) * 9 * 3
    halved = lambda x, k: conv2d(x, k, stride=2)  # noqa: E731
    forward = 2 * (2 * 4 * 3 * 5) * 9 * 3
    assert count_flops(halved, IMAGES, KERNEL) == forward
    # The gradient of the images inserts zeros, whose products are no work: on average over places a
    # quarter of the taps meets a number.
    both = count_flops(
        jax.grad(lambda x, k: jnp.square(halved(x, k)).sum(), (0, 1)), IMAGES, KERNEL
    )
    assert both == 3 * forward
    # What nobody asked for is no work: the gradient of the images, the value of a linear function.
    kernel = jax.grad(lambda k: jnp.square(halved(IMAGES, k)).sum())
    assert count_flops(kernel, KERNEL) == 2 * forward
    assert count_flops(jax.grad(lambda k: halved(IMAGES, k).sum()), KERNEL) == forward


def test_transposed_convolutions():
    """Each input pixel is multiplied with the whole kernel."""
    small, kernel = jnp.zeros((2, 4, 4, 5)), jnp.zeros((4, 4, 3, 5))
    found = count_flops(lambda x, k: conv_transpose2d(x, k, stride=2, padding=1), small, kernel)
    assert found == 2 * (2 * 4 * 4 * 5) * 16 * 3


def test_products_with_the_border_are_left_out_on_request():
    """A 3x3 kernel meets 8 + 2 * 7 pairs of a tap and a pixel on 8 rows."""
    counted = count_flops(conv2d, IMAGES, KERNEL, borders=False)
    assert counted == 2 * 2 * 5 * 3 * (8 + 2 * 7) * (6 + 2 * 5)
    grouped = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x,
        k,
        (1, 1),
        [(0, 0), (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    depthwise = jnp.zeros((3, 3, 1, 3))
    whole, inside = (count_flops(grouped, IMAGES, depthwise, borders=b) for b in (True, False))
    assert whole == inside == 2 * (2 * 6 * 4 * 3) * 9


@pytest.mark.parametrize("function", [conv3d, conv_transpose3d])
def test_clips(function):
    """Neither form of the backends counts what it computes and drops."""
    clips, kernel = jnp.zeros((2, 8, 6, 6, 3)), jnp.zeros((4, 4, 4, 3, 3))
    layer = lambda x, k: function(x, k, stride=(2, 2), padding=(1, 1))  # noqa: E731
    small = (4, 3, 3) if function is conv3d else (8, 6, 6)
    forward = 2 * (2 * math.prod(small) * 3) * 4**3 * 3
    assert count_flops(layer, clips, kernel) == forward
    gradient = jax.grad(lambda x, k: jnp.square(layer(x, k)).sum(), (0, 1))
    assert count_flops(gradient, clips, kernel) == 3 * forward


def test_kernels():
    """They write into memory instead of having results: scores and their mean of values."""
    shape = (batch, time, heads, features) = 2, 256, 3, 128
    query = jnp.zeros(shape, jnp.bfloat16)
    attend = functools.partial(attention, causal=True, implementation="splash")
    scores = 2 * batch * heads * time**2 * features
    assert count_flops(attend, query, query, query) == 2 * scores
    loss = lambda *inputs: attend(*inputs).astype(jnp.float32).sum()  # noqa: E731
    # Backward in two kernels, each with the scores and the weights' gradients again: one goes on to
    # those of key and value, the other to those of the query.
    counted = count_flops(jax.grad(loss, (0, 1, 2)), query, query, query)
    assert counted == pytest.approx((2 + 4 + 3) * scores, rel=1e-3)


def test_unused_results_of_a_call_are_no_work():
    both = jax.jit(lambda x, w: (x @ w, (x @ jnp.ones((5, 5))) @ w))
    assert count_flops(lambda x, w: both(x, w)[0], X, W) == PRODUCT
    assert count_flops(lambda x, w: both(x @ jnp.ones((5, 5)), w)[0].sum(), X, W) == (
        PRODUCT + 2 * 4 * 5 * 5
    )


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, fsdp=2), MeshConfig(data=4, tensor=2)])
def test_groups_and_work_that_is_split_by_hand(mesh):
    images, kernel = jnp.zeros((8, 4, 4, 6)), jnp.zeros((3, 3, 2, 9))
    expected = 2 * (8 * 4 * 4 * 9) * 9 * 2
    grouped = lambda x, k: grouped_conv2d(x, k, 3)  # noqa: E731
    if mesh is None:
        assert count_flops(grouped, images, kernel) == expected
        return
    with jax.set_mesh(make_mesh(mesh)):
        assert count_flops(grouped, images, kernel) == expected


def test_a_step_of_dcgan():
    batch, base, latents, classes = 4, 8, 10, 10
    model = {"kind": "dcgan", "latent_size": latents, "base_channels": base, "max_channels": 64}
    config = configured(model, {"kind": "digits", "size": 16}, batch_size=batch)
    # Sizes 4, 8 and 16 have 16, 8 and 1 channels, and kernels 16 places.
    inputs = 2 * batch * (latents + classes) * (4 * 4 * 16)
    generator = inputs + 2 * batch * (16 * 16 * 16 * 8 + 64 * 8 * 16 * 1)
    first = 2 * batch * 64 * 8 * 16 * 1
    discriminator = first + 2 * batch * (16 * 16 * 16 * 8 + 256)
    # D's step: G forward; D forward and backward on two batches, whose images need no gradient.
    expected = generator + 2 * (3 * discriminator - first)
    # G's: D forward and the gradient of its images, G forward and backward; latents need none.
    expected += 2 * discriminator + 3 * generator - inputs
    assert config.make_task().flops_per_step() == pytest.approx(expected, rel=1e-3)


def test_lazy_regularisers_count_by_how_often_they_run():
    dense = {"kind": "dense", "latent_size": 3, "generator_sizes": [6], "discriminator_sizes": [6]}
    plain, every, third = (
        configured(dense, objective=objective).make_task().flops_per_step()
        for objective in ({}, {"r1_gamma": 1.0}, {"r1_gamma": 1.0, "penalty_interval": 3})
    )
    task = configured(dense, objective={"r1_gamma": 1.0, "penalty_interval": 3}).make_task()
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {
        "images": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    alone, together = (
        count_flops(lambda s, b: task.train_step(s, b, task.variant(number)), state, batch)  # noqa: B023
        for number in (1, 0)
    )
    assert alone == plain < third < every
    assert third == pytest.approx(plain + (together - plain) / 3)
