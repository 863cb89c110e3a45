"""Three-dimensional convolutions against float64 sums, their derivatives, and their two forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import convolution3d
from genjax.nn.convolution3d import Conv3D, ConvTranspose3D, conv3d, conv_transpose3d
from tests.nn import convolution3d_reference as reference

# Frames of the kernel and its side, then stride and padding, each in time and in space.
SIZES = [
    ((3, 3), (1, 1), (1, 1)),
    ((4, 4), (2, 2), (1, 1)),
    ((4, 4), (1, 2), (0, 1)),
    ((1, 4), (1, 2), (0, 1)),
    ((3, 1), (2, 1), (1, 0)),
    ((5, 3), (2, 2), (4, 0)),
]
sizes = pytest.mark.parametrize(("size", "stride", "padding"), SIZES)


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def kernel_shape(size, *channels):
    return (size[0], size[1], size[1], *channels)


@pytest.mark.fast
@sizes
def test_values_equal_the_definition(size, stride, padding):
    clips, kernel = arrays((2, 6, 6, 8, 2), kernel_shape(size, 2, 3))
    with jax.enable_x64(True):
        run = jax.jit(lambda x, k: conv3d(x, k, stride=stride, padding=padding))
        ours = run(clips, kernel)
    np.testing.assert_allclose(
        ours, reference.conv3d(clips, kernel, stride, padding), rtol=1e-12, atol=1e-12
    )


@pytest.mark.fast
@sizes
def test_the_transpose_spreads_kernels(size, stride, padding):
    clips, kernel = arrays((2, 4, 3, 5, 3), kernel_shape(size, 2, 3))
    if size == (5, 3):
        padding = (2, 0)
    theirs = reference.conv_transpose3d(clips, kernel, stride, padding)
    with jax.enable_x64(True):
        run = jax.jit(lambda x, k: conv_transpose3d(x, k, stride=stride, padding=padding))
        ours = run(clips, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.fast
@pytest.mark.parametrize(("frames", "stride"), [(3, 1), (2, 2), (4, 3), (1, 2), (7, 1)])
def test_a_causal_kernel_sees_no_later_frame(frames, stride):
    clips, kernel, other = arrays((2, 5, 4, 3, 2), (frames, 3, 3, 2, 3), (2, 5, 4, 3, 2))
    with jax.enable_x64(True):
        run = functools.partial(conv3d, stride=(stride, 1), padding=("causal", 1))

        @jax.jit
        def both(clips, kernel, cotangent):
            outputs, pull = jax.vjp(run, clips, kernel)
            return outputs, *pull(cotangent)

        before = np.pad(clips, ((0, 0), (frames - 1, 0), *[(0, 0)] * 3))
        theirs = reference.conv3d(before, kernel, (stride, 1), (0, 1))
        (cotangent,) = arrays(theirs.shape, seed=1)
        ours, of_clips, of_kernel = both(clips, kernel, cotangent)
        assert ours.shape[1] == -(-5 // stride)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        # Linear in either argument, so that inner products determine the gradients.
        total = np.vdot(theirs, cotangent)
        np.testing.assert_allclose(np.vdot(of_clips, clips), total, rtol=1e-11)
        np.testing.assert_allclose(np.vdot(of_kernel, kernel), total, rtol=1e-11)
        for t in range(ours.shape[1]):
            seen = stride * t + 1
            mixed = np.concatenate([clips[:, :seen], other[:, seen:]], 1)
            np.testing.assert_array_equal(
                both(mixed, kernel, cotangent)[0][:, : t + 1], ours[:, : t + 1]
            )
        layer = Conv3D(
            3, (frames, 3), (stride, 1), ("causal", 1), use_bias=False, dtype=jnp.float64
        )
        np.testing.assert_array_equal(
            jax.jit(layer.apply)({"params": {"kernel": kernel}}, clips), ours
        )


def test_frames_of_zeros_alone_are_left_out_rightly():
    """A clip of one frame meets the middle of the kernel; a larger border makes frames of zeros."""
    clips, kernel = arrays((1, 1, 2, 2, 1), (3, 1, 1, 1, 1))
    with jax.enable_x64(True):
        for before in (1, 3):
            run = jax.jit(functools.partial(conv3d, padding=(before, 0)))
            ours = run(clips, kernel)
            theirs = reference.conv3d(clips, kernel, (1, 1), (before, 0))
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert jax.eval_shape(conv3d, clips, kernel).shape == clips.shape


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride", "padding"), SIZES[1:2])
def test_derivatives_of_both_orders_are_those_of_the_form_that_xla_has(
    size, stride, padding, transposed
):
    """The gradients of a gradient penalty, which differentiates each of the three linear maps."""
    small = (2, 3, 2, 2, 3)
    large = (2, 6, 4, 4, 2)
    clips, kernel = arrays(small if transposed else large, kernel_shape(size, 2, 3))
    settings = {"stride": stride, "padding": padding}

    def penalty(convolve, clips, kernel):
        def score(clips):
            return jnp.sum(jnp.tanh(convolve(clips, kernel)))

        return jnp.sum(jnp.square(jax.grad(score)(clips))) + score(clips)

    def ours(clips, kernel):
        return (conv_transpose3d if transposed else conv3d)(clips, kernel, **settings)

    def plain(clips, kernel):
        def whole(clips):
            return convolution3d._whole(clips, kernel, stride, (padding[0], *padding))

        if not transposed:
            return whole(clips)
        shape = jax.eval_shape(ours, clips, kernel)
        return jax.linear_transpose(whole, shape)(clips)[0]

    with jax.enable_x64(True):
        inputs = (jnp.asarray(clips), jnp.asarray(kernel))
        found, expected = (
            jax.jit(jax.value_and_grad(lambda *a, f=f: penalty(f, *a), (0, 1)))(*inputs)
            for f in (ours, plain)
        )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.fast
def test_each_backend_gets_its_form():
    """A CPU sees two-dimensional convolutions alone, forward and backward; a TPU the whole."""

    def loss(clips, kernel):
        return jnp.sum(jnp.square(conv3d(clips, kernel, stride=(2, 2), padding=(1, 1))))

    shapes = (np.zeros((1, 4, 4, 4, 2), np.float32), np.zeros((4, 4, 4, 2, 2), np.float32))
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(*shapes)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")}
    layouts = {name: re.findall(r"dim_numbers = (\S.*?)x", text) for name, text in texts.items()}
    assert layouts["cpu"] and layouts["tpu"]
    assert not any("2" in layout for layout in layouts["cpu"])
    assert all("2" in layout for layout in layouts["tpu"])


@pytest.mark.fast
def test_layers_have_their_parameters_and_dtypes():
    clips = np.ones((1, 4, 4, 4, 3), np.float32)
    down = Conv3D(5, kernel_size=(2, 4), stride=(1, 2), padding=(0, 1), dtype=jnp.bfloat16)
    variables = jax.eval_shape(down.init, jax.random.key(0), clips)
    assert variables["params"]["kernel"].shape == (2, 4, 4, 3, 5)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    outputs = jax.eval_shape(down.apply, variables, clips)
    assert (outputs.shape, outputs.dtype) == ((1, 3, 2, 2, 5), jnp.bfloat16)

    up = ConvTranspose3D(5)
    variables = jax.jit(up.init)(jax.random.key(0), clips)
    variables["params"]["bias"] = np.arange(5, dtype=np.float32)
    outputs = jax.jit(up.apply)(variables, clips)
    assert outputs.shape == (1, 8, 8, 8, 5)
    kernel = np.asarray(variables["params"]["kernel"])
    expected = reference.conv_transpose3d(np.ones(clips.shape), kernel, (2, 2), (1, 1))
    np.testing.assert_allclose(outputs, expected + np.arange(5.0), rtol=1e-4, atol=1e-5)
    bare = jax.eval_shape(ConvTranspose3D(5, use_bias=False).init, jax.random.key(0), clips)
    assert set(bare["params"]) == {"kernel"}


@pytest.mark.fast
def test_a_kernel_that_sees_no_frame_says_so():
    run = functools.partial(conv3d, stride=(5, 1), padding=(3, 0))
    with pytest.raises(ValueError, match="sees none"):
        jax.eval_shape(run, np.zeros((1, 1, 2, 2, 1)), np.zeros((2, 1, 1, 1, 1)))
