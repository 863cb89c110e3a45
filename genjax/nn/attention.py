"""Scaled dot-product attention: one function, several implementations.

Letters: B batch, T queries in time, S keys in time, H query heads, K key and value heads,
D features of a head. H is a multiple of K (grouped-query attention: Ainslie et al. 2023).
"""

import functools
import math
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from genjax.errors import UserError
from genjax.nn.attention_ring import can_ring, ring_attention
from genjax.nn.attention_xla import xla_attention
from genjax.nn.target import target_platform
from genjax.parallel.mesh import BATCH_AXES

Implementation = Literal["auto", "xla", "cudnn", "splash"]

# Splash attention's kernels work on blocks of at least this many positions.
_SPLASH_LANES = 128


def _splash_attention(
    query: Array,
    key: Array,
    value: Array,
    causal: bool,
    segment_ids: tuple[Array, Array] | None,
    interpret: bool,
) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = functools.partial(math.gcd, 512)
    query_block, key_block = block(query.shape[1]), block(key.shape[1])
    make_mask = splash.CausalMask if causal else splash.FullMask

    def run(query: Array, key: Array, value: Array, *ids: Array) -> Array:
        num_queries, num_heads, head_dim = query.shape[1:]
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([make_mask((num_queries, key.shape[1]))] * num_heads),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=splash.BlockSizes(
                block_q=query_block,
                block_kv=key_block,
                block_q_dkv=query_block,
                block_kv_dkv=key_block,
                block_q_dq=query_block,
                block_kv_dq=key_block,
            ),
            interpret=interpret,
        )
        # The kernels do not scale; they take [heads, time, features] of one sequence.
        query = (query / math.sqrt(head_dim)).astype(key.dtype)
        arguments = [x.swapaxes(1, 2) for x in (query, key, value)]
        packed = (splash.SegmentIds(*ids),) if ids else ()
        return cast(Array, jax.vmap(kernel)(*arguments, *packed)).swapaxes(1, 2)

    arguments = (query, key, value, *(segment_ids or ()))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(*arguments)
    # The compiler cannot split a kernel over devices by itself: each takes its sequences and heads.
    heads = "tensor" if key.shape[2] % mesh.shape["tensor"] == 0 else None
    specs = tuple(P(BATCH_AXES, None, *(heads,) * (x.ndim == 4)) for x in arguments)
    return jax.shard_map(run, in_specs=specs, out_specs=specs[0], check_vma=False)(*arguments)


def choose_implementation(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S K D"],
    *,
    causal: bool,
    packed: bool,
    backend: str,
) -> Implementation:
    """The implementation that "auto" stands for: the fastest that can do the job.

    Args:
        query: queries, of which shape and dtype count.
        key: keys, of which the shape counts.
        causal: whether a query sees only keys up to its own position.
        packed: whether segment ids are given.
        backend: the platform, as `jax.default_backend()` names it.
    """
    if (
        backend == "gpu"
        and query.dtype in (jnp.float16, jnp.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and not packed
    ):
        return "cudnn"
    lengths = (query.shape[1], key.shape[1])
    if (
        backend == "tpu"
        and all(length % _SPLASH_LANES == 0 for length in lengths)
        and (not causal or lengths[0] == lengths[1])
    ):
        return "splash"
    return "xla"


def attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    *,
    causal: bool,
    segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
    offset: int | Int[Array, ""] | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Attention `softmax(query key^T / sqrt(D)) value`, with the softmax in float32.

    Args:
        query: queries, [B, T, H, D].
        key: keys, [B, S, K, D], where K divides H; heads are in groups of H / K.
        value: values, [B, S, K, D].
        causal: a query sees only keys at its own position and before.
        segment_ids: ids of the queries [B, T] and of the keys [B, S]; a query sees only keys
            with its own id. A query without any such key gets zeros.
        offset: position of the first query among the keys, for causal attention into a cache;
            None means 0. Keys after the last query, such as a cache's unwritten end, are unseen.
        implementation: "xla" holds all B H T S scores, or little more than half of them for long
            causal sequences without `offset`; "cudnn" (GPU, 16-bit dtypes) and "splash" (TPU)
            hold none. "auto" takes the fastest that fits. Where the mesh splits time, "auto" and
            "xla" are both `ring_attention`, which holds the scores of a few hundred queries; the
            kernels asked for by name gather all of time on each device.
        interpret: run "splash" in Pallas's interpreter, on any device, slowly.

    Returns:
        [B, T, H, D] with the dtype of `value`.

    Raises:
        UserError: the implementation asked for cannot do this dtype, mask or shape.

    Paper: Vaswani et al. 2017, "Attention is all you need".
    """
    if query.shape[2] % key.shape[2]:
        raise UserError(
            f"num_heads = {query.shape[2]} must be a multiple of num_kv_heads = {key.shape[2]}"
        )
    if offset is None and implementation in ("auto", "xla") and can_ring(query, key, causal=causal):
        return ring_attention(query, key, value, causal=causal, segment_ids=segment_ids)
    if implementation == "auto":
        implementation = (
            choose_implementation(
                query,
                key,
                causal=causal,
                packed=segment_ids is not None,
                backend=target_platform(),
            )
            if offset is None
            else "xla"
        )
    if implementation == "xla":
        return xla_attention(
            query, key, value, causal=causal, segment_ids=segment_ids, offset=offset
        )
    if offset is not None:
        raise UserError(f'attention = "{implementation}" has no cache; use "xla" or "auto"')
    if implementation == "cudnn":
        if query.dtype not in (jnp.float16, jnp.bfloat16):
            raise UserError(
                f'attention = "cudnn" needs float16 or bfloat16, not {query.dtype}.\n'
                'Set dtype = "bfloat16", or attention = "xla".'
            )
        if segment_ids is not None:
            raise UserError('attention = "cudnn" cannot keep packed segments apart; use "xla"')
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    lengths = (query.shape[1], key.shape[1])
    if any(length % _SPLASH_LANES for length in lengths):
        raise UserError(
            f'attention = "splash" needs lengths that are multiples of {_SPLASH_LANES},'
            f' not {lengths[0]} and {lengths[1]}.\nChange the context length, or use "xla".'
        )
    return _splash_attention(query, key, value, causal, segment_ids, interpret)
