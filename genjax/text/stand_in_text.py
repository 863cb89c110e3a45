"""Tokens of the shape that a config asks for, without a text: for rehearsals."""

from typing import Any

import numpy as np
from jaxtyping import Int32

from genjax.data.text_batches import Corpus, Documents
from genjax.errors import UserError
from genjax.text.language_modeling_config import TextDataConfig
from genjax.text.text_data import TextData
from genjax.text.tokenizers import (
    BpeConfig,
    BytesConfig,
    ByteTokenizer,
    CharactersConfig,
    Tokenizer,
    train_tokenizer,
)


class _SizedTokenizer(Tokenizer):
    """A vocabulary of a size, to which any text is one token again and again."""

    def __init__(self, vocab_size: int, *, with_end_of_text: bool) -> None:
        super().__init__([b""] * vocab_size, with_end_of_text=with_end_of_text)

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        return np.zeros(len(text), np.int32)

    def _content(self) -> dict[str, Any]:
        raise NotImplementedError("what stands in for a tokenizer is not saved")


class StandInText(TextData):
    """Tokens that are all the same, enough of them for a batch.

    A BPE vocabulary is taken to be as large as `vocab_size` asks; a small text may fill less.
    Characters are those of the text itself, which is read for them.
    """

    def __init__(self, config: TextDataConfig) -> None:
        """Find the size of the vocabulary.

        Raises:
            UserError: it is that of a text which is not there.
        """
        self._config = config
        with_end_of_text = isinstance(config.batching, Documents)
        match config.tokenizer:
            case BytesConfig():
                self.tokenizer = ByteTokenizer(with_end_of_text=with_end_of_text)
            case BpeConfig(vocab_size=size):
                self.tokenizer = _SizedTokenizer(size, with_end_of_text=with_end_of_text)
            case CharactersConfig():
                try:
                    self.tokenizer = train_tokenizer(
                        config.tokenizer, self.source, with_end_of_text=with_end_of_text
                    )
                except UserError as error:
                    raise UserError(
                        'data.tokenizer.kind = "characters": the size of the vocabulary is that of '
                        f"the text, and it cannot be read:\n{error}\n"
                        'Or rehearse with data.tokenizer.kind="bytes".'
                    ) from error

    def corpus(self, split: str) -> Corpus:
        """One document, long enough for a batch; every split is the same."""
        del split
        batching = self._config.batching
        count = batching.batch_size * batching.sequence_length + 1
        # A view of one zero: a corpus of any size costs nothing.
        return Corpus(np.broadcast_to(np.uint16(0), (count,)), np.array([0, count], np.int64))
