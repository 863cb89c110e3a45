"""Attention of sequences that are split over devices along time: ring attention.

Each device has a block of the queries, keys and values. Keys and values go round in a ring, one
device further at each turn, and each device adds what its queries find in them to a softmax that
it keeps as it goes (Liu et al. 2023, "Ring attention with blockwise transformers for near-infinite
context"). The backward pass sends them round once more, together with their gradients, and
computes the scores again (Dao et al. 2022, "FlashAttention"). A device holds its own block, one
that has arrived and one that is on its way, and the scores of a few hundred queries.

Causally, the last block of a sequence has work at every turn and the first only at one. Time is
therefore cut into twice as many pieces as there are devices, and device i of n takes pieces i and
2n - 1 - i (Grattafiori et al. 2024, "The Llama 3 herd of models", section 3.3.2). At every turn
but the first, each device then has exactly two pairs of pieces to do, both without a mask: half of
the work of attention that is not causal.

Letters: B batch, T time, H query heads, K key and value heads, G = H / K, D features of a head;
within a device: P pieces of time (2 if causal, else 1), C chunks of queries in a piece, Q queries
in a chunk, S keys in a piece.
"""

import functools
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from genjax.nn.sequence_parallel import (
    around_the_ring,
    pass_on,
    pieces_of_time,
    splits_time,
    whole_time,
)
from genjax.nn.split_by_hand import splits_batch
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS

Tree = TypeVar("Tree")
Ids = tuple[Int[Array, "B T"], Int[Array, "B T"]] | None

# Finite, so that the scores of a query without any key do not subtract to NaN.
_MASKED = -1e30

# Scores that are held at a time are those of at most this many queries.
_MAX_CHUNK = 512


def can_ring(query: Float[Array, "B T H D"], key: Float[Array, "B S K D"], *, causal: bool) -> bool:
    """Whether time is split such that `ring_attention` applies: 2 n divides T, n if not causal."""
    return query.shape[1] == key.shape[1] and splits_time(
        query.shape[1], pieces=_num_pieces(causal)
    )


def ring_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T K D"],
    value: Float[Array, "B T K D"],
    *,
    causal: bool,
    segment_ids: Ids,
) -> Float[Array, "B T H D"]:
    """Attention with time split over the devices of the mesh; arguments as in `attention`.

    Examples are split over the data and fsdp axes and heads over the tensor axis, where these
    divide them. The products are XLA's on every platform: fused kernels (splash, cuDNN) know no
    ring. Only the K heads of keys and values travel, not the H of the queries.
    """
    return _ring(query.astype(key.dtype), key, value, segment_ids, causal)


class _Block(NamedTuple):
    """Keys, values and their segment ids, of one device after another."""

    key: Float[Array, "P B K S D"]
    value: Float[Array, "P B K S D"]
    ids: Int[Array, "P B S"] | None


class _Queries(NamedTuple):
    """A device's own queries, scaled, with their segment ids."""

    query: Float[Array, "P C B K G Q D"]
    ids: Int[Array, "P C B Q"] | None


class _Softmax(NamedTuple):
    """Of the scores of the keys so far: the largest, and the sums of their exponentials."""

    maximum: Float[Array, "P C B K G Q"]
    total: Float[Array, "P C B K G Q"]
    outputs: Float[Array, "P C B K G Q D"]


class _Saved(NamedTuple):
    """What the backward pass needs, cut and balanced."""

    queries: _Queries
    block: _Block
    logarithm: Float[Array, "P C B K G Q"]
    """Of the sum of the exponentials of a query's scores."""


class _Pair(NamedTuple):
    """Queries of one piece that meet keys of another, by their numbers on the device."""

    queries: int | Array
    keys: int | Array
    diagonal: bool
    """Whether they are the same piece of time, so that a query sees no key after itself."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(query: Array, key: Array, value: Array, segment_ids: Ids, causal: bool) -> Array:
    return _forward(query, key, value, segment_ids, causal)[0]


def _forward(
    query: Array, key: Array, value: Array, segment_ids: Ids, causal: bool
) -> tuple[Array, tuple[_Saved, Array]]:
    split, saved_specs = _specs(len(key), key.shape[2])
    ids_split = P(*split[:2])
    outputs, saved = jax.shard_map(
        functools.partial(_device_forward, causal=causal),
        in_specs=(split, split, split, ids_split),
        out_specs=(split, saved_specs),
        check_vma=False,
    )(query, key, value, segment_ids)
    return outputs, (saved, outputs)


def _backward(
    causal: bool, residuals: tuple[_Saved, Array], cotangent: Array
) -> tuple[Array, Array, Array, None]:
    saved, outputs = residuals
    split, saved_specs = _specs(*saved.block.key.shape[1:3])
    gradients = jax.shard_map(
        functools.partial(_device_backward, causal=causal),
        in_specs=(saved_specs, split, split),
        out_specs=(split, split, split),
        check_vma=False,
    )(saved, outputs, cotangent)
    return (*gradients, None)


_ring.defvjp(_forward, _backward)


def _specs(batch_size: int, num_kv_heads: int) -> tuple[P, _Saved]:
    """How arrays [B, T, H, D] are split, and what is saved between the passes."""
    mesh = jax.sharding.get_abstract_mesh()
    batch = BATCH_AXES if splits_batch(batch_size) else None
    heads = TENSOR_AXIS if num_kv_heads % mesh.shape[TENSOR_AXIS] == 0 else None
    chunks = P(None, SEQUENCE_AXIS, batch, heads)
    keys = P(None, batch, heads, SEQUENCE_AXIS)
    # Made so, they may hold partitions instead of arrays.
    queries = _Queries._make((chunks, P(None, SEQUENCE_AXIS, batch)))
    block = _Block._make((keys, keys, P(None, batch, SEQUENCE_AXIS)))
    return P(batch, SEQUENCE_AXIS, heads), _Saved._make((queries, block, chunks))


def _device_forward(
    query: Array, key: Array, value: Array, segment_ids: Ids, causal: bool
) -> tuple[Array, _Saved]:
    query_ids, key_ids = segment_ids or (None, None)
    num_kv_heads, head_dim = key.shape[2:]
    scaled = (query / math.sqrt(head_dim)).astype(key.dtype)
    queries = _Queries(
        _heads_first(_chunks(pieces_of_time(scaled, causal)), num_kv_heads),
        None if query_ids is None else _chunks(pieces_of_time(query_ids, causal)),
    )
    block = _Block(
        pieces_of_time(key, causal).swapaxes(2, 3),
        pieces_of_time(value, causal).swapaxes(2, 3),
        None if key_ids is None else pieces_of_time(key_ids, causal),
    )
    shape = queries.query.shape
    softmax = _Softmax(
        jnp.full(shape[:-1], _MASKED),
        jnp.zeros(shape[:-1]),
        jnp.zeros((*shape[:-1], value.shape[-1])),
    )

    def visit(softmax: _Softmax, turn: int | Array, block: _Block) -> _Softmax:
        for pair in _pairs(turn, causal):
            softmax = _meet(softmax, queries, block, pair)
        return softmax

    softmax = around_the_ring(visit, softmax, block)
    # At least the smallest normal number, so that a query without keys gives zeros.
    total = jnp.maximum(softmax.total, jnp.finfo(jnp.float32).tiny)
    outputs = (softmax.outputs / total[..., None]).astype(value.dtype)
    saved = _Saved(queries, block, softmax.maximum + jnp.log(total))
    return whole_time(_time_first(outputs), causal), saved


def _device_backward(
    saved: _Saved, outputs: Array, cotangent: Array, causal: bool
) -> tuple[Array, Array, Array]:
    queries, own, logarithm = saved
    num_kv_heads, head_dim = own.key.shape[2], own.key.shape[-1]
    mean = jnp.einsum("bthd,bthd->bth", cotangent, outputs, preferred_element_type=jnp.float32)
    given = (
        _heads_first(_chunks(pieces_of_time(cotangent, causal)), num_kv_heads).astype(
            own.value.dtype
        ),
        _heads_first(_chunks(pieces_of_time(mean, causal)), num_kv_heads),
        logarithm,
    )

    # The gradients of keys and values follow them, one turn behind, and are home after the last.
    def visit(gradients: Any, turn: int | Array, block: _Block) -> Any:
        query_gradient, arriving = gradients
        arriving = pass_on(arriving)
        found = jax.tree.map(jnp.zeros_like, arriving)
        for pair in _pairs(turn, causal):
            query_gradient, found = _meet_again(query_gradient, found, queries, given, block, pair)
        return query_gradient, jax.tree.map(jnp.add, arriving, found)

    zeros = functools.partial(jnp.zeros_like, dtype=jnp.float32)
    nothing = (zeros(queries.query), (zeros(own.key), zeros(own.value)))
    query_gradient, gradients = around_the_ring(visit, nothing, own)
    key_gradient, value_gradient = pass_on(gradients)
    query_gradient = _time_first(query_gradient / math.sqrt(head_dim))
    return (
        whole_time(query_gradient.astype(queries.query.dtype), causal),
        whole_time(key_gradient.swapaxes(2, 3).astype(own.key.dtype), causal),
        whole_time(value_gradient.swapaxes(2, 3).astype(own.value.dtype), causal),
    )


# What happens at a turn.


def _pairs(turn: int | Array, causal: bool) -> tuple[_Pair, ...]:
    """The pairs of pieces with work at a turn; turn 0, a number, is that of a device's own keys."""
    if not causal:
        return (_Pair(0, 0, False),)
    if isinstance(turn, int):
        return (_Pair(0, 0, True), _Pair(1, 0, False), _Pair(1, 1, True))
    # Of a device before, the first piece comes before both of ours and the second after them; of a
    # device behind, both are between ours.
    piece = jnp.where(lax.axis_index(SEQUENCE_AXIS) >= turn, 0, 1)
    return (_Pair(1, 0, False), _Pair(piece, piece, False))


def _meet(softmax: _Softmax, queries: _Queries, block: _Block, pair: _Pair) -> _Softmax:
    """The softmax with what the queries of a pair find in its keys."""
    keys = _taken(block, pair.keys)

    def one_chunk(_: None, chunk: tuple[Any, ...]) -> tuple[None, _Softmax]:
        number, queries, (maximum, total, outputs) = chunk
        scores, seen = _scores(queries, keys, number, pair.diagonal)
        highest = jnp.maximum(maximum, scores.max(-1))
        weights = jnp.exp(scores - highest[..., None])
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        kept = jnp.exp(maximum - highest)
        found = _product("bkgqs,bksd->bkgqd", weights.astype(keys.value.dtype), keys.value)
        total = total * kept + weights.sum(-1)
        return None, _Softmax(highest, total, outputs * kept[..., None] + found)

    chunks = (_taken(queries, pair.queries), _taken(softmax, pair.queries))
    _, new = lax.scan(one_chunk, None, (jnp.arange(queries.query.shape[1]), *chunks))
    return _put(softmax, pair.queries, new)


def _meet_again(
    query_gradient: Array,
    key_gradients: tuple[Array, Array],
    queries: _Queries,
    given: tuple[Array, Array, Array],
    block: _Block,
    pair: _Pair,
) -> tuple[Array, tuple[Array, Array]]:
    """Gradients of queries, and of keys and values, with those of a pair added."""
    keys = _taken(block, pair.keys)

    def one_chunk(
        gradients: tuple[Array, Array], chunk: tuple[Any, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        number, queries, (cotangent, mean, logarithm), query_gradient = chunk
        scores, seen = _scores(queries, keys, number, pair.diagonal)
        weights = jnp.exp(scores - logarithm[..., None])
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        gradient = _product("bkgqd,bksd->bkgqs", cotangent, keys.value) - mean[..., None]
        gradient = (weights * gradient).astype(keys.key.dtype)
        weights = weights.astype(keys.value.dtype)
        key_gradient, value_gradient = gradients
        key_gradient += _product("bkgqs,bkgqd->bksd", gradient, queries.query)
        value_gradient += _product("bkgqs,bkgqd->bksd", weights, cotangent)
        query_gradient += _product("bkgqs,bksd->bkgqd", gradient, keys.key)
        return (key_gradient, value_gradient), query_gradient

    chunks = _taken((queries, given, query_gradient), pair.queries)
    found, new = lax.scan(
        one_chunk, _taken(key_gradients, pair.keys), (jnp.arange(queries.query.shape[1]), *chunks)
    )
    return _put(query_gradient, pair.queries, new), _put(key_gradients, pair.keys, found)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(
    queries: _Queries, keys: _Block, chunk: Array, diagonal: bool
) -> tuple[Float[Array, "B K G Q S"], Array | None]:
    """Scores of a chunk of queries, and which keys they see; None means all."""
    scores = _product("bkgqd,bksd->bkgqs", queries.query, keys.key)
    num_queries, num_keys = scores.shape[-2:]
    seen = None
    if diagonal:
        positions = chunk * num_queries + jnp.arange(num_queries)
        seen = positions[:, None] >= jnp.arange(num_keys)
    if queries.ids is not None and keys.ids is not None:
        same = (queries.ids[:, :, None] == keys.ids[:, None, :])[:, None, None]
        seen = same if seen is None else seen & same
    return (scores if seen is None else jnp.where(seen, scores, _MASKED)), seen


# How a device's part of time is cut.


def _num_pieces(causal: bool) -> int:
    return 2 if causal else 1


def _chunks(pieces: Array) -> Array:
    """[P, B, S, ...] to [P, C, B, Q, ...]."""
    length = pieces.shape[2]
    size = next(size for size in range(min(length, _MAX_CHUNK), 0, -1) if length % size == 0)
    shape = (*pieces.shape[:2], length // size, size, *pieces.shape[3:])
    return jnp.moveaxis(pieces.reshape(shape), 2, 1)


def _heads_first(chunks: Array, num_kv_heads: int) -> Array:
    """[P, C, B, Q, H, ...] to [P, C, B, K, G, Q, ...]."""
    shape = (*chunks.shape[:4], num_kv_heads, -1, *chunks.shape[5:])
    return jnp.moveaxis(chunks.reshape(shape), 3, 5)


def _time_first(chunks: Array) -> Array:
    """[P, C, B, K, G, Q, D] to [P, B, S, H, D]."""
    pieces, count, batch, kv_heads, group_size, size, features = chunks.shape
    return chunks.transpose(0, 2, 1, 5, 3, 4, 6).reshape(
        pieces, batch, count * size, kv_heads * group_size, features
    )


def _taken(tree: Tree, number: int | Array) -> Tree:
    return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, number, 0, False), tree)


def _put(tree: Tree, number: int | Array, new: Tree) -> Tree:
    return jax.tree.map(
        lambda array, part: lax.dynamic_update_index_in_dim(array, part, number, 0), tree, new
    )
