"""Convolutions of clips against float64 sums, what they may see, and how many weights they have."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.temporal_convolution import (
    Conv2Plus1D,
    TemporalConv,
    intermediate_channels,
    temporal_conv,
)

pytestmark = pytest.mark.fast


def reference(clips, kernel, stride, time_stride, padding, causal, repeat):
    """The sum at each place of each output frame, one kernel's place at a time."""
    frames, size = kernel.shape[:2]
    length = clips.shape[1]
    back = frames - 1 if causal else (frames - 1) // 2
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0))
    clips = np.pad(clips, border)
    height, width = ((n - size) // stride + 1 for n in clips.shape[2:4])
    out = np.zeros((len(clips), -(-length // time_stride), height, width, kernel.shape[-1]))
    for t, n, y, x in itertools.product(*map(range, (out.shape[1], frames, height, width))):
        source = time_stride * t + n - back
        if repeat:
            source = min(max(source, 0), length - 1)
        if not 0 <= source < length:
            continue
        row, column = y * stride, x * stride
        window = clips[:, source, row : row + size, column : column + size]
        out[:, t, y, x] += np.einsum("bijc,ijcf->bf", window, kernel[n])
    return out


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize(
    "frames,stride,causal,repeat",
    [(3, 1, True, False), (3, 1, False, True), (4, 2, True, True), (1, 2, False, False)],
)
def test_time_alone_is_a_kernel_of_one_pixel(frames, stride, causal, repeat):
    clips, kernel = arrays((2, 5, 3, 2, 3), (frames, 3, 4))
    theirs = reference(clips, kernel[:, None, None], 1, stride, 0, causal, repeat)
    (cotangent,) = arrays(theirs.shape, seed=1)
    with jax.enable_x64(True):
        run = functools.partial(
            temporal_conv,
            stride=stride,
            causal=causal,
            time_border="repeat" if repeat else "zeros",
        )

        @jax.jit
        def values_and_gradients(clips, kernel, cotangent):
            outputs, pullback = jax.vjp(run, clips, kernel)
            return outputs, *pullback(cotangent)

        ours, of_clips, of_kernel = values_and_gradients(clips, kernel, cotangent)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    # It is linear in either argument, so that inner products determine the gradients.
    other, weights = arrays(clips.shape, kernel.shape, seed=2)
    settings = (1, stride, 0, causal, repeat)
    for gradient, moved, theirs in (
        (of_clips, other, reference(other, kernel[:, None, None], *settings)),
        (of_kernel, weights, reference(clips, weights[:, None, None], *settings)),
    ):
        np.testing.assert_allclose(np.vdot(gradient, moved), np.vdot(theirs, cotangent), rtol=1e-11)


@pytest.mark.parametrize("causal,time_border", [(True, "repeat"), (False, "zeros")])
def test_space_then_time_is_two_sums(causal, time_border):
    clips, kernel, bias, time_kernel, time_bias = arrays(
        (2, 5, 6, 5, 3), (3, 3, 3, 7), (7,), (3, 7, 4), (4,)
    )
    between = np.maximum(reference(clips, kernel[None], 2, 1, 1, False, False) + bias, 0)
    theirs = reference(
        between, time_kernel[:, None, None], 1, 2, 0, causal, time_border == "repeat"
    )
    with jax.enable_x64(True):
        layer = Conv2Plus1D(
            4,
            intermediate=7,
            stride=2,
            time_stride=2,
            causal=causal,
            time_border=time_border,
            dtype=jnp.float64,
        )
        params = {
            "spatial": {"kernel": kernel, "bias": bias},
            "temporal": {"kernel": time_kernel, "bias": time_bias},
        }
        ours = np.asarray(jax.jit(layer.apply)({"params": params}, clips))
    np.testing.assert_allclose(ours, theirs + time_bias, rtol=1e-12, atol=1e-12)


def layers(**options):
    return {
        "time": TemporalConv(4, **options),
        "two and one": Conv2Plus1D(4, **options),
    }


@pytest.mark.parametrize(
    "kind,time_border",
    [("time", "repeat"), ("two and one", "zeros"), ("two and one", "repeat")],
)
def test_a_causal_layer_sees_nothing_of_the_future(kind, time_border):
    layer = layers(causal=True, time_border=time_border)[kind]
    clips, other = (x.astype(np.float32) for x in arrays(*[(1, 6, 5, 4, 2)] * 2))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), clips)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), shapes)
    program = jax.jit(layer.apply)
    apply = lambda *arguments: np.asarray(program(*arguments))  # noqa: E731
    outputs = apply(params, clips)
    for t in range(6):
        # The same computation on other numbers: what it does not see changes not one bit.
        mixed = apply(params, np.concatenate([clips[:, : t + 1], other[:, t + 1 :]], axis=1))
        np.testing.assert_array_equal(mixed[:, : t + 1], outputs[:, : t + 1])
        assert t == 5 or np.all(np.any(mixed[:, t + 1 :] != outputs[:, t + 1 :], axis=(0, 2, 3, 4)))
    centred = np.asarray(jax.jit(layers(time_border=time_border)[kind].apply)(params, clips))
    np.testing.assert_allclose(centred[:, 1:-1], outputs[:, 2:], atol=1e-5)


def test_a_repeated_first_frame_makes_a_still_clip_still():
    frame, kernel = arrays((1, 1, 5, 4, 2), (3, 2, 4))
    run = jax.jit(functools.partial(temporal_conv, causal=True, time_border="repeat"))
    outputs = np.asarray(run(np.repeat(np.float32(frame), 4, axis=1), np.float32(kernel)))
    np.testing.assert_allclose(outputs, np.repeat(outputs[:, :1], 4, axis=1), atol=1e-5)


def count(layer, shape):
    tree = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_counts_of_parameters():
    shape = (1, 16, 28, 28, 64)
    assert count(TemporalConv(32, kernel_size=5), shape) == 5 * 64 * 32 + 32
    # The first blocks of R(2+1)D: 144 channels between 64 and 64, 230 between 64 and 128.
    assert intermediate_channels(64, 64, 3, 3) == 144
    assert intermediate_channels(64, 128, 3, 3) == 230
    assert intermediate_channels(1, 1, 1, 1) == 1
    assert count(Conv2Plus1D(64, use_bias=False), shape) == 27 * 64 * 64
    assert 0 <= 27 * 64 * 128 - count(Conv2Plus1D(128, use_bias=False), shape) < 9 * 64 + 3 * 128
    assert count(Conv2Plus1D(8, intermediate=5), shape) == 9 * 64 * 5 + 5 + 3 * 5 * 8 + 8


def test_computation_in_bfloat16_keeps_float32_parameters():
    clips = jax.ShapeDtypeStruct((1, 3, 4, 4, 2), jnp.float32)
    for layer in (TemporalConv(4, dtype=jnp.bfloat16), Conv2Plus1D(4, dtype=jnp.bfloat16)):
        outputs, params = jax.eval_shape(layer.init_with_output, jax.random.key(0), clips)
        assert outputs.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
