import logging
import subprocess
import sys

import pytest

from genjax.data.text_sources import TfdsText, open_text
from genjax.errors import UserError
from tests.data import tiny_text


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (tiny_text.TinyText, tiny_text.DamagedText):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_reads_all_documents_in_order(data_dir):
    source = open_text(TfdsText(name="tiny_text", data_dir=data_dir, validation_split="test"))
    assert list(source.documents("train")) == tiny_text.DOCUMENTS["train"]
    assert list(source.documents("validation")) == tiny_text.DOCUMENTS["test"]
    assert list(source.documents("train")) == tiny_text.DOCUMENTS["train"]
    assert source.name == "tiny_text/1.2.0"
    again = open_text(TfdsText(name="tiny_text", data_dir=data_dir, validation_split="test"))
    assert source.fingerprint == again.fingerprint and len(source.fingerprint) == 64


def test_cuts_validation_from_train_where_there_is_none(data_dir):
    source = open_text(TfdsText(name="tiny_text:1.2.0", data_dir=data_dir))
    assert source.splits == ("train", "validation", "test")
    text = "".join(tiny_text.DOCUMENTS["train"])
    boundary = int(len(text) * 0.9)
    assert "".join(source.documents("train")) == text[:boundary]
    assert "".join(source.documents("validation")) == text[boundary:]


def test_slices_of_splits(data_dir):
    config = TfdsText(
        name="tiny_text", data_dir=data_dir, train_split="train[:5]", validation_split="train[5:7]"
    )
    source = open_text(config)
    assert list(source.documents("train")) == tiny_text.DOCUMENTS["train"][:5]
    assert list(source.documents("validation")) == tiny_text.DOCUMENTS["train"][5:7]


def test_tensorflow_is_never_imported(data_dir):
    program = (
        "import sys; from pathlib import Path\n"
        "from genjax.data.text_sources import TfdsText, open_text\n"
        f"source = open_text(TfdsText(name='tiny_text', data_dir=Path({str(data_dir)!r})))\n"
        "assert len(list(source.documents('train'))) == 37\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_record_that_is_not_utf8_is_skipped_and_named(data_dir, caplog):
    config = TfdsText(name="damaged_text", data_dir=data_dir, validation_split="train")
    with caplog.at_level(logging.WARNING):
        assert list(open_text(config).documents("train")) == ["first", "third"]
    assert "skipped 1 of 3 records of damaged_text/1.0.0 'train': 1 is not UTF-8" in caplog.text


def test_record_whose_bytes_are_damaged_is_skipped_and_named(tmp_path, caplog):
    tiny_text.TinyText(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    (file,) = tmp_path.glob("tiny_text/*/*train*")
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"record 20:")] ^= 0xFF
    file.write_bytes(raw)
    source = open_text(TfdsText(name="tiny_text", data_dir=tmp_path, validation_split="test"))
    with caplog.at_level(logging.WARNING):
        documents = list(source.documents("train"))
    expected = tiny_text.DOCUMENTS["train"]
    assert documents == expected[:20] + expected[21:]
    assert "skipped 1 of 40 records of tiny_text/1.2.0 'train': 20 cannot be read" in caplog.text
    assert "hash mismatch" in caplog.text


def test_set_without_a_readable_record(tmp_path):
    tiny_text.TinyText(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    (file,) = tmp_path.glob("tiny_text/*/*train*")
    file.write_bytes(file.read_bytes()[:1000])
    source = open_text(TfdsText(name="tiny_text", data_dir=tmp_path, validation_split="test"))
    with pytest.raises(UserError, match="no readable text in its 40 records"):
        list(source.documents("train"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": "tiny_shakespere"}, ["'tiny_shakespere'", "Did you mean 'tiny_shakespeare'?"]),
        ({"name": "lm1b"}, ["lm1b/1.1.0 is not prepared", "file_format='array_record'", "lm1b'"]),
        ({"text_feature": "txet"}, ["'txet'", "text features: text", "label"]),
        ({"text_feature": "label"}, ["'label' is no text feature"]),
        ({"train_split": "trian"}, ["no split 'trian'", "train, test"]),
        ({"validation_split": "valid"}, ["no split 'valid'", "train, test"]),
    ],
)
def test_errors(data_dir, changes, parts):
    with pytest.raises(UserError) as caught:
        open_text(TfdsText(**{"name": "tiny_text", "data_dir": data_dir} | changes))
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


def test_other_file_format(tmp_path):
    builder = tiny_text.TinyText(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    info = next(tmp_path.glob("tiny_text/*/dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"is stored as (?s:.)*array_record is needed"):
        open_text(TfdsText(name="tiny_text", data_dir=tmp_path))
