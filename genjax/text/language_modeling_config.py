"""Config of a language-model run, and of a request to one for text."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from genjax.config import Config
from genjax.data.text_batches import BatchingConfig, Documents, Windows
from genjax.data.text_sources import BuiltinText, TextSourceConfig
from genjax.errors import UserError
from genjax.optim import AdamWConfig, OptimizerConfig
from genjax.run_config import EvaluationTiming, RunConfig, SampleTiming
from genjax.task import Task
from genjax.text.logits import Sampling
from genjax.text.model_config import ModelConfig, RecurrentConfig, TransformerConfig
from genjax.text.tokenizers import BytesConfig, TokenizerConfig

Protocol = Literal["chunks", "sliding", "streams", "documents"]


class TextDataConfig(Config):
    """The text, its tokens and how batches are cut from them."""

    source: TextSourceConfig = BuiltinText()
    """Where the text comes from."""
    tokenizer: TokenizerConfig = BytesConfig()
    """How text becomes tokens."""
    batching: BatchingConfig = Windows()
    """How batches are cut from the tokens."""


class TextEvaluationConfig(EvaluationTiming):
    """What the evaluation measures, over the whole split."""

    split: str = "validation"
    """Which split of the data."""
    protocol: Literal["auto"] | Protocol = "auto"
    """What a token is predicted from: windows side by side, overlapping windows, streams with
    carried recurrent state, or its own document. "auto": documents if trained on them, streams
    for recurrent networks, chunks for transformers."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between sliding windows; half a window by default. Fewer give more context."""
    batch_size: int | None = Field(default=None, ge=1)
    """Sequences in a batch; as in training by default. It changes streams' figures only."""
    sequence_length: int | None = Field(default=None, ge=1)
    """Tokens of a window; as in training by default."""


class _SamplingConfig(Config):
    max_tokens: int = Field(default=200, ge=1)
    """Tokens to add to each prompt at most."""
    temperature: float = Field(default=0.8, ge=0.0)
    """Divides the logits; 0 takes the most likely token each time (greedy)."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep this many most likely tokens."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Keep the fewest most likely tokens with this probability together (nucleus)."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Keep tokens at least this many times as likely as the most likely one."""
    typical: float | None = Field(default=None, gt=0.0, le=1.0)
    """Keep the fewest most typical tokens with this probability together."""
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    """Divide the logits of tokens already used by this, above 1 to discourage them."""
    block_repeated_ngrams: int | None = Field(default=None, ge=1)
    """Never repeat a sequence of this many tokens."""

    def sampling(self) -> Sampling:
        """The transforms of the logits that the fields ask for."""
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.typical,
            self.repetition_penalty,
            self.block_repeated_ngrams,
        )


class TextGenerationConfig(_SamplingConfig):
    """A request for text."""

    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    prompt_file: Path | None = None
    """A UTF-8 file with one prompt a line."""
    count: int = Field(default=1, ge=1)
    """Samples for each prompt."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are not shown."""

    def prompts(self) -> list[str]:
        """All prompts; a single empty one if none is given.

        Raises:
            UserError: the file cannot be read as UTF-8 text.
        """
        lines: list[str] = []
        if self.prompt_file is not None:
            try:
                text = self.prompt_file.read_text(encoding="utf-8")
                lines = [line for line in text.split("\n") if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise UserError(
                    f"prompt_file: {self.prompt_file} cannot be read ({reason}); "
                    "give a UTF-8 text file with one prompt a line"
                ) from error
        return [*self.prompt, *lines] or [""]


class TextSamplesConfig(SampleTiming, _SamplingConfig):
    """What is written during training, to be looked at."""

    prompts: tuple[str, ...] = ("",)
    """Texts to continue."""

    def request(self) -> TextGenerationConfig:
        """The same as a request."""
        fields = self.model_dump(exclude={"every", "prompts"})
        return TextGenerationConfig(prompt=self.prompts, **fields)


class LanguageModelingConfig(RunConfig):
    """A language model: text, network, optimizer."""

    kind: Literal["language_modeling"] = "language_modeling"
    """Predict the next token of a text."""
    data: TextDataConfig = TextDataConfig()
    """The text, its tokens and how batches are cut from them."""
    model: ModelConfig = TransformerConfig()
    """The network."""
    optimizer: OptimizerConfig = AdamWConfig()
    """How the parameters are fitted."""
    evaluation: TextEvaluationConfig = TextEvaluationConfig()
    """What is measured during training, when, and by `tools.evaluate`."""
    samples: TextSamplesConfig = TextSamplesConfig()
    """What is written during training, to be looked at."""

    def make_task(self, assets: Path | None = None) -> Task:
        """The task of this config; see `RunConfig.make_task`."""
        from genjax.text.language_modeling import LanguageModeling

        return LanguageModeling(self, assets)

    def rehearsal_task(self) -> Task:
        """The same without its text; see `StandInText` for what is assumed of it."""
        from genjax.text.language_modeling import LanguageModeling
        from genjax.text.stand_in_text import StandInText

        return LanguageModeling(self, data=StandInText(self.data))

    def generation_schema(self) -> type[Config]:
        """Prompts and sampling."""
        return TextGenerationConfig

    def evaluation_every(self) -> int | None:
        """Steps between evaluations."""
        return self.evaluation.every

    def samples_every(self) -> int | None:
        """Steps between samples."""
        return self.samples.every

    def evaluation_protocol(self) -> Protocol:
        """The protocol of the evaluation, with "auto" decided.

        Raises:
            UserError: the protocol does not fit the network or the data.
        """
        recurrent = isinstance(self.model, RecurrentConfig)
        documents = isinstance(self.data.batching, Documents)
        match self.evaluation.protocol:
            case "auto":
                return "documents" if documents else "streams" if recurrent else "chunks"
            case "streams" if not recurrent:
                raise UserError(
                    'evaluation.protocol: "streams" carries a recurrent state, which a transformer '
                    'has not; use "sliding" for long contexts'
                )
            case protocol:
                return protocol

    def check_context(self, context_length: int, sequence_length: int | None = None) -> None:
        """Check that sequences fit the network's context.

        Raises:
            UserError: they do not; names both lengths.
        """
        asked = sequence_length or self.data.batching.sequence_length
        if asked > context_length:
            raise UserError(
                f"a sequence of {asked} tokens is longer than the model's context_length of "
                f"{context_length}; shorten the sequence or raise model.context_length"
            )
