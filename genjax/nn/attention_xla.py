"""Scaled dot-product attention with materialised scores, in blocks of queries.

Letters: B batch, T queries in time, S keys in time, K key and value heads, G query heads for each
of them, H = K G, D features of a head.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that the scores of a query without any key do not subtract to NaN.
_MASKED = -1e30

# Smaller blocks save less work than they add calls, and more of them take longer to compile.
_MIN_BLOCK_SIZE = 64
_MAX_BLOCKS = 8


class Block(NamedTuple):
    """Queries from `start` to `end`, which see no key from `num_keys` on."""

    start: int
    end: int
    num_keys: int


def query_blocks(num_queries: int, num_keys: int, triangular: bool) -> tuple[Block, ...]:
    """Blocks of queries, in order, whose scores are computed together.

    Args:
        num_queries: T.
        num_keys: S.
        triangular: whether query t sees no key after t. Each block of queries then meets only
            the keys up to its own end, up to half of the work in all.
    """
    if not triangular:
        return (Block(0, num_queries, num_keys),)
    size = max(_MIN_BLOCK_SIZE, -(-num_queries // _MAX_BLOCKS))
    ends = (min(start + size, num_queries) for start in range(0, num_queries, size))
    return tuple(Block(number * size, end, min(end, num_keys)) for number, end in enumerate(ends))


def _mask(
    num_queries: int,
    num_keys: int,
    causal: bool,
    segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    offset: int | Int[Array, ""],
) -> Array | None:
    """Which keys each query may see, broadcastable to [B, K, G, T, S]; None means all."""
    mask = None
    if causal:
        query_positions = jnp.arange(num_queries)[:, None] + offset
        mask = query_positions >= jnp.arange(num_keys)
    if segment_ids is not None:
        query_ids, key_ids = segment_ids
        same = (query_ids[:, :, None] == key_ids[:, None, :])[:, None, None]
        mask = same if mask is None else mask & same
    return mask


# Heads come before time: what the products read is then contiguous, and a block of keys or
# queries is one slice of each head.
_scores = functools.partial(jnp.einsum, "bkgtd,bksd->bkgts", preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _grouped_attention(
    query: Float[Array, "B K G T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S D"],
    mask: Bool[Array, "..."] | None,
    blocks: tuple[Block, ...],
) -> Float[Array, "B K G T D"]:
    """Attention of scaled queries in groups.

    The softmax is normalised after its product with the values, and its gradient goes through
    the outputs (Dao et al. 2022, "FlashAttention"): both touch D numbers a query instead of S.
    """
    return _forward(query, key, value, mask, blocks)[0]


def _forward(
    query: Array, key: Array, value: Array, mask: Array | None, blocks: tuple[Block, ...]
) -> tuple[Array, tuple[Array | list[Array], ...]]:
    all_weights, totals, products = [], [], []
    for start, end, num_keys in blocks:
        scores = _scores(query[..., start:end, :], key[:, :, :num_keys])
        seen = None if mask is None else mask[..., start:end, :num_keys]
        if seen is not None:
            scores = jnp.where(seen, scores, _MASKED)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        totals.append(weights.sum(-1, keepdims=True))
        all_weights.append(weights.astype(value.dtype))
        products.append(
            jnp.einsum(
                "bkgts,bksd->bkgtd",
                all_weights[-1],
                value[:, :, :num_keys],
                preferred_element_type=jnp.float32,
            )
        )
    # At least the smallest normal number, so that a query without keys gives zeros.
    total = jnp.maximum(jnp.concatenate(totals, axis=3), jnp.finfo(jnp.float32).tiny)
    outputs = (jnp.concatenate(products, axis=3) / total).astype(value.dtype)
    return outputs, (query, key, value, all_weights, total, outputs)


def _backward(
    blocks: tuple[Block, ...], residuals: tuple, cotangent: Array
) -> tuple[Array, Array, Array, None]:
    query, key, value, all_weights, total, outputs = residuals
    cotangent = cotangent / total
    mean = (cotangent * outputs).sum(-1, keepdims=True)
    cotangent = cotangent.astype(value.dtype)
    query_gradients, key_gradients, value_gradients = [], [], []
    for (start, end, num_keys), weights in zip(blocks, all_weights, strict=True):
        cotangents = cotangent[..., start:end, :]
        gradient = _scores(cotangents, value[:, :, :num_keys]) - mean[..., start:end, :]
        gradient = (weights * gradient).astype(value.dtype)
        query_gradients.append(jnp.einsum("bkgts,bksd->bkgtd", gradient, key[:, :, :num_keys]))
        key_gradients.append(jnp.einsum("bkgts,bkgtd->bksd", gradient, query[..., start:end, :]))
        value_gradients.append(jnp.einsum("bkgts,bkgtd->bksd", weights, cotangents))
    return (
        jnp.concatenate(query_gradients, axis=3),
        _sum_of_starts(key_gradients, key.shape[2]),
        _sum_of_starts(value_gradients, key.shape[2]),
        None,
    )


def _sum_of_starts(parts: list[Array], length: int) -> Array:
    """Sum of arrays [B, K, <= S, D] that each hold the first keys, no fewer than the one before."""
    ends = [part.shape[2] for part in parts]
    sums = [
        functools.reduce(operator.add, [part[:, :, start:end] for part in parts[number:]])
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        if start < end
    ]
    total = jnp.concatenate(sums, axis=2)
    return jnp.pad(total, ((0, 0), (0, 0), (0, length - ends[-1]), (0, 0)))


_grouped_attention.defvjp(_forward, _backward)


def xla_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    *,
    causal: bool,
    segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    offset: int | Int[Array, ""] | None,
) -> Float[Array, "B T H D"]:
    """Attention with the scores in memory; arguments and result as in `attention`."""
    batch, num_queries, num_heads, head_dim = query.shape
    num_keys, num_kv_heads = key.shape[1:3]
    blocks = query_blocks(num_queries, num_keys, triangular=causal and offset is None)
    mask = _mask(num_queries, num_keys, causal, segment_ids, 0 if offset is None else offset)
    query = (query / math.sqrt(head_dim)).astype(key.dtype)
    query = query.reshape(batch, num_queries, num_kv_heads, -1, head_dim)
    outputs: Array = _grouped_attention(
        query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2), mask, blocks
    )
    return outputs.transpose(0, 3, 1, 2, 4).reshape(batch, num_queries, num_heads, -1)
