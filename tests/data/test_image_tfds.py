import logging
import subprocess
import sys

import numpy as np
import pytest

from genjax.data.image_sources import open_images
from genjax.data.tfds_images import TfdsImages
from genjax.errors import UserError
from tests.data import tiny_images


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (tiny_images.TinyImages, tiny_images.OddImages):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def load(data_dir, tmp_path):
    def load(name="tiny_images", **options):
        defaults = {"data_dir": data_dir, "channels": 1, "cache": tmp_path / "cache"}
        return open_images(TfdsImages(name=name, **defaults | options))

    return load


def content(split):
    values = split.images(np.arange(len(split)))[:, 0, 0, 0].tolist()
    return values, None if split.labels is None else split.labels.tolist()


def test_reads_images_and_labels(load):
    source = load(validation_split="test")
    assert source.name == "tiny_images/1.0.0" and source.image_shape == (4, 4, 1)
    assert source.class_names == ("zero", "one", "two") and source.num_classes == 3
    assert content(source.splits["train"]) == (list(range(30)), [0, 1, 2] * 10)
    assert content(source.splits["validation"]) == ([0, 1, 2, 3], [0, 1, 2, 0])
    assert source.splits["train"].labels.dtype == np.int32
    # Also from the cache, where the labels are kept too.
    again = load(validation_split="test")
    assert content(again.splits["train"]) == content(source.splits["train"])
    assert again.fingerprint == source.fingerprint


def test_validation_from_train_where_there_is_none(load):
    source = load()
    train, validation = (content(split)[0] for split in source.splits.values())
    assert sorted(train + validation) == list(range(30)) and validation
    assert [value % 3 for value in validation] == source.splits["validation"].labels.tolist()


def test_size_channels_slices_and_no_labels(load):
    source = load(
        size=(6, 5),
        channels=3,
        label_feature=None,
        train_split="train[:5]",
        validation_split="train[5:7]",
    )
    assert source.image_shape == (6, 5, 3) and source.num_classes == 0
    assert content(source.splits["train"]) == ([0, 1, 2, 3, 4], None)
    assert content(source.splits["validation"]) == ([5, 6], None)


def test_odd_records_are_skipped_and_named(load, caplog):
    with caplog.at_level(logging.WARNING):
        source = load("odd_images", image_feature="picture", label_feature="kind", size=4)
    assert content(source.splits["train"]) == ([10, 40, 50], [0, 1, 1])
    assert source.class_names == ("0", "1")
    assert "skipped 2 of 5 records of odd_images/1.0.0 'train': 1 cannot be decoded" in caplog.text
    assert "2 has the label -1, not one of 2 classes" in caplog.text
    assert "'validation'" in caplog.text


def test_record_whose_bytes_are_damaged(tmp_path, caplog):
    builder = tiny_images.TinyImages(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    (file,) = tmp_path.glob("tiny_images/*/*train*")
    raw = bytearray(file.read_bytes())
    places = [i for i in range(len(raw)) if raw[i : i + 4] == b"IHDR"]
    raw[places[7] + 6] ^= 0xFF
    file.write_bytes(raw)
    config = TfdsImages(name="tiny_images", data_dir=tmp_path, channels=1, cache=tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        source = open_images(config)
    values = [value for split in source.splits.values() for value in content(split)[0]]
    assert sorted(values) == [value for value in range(30) if value != 7]
    assert "skipped 1 of 30 records of tiny_images/1.0.0 'train': 7 cannot be read" in caplog.text


def test_set_prepared_again_is_decoded_again(tmp_path):
    def values():
        source = open_images(
            TfdsImages(name="tiny_images", data_dir=tmp_path / "sets", cache=tmp_path / "cache")
        )
        return len(source.splits["train"]), len(list((tmp_path / "cache").glob("*.npy")))

    builder = tiny_images.TinyImages(data_dir=str(tmp_path / "sets"), file_format="array_record")
    builder.download_and_prepare()
    assert values()[1] == values()[1] == 1
    (file,) = tmp_path.glob("sets/tiny_images/*/*train*")
    file.touch()
    assert values()[1] == 2


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("mnits", {}, ["'mnits'", "Did you mean 'mnist'?"]),
        (
            "tiny_images",
            {"image_feature": "img"},
            ["'img' is no image feature", "image features: image"],
        ),
        ("tiny_images", {"label_feature": "number"}, ["no class label feature", "features: label"]),
        ("odd_images", {"image_feature": "picture"}, ["'label'", "features: kind", '"none"']),
        ("tiny_images", {"train_split": "trian"}, ["no split 'trian'", "train, test"]),
        (
            "odd_images",
            {"image_feature": "picture", "label_feature": "kind"},
            ["0 is 4 x 4", "3 is 9 x 12", "Set data.source.size"],
        ),
        ("tiny_images", {"train_split": "train[:1]"}, ["one readable image", "validation_split"]),
    ],
)
def test_errors(load, name, changes, parts):
    with pytest.raises(UserError) as caught:
        load(name, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


def test_tensorflow_is_never_imported(data_dir, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from genjax.data.image_sources import TfdsImages, open_images\n"
        f"source = open_images(TfdsImages(name='tiny_images', data_dir=Path({str(data_dir)!r}),\n"
        f"                                cache=Path({str(tmp_path)!r})))\n"
        "assert sum(len(split) for split in source.splits.values()) == 30\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
