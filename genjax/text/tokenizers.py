"""Text to token ids and back: bytes, characters, byte-level BPE.

Every tokenizer stands on one table: the bytes that each id is written as. Decoding and the counts
that turn nats per token into bits per byte and per character follow from it.

V vocabulary, N tokens.
"""

import codecs
import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int32, Integer
from pydantic import Field

from genjax.config import Config
from genjax.data.text_batches import Corpus
from genjax.data.text_documents import TextSource
from genjax.errors import UserError

_BYTES = 256
_DOCUMENTS_PER_CALL = 1024
_NAMED_IN_ERROR = 10


class BytesConfig(Config):
    """The 256 bytes of UTF-8: nothing to train, nothing unknown."""

    kind: Literal["bytes"] = "bytes"


class CharactersConfig(Config):
    """The characters that occur in the text, all splits together, in code point order."""

    kind: Literal["characters"] = "characters"


class BpeConfig(Config):
    """Byte-level byte pair encoding, trained on the training split; nothing is unknown to it."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(gt=_BYTES)] = 4096
    """Ids to learn, the 256 bytes among them; a small text may fill fewer."""


TokenizerConfig = Annotated[BytesConfig | CharactersConfig | BpeConfig, Field(discriminator="kind")]


class Tokenizer(ABC):
    """What all tokenizers share.

    Attributes:
        pieces: [V] the bytes that each id stands for; those of the end of text are empty.
        end_of_text: Id that ends a document, the last of the vocabulary; None where there is none.
            No text encodes to it.
    """

    def __init__(self, pieces: Sequence[bytes], *, with_end_of_text: bool) -> None:
        self.end_of_text: int | None = len(pieces) if with_end_of_text else None
        self.pieces: tuple[bytes, ...] = (*pieces, b"") if with_end_of_text else tuple(pieces)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end of text among them."""
        return len(self.pieces)

    @functools.cached_property
    def token_bytes(self) -> Int32[np.ndarray, " V"]:
        """[V] UTF-8 bytes that each id stands for."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int32)

    @functools.cached_property
    def token_characters(self) -> Int32[np.ndarray, " V"]:
        """[V] characters that begin in each id, so that sums over a text are exact."""
        counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        return np.array(counts, dtype=np.int32)

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """Token ids of a text, without an end of text.

        Raises:
            UserError: The text has something that the vocabulary cannot write.
        """

    def encode_many(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """Token ids of each text."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int] | Integer[np.ndarray, " N"]) -> bytes:
        """The bytes that ids stand for; the end of text stands for none."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return b"".join([self.pieces[token] for token in listed])

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " N"]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        """Writes the tokenizer as one JSON file, for `load_tokenizer`."""
        content = self._content() | {"end_of_text": self.end_of_text is not None}
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """The kind, and what distinguishes this tokenizer from others of its kind."""


class ByteTokenizer(Tokenizer):
    """Ids are the bytes of UTF-8."""

    def __init__(self, *, with_end_of_text: bool = False) -> None:
        super().__init__(
            [bytes([byte]) for byte in range(_BYTES)], with_end_of_text=with_end_of_text
        )

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """UTF-8 bytes of a text."""
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int32)

    def _content(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharacterTokenizer(Tokenizer):
    """Ids number a fixed set of characters in code point order."""

    def __init__(self, characters: str, *, with_end_of_text: bool = False) -> None:
        self.characters = "".join(sorted(set(characters)))
        points = _code_points(self.characters)
        # One more entry than the highest known character: everything above it is clipped there.
        self._ids = np.full(int(points.max(initial=0)) + 2, -1, dtype=np.int32)
        self._ids[points] = np.arange(len(points), dtype=np.int32)
        super().__init__(
            [character.encode("utf-8") for character in self.characters],
            with_end_of_text=with_end_of_text,
        )

    @staticmethod
    def train(texts: Iterable[str], *, with_end_of_text: bool = False) -> "CharacterTokenizer":
        """Takes the characters that occur in the texts."""
        known = np.empty(0, dtype=np.uint32)
        for text in texts:
            known = np.union1d(known, _code_points(text))
        characters = known.astype("<u4").tobytes().decode("utf-32-le")
        return CharacterTokenizer(characters, with_end_of_text=with_end_of_text)

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """Numbers of the characters of a text.

        Raises:
            UserError: Names the characters that the tokenizer does not know.
        """
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if ids.min(initial=0) < 0:
            unknown = sorted({text[place] for place in np.flatnonzero(ids < 0)})
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:_NAMED_IN_ERROR])
            more = len(unknown) - _NAMED_IN_ERROR
            raise UserError(
                f"The text has characters that the training text did not have: {named}"
                + (f" and {more} more" if more > 0 else "")
                + '.\nLeave them out, or train with data.tokenizer.kind = "bytes".'
            )
        return ids

    def _content(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self.characters}


class BpeTokenizer(Tokenizer):
    """Byte-level byte pair encoding (Sennrich et al., 2016; on bytes: Radford et al., 2019).

    Training, merging and the split into words are done by the `tokenizers` library. The ids of
    special tokens that its file may have are not part of the vocabulary here.
    """

    def __init__(self, definition: str, *, with_end_of_text: bool = False) -> None:
        """Takes the library's own JSON."""
        self._model = _tokenizers_library().Tokenizer.from_str(definition)
        vocabulary = self._model.get_vocab()
        by_id = sorted(vocabulary, key=vocabulary.__getitem__)
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        pieces = [bytes([byte_of[character] for character in token]) for token in by_id]
        super().__init__(pieces, with_end_of_text=with_end_of_text)

    @staticmethod
    def train(
        texts: Iterable[str], vocab_size: int, *, with_end_of_text: bool = False
    ) -> "BpeTokenizer":
        """Learns merges from the texts until the vocabulary is full or nothing is left to merge.

        Raises:
            UserError: The `tokenizers` library is not installed.
        """
        library = _tokenizers_library()
        model = library.Tokenizer(library.models.BPE())
        model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        model.train_from_iterator(texts, trainer)
        return BpeTokenizer(model.to_str(), with_end_of_text=with_end_of_text)

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """Ids of the merged pieces of a text."""
        _utf8(text)
        return np.array(self._model.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """Token ids of each text, on all cores."""
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _content(self) -> dict[str, Any]:
        return {"kind": "bpe", "tokenizer": json.loads(self._model.to_str())}


class StreamDecoder:
    """Turns ids into text one at a time; bytes of an unfinished character are held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that this id completes; often empty in the middle of a character."""
        return self._decoder.decode(self._tokenizer.pieces[token])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)


def train_tokenizer(
    config: BytesConfig | CharactersConfig | BpeConfig,
    source: TextSource,
    *,
    with_end_of_text: bool = False,
) -> Tokenizer:
    """Makes the tokenizer that a config describes for a source of text.

    Characters come from all splits, so that every split can be encoded; BPE merges come from the
    training split alone.

    Raises:
        UserError: BPE is asked for and the `tokenizers` library is not installed.
    """
    match config:
        case BytesConfig():
            return ByteTokenizer(with_end_of_text=with_end_of_text)
        case CharactersConfig():
            texts = (text for split in source.splits for text in source.documents(split))
            return CharacterTokenizer.train(texts, with_end_of_text=with_end_of_text)
        case BpeConfig():
            return BpeTokenizer.train(
                source.documents("train"), config.vocab_size, with_end_of_text=with_end_of_text
            )


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
        UserError: The file is missing or not a tokenizer's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        with_end_of_text = content["end_of_text"]
        match content["kind"]:
            case "bytes":
                return ByteTokenizer(with_end_of_text=with_end_of_text)
            case "characters":
                return CharacterTokenizer(content["characters"], with_end_of_text=with_end_of_text)
            case "bpe":
                definition = json.dumps(content["tokenizer"])
                return BpeTokenizer(definition, with_end_of_text=with_end_of_text)
            case kind:
                raise UserError(
                    f"{path}: no tokenizer is of kind '{kind}'.\n"
                    "Known: bytes, characters, bpe. It may be from a newer version of genjax."
                )
    except OSError as error:
        raise UserError(
            f"The tokenizer {path} cannot be read: {error.strerror}.\nIt is written at the start "
            "of a run; give a run directory that has one."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a tokenizer written by genjax ({type(error).__name__}: {error}).\n"
            "Restore the file from a copy, or start the run again."
        ) from error


def tokenize(tokenizer: Tokenizer, documents: Iterable[str]) -> Corpus:
    """Encodes documents into one run of tokens, each followed by the end of text if there is one.

    Tokens are kept as uint16 where the vocabulary allows, else uint32. Documents that encode to
    nothing are left out.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    ending = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    parts: list[np.ndarray] = []
    waiting: list[str] = []

    def flush() -> None:
        for ids in tokenizer.encode_many(waiting):
            if len(ids):
                parts.append(np.concatenate([ids, ending]).astype(dtype))
        waiting.clear()

    for document in documents:
        waiting.append(document)
        if len(waiting) == _DOCUMENTS_PER_CALL:
            flush()
    flush()
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype)
    return Corpus(tokens, np.cumsum([0, *map(len, parts)], dtype=np.int64))


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"The text has no UTF-8 form: {text[error.start]!r} at character {error.start}.\n"
            "It was probably read in the wrong encoding; give it as UTF-8."
        ) from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE files write for each byte.

    Printable bytes of Latin-1 stand for themselves, the others are numbered from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return [chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(_BYTES)]


def _tokenizers_library() -> Any:
    # The library warns after a fork unless this is set; no forked process tokenizes here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            'data.tokenizer.kind = "bpe" needs the `tokenizers` library, which is not installed.\n'
            "Install it: pip install 'genjax[text]' (or choose kind = \"bytes\")."
        ) from error
    return tokenizers
