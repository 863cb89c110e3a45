"""Decoder-only transformer language model.

The GPT-2 form (Radford et al. 2019, "Language models are unsupervised multitask learners") is
learned positions, layer normalisation, GELU and biases; the modern form (Touvron et al. 2023,
"LLaMA: open and efficient foundation language models") is rotary positions, RMS normalisation,
SwiGLU (Shazeer 2020) and grouped-query attention. Both normalise before each sub-layer.

Letters: B batch, T time, D features, V vocabulary.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.errors import UserError
from genjax.nn.attention import Implementation
from genjax.nn.cross_entropy import softmax_cross_entropy
from genjax.nn.dense import PRODUCT
from genjax.nn.embedding import embed
from genjax.nn.norms import LayerNorm, RMSNorm
from genjax.nn.position import rotary_angles
from genjax.nn.sequence_parallel import split_time
from genjax.nn.transformer_layer import (
    INITIAL_SCALE,
    Activation,
    Attention,
    FeedForward,
    TransformerLayer,
)

PARTITION_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"token_embedding$", ("tensor", "fsdp")),
    (r"position_embedding$", ("sequence", "fsdp")),
    (r"(qkv|up|gate|output)/kernel$", ("fsdp", "tensor")),
    (r"(projection|down)/kernel$", ("tensor", "fsdp")),
    (r"(qkv|up|gate)/bias$", ("tensor",)),
    (r"(projection|down)/bias$|norm/(scale|bias)$", (None,)),
)
"""Axes of the trailing dimensions of each parameter; the layer axis of scanned layers is whole.

Columns of what widens and rows of what narrows are split over the tensor axis, so that a layer has
two sums over its devices in each pass (Shoeybi et al. 2019, "Megatron-LM"). That holds where the
axis divides `num_kv_heads`; with more devices than key and value heads, parts of heads move between
them in attention as well.
"""

Carry = dict[str, Any]


class OutputLayer(nn.Module):
    """Holds the output kernel of a model whose embeddings are not tied."""

    hidden_size: int
    vocab_size: int

    def setup(self) -> None:
        """Make the kernel."""
        self.kernel = self.param(
            "kernel",
            nn.initializers.normal(INITIAL_SCALE),
            (self.hidden_size, self.vocab_size),
        )


class Transformer(nn.Module):
    """Decoder-only transformer language model.

    Attributes:
        vocab_size: number of tokens.
        context_length: the longest sequence that it can read, in tokens.
        num_layers: number of layers.
        num_heads: number of query heads.
        hidden_size: features of a token.
        num_kv_heads: number of key and value heads; divides `num_heads`. None means as many.
        head_dim: features of a head. None means `hidden_size / num_heads`.
        feed_forward_size: features inside the feed-forward network. None means
            `4 * hidden_size`, or for "swiglu" 8/3 of it, rounded up to a multiple of 8.
        position: "learned" adds a vector for each position; "rope" turns queries and keys.
        norm: "layer_norm" or "rms_norm".
        activation: "gelu" (tanh approximation, as in GPT-2), "gelu_exact", or "swiglu".
        use_bias: whether projections and layer normalisations have biases.
        tie_embeddings: whether the output layer shares the token embedding.
        dropout: share of features dropped after the embedding and after each sub-layer, in
            training. The attention weights themselves are not dropped: no fused kernel does.
        rope_theta: base of the wavelengths of "rope".
        norm_epsilon: added to the variance when normalising.
        attention: implementation of attention without a cache; see `genjax.nn.attention`.
            With a cache it is always "xla".
        scan_layers: keep the layers stacked and scan over them: one layer's compile time
            whatever the depth, for less speed when they are few.
        remat: what the backward pass computes again to save memory: "none"; "dots", all but
            the results of the projections; or "full", all but each layer's input.
        dtype: dtype of computation. Parameters and logits are float32.

    Raises:
        UserError: the number of key and value heads does not divide the number of heads, the
            heads do not divide the features, or a sequence is longer than `context_length`.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    num_heads: int
    hidden_size: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward_size: int | None = None
    position: Literal["learned", "rope"] = "learned"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    activation: Activation = "gelu"
    use_bias: bool = True
    tie_embeddings: bool = True
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    attention: Implementation = "auto"
    scan_layers: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the embeddings and the layers."""
        initializer = nn.initializers.normal(INITIAL_SCALE)
        self.token_embedding = self.param(
            "token_embedding", initializer, (self.vocab_size, self.hidden_size)
        )
        if self.position == "learned":
            self.position_embedding = self.param(
                "position_embedding", initializer, (self.context_length, self.hidden_size)
            )
        if self.norm == "layer_norm":
            norm = functools.partial(LayerNorm, use_bias=self.use_bias)
        else:
            norm = RMSNorm
        norm = functools.partial(norm, epsilon=self.norm_epsilon, dtype=self.dtype)
        shared = {
            "residual_scale": (2 * self.num_layers) ** -0.5,
            "use_bias": self.use_bias,
            "dtype": self.dtype,
        }
        layer = functools.partial(
            TransformerLayer,
            norm=norm,
            attention=functools.partial(
                Attention,
                num_heads=self.num_heads,
                num_kv_heads=self._num_kv_heads,
                head_dim=self._head_dim,
                implementation=self.attention,
                **shared,
            ),
            feed_forward=functools.partial(
                FeedForward,
                hidden_size=self._feed_forward_size,
                activation=self.activation,
                **shared,
            ),
            dropout=self.dropout,
        )
        self.layers: Any = (
            layer() if self.scan_layers else [layer() for _ in range(self.num_layers)]
        )
        self.final_norm = norm()
        self.embedding_dropout = nn.Dropout(self.dropout)
        if not self.tie_embeddings:
            self.output = OutputLayer(self.hidden_size, self.vocab_size)

    @property
    def _num_kv_heads(self) -> int:
        num_kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % num_kv_heads:
            raise UserError(
                f"num_kv_heads = {num_kv_heads} must divide num_heads = {self.num_heads}"
            )
        return num_kv_heads

    @property
    def _head_dim(self) -> int:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise UserError(
                f"num_heads = {self.num_heads} must divide hidden_size = {self.hidden_size}, "
                "or head_dim must be given"
            )
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def _feed_forward_size(self) -> int:
        if self.feed_forward_size is not None:
            return self.feed_forward_size
        if self.activation == "swiglu":
            return -(-8 * self.hidden_size // (3 * 8)) * 8
        return 4 * self.hidden_size

    def initial_carry(self, batch_size: int, length: int) -> Carry:
        """An empty cache for sequences of up to `length` tokens.

        Every leaf but the scalar `index`, the number of tokens read, has the batch as its first
        axis, so that beams can be reordered with one gather.

        Raises:
            UserError: `length` is more than `context_length`.
        """
        self._check_length(length)
        layers = (self.num_layers,) if self.scan_layers else ()
        shape = (batch_size, *layers, length, self._num_kv_heads, self._head_dim)

        def empty() -> dict[str, Array]:
            return {"key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype)}

        return {
            "index": jnp.zeros((), jnp.int32),
            "segment_ids": jnp.zeros((batch_size, length), jnp.int32),
            "layers": empty() if self.scan_layers else [empty() for _ in range(self.num_layers)],
        }

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        carry: Carry | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Carry | None]:
        """Features of each token after the last normalisation.

        Args:
            tokens: token ids.
            carry: None reads the sequences whole. A cache from `initial_carry` or an earlier
                call reads the tokens as the continuation of what it holds.
            segment_ids: which of several packed sequences each token belongs to, from 1;
                0 is padding. Attention stays within a segment. None means one segment.
            positions: place of each token in its sequence; None counts from the start.
            train: whether to apply dropout (needs the "dropout" random key).

        Returns:
            Features [B, T, D] and the cache after these tokens, or None without a cache.

        Raises:
            UserError: the sequence is longer than `context_length`.
        """
        batch, length = tokens.shape
        self._check_length(length)
        index = None
        pair = None if segment_ids is None else (segment_ids, segment_ids)
        if carry is not None:
            index = carry["index"]
            if segment_ids is None:
                segment_ids = jnp.ones((batch, length), jnp.int32)
            cached_ids = lax.dynamic_update_slice_in_dim(
                carry["segment_ids"], segment_ids, index, axis=1
            )
            pair = (segment_ids, cached_ids)
            carry = {**carry, "index": index + length, "segment_ids": cached_ids}
        states, angles = self._embed(tokens, index, positions)
        states = self.embedding_dropout(states, deterministic=not train)
        context = (index, pair, angles, train)
        if carry is None:
            states = self._layers_without_cache(split_time(states), context)
        else:
            states, layers = self._layers_with_cache(states, carry["layers"], context)
            carry = {**carry, "layers": layers}
        return self.final_norm(states), carry

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits of the next token, in float32."""
        kernel = self._output_kernel().astype(hidden.dtype)
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)

    def losses(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        chunk_size: int | None = None,
    ) -> Float[Array, "B T"]:
        """Cross-entropy of each target in nats; see `softmax_cross_entropy` for the chunks."""
        return softmax_cross_entropy(hidden, self._output_kernel(), None, targets, chunk_size)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        carry: Carry | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], Carry | None]:
        """Logits of the token after each token, and the cache; arguments as in `hidden`."""
        hidden, carry = self.hidden(
            tokens, carry, segment_ids=segment_ids, positions=positions, train=train
        )
        return self.logits(hidden), carry

    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of the forward pass for one token.

        Two for each multiply-add of the matrix products; embeddings, normalisations and
        element-wise work are left out. Attention is counted in full, as if each token attended
        to all `sequence_length` tokens, the common convention; causally it is half of that.
        """
        heads = self.num_heads * self._head_dim
        columns = heads + 2 * self._num_kv_heads * self._head_dim
        feed_forward = (3 if self.activation == "swiglu" else 2) * self._feed_forward_size
        projections = self.hidden_size * (columns + heads + feed_forward)
        attention_products = 2 * sequence_length * heads
        layers = self.num_layers * (projections + attention_products)
        return 2.0 * (layers + self.hidden_size * self.vocab_size)

    def _check_length(self, length: int) -> None:
        if length > self.context_length:
            raise UserError(
                f"a sequence of {length} tokens is longer than context_length = "
                f"{self.context_length}; shorten it, or train with a longer context"
            )

    def _output_kernel(self) -> Float[Array, "D V"]:
        return self.token_embedding.T if self.tie_embeddings else self.output.kernel

    def _embed(
        self, tokens: Array, index: Array | None, positions: Array | None
    ) -> tuple[Float[Array, "B T D"], Array | None]:
        """Token features with what the learned positions add, and the angles of "rope"."""
        length = tokens.shape[1]
        states = embed(self.token_embedding, tokens, self.dtype)
        if self.position == "rope":
            if positions is None:
                positions = jnp.arange(length) + (0 if index is None else index)
            return states, rotary_angles(positions, self._head_dim, self.rope_theta)
        if positions is not None:
            table = self.position_embedding
            return states + embed(table, positions, self.dtype, rows_split=False), None
        embedding = self.position_embedding.astype(self.dtype)
        start = 0 if index is None else index
        return states + lax.dynamic_slice_in_dim(embedding, start, length), None

    def _layers_without_cache(
        self, states: Float[Array, "B T D"], context: tuple[Any, ...]
    ) -> Float[Array, "B T D"]:
        def apply(layer: TransformerLayer, states: Array) -> Array:
            return layer(states, None, *context)[0]

        match self.remat:
            case "dots":
                policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
                apply = nn.remat(apply, policy=policy, prevent_cse=not self.scan_layers)
            case "full":
                apply = nn.remat(apply, prevent_cse=not self.scan_layers)
        if not self.scan_layers:
            for layer in self.layers:
                states = apply(layer, states)
            return states
        scan = nn.scan(
            lambda layer, states: (apply(layer, states), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
        )
        return scan(self.layers, states)[0]

    def _layers_with_cache(
        self, states: Float[Array, "B T D"], caches: Any, context: tuple[Any, ...]
    ) -> tuple[Float[Array, "B T D"], Any]:
        if not self.scan_layers:
            new = []
            for layer, cache in zip(self.layers, caches, strict=True):
                states, cache = layer(states, cache, *context)
                new.append(cache)
            return states, new

        # The stacked caches are carried and written in place rather than scanned over, which
        # would copy all of them at every token.
        def body(layer: TransformerLayer, loop: tuple[Any, ...], number: Array) -> tuple[Any, None]:
            states, caches = loop
            cache = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, number, axis=1, keepdims=False), caches
            )
            states, cache = layer(states, cache, *context)
            caches = jax.tree.map(
                lambda x, y: lax.dynamic_update_index_in_dim(x, y, number, axis=1), caches, cache
            )
            return (states, caches), None

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
        )
        return scan(self.layers, (states, caches), jnp.arange(self.num_layers))[0]
