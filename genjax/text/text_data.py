"""The text of a run as tokens, read when it is first needed."""

import functools
import json
from pathlib import Path

from genjax.data.text_batches import Corpus
from genjax.data.text_documents import TextSource
from genjax.data.text_sources import open_text
from genjax.errors import UserError
from genjax.text.language_modeling_config import TextDataConfig
from genjax.text.tokenizers import Tokenizer, load_tokenizer, tokenize, train_tokenizer

_TOKENIZER = "tokenizer.json"
_FINGERPRINT = "text.json"


class TextData:
    """A source of text and its tokenizer; a run that exists brings its own tokenizer."""

    def __init__(
        self, config: TextDataConfig, *, with_end_of_text: bool, assets: Path | None
    ) -> None:
        """Take the tokenizer from `assets`, or make it from the text.

        The text of a run that exists must be the one that it began with, unless `config` names
        another source than the run's.

        Args:
            config: source and tokenizer.
            with_end_of_text: whether a token marks the end of each document.
            assets: the folder that `save` wrote, or None.
        """
        self._config = config
        self._corpora: dict[str, Corpus] = {}
        self._fingerprint: str | None = None
        if assets is None:
            self.tokenizer: Tokenizer = train_tokenizer(
                config.tokenizer, self.source, with_end_of_text=with_end_of_text
            )
        else:
            self.tokenizer = load_tokenizer(assets / _TOKENIZER)
            self._fingerprint = _saved_fingerprint(assets / _FINGERPRINT, config)

    @functools.cached_property
    def source(self) -> TextSource:
        """The opened source."""
        return open_text(self._config.source)

    def corpus(self, split: str) -> Corpus:
        """The tokens of a split.

        Raises:
            UserError: the text is not the one that the run was started with, or has no such split.
        """
        if self._fingerprint not in (None, self.source.fingerprint):
            raise UserError(
                f"data.source: the text of {self.source.name} has changed since the run began, and "
                f"the run's tokenizer ({self.tokenizer.vocab_size} tokens) was made from the old "
                "text\nbring the old text back, or start anew with another --workdir"
            )
        if split not in self._corpora:
            self._corpora[split] = tokenize(self.tokenizer, self.source.documents(split))
        return self._corpora[split]

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the text's fingerprint."""
        self.tokenizer.save(folder / _TOKENIZER)
        content = {
            "source": self.source.name,
            "sha256": self.source.fingerprint,
            "config": self._config.source.model_dump(mode="json"),
        }
        (folder / _FINGERPRINT).write_text(json.dumps(content, indent=2) + "\n")


def _saved_fingerprint(path: Path, config: TextDataConfig) -> str | None:
    """The fingerprint of the run's text; None if the config asks for another text on purpose.

    Raises:
        UserError: the file is missing or not what `TextData.save` wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = str(content["sha256"])
        asked = config.source.model_dump(mode="json")
        return fingerprint if content.get("config", asked) == asked else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}).\n"
            "It is written at the start of a run; restore it from a copy, or start the run again."
        ) from error
