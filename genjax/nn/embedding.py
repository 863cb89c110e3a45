"""Looking up the vectors of tokens, on one device or many.

Letters: B batch, T time, V vocabulary, D features.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.nn.split_by_hand import splits_batch
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS


def embed(
    table: Float[Array, "V D"],
    tokens: Int[Array, "_ _"],
    dtype: DTypeLike = jnp.float32,
    *,
    time_major: bool = False,
    rows_split: bool = True,
) -> Float[Array, "_ _ D"]:
    """The rows of `table` that `tokens` name, in `dtype`; the table's gradient adds up in its own.

    On several devices each looks up its own tokens. Where the mesh's tensor axis divides the
    vocabulary, a device has some of its rows, and one sum over devices fills in the others. The
    compiler, left to itself, may split the result by features, and then all that follows.

    Args:
        table: a vector for each token.
        tokens: token ids, [B, T], or [T, B] if `time_major`.
        dtype: of the result.
        time_major: which dimension of `tokens` counts the batch.
        rows_split: whether the table is kept split over the tensor axis, as vocabularies are.
    """

    def whole(table: Array, tokens: Array) -> Array:
        return jnp.take(table, tokens, axis=0).astype(dtype)

    batch, time = (1, 0) if time_major else (0, 1)
    if not splits_batch(tokens.shape[batch]):
        return whole(table, tokens)
    ways = jax.sharding.get_abstract_mesh().shape
    by_rows = rows_split and ways[TENSOR_AXIS] > 1 and len(table) % ways[TENSOR_AXIS] == 0

    def part(table: Array, tokens: Array) -> Array:
        if not by_rows:
            return whole(table, tokens)
        own = tokens - lax.axis_index(TENSOR_AXIS).astype(tokens.dtype) * len(table)
        # Where the row is another device's: zeros.
        rows = table.at[own]
        found = rows.get(mode="fill", fill_value=0, wrap_negative_indices=False)
        return lax.psum(found.astype(dtype), TENSOR_AXIS)

    axes: list = [None, None]
    axes[batch] = BATCH_AXES
    axes[time] = SEQUENCE_AXIS if tokens.shape[time] % ways[SEQUENCE_AXIS] == 0 else None
    return jax.shard_map(
        part,
        in_specs=(P(TENSOR_AXIS if by_rows else None), P(*axes)),
        out_specs=P(*axes),
        check_vma=False,
    )(table, tokens)
