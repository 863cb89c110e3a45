"""Config of language models, and the Flax modules made from it."""

from typing import Annotated, Any, Literal

import jax.numpy as jnp
from pydantic import Field

from genjax.config import Config
from genjax.task import PartitionRules
from genjax.text import recurrent, transformer
from genjax.text.recurrent import RecurrentLanguageModel
from genjax.text.transformer import Transformer

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Dtype = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class TransformerConfig(Config):
    """A decoder-only transformer. The defaults are GPT-2's form.

    The modern form is position = "rope", norm = "rms_norm", activation = "swiglu",
    use_bias = false, and fewer num_kv_heads than num_heads.
    """

    kind: Literal["transformer"] = "transformer"
    """Attention over the whole context."""
    num_layers: int = Field(default=4, ge=1)
    """Number of layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads, shared by groups of heads; as many as heads by default."""
    hidden_size: int = Field(default=128, ge=1)
    """Features of a token."""
    head_dim: int | None = Field(default=None, ge=1)
    """Features of a head; hidden_size / num_heads by default."""
    feed_forward_size: int | None = Field(default=None, ge=1)
    """Features inside the feed-forward network; 4 x hidden_size, for swiglu 8/3, by default."""
    context_length: int | None = Field(default=None, ge=1)
    """The longest context in tokens; data.batching.sequence_length by default."""
    position: Literal["learned", "rope"] = "learned"
    """A learned vector for each position, or rotary positions."""
    rope_theta: float = Field(default=10_000.0, gt=0.0)
    """Base of the wavelengths of rotary positions."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Normalisation before each sub-layer."""
    activation: Literal["gelu", "gelu_exact", "swiglu"] = "gelu"
    """Feed-forward activation; "gelu" is the tanh form of GPT-2."""
    use_bias: bool = True
    """Biases in projections and layer normalisations."""
    tie_embeddings: bool = True
    """Share the token embedding with the output layer."""
    dropout: Share = 0.0
    """Share of features dropped after the embedding and each sub-layer in training."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Implementation of attention; "auto" takes Splash on TPUs, cuDNN on GPUs in bfloat16
    unless documents are packed, else plain XLA, which holds the scores of all pairs; where
    mesh.sequence splits time, ring attention. A named one gathers all of time there."""
    scan_layers: bool = False
    """Compile one layer and scan over them: for deep models."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again to save memory."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters stay float32."""
    loss_chunk: int | None = Field(default=None, ge=1)
    """Compute the loss for this many tokens at a time, to save the memory of their logits."""

    def make(self, vocab_size: int, sequence_length: int) -> Transformer:
        """The module of this config."""
        return Transformer(
            vocab_size=vocab_size,
            context_length=self.context_length or sequence_length,
            dtype=_DTYPES[self.dtype],
            **self.model_dump(exclude={"kind", "context_length", "dtype", "loss_chunk"}),
        )

    @property
    def portable(self) -> dict[str, Any]:
        """Fields of the module with which it computes the same on any backend."""
        return {"attention": "xla"}

    @property
    def partition_rules(self) -> PartitionRules:
        """How the parameters shard."""
        return transformer.PARTITION_RULES


class RecurrentConfig(Config):
    """A recurrent network with the regularisers of AWD-LSTM (Merity et al. 2018)."""

    kind: Literal["rnn", "lstm", "gru"] = "lstm"
    """Elman RNN, LSTM or GRU."""
    num_layers: int = Field(default=2, ge=1)
    """Number of layers."""
    hidden_size: int = Field(default=256, ge=1)
    """Features of a layer's state."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Features of an embedded token; hidden_size by default."""
    tie_embeddings: bool = False
    """Share the embedding with the output layer; the last layer then has embedding_size units."""
    embedding_dropout: Share = 0.0
    """Share of token kinds whose embedding is dropped, the same for a whole batch."""
    input_dropout: Share = 0.0
    """Share of embedded features dropped, the same at every time (locked)."""
    hidden_dropout: Share = 0.0
    """Share of features dropped between layers, locked over time."""
    output_dropout: Share = 0.0
    """Share of the last layer's features dropped, locked over time."""
    weight_drop: Share = 0.0
    """Share of recurrent weights dropped in each step (DropConnect)."""
    init_scale: float | None = Field(default=None, gt=0.0)
    """Initialise uniformly in plus or minus this; by default 1 / sqrt(hidden_size), and 0.1 for
    the embedding and the output layer."""
    forget_bias: float = 0.0
    """Added to the initial bias of the LSTM's forget gate."""
    implementation: Literal["auto", "scan", "cudnn"] = "auto"
    """Kernel of the layer; "auto" takes cuDNN for a float32 LSTM on GPUs."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters and the LSTM's cell state stay float32."""
    loss_chunk: int | None = Field(default=None, ge=1)
    """Compute the loss for this many tokens at a time, to save the memory of their logits."""

    def make(self, vocab_size: int, sequence_length: int) -> RecurrentLanguageModel:
        """The module of this config; the length of training sequences does not matter to it."""
        del sequence_length
        return RecurrentLanguageModel(
            vocab_size=vocab_size,
            cell="elman" if self.kind == "rnn" else self.kind,
            embedding_size=self.embedding_size or self.hidden_size,
            implementation=None if self.implementation == "auto" else self.implementation,
            dtype=_DTYPES[self.dtype],
            **self.model_dump(
                exclude={"kind", "embedding_size", "implementation", "dtype", "loss_chunk"}
            ),
        )

    @property
    def portable(self) -> dict[str, Any]:
        """Fields of the module with which it computes the same on any backend."""
        return {"implementation": "scan"}

    @property
    def partition_rules(self) -> PartitionRules:
        """How the parameters shard."""
        return recurrent.PARTITION_RULES


ModelConfig = Annotated[TransformerConfig | RecurrentConfig, Field(discriminator="kind")]
