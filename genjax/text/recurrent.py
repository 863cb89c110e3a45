"""Recurrent language models: stacked Elman, GRU or LSTM layers with AWD-LSTM's regularisers.

Zaremba et al. 2014, "Recurrent neural network regularization"; Merity et al. 2018, "Regularizing
and optimizing LSTM language models". Shapes: B batch, T time, D features, V vocabulary.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from genjax.errors import UserError
from genjax.nn.cross_entropy import softmax_cross_entropy
from genjax.nn.dropout import drop_connect, locked_dropout, word_mask
from genjax.nn.embedding import embed
from genjax.nn.recurrent import Implementation, elman, gru, lstm
from genjax.task import PartitionRules

Cell = Literal["lstm", "gru", "elman"]
NUM_GATES: dict[str, int] = {"lstm": 4, "gru": 3, "elman": 1}

PARTITION_RULES: PartitionRules = (
    (r"embedding/embedding$", ("tensor", "fsdp")),
    (r"layers_\d+/(input|recurrent)_kernel$", (("tensor", "fsdp"), None)),
    (r"layers_\d+/(recurrent_)?bias$", (None,)),
    (r"output/kernel$", ("fsdp", "tensor")),
    (r"output/bias$", ("tensor",)),
)
"""Mesh axes of the dimensions of each parameter, by its path.

Layers compute with kernels split by units of the state, each with its gates, which no contiguous
part of the columns is (`genjax.nn.recurrent_split`): kernels are kept in parts of their rows, and
once a step each device gets the columns of its units from the others. Vocabularies are split over
the tensor axis, in the embedding, the output layer and the loss.
"""

EMBEDDING_SCALE = 0.1


def _uniform(scale: float) -> Any:
    def initializer(
        key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return initializer


class RecurrentLayer(nn.Module):
    """One recurrent layer with its parameters; sequences are time-major.

    Attributes:
        cell: what a step computes.
        hidden_size: size of the state.
        weight_drop: share of the recurrent weights dropped in training.
        init_scale: parameters start uniform in [-init_scale, init_scale].
        forget_bias: added to the initial bias of an LSTM's forget gate.
        dtype: type of the matmuls' inputs; the state is float32.
        implementation: how an LSTM is computed, see `genjax.nn.recurrent.lstm`.
    """

    cell: Cell
    hidden_size: int
    weight_drop: float
    init_scale: float
    forget_bias: float
    dtype: DTypeLike
    implementation: Implementation | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T B D"],
        state: dict[str, Float[Array, "B H"]],
        *,
        reset: Bool[Array, "T B"] | None,
        train: bool,
    ) -> tuple[Float[Array, "T B H"], dict[str, Float[Array, "B H"]]]:
        """The hidden states of all steps and the last state."""
        width = NUM_GATES[self.cell] * self.hidden_size
        init = _uniform(self.init_scale)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], width))
        recurrent_kernel = self.param("recurrent_kernel", init, (self.hidden_size, width))
        bias = self.param("bias", self._initial_bias, (width,))
        if train and self.weight_drop:
            key = self.make_rng("dropout")
            recurrent_kernel = drop_connect(key, recurrent_kernel, self.weight_drop)
        weights = (input_kernel, recurrent_kernel, bias)
        match self.cell:
            case "lstm":
                y, h, c = lstm(
                    x,
                    state["h"],
                    state["c"],
                    *weights,
                    reset=reset,
                    compute_dtype=self.dtype,
                    implementation=self.implementation,
                )
                return y, {"h": h, "c": c}
            case "gru":
                recurrent_bias = self.param("recurrent_bias", init, (self.hidden_size,))
                y, h = gru(
                    x,
                    state["h"],
                    *weights,
                    recurrent_bias,
                    reset=reset,
                    compute_dtype=self.dtype,
                )
            case "elman":
                y, h = elman(x, state["h"], *weights, reset=reset, compute_dtype=self.dtype)
        return y, {"h": h}

    def _initial_bias(self, key: Array, shape: tuple[int, ...]) -> Float[Array, " G"]:
        bias = _uniform(self.init_scale)(key, shape)
        if self.cell != "lstm":
            return bias
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        return bias.at[forget].add(self.forget_bias)


class OutputLayer(nn.Module):
    """Parameters of the output layer; tied models have only a bias here."""

    hidden_size: int
    vocab_size: int
    tied: bool
    init_scale: float

    def setup(self) -> None:
        """Make the parameters."""
        if not self.tied:
            shape = (self.hidden_size, self.vocab_size)
            self.kernel = self.param("kernel", _uniform(self.init_scale), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))


class RecurrentLanguageModel(nn.Module):
    """Stacked recurrent layers between a word embedding and a softmax layer.

    Attributes:
        vocab_size: number of tokens.
        cell: what a step of a layer computes.
        num_layers: number of layers.
        embedding_size: features of a token's embedding.
        hidden_size: size of a layer's state. Of tied models the last layer has `embedding_size`.
        tie_embeddings: whether the output layer shares the token embedding.
        embedding_dropout: share of the vocabulary whose embeddings are dropped, wherever in the
            batch the words occur.
        input_dropout: share of embedding features dropped, the same over a sequence.
        hidden_dropout: the same between layers.
        output_dropout: the same after the last layer.
        weight_drop: share of recurrent weights dropped (DropConnect).
        init_scale: parameters start uniform in [-init_scale, init_scale]; None takes
            1 / sqrt(width of the layer) for layers and 0.1 for the embedding and output kernel.
        forget_bias: added to the initial bias of an LSTM's forget gates.
        dtype: type of computation; parameters, states and logits are float32.
        implementation: how an LSTM is computed, see `genjax.nn.recurrent.lstm`.

    Raises:
        UserError: "cudnn" was asked for with a cell other than the LSTM, or where it cannot run.
    """

    vocab_size: int
    cell: Cell = "lstm"
    num_layers: int = 2
    embedding_size: int = 650
    hidden_size: int = 650
    tie_embeddings: bool = False
    embedding_dropout: float = 0.0
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_drop: float = 0.0
    init_scale: float | None = None
    forget_bias: float = 0.0
    dtype: DTypeLike = jnp.float32
    implementation: Implementation | None = None

    def setup(self) -> None:
        """Make the embedding, the layers and the output layer."""
        if self.implementation == "cudnn" and self.cell != "lstm":
            raise UserError(
                f'implementation "cudnn" computes only cell = "lstm", not "{self.cell}"; use "scan"'
            )
        scale = EMBEDDING_SCALE if self.init_scale is None else self.init_scale
        self.embedding = nn.Embed(
            self.vocab_size, self.embedding_size, embedding_init=_uniform(scale)
        )
        self.layers = [
            RecurrentLayer(
                self.cell,
                size,
                self.weight_drop,
                size**-0.5 if self.init_scale is None else self.init_scale,
                self.forget_bias,
                self.dtype,
                self.implementation,
            )
            for size in self._layer_sizes
        ]
        self.output = OutputLayer(
            self._layer_sizes[-1], self.vocab_size, self.tie_embeddings, scale
        )

    @property
    def context_length(self) -> int | None:
        """None: a recurrent model reads sequences of any length."""
        return None

    @property
    def _layer_sizes(self) -> list[int]:
        last = self.embedding_size if self.tie_embeddings else self.hidden_size
        return [self.hidden_size] * (self.num_layers - 1) + [last]

    def initial_carry(self, batch_size: int, length: int = 0) -> list[dict[str, Array]]:
        """Zero states, batch first; `length` has no meaning for a recurrent model."""
        names = ("h", "c") if self.cell == "lstm" else ("h",)
        return [
            {name: jnp.zeros((batch_size, size), jnp.float32) for name in names}
            for size in self._layer_sizes
        ]

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        carry: list[dict[str, Array]] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], list[dict[str, Array]]]:
        """Features of each token after the last layer, and the state after the last token.

        Args:
            tokens: token ids.
            carry: the state to go on from; None starts from zeros.
            segment_ids: which of several packed sequences each token belongs to. The state
                starts from zeros where the id changes; the first token of a row goes on from
                `carry`. None means one sequence a row.
            positions: no meaning for a recurrent model.
            train: whether to drop (needs the "dropout" random key).
        """
        if carry is None:
            carry = self.initial_carry(len(tokens))
        reset = None
        if segment_ids is not None:
            starts = segment_ids[:, 1:] != segment_ids[:, :-1]
            reset = jnp.pad(starts, ((0, 0), (1, 0))).T
        time_major = tokens.T
        x = embed(self.embedding.embedding, time_major, self.dtype, time_major=True)
        if train and self.embedding_dropout:
            mask = word_mask(self.make_rng("dropout"), self.vocab_size, self.embedding_dropout)
            x = x * jnp.take(mask, time_major)[..., None].astype(x.dtype)
        x = self._dropped(x, self.input_dropout, train)
        states = []
        for number, (layer, state) in enumerate(zip(self.layers, carry, strict=True)):
            if number > 0:
                x = self._dropped(x, self.hidden_dropout, train)
            x, state = layer(x, state, reset=reset, train=train)
            x = x.astype(self.dtype)
            states.append(state)
        return self._dropped(x, self.output_dropout, train).swapaxes(0, 1), states

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits of the next token, in float32."""
        kernel = self._output_kernel().astype(hidden.dtype)
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32) + self.output.bias

    def losses(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        chunk_size: int | None = None,
    ) -> Float[Array, "B T"]:
        """Cross-entropy of each target in nats; see `softmax_cross_entropy` for the chunks."""
        kernel, bias = self._output_kernel(), self.output.bias
        return softmax_cross_entropy(hidden, kernel, bias, targets, chunk_size)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        carry: list[dict[str, Array]] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], list[dict[str, Array]]]:
        """Logits of the token after each token, and the last state; arguments as in `hidden`."""
        hidden, carry = self.hidden(
            tokens, carry, segment_ids=segment_ids, positions=positions, train=train
        )
        return self.logits(hidden), carry

    def flops_per_token(self, sequence_length: int = 1) -> float:
        """Floating-point operations of the forward pass for one token.

        Two for each multiply-add of the matrix products; look-ups and element-wise work are left
        out. `sequence_length` does not change it: a step costs the same wherever it stands.
        """
        input_sizes = [self.embedding_size, *self._layer_sizes[:-1]]
        products = sum(
            NUM_GATES[self.cell] * size * (input_size + size)
            for input_size, size in zip(input_sizes, self._layer_sizes, strict=True)
        )
        return 2.0 * (products + self._layer_sizes[-1] * self.vocab_size)

    def _output_kernel(self) -> Float[Array, "D V"]:
        return self.embedding.embedding.T if self.tie_embeddings else self.output.kernel

    def _dropped(self, x: Float[Array, "T B D"], rate: float, train: bool) -> Array:
        return locked_dropout(self.make_rng("dropout"), x, rate) if train and rate else x
