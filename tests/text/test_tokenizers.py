import builtins
import json

import numpy as np
import pytest

from genjax.data.text_documents import TextSource
from genjax.errors import UserError
from genjax.text.tokenizers import (
    BpeConfig,
    BpeTokenizer,
    BytesConfig,
    ByteTokenizer,
    CharactersConfig,
    CharacterTokenizer,
    StreamDecoder,
    load_tokenizer,
    tokenize,
    train_tokenizer,
)

HARD = "naïve café — 日本語 🙂 \n\t  x"
TRAINING = [HARD, "the cat sat on the mat. " * 20, "a cat and a hat; the rat 🙂 \r\n é"]


def make(kind, *, with_end_of_text=False):
    match kind:
        case "bytes":
            return ByteTokenizer(with_end_of_text=with_end_of_text)
        case "characters":
            return CharacterTokenizer.train(TRAINING, with_end_of_text=with_end_of_text)
        case _:
            return BpeTokenizer.train(TRAINING, 290, with_end_of_text=with_end_of_text)


every_kind = pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])


@every_kind
@pytest.mark.parametrize("text", [*TRAINING, "", " ", "\n\n", "  the  "])
def test_round_trip_is_lossless(kind, text):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert len(ids) == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@every_kind
def test_counts_add_up(kind):
    tokenizer = make(kind, with_end_of_text=True)
    for text in TRAINING:
        ids = np.append(tokenizer.encode(text), tokenizer.end_of_text)
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert tokenizer.token_characters[ids].sum() == len(text)
    assert tokenizer.token_bytes.shape == tokenizer.token_characters.shape
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)


@every_kind
def test_end_of_text_follows_the_vocabulary(kind):
    plain, ending = make(kind), make(kind, with_end_of_text=True)
    assert plain.end_of_text is None
    assert ending.end_of_text == plain.vocab_size == ending.vocab_size - 1
    np.testing.assert_array_equal(plain.encode(HARD), ending.encode(HARD))
    assert ending.decode([ending.end_of_text]) == ""


@every_kind
@pytest.mark.parametrize("with_end_of_text", [False, True])
def test_saved_and_loaded(kind, with_end_of_text, tmp_path):
    tokenizer = make(kind, with_end_of_text=with_end_of_text)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert json.loads(path.read_text(encoding="utf-8"))["kind"] == kind
    loaded = load_tokenizer(path)
    assert type(loaded) is type(tokenizer)
    assert loaded.pieces == tokenizer.pieces and loaded.end_of_text == tokenizer.end_of_text
    for text in TRAINING:
        np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


@every_kind
def test_stream_decoder_holds_back_unfinished_characters(kind):
    tokenizer = make(kind, with_end_of_text=True)
    decoder = StreamDecoder(tokenizer)
    ids = [*tokenizer.encode(HARD).tolist(), tokenizer.end_of_text]
    pieces = [decoder.feed(token) for token in ids]
    assert "".join(pieces) == HARD
    assert not any("\ufffd" in piece for piece in pieces)
    assert decoder.finish() == ""


def test_stream_decoder_ends_in_the_middle_of_a_character():
    tokenizer = ByteTokenizer()
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(byte) for byte in "é🙂".encode()[:-1]] == ["", "é", "", "", ""]
    assert decoder.finish() == "\ufffd"
    assert tokenizer.decode([0xFF, 0x41]) == "\ufffdA"


def test_bytes_are_their_own_ids():
    assert ByteTokenizer().encode("Aé").tolist() == [0x41, 0xC3, 0xA9]
    assert ByteTokenizer().vocab_size == 256


def test_characters_are_sorted():
    tokenizer = CharacterTokenizer.train(["ba", "c🙂a"])
    assert tokenizer.characters == "abc🙂"
    assert tokenizer.encode("cab🙂").tolist() == [2, 0, 1, 3]


def test_unknown_characters_are_named():
    tokenizer = CharacterTokenizer.train(["abc"])
    for text in ("aXb", "🙂", "`"):
        with pytest.raises(UserError, match="characters that the training text did not have"):
            tokenizer.encode(text)
    with pytest.raises(UserError) as caught:
        tokenizer.encode("a🙂Xc")
    assert "'X' (U+0058), '🙂' (U+1F642)" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_text_without_utf8_form():
    for tokenizer in (ByteTokenizer(), make("bpe")):
        with pytest.raises(UserError, match="no UTF-8 form"):
            tokenizer.encode("a\udce9")


def test_bpe_merges_and_is_reproducible():
    first, second = make("bpe"), make("bpe")
    assert first.pieces == second.pieces
    assert first.vocab_size == 290
    assert sorted(first.pieces[:256]) == [bytes([byte]) for byte in range(256)]
    assert len(first.encode("the cat")) < 7
    for text, ids in zip(TRAINING, first.encode_many(TRAINING), strict=True):
        np.testing.assert_array_equal(ids, first.encode(text))


def test_bpe_of_a_small_text_stops_early():
    assert BpeTokenizer.train(["ab"], 4096).vocab_size == 257


def test_bpe_without_the_library(monkeypatch):
    ordinary = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return ordinary(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'genjax\[text\]'"):
        BpeTokenizer.train(TRAINING, 290)


def test_tokenize_ends_each_document():
    corpus = tokenize(ByteTokenizer(with_end_of_text=True), iter(["ab", "", "c"]))
    assert corpus.tokens.tolist() == [97, 98, 256, 99, 256]
    assert corpus.offsets.tolist() == [0, 3, 5]
    assert corpus.tokens.dtype == np.uint16


@every_kind
def test_tokenize_many_documents(kind):
    documents = TRAINING * 700
    corpus = tokenize(make(kind), documents)
    assert len(corpus.offsets) == len(documents) + 1
    tokenizer = make(kind)
    for index in (0, 1023, 1024, 2099):
        part = corpus.tokens[corpus.offsets[index] : corpus.offsets[index + 1]]
        assert tokenizer.decode(part) == documents[index]


def test_tokenize_nothing():
    corpus = tokenize(ByteTokenizer(), [])
    assert corpus.tokens.tolist() == [] and corpus.offsets.tolist() == [0]


def test_train_tokenizer_reads_the_right_splits():
    readers = {"train": lambda: iter(["aaab aaab"]), "validation": lambda: iter(["z z"])}
    source = TextSource("a test", readers, "")
    assert isinstance(train_tokenizer(BytesConfig(), source), ByteTokenizer)
    characters = train_tokenizer(CharactersConfig(), source, with_end_of_text=True)
    assert isinstance(characters, CharacterTokenizer)
    assert characters.characters == " abz" and characters.end_of_text == 4
    bpe = train_tokenizer(BpeConfig(vocab_size=257), source)
    assert bpe.pieces[256] in (b"aa", b"ab")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a tokenizer written by genjax"),
        ('{"kind": "bytes"}', "is not a tokenizer written by genjax"),
        ("[]", "is not a tokenizer written by genjax"),
        ('{"kind": "words", "end_of_text": false}', "no tokenizer is of kind 'words'"),
    ],
)
def test_load_of_a_wrong_file(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def test_load_of_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
