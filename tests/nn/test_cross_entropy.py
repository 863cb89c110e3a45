import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.nn.cross_entropy import softmax_cross_entropy
from genjax.parallel.mesh import MeshConfig, make_mesh


def problem(num_tokens=23, hidden_size=8, vocab_size=11, scale=1.0):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(num_tokens, hidden_size)) * scale
    kernel = rng.normal(size=(hidden_size, vocab_size))
    bias = rng.normal(size=vocab_size)
    targets = rng.integers(vocab_size, size=num_tokens)
    weights = rng.normal(size=num_tokens)
    return hidden, kernel, bias, targets, weights


def reference(hidden, kernel, bias, targets, weights):
    """Losses, and the gradients of their weighted sum, in float64."""
    logits = hidden @ kernel + bias
    highest = logits.max(-1, keepdims=True)
    normalizer = highest + np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    rows = np.arange(len(targets))
    losses = normalizer[:, 0] - logits[rows, targets]
    error = np.exp(logits - normalizer)
    error[rows, targets] -= 1
    error *= weights[:, None]
    return losses, (error @ kernel.T, hidden.T @ error, error.sum(0))


def to_jax(hidden, kernel, bias, targets, weights):
    floats = [jnp.asarray(x, jnp.float32) for x in (hidden, kernel, bias)]
    return *floats, jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)


@pytest.mark.parametrize("chunk_size", [None, 1, 5, 22, 23, 64])
def test_losses_and_gradients_match_float64(chunk_size):
    arrays = problem()
    expected_losses, expected_gradients = reference(*arrays)
    hidden, kernel, bias, targets, weights = to_jax(*arrays)

    def total(hidden, kernel, bias):
        losses = softmax_cross_entropy(hidden, kernel, bias, targets, chunk_size)
        return (losses * weights).sum(), losses

    gradients, losses = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        hidden, kernel, bias
    )
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_without_bias(chunk_size):
    hidden, kernel, bias, targets, weights = problem()
    expected_losses, expected = reference(hidden, kernel, np.zeros_like(bias), targets, weights)
    hidden, kernel, _, targets, weights = to_jax(hidden, kernel, bias, targets, weights)
    losses, pullback = jax.vjp(
        lambda h, k: softmax_cross_entropy(h, k, None, targets, chunk_size), hidden, kernel
    )
    hidden_gradient, kernel_gradient = pullback(weights)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden_gradient, expected[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(kernel_gradient, expected[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_large_logits_do_not_overflow(chunk_size):
    arrays = problem(scale=300.0)
    expected, _ = reference(*arrays)
    hidden, kernel, bias, targets, _ = to_jax(*arrays)
    losses = softmax_cross_entropy(hidden, kernel, bias, targets, chunk_size)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_half_precision_hidden_gives_float32_losses(chunk_size):
    arrays = problem()
    hidden, kernel, bias, targets, weights = to_jax(*arrays)
    hidden = hidden.astype(jnp.bfloat16)
    rounded = (np.asarray(hidden, np.float64), np.asarray(kernel.astype(jnp.bfloat16), np.float64))
    expected_losses, expected = reference(*rounded, *arrays[2:])
    losses, pullback = jax.vjp(
        lambda h, k, b: softmax_cross_entropy(h, k, b, targets, chunk_size), hidden, kernel, bias
    )
    gradients = pullback(weights)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
    assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for gradient, reference_gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(gradient, np.float64), reference_gradient, rtol=3e-2, atol=3e-2
        )


def test_chunks_need_less_memory():
    num_tokens, hidden_size, vocab_size = 512, 16, 1024

    def temporary_bytes(chunk_size):
        def total(hidden, kernel, targets):
            return softmax_cross_entropy(hidden, kernel, None, targets, chunk_size).sum()

        compiled = (
            jax.jit(jax.grad(total, argnums=(0, 1)))
            .lower(
                jax.ShapeDtypeStruct((num_tokens, hidden_size), jnp.float32),
                jax.ShapeDtypeStruct((hidden_size, vocab_size), jnp.float32),
                jax.ShapeDtypeStruct((num_tokens,), jnp.int32),
            )
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    logits_bytes = num_tokens * vocab_size * 4
    assert temporary_bytes(None) >= logits_bytes
    assert temporary_bytes(32) < logits_bytes / 4


def test_a_chunk_size_below_one_is_refused():
    hidden, kernel, bias, targets, _ = to_jax(*problem())
    with pytest.raises(UserError, match="chunk_size = 0"):
        softmax_cross_entropy(hidden, kernel, bias, targets, 0)


@pytest.mark.parametrize("chunk_size", [None, 5, 1000])
@pytest.mark.parametrize(
    "mesh",
    [{"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}],
    ids=str,
)
def test_devices_share_tokens_and_vocabulary(mesh, chunk_size):
    flat = problem(num_tokens=16 * 8, hidden_size=16, vocab_size=12)
    losses, (d_hidden, d_kernel, d_bias) = reference(*flat)
    hidden, kernel, bias, targets, weights = to_jax(*flat)
    hidden, targets, weights = (x.reshape(16, 8, *x.shape[1:]) for x in (hidden, targets, weights))

    def total(hidden, kernel, bias):
        losses = softmax_cross_entropy(hidden, kernel, bias, targets, chunk_size)
        return (losses * weights).sum(), losses

    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        function = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
        compiled = function.lower(hidden, kernel, bias).compile()
        gradients, found = compiled(hidden, kernel, bias)
    np.testing.assert_allclose(found.reshape(-1), losses, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, (d_hidden, d_kernel, d_bias), strict=True):
        np.testing.assert_allclose(gradient.reshape(expected.shape), expected, rtol=2e-5, atol=2e-5)
    # The kernel may be gathered; logits and features of tokens never.
    text = compiled.as_text()
    assert not re.findall(r"= \S*\[(?:16,8|128)(?:,\d+)*\]\S* all-gather", text)
