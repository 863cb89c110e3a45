import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as cudnn_rnn

from genjax.errors import UserError
from genjax.nn.recurrent import elman, gru, lstm
from genjax.nn.recurrent_cudnn import pack_cudnn_weights

T, B, D, H = 6, 3, 4, 5
GATES = {"lstm": 4, "gru": 3, "elman": 1}
LAYERS = {"lstm": lstm, "gru": gru, "elman": elman}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(x, h, c, w, r, b, keep):
    """Plain equations with a hand-written backward pass, one step and one gate at a time."""
    steps, ys = [], []
    for t in range(len(x)):
        h_in, c_in = h * keep[t], c * keep[t]
        zi, zf, zg, zo = np.split(x[t] @ w + h_in @ r + b, 4, axis=1)
        i, f, g, o = sigmoid(zi), sigmoid(zf), np.tanh(zg), sigmoid(zo)
        c = f * c_in + i * g
        h = o * np.tanh(c)
        steps.append((h_in, c_in, i, f, g, o, c))
        ys.append(h)

    def backward(dys, dh, dc):
        dw, dr, db, dx = np.zeros_like(w), np.zeros_like(r), np.zeros_like(b), np.zeros_like(x)
        for t in reversed(range(len(x))):
            h_in, c_in, i, f, g, o, c_t = steps[t]
            dh = dh + dys[t]
            do = dh * np.tanh(c_t)
            dc = dc + dh * o / np.cosh(c_t) ** 2
            di, df, dg = dc * g, dc * c_in, dc * i
            gates = [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)]
            dz = np.concatenate(gates, axis=1)
            dw += x[t].T @ dz
            dr += h_in.T @ dz
            db += dz.sum(0)
            dx[t] = dz @ w.T
            dh, dc = dz @ r.T * keep[t], dc * f * keep[t]
        return dx, dh, dc, dw, dr, db

    return (np.stack(ys), h, c), backward


def numpy_gru(x, h, w, r, b, bn, keep):
    size = h.shape[1]
    steps, ys = [], []
    for t in range(len(x)):
        h_in = h * keep[t]
        ar, az, an = np.split(x[t] @ w + b, 3, axis=1)
        ur, uz, un = np.split(h_in @ r, 3, axis=1)
        reset, update = sigmoid(ar + ur), sigmoid(az + uz)
        n = np.tanh(an + reset * (un + bn))
        h = (1 - update) * n + update * h_in
        steps.append((h_in, reset, update, n, un + bn))
        ys.append(h)

    def backward(dys, dh):
        dw, dr, db, dx = np.zeros_like(w), np.zeros_like(r), np.zeros_like(b), np.zeros_like(x)
        dbn = np.zeros(size)
        for t in reversed(range(len(x))):
            h_in, reset, update, n, recall = steps[t]
            dh = dh + dys[t]
            dan = dh * (1 - update) * (1 - n**2)
            daz = dh * (h_in - n) * update * (1 - update)
            dar = dan * recall * reset * (1 - reset)
            da = np.concatenate([dar, daz, dan], axis=1)
            du = np.concatenate([dar, daz, dan * reset], axis=1)
            dw += x[t].T @ da
            dr += h_in.T @ du
            db += da.sum(0)
            dbn += (dan * reset).sum(0)
            dx[t] = da @ w.T
            dh = (dh * update + du @ r.T) * keep[t]
        return dx, dh, dw, dr, db, dbn

    return (np.stack(ys), h), backward


def numpy_elman(x, h, w, r, b, keep):
    befores, ys = [], []
    for t in range(len(x)):
        befores.append(h * keep[t])
        h = np.tanh(x[t] @ w + befores[-1] @ r + b)
        ys.append(h)

    def backward(dys, dh):
        dw, dr, db, dx = np.zeros_like(w), np.zeros_like(r), np.zeros_like(b), np.zeros_like(x)
        for t in reversed(range(len(x))):
            dz = (dh + dys[t]) * (1 - ys[t] ** 2)
            dw += x[t].T @ dz
            dr += befores[t].T @ dz
            db += dz.sum(0)
            dx[t] = dz @ w.T
            dh = dz @ r.T * keep[t]
        return dx, dh, dw, dr, db

    return (np.stack(ys), h), backward


REFERENCES = {"lstm": numpy_lstm, "gru": numpy_gru, "elman": numpy_elman}


def arguments_of(cell, rng, dtype=np.float64):
    n = GATES[cell]
    shapes = [(T, B, D), (B, H)] + ([(B, H)] if cell == "lstm" else [])
    shapes += [(D, n * H), (H, n * H), (n * H,)] + ([(H,)] if cell == "gru" else [])
    return [rng.normal(size=s).astype(dtype) for s in shapes]


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("cell", list(GATES))
def test_values_and_gradients_equal_the_equations_in_float64(cell, with_reset):
    rng = np.random.default_rng(0)
    arguments = arguments_of(cell, rng)
    reset = rng.random((T, B)) < 0.3 if with_reset else np.zeros((T, B), bool)
    expected, backward = REFERENCES[cell](*arguments, keep=1.0 - reset[..., None])
    cotangents = [rng.normal(size=e.shape) for e in expected]
    with jax.enable_x64(True):
        mask = jnp.asarray(reset) if with_reset else None

        @jax.jit
        def run(arguments, cotangents):
            outputs, vjp = jax.vjp(lambda *a: LAYERS[cell](*a, reset=mask), *arguments)
            return outputs, vjp(tuple(cotangents))

        outputs, gradients = run(arguments, cotangents)
    for actual, value in zip(outputs, expected, strict=True):
        assert actual.dtype == np.float64
        assert relative_error(actual, value) < 1e-12
    for actual, value in zip(gradients, backward(*cotangents), strict=True):
        assert relative_error(actual, value) < 1e-10


@pytest.mark.parametrize("cell", list(GATES))
def test_reset_everywhere_makes_steps_independent_of_the_past(cell):
    arguments = arguments_of(cell, np.random.default_rng(1), np.float32)
    y = LAYERS[cell](*map(jnp.asarray, arguments), reset=jnp.ones((T, B), bool))[0]
    arguments[0] = arguments[0][::-1].copy()
    backward = LAYERS[cell](*map(jnp.asarray, arguments), reset=jnp.ones((T, B), bool))[0]
    np.testing.assert_allclose(y, backward[::-1], rtol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_values_and_gradients_equal_torch(cell):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    arguments = arguments_of(cell, rng)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[cell](D, H)
    module = module.double()
    states = 2 if cell == "lstm" else 1
    x, *initial = arguments[: 1 + states]
    w, r, b = arguments[1 + states : 4 + states]
    hidden_bias = np.zeros_like(b)
    if cell == "gru":
        hidden_bias[2 * H :] = arguments[-1]
    for name, value in (
        ("weight_ih_l0", w.T),
        ("weight_hh_l0", r.T),
        ("bias_ih_l0", b),
        ("bias_hh_l0", hidden_bias),
    ):
        getattr(module, name).data = torch.tensor(value.copy())
    torch_x = torch.tensor(x, requires_grad=True)
    torch_states = [torch.tensor(s[None], requires_grad=True) for s in initial]
    y, _ = module(torch_x, tuple(torch_states) if cell == "lstm" else torch_states[0])
    cotangent = rng.normal(size=y.shape)
    (y * torch.tensor(cotangent)).sum().backward()
    expected = [torch_x.grad, *(s.grad[0] for s in torch_states)]
    expected += [module.weight_ih_l0.grad.T, module.weight_hh_l0.grad.T, module.bias_ih_l0.grad]
    if cell == "gru":
        expected.append(module.bias_hh_l0.grad[2 * H :])
    with jax.enable_x64(True):

        @jax.jit
        def run(arguments, cotangent):
            outputs, vjp = jax.vjp(lambda *a: LAYERS[cell](*a)[0], *arguments)
            return outputs, vjp(cotangent)

        outputs, gradients = run(arguments, cotangent)
    assert relative_error(outputs, y.detach().numpy()) < 1e-12
    for actual, value in zip(gradients, expected, strict=True):
        assert relative_error(actual, value.numpy()) < 1e-10


@pytest.mark.parametrize("cell", list(GATES))
def test_bfloat16_matmuls_keep_states_and_gradients_in_float32(cell):
    arguments = [jnp.asarray(a) for a in arguments_of(cell, np.random.default_rng(3), np.float32)]
    exact = LAYERS[cell](*arguments)
    rounded = LAYERS[cell](*arguments, compute_dtype=jnp.bfloat16)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.1
    arguments[0] = arguments[0].astype(jnp.bfloat16)
    gradients = jax.grad(lambda *a: LAYERS[cell](*a)[0].sum(), argnums=(0, 2))(*arguments)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def test_packed_weights_are_what_cudnn_reads():
    arguments = arguments_of("lstm", np.random.default_rng(4), np.float32)
    x, h0, c0, w, r, b = map(jnp.asarray, arguments)
    packed = pack_cudnn_weights(w, r, b)
    assert packed.shape == (cudnn_rnn.get_num_params_in_lstm(D, H, 1, False),)
    unpacked = cudnn_rnn.unpack_lstm_weights(packed, D, H, 1, False)
    lengths = jnp.full((B,), T, jnp.int32)
    expected = cudnn_rnn.lstm_ref(
        x.swapaxes(0, 1), h0[None], c0[None], *unpacked, lengths, D, H, 1, 0.0, False
    )
    y, h, c = lstm(x, h0, c0, w, r, b)
    np.testing.assert_allclose(y.swapaxes(0, 1), expected[0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(h[None], expected[1], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(c[None], expected[2], rtol=2e-5, atol=1e-6)


def test_cudnn_call_gives_the_layers_values_and_gradients(monkeypatch):
    """cuDNN's function is replaced by its own reference: what is tested is how it is called."""

    def reference(x, h0, c0, weights, lengths, *sizes):
        unpacked = cudnn_rnn.unpack_lstm_weights(weights, sizes[0], sizes[1], sizes[2], sizes[4])
        return cudnn_rnn.lstm_ref(x, h0, c0, *unpacked, lengths, *sizes)

    arguments = [jnp.asarray(a) for a in arguments_of("lstm", np.random.default_rng(5), np.float32)]

    def gradients():
        total = jax.grad(lambda *a: (lstm(*a)[0] ** 2).sum(), argnums=range(6))
        return jax.jit(total)(*arguments)

    expected = gradients()
    monkeypatch.setattr(cudnn_rnn, "lstm", reference)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for actual, value in zip(gradients(), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="bfloat16"):
        lstm(*arguments, compute_dtype=jnp.bfloat16, implementation="cudnn")
    with pytest.raises(UserError, match="reset"):
        lstm(*arguments, reset=jnp.zeros((T, B), bool), implementation="cudnn")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN runs there")
def test_cudnn_off_gpu_says_so():
    arguments = arguments_of("lstm", np.random.default_rng(6), np.float32)
    with pytest.raises(UserError, match="GPU"):
        lstm(*map(jnp.asarray, arguments), implementation="cudnn")
