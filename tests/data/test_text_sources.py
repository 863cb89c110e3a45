import logging
from pathlib import Path

import pytest

from genjax.data.text_documents import cut_documents
from genjax.data.text_sources import BuiltinText, TextFiles, open_text
from genjax.errors import UserError


def joined(source, split):
    return "".join(source.documents(split))


def refusal(config):
    with pytest.raises(UserError) as caught:
        open_text(config)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


def test_builtin_text_is_whole_and_stable():
    from pydoc_data.topics import topics

    source = open_text(BuiltinText())
    text = "".join(topics[key] for key in sorted(topics))
    assert joined(source, "train") + joined(source, "validation") == text
    assert len(joined(source, "train")) == int(len(text) * 0.9)
    assert source.fingerprint == open_text(BuiltinText()).fingerprint
    assert source.fingerprint != open_text(BuiltinText(validation_fraction=0.2)).fingerprint


@pytest.mark.parametrize("fraction", [0.1, 0.05, 0.3, 0.9])
def test_cut_divides_the_document_it_falls_into(fraction):
    documents = ["abcde", "f", "ghijklmnop", "qrs"]
    text = "".join(documents)
    train = list(cut_documents(documents, len(text), fraction, "train"))
    validation = list(cut_documents(documents, len(text), fraction, "validation"))
    boundary = int(len(text) * (1 - fraction))
    assert "".join(train) == text[:boundary] and "".join(validation) == text[boundary:]
    assert all(train) and all(validation)
    assert len(train) + len(validation) in (len(documents), len(documents) + 1)


def test_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b" / "z.txt").write_text("three")
    (tmp_path / "b" / "a.md").write_text("two")
    (tmp_path / "c.rst").write_text("unread")
    config = TextFiles(
        path=tmp_path, patterns=("*.txt", "*.md"), validation_path=tmp_path / "a.txt"
    )
    source = open_text(config)
    assert list(source.documents("train")) == ["one", "two", "three"]
    assert list(source.documents("validation")) == ["one"]


def test_separator_byte_order_mark_and_line_ends(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n<|end|><|end|>second<|end|>")
    config = TextFiles(path=file, document_separator="<|end|>", validation_path=file)
    assert list(open_text(config).documents("train")) == ["first\r\n", "second"]


def test_fingerprint_follows_content_not_place(tmp_path):
    for name, text in (("a", "some text"), ("b", "some text"), ("c", "some tent")):
        (tmp_path / name).write_text(text)
    prints = [open_text(TextFiles(path=tmp_path / name)).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_bad_file_among_many_is_named_and_skipped(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "c.txt").write_text("also good")
    with caplog.at_level(logging.WARNING):
        source = open_text(TextFiles(path=tmp_path))
    assert joined(source, "train") + joined(source, "validation") == "goodalso good"
    assert "skipped 1 of 3 files" in caplog.text
    assert "b.txt is not UTF-8 text: byte 0xe9 at offset 3" in caplog.text


def test_missing_path():
    message = refusal(TextFiles(path=Path("no/such/file.txt")))
    assert "data.source.path = no/such/file.txt does not exist" in message


def test_missing_validation_path(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    message = refusal(TextFiles(path=tmp_path, validation_path=tmp_path / "gone.txt"))
    assert "data.source.validation_path" in message and "gone.txt" in message


def test_empty_file(tmp_path):
    (tmp_path / "a.txt").touch()
    assert "is empty" in refusal(TextFiles(path=tmp_path / "a.txt"))
    assert "is empty" in refusal(TextFiles(path=tmp_path))


def test_no_file_matches(tmp_path):
    (tmp_path / "a.md").write_text("text")
    message = refusal(TextFiles(path=tmp_path))
    assert "matches *.txt" in message and "data.source.patterns" in message


def test_not_utf8(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("déjà".encode("latin-1"))
    message = refusal(TextFiles(path=file))
    assert f"{file} is not UTF-8 text: byte 0xe9 at offset 1" in message and "iconv" in message
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe")
    assert "none of its 2 files can be read" in refusal(TextFiles(path=tmp_path))


def test_unreadable(tmp_path, monkeypatch):
    file = tmp_path / "secret.txt"
    file.write_text("text")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = refusal(TextFiles(path=file))
    assert f"{file} cannot be read: Permission denied" in message


def test_unknown_split():
    with pytest.raises(UserError, match=r"no split 'test'[^_]*train, validation"):
        open_text(BuiltinText()).documents("test")


def test_tiny_shakespeare_split(test_data):
    path = test_data / "tiny_shakespeare" / "input.txt"
    source = open_text(TextFiles(path=path))
    assert len(joined(source, "train")) == 1_003_854
    assert len(joined(source, "validation")) == 111_540
