"""Language modelling: predict the next token. Transformers and recurrent networks alike.

Letters: B batch, T time, V vocabulary.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from genjax import optim
from genjax.config import Config
from genjax.data.text_batches import Documents, Streams, training_dataset
from genjax.data.text_evaluation import (
    evaluation_chunks,
    evaluation_documents,
    evaluation_sliding,
    evaluation_streams,
)
from genjax.errors import UserError
from genjax.parallel.mesh import BATCH_AXES, SEQUENCE_AXIS
from genjax.task import Batch, Evaluation, PartitionRules, Shard, Task, TextSample, TrainState
from genjax.text import ngram
from genjax.text.decoding import generate_text
from genjax.text.language_modeling_config import (
    LanguageModelingConfig,
    TextGenerationConfig,
)
from genjax.text.text_data import TextData

FIGURES = ("nats_per_token", "perplexity", "bits_per_byte", "bits_per_character")
"""The figures of an evaluation, lower is better, as `checkpoint.best_metric` may name them."""

NETWORK = "language_model"
"""The name of the one network in the train state's dicts."""


class LanguageModeling(Task):
    """Next-token prediction with the loss in nats, averaged over the targets that count."""

    def __init__(
        self,
        config: LanguageModelingConfig,
        assets: Path | None = None,
        data: TextData | None = None,
    ) -> None:
        """Make the model of a config.

        Args:
            config: the run's config.
            assets: what an existing run saved; None makes the tokenizer from the data.
            data: the text and its tokenizer; those of the config by default.

        Raises:
            UserError: the data or the tokenizer is missing or does not fit the config.
        """
        config.check_best_metric(FIGURES)
        self.config = config
        self.data = data or TextData(
            config.data, with_end_of_text=isinstance(config.data.batching, Documents), assets=assets
        )
        batching = config.data.batching
        self.batch_size, self.sequence_length = batching.batch_size, batching.sequence_length
        self.model = config.model.make(self.data.tokenizer.vocab_size, self.sequence_length)
        if self.model.context_length is not None:
            config.check_context(self.model.context_length)
        self.carried = isinstance(batching, Streams) and self.model.context_length is None
        self.optimizer = optim.make_optimizer(config.optimizer, config.steps)
        self.schedule = optim.make_schedule(config.optimizer, config.steps)
        self.partition_rules: PartitionRules = (
            (r"^carry/", (BATCH_AXES, None)),
            *config.model.partition_rules,
        )

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """See `Task.check_mesh`: time is split for transformers alone, and into equal parts."""
        ways = sizes[SEQUENCE_AXIS]
        if ways == 1:
            return
        if self.model.context_length is None:
            raise UserError(
                f"mesh.sequence = {ways}: a recurrent network reads one token after another, so "
                "devices cannot share a sequence; use mesh.data or mesh.fsdp instead"
            )
        lengths = {
            "data.batching.sequence_length": self.sequence_length,
            "evaluation.sequence_length": self.config.evaluation.sequence_length or 0,
        }
        for name, length in lengths.items():
            # Twice as many parts as devices: each takes an early one and a late one.
            if length % (2 * ways):
                raise UserError(
                    f"mesh.sequence = {ways}: {name} = {length} is not a multiple of {2 * ways}; "
                    "change one of the two"
                )

    # ---- training -----------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Fresh parameters; the recurrent state of streams starts at zero."""
        init_key, run_key = jax.random.split(key)
        tokens = jnp.zeros((1, min(self.sequence_length, 8)), jnp.int32)
        # The parameters are the same, and every backend can make them, for any length.
        model = self.model.clone(**self.config.model.portable)
        params = model.init(init_key, tokens)["params"]
        average = {NETWORK: params} if self.config.optimizer.ema_decay else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params={NETWORK: params},
            opt_state={NETWORK: self.optimizer.init(params)},
            ema=jax.tree.map(jnp.copy, average),
            carry=self._fresh_carry(self.batch_size) if self.carried else {},
            key=run_key,
        )

    def train_step(
        self, state: TrainState, batch: Batch, variant: Hashable = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step on {"inputs", "targets"} [B, T]; see `genjax.data.text_batches`."""
        del variant
        params = state.params[NETWORK]

        def gradients(part: Batch, carry: Any, key: Array) -> tuple[Any, Any]:
            def total_nats(params: Any) -> tuple[Array, tuple[Array, Any]]:
                nats, next_carry = self._nats(params, part, carry, dropout_key=key)
                weights = _weights(part)
                return jnp.sum(nats * weights), (jnp.sum(weights), next_carry)

            (nats, (count, next_carry)), grads = jax.value_and_grad(total_nats, has_aux=True)(
                params
            )
            return (nats, count, grads), next_carry

        (nats, count, grads), carry = optim.accumulate(
            gradients, self.config.optimizer.accumulate, batch, state.carry, state.step_key()
        )
        count = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda leaf: leaf / count, grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state[NETWORK], params)
        params = optax.apply_updates(params, updates)
        average = {
            name: optim.update_average(old, params, self.config.optimizer.ema_decay)
            for name, old in state.ema.items()
        }
        metrics = {
            "loss": nats / count,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self.schedule(state.step),
        }
        next_state = TrainState(
            step=state.step + 1,
            params={NETWORK: params},
            opt_state={NETWORK: opt_state},
            ema=average,
            carry=carry,
            key=state.key,
        )
        return next_state, metrics

    def _nats(
        self, params: Any, batch: Batch, carry: dict[str, Any], dropout_key: Array | None = None
    ) -> tuple[Float[Array, "B T"], dict[str, Any]]:
        """Cross-entropy of each target in nats, and the carry for the next batch."""
        recurrent_state = None
        if carry:
            recurrent_state = carry[NETWORK]
            if "reset" in batch:
                recurrent_state = _reset_rows(recurrent_state, batch["reset"])
        train = dropout_key is not None
        variables = {"params": params}
        hidden, recurrent_state = self.model.apply(
            variables,
            batch["inputs"],
            recurrent_state,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            train=train,
            rngs={"dropout": dropout_key} if train else None,
            method="hidden",
        )
        nats: Any = self.model.apply(
            variables, hidden, batch["targets"], self.config.model.loss_chunk, method="losses"
        )
        return nats, {NETWORK: recurrent_state} if carry else {}

    def _fresh_carry(self, batch_size: int) -> dict[str, Any]:
        return {NETWORK: self.model.initial_carry(batch_size, 0)}

    def dataset(self, split: str, shard: Shard) -> grain.MapDataset:
        """Endless batches of a split, as `data.batching` says.

        Raises:
            UserError: the text is too short, or has not the characters of `samples.prompts`, which
                training would find out at its first sample.
        """
        for prompt in self.config.samples.prompts:
            try:
                self.data.tokenizer.encode(prompt)
            except UserError as error:
                raise UserError(f"samples.prompts: {error}") from error
        return training_dataset(
            self.data.corpus(split),
            self.config.data.batching,
            self.config.seed,
            process_index=shard.index,
            process_count=shard.count,
        )

    # ---- evaluation ---------------------------------------------------------------------------

    def evaluation(self, shard: Shard) -> Evaluation:
        """The whole split of `evaluation.split` under the protocol of `evaluation.protocol`."""
        config = self.config.evaluation
        corpus = self.data.corpus(config.split)
        batch_size = config.batch_size or self.batch_size
        length = config.sequence_length or self.sequence_length
        if self.model.context_length is not None:
            self.config.check_context(self.model.context_length, length)
        rows = {"process_index": shard.index, "process_count": shard.count}
        carry = {}
        match self.config.evaluation_protocol():
            case "chunks":
                batches = evaluation_chunks(corpus.tokens, batch_size, length, **rows)
            case "sliding":
                stride = config.stride or max(length // 2, 1)
                batches = evaluation_sliding(corpus.tokens, batch_size, length, stride, **rows)
            case "documents":
                batches = evaluation_documents(corpus, batch_size, length, **rows)
            case "streams":
                batches = evaluation_streams(corpus.tokens, batch_size, length, **rows)
                carry = self._fresh_carry(batch_size)
        average = self.config.optimizer.ema_decay
        protocol = batches.protocol + (f", parameters averaged by {average:g}" if average else "")
        # Its own name in the log, where "train" is what the training steps report.
        name = "training_text" if config.split == "train" else config.split
        return Evaluation(name, protocol, batches, carry)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Array]]:
        """Sums of nats, tokens, bytes and characters over the targets that count."""
        params = state.evaluation_params()[NETWORK]
        nats, carry = self._nats(params, batch, state.carry)
        weights, targets = _weights(batch), batch["targets"]
        tokenizer = self.data.tokenizer
        return carry, {
            "nats": jnp.sum(nats * weights),
            "tokens": jnp.sum(weights),
            "bytes": jnp.sum(jnp.asarray(tokenizer.token_bytes)[targets] * weights),
            "characters": jnp.sum(jnp.asarray(tokenizer.token_characters)[targets] * weights),
        }

    def figures(self, sums: dict[str, Any]) -> dict[str, float]:
        """Nats and perplexity a token; bits a byte and a character."""
        return _figures(*(float(sums[name]) for name in ("nats", "tokens", "bytes", "characters")))

    def baselines(self) -> list[dict[str, Any]]:
        """Uniform, unigram, bigram and trigram models, counted on the training tokens.

        They score the tokens that the evaluation scores.
        """
        train = self.data.corpus("train").tokens
        held_out = self.data.corpus(self.config.evaluation.split)
        tokenizer = self.data.tokenizer
        scored = np.ones(len(held_out.tokens) - 1, np.bool_)
        if self.config.evaluation_protocol() == "documents":
            scored[held_out.offsets[1:-1] - 1] = False
        targets = np.asarray(held_out.tokens[1:], np.int64)[scored]
        size = int(tokenizer.token_bytes[targets].sum())
        characters = int(tokenizer.token_characters[targets].sum())
        return [
            {"name": name, **_figures(nats * len(targets), len(targets), size, characters)}
            for name, nats in ngram.baselines(train, held_out.tokens, tokenizer.vocab_size, scored)
        ]

    # ---- generation ---------------------------------------------------------------------------

    def generate(
        self, state: TrainState, key: Key[Array, ""], request: Config
    ) -> Iterator[TextSample]:
        """Each prompt with its continuation, `count` times, in pieces as they come."""
        assert isinstance(request, TextGenerationConfig)
        prompts = [prompt for prompt in request.prompts() for _ in range(request.count)]
        for index, prompt in enumerate(prompts):
            yield TextSample(index=index, text=prompt, done=False)
        yield from generate_text(
            self.model,
            state.evaluation_params()[NETWORK],
            self.data.tokenizer,
            prompts,
            key=key,
            max_tokens=request.max_tokens,
            sampling=request.sampling(),
            stop=request.stop,
        )

    def samples(self, state: TrainState, key: Key[Array, ""]) -> Iterable[TextSample]:
        """The continuation of each prompt of `samples.prompts`, prompt included."""
        texts: dict[int, str] = {}
        for piece in self.generate(state, key, self.config.samples.request()):
            texts[piece.index] = texts.get(piece.index, "") + piece.text
        return [TextSample(index=index, text=text) for index, text in texts.items()]

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer and the fingerprint of the text."""
        self.data.save(folder)

    # ---- counts -------------------------------------------------------------------------------

    def units_per_step(self) -> dict[str, int]:
        """Tokens read in a step."""
        return {"tokens": self.batch_size * self.sequence_length}

    def flops_per_step(self) -> float:
        """Three times the forward pass: the backward pass has two products for each of its one."""
        per_token = self.model.flops_per_token(self.sequence_length)
        return 3.0 * per_token * self.batch_size * self.sequence_length


def _weights(batch: Batch) -> Float[Array, "B T"]:
    """1 for each target that counts."""
    if "weights" in batch:
        return batch["weights"]
    return jnp.ones(batch["targets"].shape, jnp.float32)


def _reset_rows(state: Any, reset: Array) -> Any:
    """Recurrent state [B, ..] with the rows that begin a new text set to zero."""

    def rows(leaf: Array) -> Array:
        return jnp.where(reset.reshape(-1, *(1,) * (leaf.ndim - 1)), jnp.zeros_like(leaf), leaf)

    return jax.tree.map(rows, state)


def _figures(nats: float, tokens: float, size: float, characters: float) -> dict[str, float]:
    bits = nats / np.log(2.0)
    return {
        "nats_per_token": nats / tokens,
        "perplexity": float(np.exp(nats / tokens)),
        "bits_per_byte": float(bits / max(size, 1)),
        "bits_per_character": float(bits / max(characters, 1)),
        "tokens": tokens,
    }
