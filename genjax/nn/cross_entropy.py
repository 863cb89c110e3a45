"""Cross-entropy of an output layer, whole or in chunks of tokens.

Letters: N tokens, D features, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from genjax.errors import UserError


def _logits(
    hidden: Float[Array, "N D"], kernel: Float[Array, "D V"], bias: Float[Array, "V"] | None
) -> Float[Array, "N V"]:
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def _losses_and_normalizer(
    logits: Float[Array, "N V"], targets: Int[Array, "N"]
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return normalizer - target_logits, normalizer


def _logits_gradient(
    logits: Float[Array, "N V"],
    normalizer: Float[Array, "N"],
    targets: Int[Array, "N"],
    cotangent: Float[Array, "N"],
) -> Float[Array, "N V"]:
    is_target = lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets[:, None]
    return (jnp.exp(logits - normalizer[:, None]) - is_target) * cotangent[:, None]


@jax.custom_vjp
def _whole(logits: Float[Array, "N V"], targets: Int[Array, "N"]) -> Float[Array, "N"]:
    return _losses_and_normalizer(logits, targets)[0]


def _whole_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    losses, normalizer = _losses_and_normalizer(logits, targets)
    return losses, (logits, normalizer, targets)


def _whole_backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, None]:
    logits, normalizer, targets = residuals
    return _logits_gradient(logits, normalizer, targets, cotangent), None


_whole.defvjp(_whole_forward, _whole_backward)


def _split(array: Array, chunk_size: int) -> Array:
    """Chunks of every `num_chunks`-th row: [N, ...] to [num_chunks, chunk_size, ...].

    Rows far apart share a chunk, so a leading axis laid out over devices stays laid out over
    them within each chunk, and no device waits while another does a chunk alone.
    """
    padding = -array.shape[0] % chunk_size
    array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
    return jnp.moveaxis(array.reshape(chunk_size, -1, *array.shape[1:]), 1, 0)


def _join(chunks: Array, length: int) -> Array:
    """The inverse of `_split`: [num_chunks, chunk_size, ...] to [N, ...], padding dropped."""
    return jnp.moveaxis(chunks, 0, 1).reshape(-1, *chunks.shape[2:])[:length]


# The losses are per token and their cotangents (weights, masks) are not known in the forward
# pass, so the kernel's gradient cannot be summed there. The backward pass computes each chunk's
# logits again instead: a fourth matrix product beside three, and nothing of size N x V.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(
    hidden: Float[Array, "N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    targets: Int[Array, "N"],
    chunk_size: int,
) -> Float[Array, "N"]:
    return _chunked_forward(hidden, kernel, bias, targets, chunk_size)[0]


def _chunked_forward(
    hidden: Array, kernel: Array, bias: Array | None, targets: Array, chunk_size: int
) -> tuple[Array, tuple[Array, Array, Array | None, Array, Array]]:
    def body(carry: None, chunk: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        return carry, _losses_and_normalizer(_logits(chunk[0], kernel, bias), chunk[1])

    _, (losses, normalizer) = lax.scan(
        body, None, (_split(hidden, chunk_size), _split(targets, chunk_size))
    )
    return _join(losses, len(targets)), (hidden, kernel, bias, targets, normalizer)


def _chunked_backward(
    chunk_size: int,
    residuals: tuple[Array, Array, Array | None, Array, Array],
    cotangent: Array,
) -> tuple[Array, Array, Array | None, None]:
    hidden, kernel, bias, targets, normalizer = residuals

    def body(
        carry: tuple[Array, Array | None], chunk: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array | None], Array]:
        kernel_gradient, bias_gradient = carry
        hidden_chunk, targets_chunk, normalizer_chunk, cotangent_chunk = chunk
        gradient = _logits_gradient(
            _logits(hidden_chunk, kernel, bias), normalizer_chunk, targets_chunk, cotangent_chunk
        )
        if bias_gradient is not None:
            bias_gradient += gradient.sum(0)
        gradient = gradient.astype(hidden.dtype)
        kernel_gradient += jnp.matmul(hidden_chunk.T, gradient, preferred_element_type=jnp.float32)
        return (kernel_gradient, bias_gradient), gradient @ kernel.astype(hidden.dtype).T

    start = (
        jnp.zeros(kernel.shape, jnp.float32),
        None if bias is None else jnp.zeros(bias.shape, jnp.float32),
    )
    chunks = (
        _split(hidden, chunk_size),
        _split(targets, chunk_size),
        normalizer,
        _split(cotangent, chunk_size),
    )
    (kernel_gradient, bias_gradient), hidden_gradient = lax.scan(body, start, chunks)
    return (
        _join(hidden_gradient, len(targets)),
        kernel_gradient.astype(kernel.dtype),
        None if bias is None or bias_gradient is None else bias_gradient.astype(bias.dtype),
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)


def softmax_cross_entropy(
    hidden: Float[Array, "N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    targets: Int[Array, "N"],
    chunk_size: int | None = None,
) -> Float[Array, "N"]:
    """Cross-entropy `logsumexp(z) - z[target]` of the logits `z = hidden @ kernel + bias`.

    The products run in the dtype of `hidden` and accumulate in float32; the logarithm of the
    normaliser, the losses and the sums of the gradients are float32.

    Args:
        hidden: what the output layer reads, [N, D].
        kernel: weights of the output layer, [D, V].
        bias: biases of the output layer, [V], or None.
        targets: the class that each token should have, [N], in [0, V).
        chunk_size: tokens whose logits are held at a time. None computes all [N, V] logits at
            once, which is faster and right for small vocabularies. A number keeps memory at
            `chunk_size * V` in both passes for one more matrix product in the backward pass.

    Returns:
        The loss of each token in nats, float32 [N].

    Raises:
        UserError: `chunk_size` is less than 1.
    """
    if chunk_size is None or chunk_size >= len(targets):
        return _whole(_logits(hidden, kernel, bias), targets)
    if chunk_size < 1:
        raise UserError(f"chunk_size = {chunk_size} must be at least 1, or None for no chunks")
    return _chunked(hidden, kernel, bias, targets, chunk_size)
