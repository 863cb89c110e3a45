"""The layer of a pre-normalised transformer: self-attention, then a feed-forward network.

Letters: B batch, T time, S cache length, D features, H query heads, K key and value heads,
G = H / K.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.nn.activations import gelu
from genjax.nn.attention import Implementation, attention
from genjax.nn.dense import Dense
from genjax.nn.position import rotate

INITIAL_SCALE = 0.02
"""Standard deviation of the initial weights, as in GPT-2."""

Activation = Literal["gelu", "gelu_exact", "swiglu"]


class Attention(nn.Module):
    """Causal self-attention with one fused projection to queries, keys and values.

    The columns of the fused kernel are ordered [K, G + 2, head_dim], each key and value head
    beside its queries, so that splitting the columns over devices splits whole groups.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    residual_scale: float
    use_bias: bool
    implementation: Implementation
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        cache: dict[str, Array] | None,
        index: Int[Array, ""] | None,
        segment_ids: tuple[Array, Array] | None,
        angles: Array | None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array] | None]:
        """Attend; with a cache, write keys and values at `index` and attend to all before."""
        dense = functools.partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        batch, length, features = inputs.shape
        group_size = self.num_heads // self.num_kv_heads
        qkv = dense(
            self.num_kv_heads * (group_size + 2) * self.head_dim,
            kernel_init=nn.initializers.normal(INITIAL_SCALE),
            name="qkv",
        )(inputs)
        qkv = qkv.reshape(batch, length, self.num_kv_heads, group_size + 2, self.head_dim)
        query, key, value = jnp.split(qkv, (group_size, group_size + 1), axis=3)
        query = query.reshape(batch, length, self.num_heads, self.head_dim)
        key, value = key.squeeze(3), value.squeeze(3)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            assert index is not None
            cache = {
                "key": lax.dynamic_update_slice_in_dim(cache["key"], key, index, axis=1),
                "value": lax.dynamic_update_slice_in_dim(cache["value"], value, index, axis=1),
            }
            key, value = cache["key"], cache["value"]
        outputs = attention(
            query,
            key,
            value,
            causal=True,
            segment_ids=segment_ids,
            offset=index,
            implementation=self.implementation if cache is None else "xla",
        )
        outputs = dense(
            features,
            kernel_init=nn.initializers.normal(INITIAL_SCALE * self.residual_scale),
            name="projection",
        )(outputs.reshape(batch, length, -1))
        return outputs, cache


class FeedForward(nn.Module):
    """Two-layer network over features, or three with a gate ("swiglu")."""

    hidden_size: int
    activation: Activation
    residual_scale: float
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Transform each token on its own, [B, T, D] to [B, T, D]."""
        dense = functools.partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        widen = functools.partial(
            dense, self.hidden_size, kernel_init=nn.initializers.normal(INITIAL_SCALE)
        )
        hidden = widen(name="up")(inputs)
        match self.activation:
            case "gelu":
                hidden = nn.gelu(hidden, approximate=True)
            case "gelu_exact":
                hidden = gelu(hidden)
            case "swiglu":
                hidden = nn.silu(widen(name="gate")(inputs)) * hidden
        return dense(
            inputs.shape[-1],
            kernel_init=nn.initializers.normal(INITIAL_SCALE * self.residual_scale),
            name="down",
        )(hidden)


class TransformerLayer(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    norm: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]
    feed_forward: Callable[..., nn.Module]
    dropout: float

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        cache: dict[str, Array] | None,
        index: Int[Array, ""] | None,
        segment_ids: tuple[Array, Array] | None,
        angles: Array | None,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array] | None]:
        """Apply the layer; see `Attention` for the cache."""
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        outputs, cache = self.attention(name="attention")(
            self.norm(name="attention_norm")(inputs), cache, index, segment_ids, angles
        )
        inputs = inputs + dropout(outputs)
        outputs = self.feed_forward(name="feed_forward")(
            self.norm(name="feed_forward_norm")(inputs)
        )
        return inputs + dropout(outputs), cache
