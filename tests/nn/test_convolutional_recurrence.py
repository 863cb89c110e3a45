"""Convolutional recurrent layers against their equations in float64, with their gradients."""

import itertools

import autograd
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import loop_convolution
from genjax.nn.convolutional_recurrence import (
    ConvGRU,
    ConvGRUCell,
    ConvLSTM,
    ConvLSTMCell,
    SpatioTemporalLSTMCell,
    conv_lstm,
)
from genjax.nn.loop_convolution import loop_conv2d
from genjax.nn.recurrent import lstm
from tests.image.gan_reference import greatest_error, randomized, relative_error
from tests.nn import convolutional_recurrence_reference as reference

pytestmark = pytest.mark.fast

B, H, W, C, F, K = 2, 5, 4, 3, 2, 3


def conv_lstm_reference(kernel, bias, state, x, forget_bias=0.0):
    weights = reference.both_parts(kernel, 4)
    return reference.conv_lstm(x, *state, *weights, reference.parts(bias, 4), forget_bias)


def conv_gru_reference(kernel, bias, h, x):
    return reference.conv_gru(x, h, *reference.both_parts(kernel, 3), reference.parts(bias, 3))


def spatio_temporal_reference(params, state, memory, x):
    names = ("temporal", "spatial", "output", "merge")
    weights = reference.spatio_temporal_weights(*(params[f"{name}_kernel"] for name in names))
    h, c, m = reference.spatio_temporal_lstm(x, *state, memory, weights)
    return (h, c), m


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def parameters(layer, arguments, scale):
    """Random ones, of `scale` over the root of how many inputs each sums up."""
    with jax.enable_x64(True):
        tree = jax.eval_shape(layer.init, jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(1)
    spread = lambda shape: scale / np.sqrt(np.prod(shape[:-1]))  # noqa: E731
    return jax.tree.map(lambda a: spread(a.shape) * rng.normal(size=a.shape), tree)


def check(run, expected, arguments, bar=1e-12):
    """Values, and the gradients of a random combination of them, against numpy's."""
    values = expected(*arguments)
    rng = np.random.default_rng(2)
    weights = jax.tree.map(lambda a: rng.normal(size=a.shape), values)

    def combined(outputs):
        pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(weights), strict=True)
        return sum((a * b).sum() for a, b in pairs)

    # autograd's tuples and lists are its own: their leaves are found by hand.
    def theirs(*arguments):
        return sum(
            (a * b).sum() for a, b in zip(flat(expected(*arguments)), flat(weights), strict=True)
        )

    gradients = autograd.grad(theirs, argnum=tuple(range(len(arguments))))(*arguments)
    with jax.enable_x64(True):

        @jax.jit
        def both(*arguments):
            scalar = lambda *a: combined(run(*a))  # noqa: E731
            numbers = tuple(range(len(arguments)))
            return run(*arguments), jax.grad(scalar, argnums=numbers)(*arguments)

        ours, our_gradients = both(*arguments)
    assert greatest_error(ours, values) <= bar
    assert greatest_error(our_gradients, tuple(gradients)) <= 10 * bar


def flat(tree):
    if hasattr(tree, "shape"):
        return [tree]
    return list(itertools.chain.from_iterable(flat(part) for part in tree))


def test_the_reference_convolves():
    x, kernel = arrays((2, 5, 4, 3), (3, 3, 3, 2))
    expected = np.zeros((2, 5, 4, 2))
    for row, column, i, j in itertools.product(range(5), range(4), range(3), range(3)):
        y, z = row + i - 1, column + j - 1
        if 0 <= y < 5 and 0 <= z < 4:
            expected[:, row, column] += x[:, y, z] @ kernel[i, j]
    np.testing.assert_allclose(reference.conv(x, kernel), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["cpu", "default"])
def test_the_convolution_of_loops_and_its_gradients(backend, monkeypatch):
    """Both ways of computing its gradients, that of a CPU and that of accelerators."""
    monkeypatch.setattr(
        loop_convolution.lax, "platform_dependent", lambda *a, **forms: forms[backend](*a)
    )
    x, kernel = arrays((2, 6, 3, 3), (5, 5, 3, 4))
    check(lambda x, k: loop_conv2d(x, k) ** 2, lambda x, k: reference.conv(x, k) ** 2, (x, kernel))


@pytest.mark.parametrize("scale", [1, 3])
def test_a_step_of_conv_lstm(scale):
    cell = ConvLSTMCell(F, K, use_bias=True, forget_bias=1.0, dtype=jnp.float64)
    x, h, c = arrays((B, H, W, C), (B, H, W, F), (B, H, W, F))
    params = parameters(cell, ((h, c), x), scale)
    check(
        lambda params, state, x: cell.apply({"params": params}, state, x),
        lambda p, state, x: conv_lstm_reference(p["kernel"], p["bias"], state, x, 1.0),
        (params, (h, c), x),
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_a_step_of_conv_gru(scale):
    cell = ConvGRUCell(F, K, dtype=jnp.float64)
    x, h = arrays((B, H, W, C), (B, H, W, F))
    check(
        lambda params, h, x: cell.apply({"params": params}, h, x),
        lambda p, h, x: conv_gru_reference(p["kernel"], p["bias"], h, x),
        (parameters(cell, (h, x), scale), h, x),
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_a_step_of_the_spatio_temporal_lstm(scale):
    cell = SpatioTemporalLSTMCell(F, K, dtype=jnp.float64)
    x, h, c, m = arrays((B, H, W, C), *[(B, H, W, F)] * 3)
    check(
        lambda params, state, m, x: cell.apply({"params": params}, state, m, x),
        spatio_temporal_reference,
        (parameters(cell, ((h, c), m, x), scale), (h, c), m, x),
    )


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_sequence_of_conv_lstm(remat):
    layer = ConvLSTM(F, K, dtype=jnp.float64, remat=remat)
    xs, h, c = arrays((4, B, H, W, C), (B, H, W, F), (B, H, W, F))

    def expected(params, state, xs):
        hidden = []
        for x in xs:
            state = conv_lstm_reference(params["kernel"], np.zeros(4 * F), state, x)
            hidden.append(state[0])
        return state, autograd.numpy.stack(hidden)

    check(
        lambda params, state, xs: layer.apply({"params": params}, xs, state),
        expected,
        (parameters(layer, (xs, (h, c)), 2), (h, c), xs),
    )


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sequence_of_conv_gru(remat):
    layer = ConvGRU(F, K, dtype=jnp.float64, remat=remat)
    xs, h = arrays((4, B, H, W, C), (B, H, W, F))

    def expected(params, h, xs):
        hidden = []
        for x in xs:
            h = conv_gru_reference(params["kernel"], params["bias"], h, x)
            hidden.append(h)
        return h, autograd.numpy.stack(hidden)

    check(
        lambda params, h, xs: layer.apply({"params": params}, xs, h),
        expected,
        (parameters(layer, (xs, h), 2), h, xs),
    )


def test_sequences_begin_with_zeros_and_have_the_parameters_of_their_cells():
    xs = arrays((3, B, H, W, C))[0].astype(np.float32)
    zeros = np.zeros((B, H, W, F), np.float32)
    for layer, cell, state in (
        (ConvLSTM(F, K), ConvLSTMCell(F, K), (zeros, zeros)),
        (ConvGRU(F, K), ConvGRUCell(F, K), zeros),
    ):
        shapes = jax.eval_shape(cell.init, jax.random.key(0), state, xs[0])
        params = jax.tree.map(np.float32, randomized(shapes))
        last, hidden = jax.device_get(jax.jit(layer.apply)(params, xs))
        step = jax.jit(cell.apply)
        for t, x in enumerate(xs):
            state = step(params, state, x)
            np.testing.assert_allclose(hidden[t], jax.tree.leaves(state)[0], atol=1e-6)
        for ours, theirs in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_of_one_pixel_it_is_an_lstm():
    """A kernel's centre is all that a frame of one pixel meets."""
    kernel, bias, x, h, c = arrays((K, K, C + F, 4 * F), (4 * F,), (6, B, C), (B, F), (B, F))
    pixel = lambda a: a[..., None, None, :]  # noqa: E731
    with jax.enable_x64(True):
        (last_h, last_c), hidden = jax.jit(conv_lstm, static_argnames="dtype")(
            kernel, bias, (pixel(h), pixel(c)), pixel(x), dtype=jnp.float64
        )
        centre = kernel[K // 2, K // 2]
        theirs = jax.jit(lstm)(x, h, c, centre[:C], centre[C:], bias)
    for ours, expected in zip((hidden, last_h, last_c), theirs, strict=True):
        assert relative_error(ours[..., 0, 0, :], expected) <= 1e-12


def test_states_stay_float32_in_bfloat16():
    xs, h = (a.astype(np.float32) for a in arrays((3, B, H, W, C), (B, H, W, F)))
    exact, rough = ConvLSTM(F, K), ConvLSTM(F, K, dtype=jnp.bfloat16)
    params = jax.tree.map(np.float32, {"params": parameters(exact, (xs,), 1)})
    (hidden, cell), sequence = jax.jit(rough.apply)(params, xs, (h, h))
    assert {a.dtype for a in (hidden, cell, sequence)} == {jnp.dtype(jnp.float32)}
    (_, expected), _ = jax.jit(exact.apply)(params, xs, (h, h))
    assert 1e-6 < relative_error(cell, expected) < 2e-2
    both = SpatioTemporalLSTMCell(F, K, dtype=jnp.bfloat16)
    initial = jax.eval_shape(both.init_with_output, jax.random.key(0), (h, h), h, xs[0])
    assert {a.dtype for a in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_counts_of_parameters():
    """Of OpenSTL's layers of 128 features and 5x5 kernels, without biases."""
    x, h = (jax.ShapeDtypeStruct((1, 16, 16, n), jnp.float32) for n in (16, 128))

    def count(cell, *arguments):
        tree = jax.eval_shape(cell.init, jax.random.key(0), *arguments)
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert count(ConvLSTMCell(128), (h, h), x) == 25 * (16 + 128) * 4 * 128
    assert count(ConvLSTMCell(128, use_bias=True), (h, h), h) == (25 * 256 + 1) * 4 * 128
    assert count(ConvGRUCell(128, 5), h, x) == (25 * (16 + 128) + 1) * 3 * 128
    groups = 25 * 128 * (16 * 7 + 128 * (4 + 3 + 2)) + 2 * 128 * 128
    assert count(SpatioTemporalLSTMCell(128), (h, h), h, x) == groups
