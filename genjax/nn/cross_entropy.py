"""Cross-entropy of an output layer, whole or in chunks of tokens, on one device or many.

Letters: B batch, T time, D features, V vocabulary, N tokens.

On several devices each one has the losses of its own tokens, and, where the mesh's tensor axis
divides the vocabulary, a part of the logits of each. The kernel is gathered once and its gradient
summed once: the compiler left to itself does both for every chunk.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from genjax.errors import UserError
from genjax.nn.split_by_hand import splits_batch
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS

_FSDP = BATCH_AXES[-1]


@dataclasses.dataclass(frozen=True)
class _Split:
    """How tokens and vocabulary lie over the mesh.

    Attributes:
        tokens: axes of the leading dimensions of tokens.
        vocabulary: whether the tensor axis splits it.
        features: whether the gradient of the kernel is kept in parts of its features.
    """

    tokens: P
    vocabulary: bool
    features: bool


_ONE_DEVICE = _Split(P(), vocabulary=False, features=False)


def _split_of(tokens: tuple[int, ...], kernel: tuple[int, ...]) -> _Split:
    """The split of tokens [B, T] or [B] and of a kernel [D, V]; none where B is not split."""
    if not splits_batch(tokens[0]):
        return _ONE_DEVICE
    ways = jax.sharding.get_abstract_mesh().shape
    by_time = len(tokens) > 1 and tokens[1] % ways[SEQUENCE_AXIS] == 0
    return _Split(
        P(BATCH_AXES, SEQUENCE_AXIS) if by_time else P(BATCH_AXES),
        vocabulary=ways[TENSOR_AXIS] > 1 and kernel[1] % ways[TENSOR_AXIS] == 0,
        features=ways[_FSDP] > 1 and kernel[0] % ways[_FSDP] == 0,
    )


def _logits(
    hidden: Float[Array, "*N D"], kernel: Float[Array, "D V"], bias: Float[Array, "V"] | None
) -> Float[Array, "*N V"]:
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def _is_target(
    logits: Float[Array, "*N V"], targets: Int[Array, "*N"], vocabulary_is_split: bool
) -> Any:
    """Which logit is the target's, of a device's part of the vocabulary."""
    token = lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    if vocabulary_is_split:
        token += lax.axis_index(TENSOR_AXIS).astype(targets.dtype) * logits.shape[-1]
    return token == targets[..., None]


def _losses_and_normalizer(
    logits: Float[Array, "*N V"], targets: Int[Array, "*N"], vocabulary_is_split: bool = False
) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
    if not vocabulary_is_split:
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return normalizer - target_logits, normalizer
    peak = lax.pmax(logits.max(-1), TENSOR_AXIS)
    total = jnp.sum(jnp.exp(logits - peak[..., None]), -1)
    own = jnp.sum(jnp.where(_is_target(logits, targets, True), logits, 0.0), -1)
    total, target_logits = lax.psum((total, own), TENSOR_AXIS)
    normalizer = peak + jnp.log(total)
    return normalizer - target_logits, normalizer


def _logits_gradient(
    logits: Float[Array, "*N V"],
    normalizer: Float[Array, "*N"],
    targets: Int[Array, "*N"],
    cotangent: Float[Array, "*N"],
    vocabulary_is_split: bool = False,
) -> Float[Array, "*N V"]:
    is_target = _is_target(logits, targets, vocabulary_is_split)
    return (jnp.exp(logits - normalizer[..., None]) - is_target) * cotangent[..., None]


@jax.custom_vjp
def _whole(logits: Float[Array, "*N V"], targets: Int[Array, "*N"]) -> Float[Array, "*N"]:
    return _losses_and_normalizer(logits, targets)[0]


def _whole_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    losses, normalizer = _losses_and_normalizer(logits, targets)
    return losses, (logits, normalizer, targets)


def _whole_backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, None]:
    logits, normalizer, targets = residuals
    return _logits_gradient(logits, normalizer, targets, cotangent), None


_whole.defvjp(_whole_forward, _whole_backward)


def _chunks(array: Array, tokens: tuple[int, ...], chunk_size: int) -> Array:
    """Chunks of tokens: [*N, ...] to [num_chunks, chunk_size, ...], padded."""
    count = math.prod(tokens)
    array = array.reshape(count, *array.shape[len(tokens) :])
    padding = -count % chunk_size
    array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(-1, chunk_size, *array.shape[1:])


def _join(chunks: Array, tokens: tuple[int, ...]) -> Array:
    """The inverse of `_chunks`: padding dropped."""
    flat = chunks.reshape(-1, *chunks.shape[2:])[: math.prod(tokens)]
    return flat.reshape(*tokens, *flat.shape[1:])


def _on_devices(function: Callable[..., Any], split: _Split, outputs: Any) -> Callable[..., Any]:
    """A function of (hidden, kernel, bias, targets, *more of tokens), each device its tokens."""
    if split == _ONE_DEVICE:
        return function

    def spread(hidden: Array, kernel: Array, bias: Array | None, *tokens: Array) -> Any:
        vocabulary = TENSOR_AXIS if split.vocabulary else None
        return jax.shard_map(
            function,
            in_specs=(split.tokens, P(None, vocabulary), P(vocabulary))
            + (split.tokens,) * len(tokens),
            out_specs=outputs,
            check_vma=False,
        )(hidden, kernel, bias, *tokens)

    return spread


# The losses are per token and their cotangents (weights, masks) are not known in the forward
# pass, so the kernel's gradient cannot be summed there. The backward pass computes each chunk's
# logits again instead: a fourth matrix product beside three, and nothing of size N x V.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(
    hidden: Float[Array, "*N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    targets: Int[Array, "*N"],
    chunk_size: int,
) -> Float[Array, "*N"]:
    return _chunked_forward(hidden, kernel, bias, targets, chunk_size)[0]


def _chunked_forward(
    hidden: Array, kernel: Array, bias: Array | None, targets: Array, chunk_size: int
) -> tuple[Array, tuple[Array, Array, Array | None, Array, Array]]:
    split = _split_of(targets.shape, kernel.shape)

    def local(
        hidden: Array, kernel: Array, bias: Array | None, targets: Array
    ) -> tuple[Array, Array]:
        tokens = targets.shape

        def body(carry: None, chunk: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
            logits = _logits(chunk[0], kernel, bias)
            return carry, _losses_and_normalizer(logits, chunk[1], split.vocabulary)

        size = min(chunk_size, math.prod(tokens))
        chunks = _chunks(hidden, tokens, size), _chunks(targets, tokens, size)
        _, (losses, normalizer) = lax.scan(body, None, chunks)
        return _join(losses, tokens), _join(normalizer, tokens)

    spread = _on_devices(local, split, (split.tokens, split.tokens))
    # In the type of the product already when it is gathered.
    losses, normalizer = spread(hidden, kernel.astype(hidden.dtype), bias, targets)
    return losses, (hidden, kernel, bias, targets, normalizer)


def _chunked_backward(
    chunk_size: int,
    residuals: tuple[Array, Array, Array | None, Array, Array],
    cotangent: Array,
) -> tuple[Array, Array, Array | None, None]:
    hidden, kernel, bias, targets, normalizer = residuals
    split = _split_of(targets.shape, kernel.shape)

    def local(hidden: Array, kernel: Array, bias: Array | None, *of_tokens: Array) -> Any:
        tokens = of_tokens[0].shape

        def body(carry: tuple[Array, Array | None], chunk: tuple[Array, ...]) -> Any:
            kernel_gradient, bias_gradient = carry
            hidden, targets, normalizer, cotangent = chunk
            logits = _logits(hidden, kernel, bias)
            gradient = _logits_gradient(logits, normalizer, targets, cotangent, split.vocabulary)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            gradient = gradient.astype(hidden.dtype)
            kernel_gradient += jnp.matmul(hidden.T, gradient, preferred_element_type=jnp.float32)
            return (kernel_gradient, bias_gradient), gradient @ kernel.T

        start = (
            jnp.zeros(kernel.shape, jnp.float32),
            None if bias is None else jnp.zeros(bias.shape, jnp.float32),
        )
        size = min(chunk_size, math.prod(tokens))
        chunks = [_chunks(array, tokens, size) for array in (hidden, *of_tokens)]
        sums, hidden_gradient = lax.scan(body, start, tuple(chunks))
        hidden_gradient = _join(hidden_gradient, tokens)
        if split.vocabulary:
            hidden_gradient = lax.psum(hidden_gradient, TENSOR_AXIS)
        return hidden_gradient, *_summed(*sums, split)

    features = _FSDP if split.features else None
    vocabulary = TENSOR_AXIS if split.vocabulary else None
    spread = _on_devices(local, split, (split.tokens, P(features, vocabulary), P(vocabulary)))
    hidden_gradient, kernel_gradient, bias_gradient = spread(
        hidden, kernel.astype(hidden.dtype), bias, targets, normalizer, cotangent
    )
    return (
        hidden_gradient,
        kernel_gradient.astype(kernel.dtype),
        None if bias is None else bias_gradient.astype(bias.dtype),
        None,
    )


def _summed(
    kernel_gradient: Array, bias_gradient: Array | None, split: _Split
) -> tuple[Array, Array | None]:
    """Sums over the devices that have other tokens."""
    if split == _ONE_DEVICE:
        return kernel_gradient, bias_gradient
    named = [axis for axes in split.tokens for axis in ((axes,) if isinstance(axes, str) else axes)]
    if split.features:
        kernel_gradient = lax.psum_scatter(kernel_gradient, _FSDP, scatter_dimension=0, tiled=True)
        kernel_gradient = lax.psum(kernel_gradient, [axis for axis in named if axis != _FSDP])
    else:
        kernel_gradient = lax.psum(kernel_gradient, named)
    return kernel_gradient, None if bias_gradient is None else lax.psum(bias_gradient, named)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def softmax_cross_entropy(
    hidden: Float[Array, "*N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    targets: Int[Array, "*N"],
    chunk_size: int | None = None,
) -> Float[Array, "*N"]:
    """Cross-entropy `logsumexp(z) - z[target]` of the logits `z = hidden @ kernel + bias`.

    The products run in the dtype of `hidden` and accumulate in float32; the logarithm of the
    normaliser, the losses and the sums of the gradients are float32.

    Args:
        hidden: what the output layer reads, [N, D] or [B, T, D]. Where devices share a batch, keep
            its dimensions apart: merged, time that is split over devices would have to move.
        kernel: weights of the output layer, [D, V].
        bias: biases of the output layer, [V], or None.
        targets: the class that each token should have, [N] or [B, T], in [0, V).
        chunk_size: tokens of a device whose logits are held at a time. None computes all logits
            at once, which is faster and right for small vocabularies. A number keeps memory at
            `chunk_size * V` in both passes for one more matrix product in the backward pass.

    Returns:
        The loss of each token in nats, float32 [N] or [B, T].

    Raises:
        UserError: `chunk_size` is less than 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size = {chunk_size} must be at least 1, or None for no chunks")
    if chunk_size is not None and chunk_size < math.prod(targets.shape):
        return _chunked(hidden, kernel, bias, targets, chunk_size)
    split = _split_of(targets.shape, kernel.shape)
    if split != _ONE_DEVICE:
        # Gathered along its features: the compiler may otherwise add up parts of all logits.
        layout = P(None, TENSOR_AXIS if split.vocabulary else None)
        kernel = lax.with_sharding_constraint(kernel.astype(hidden.dtype), layout)
    return _whole(_logits(hidden, kernel, bias), targets)
