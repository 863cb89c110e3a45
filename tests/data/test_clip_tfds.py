import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest

from genjax.data.tfds_clips import TfdsClips, open_tfds_clips
from genjax.errors import UserError
from tests.data import tiny_clips
from tests.data.clip_writing import known_values


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (tiny_clips.TinyClips, tiny_clips.FramedClips):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    # TFDS encodes a Video by TensorFlow, but as the sequence of images that this one has.
    old, new = folder / "framed_clips" / "1.0.0", folder / "filmed_clips" / "1.0.0"
    shutil.copytree(old, new)
    for file in sorted(new.iterdir()):
        file.rename(new / file.name.replace("framed", "filmed"))
    info = (new / "dataset_info.json").read_text().replace("framed_clips", "filmed_clips")
    (new / "dataset_info.json").write_text(info)
    features = json.loads((new / "features.json").read_text())
    features["featuresDict"]["features"]["frames"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {
            "shape": {"dimensions": ["-1", "4", "4", "1"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    (new / "features.json").write_text(json.dumps(features))
    return folder


@pytest.fixture
def load(data_dir, tmp_path):
    def load(name="tiny_clips", frames=4, **options):
        defaults = {"data_dir": data_dir, "channels": 1, "cache": tmp_path / "cache"}
        return open_tfds_clips(TfdsClips(name=name, **defaults | options), frames)

    return load


def content(split):
    description = split.read(np.arange(len(split)))
    labels = description.get("labels")
    return known_values(description["clips"]), None if labels is None else labels.tolist()


def runs(first, frames, step=1):
    return [list(range(n, n + frames)) for n in range(first, first + 7 - frames, step)]


def test_reads_clips_and_labels(load):
    source = load(validation_split="test")
    assert source.name == "tiny_clips/1.0.0" and source.clip_shape == (4, 4, 4, 1)
    assert source.class_names == ("even", "odd") and source.frames_per_second == 25
    windows, labels = content(source.splits["train"])
    assert windows == [window for clip in range(8) for window in runs(10 * clip, 4)]
    assert labels == [window[0] // 10 % 2 for window in windows]
    assert content(source.splits["validation"])[0] == [runs(10 * clip, 4)[0] for clip in range(3)]
    # Also from the cache, where the labels are kept too.
    again = load(validation_split="test")
    assert content(again.splits["train"]) == (windows, labels)
    assert again.fingerprint == source.fingerprint != load().fingerprint


def test_validation_from_train_where_there_is_none(load):
    source = load(frames=6)
    train, validation = (content(split)[0] for split in source.splits.values())
    assert validation and sorted(train + validation) == [runs(10 * clip, 6)[0] for clip in range(8)]


@pytest.mark.parametrize("name", ["framed_clips", "filmed_clips"])
def test_encoded_frames_and_broken_ones(load, name, caplog):
    with caplog.at_level(logging.WARNING):
        source = load(name, frames=4)
    assert source.num_classes == 0
    windows = [window for split in source.splits.values() for window in content(split)[0]]
    assert {window[0] // 10 for window in windows} == {0, 1, 2, 3, 4}
    # Clip 2 ends before its broken frame.
    assert [window for window in windows if 20 <= window[0] < 30] == [[20, 21, 22, 23]]
    expected = f"kept only the beginning of 1 of 5 records of {name}/1.0.0 'train': 2 (4 frames)"
    assert expected in caplog.text and "frame 4 cannot be decoded" in caplog.text


def test_settings(load):
    source = load(
        frames=2,
        size=(6, 5),
        channels=3,
        stride=4,
        frames_per_second=8,
        label_feature=None,
        train_split="train[:2]",
        validation_split="train[2:3]",
    )
    assert source.clip_shape == (2, 6, 5, 3) and source.num_classes == 0
    assert source.frames_per_second == 2
    assert content(source.splits["train"]) == ([[0, 4], [1, 5], [10, 14], [11, 15]], None)
    assert content(source.splits["validation"]) == ([[20, 24]], None)


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("tiny_clisp", {}, ["knows no such data set"]),
        ("tiny_clips", {"video_feature": "film"}, ["'film' is no clip", "features: video (all:"]),
        ("tiny_clips", {"video_feature": "number"}, ["'number' is no clip feature"]),
        ("tiny_clips", {"label_feature": "number"}, ["no class label feature", "features: label"]),
        ("framed_clips", {"label_feature": "kind"}, ["no class label", "features: none", '"none"']),
        ("tiny_clips", {"train_split": "trian"}, ["no split 'trian'", "train, test"]),
        ("tiny_clips", {"frames": 9}, ["'train' are too short", "9 frames", "shot 6, in 0"]),
        ("tiny_clips", {"train_split": "train[:1]", "label_feature": None}, ["one shot"]),
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
        "from genjax.data.tfds_clips import TfdsClips, open_tfds_clips\n"
        f"options = dict(data_dir=Path({str(data_dir)!r}), cache=Path({str(tmp_path)!r}))\n"
        "for name in ('tiny_clips', 'filmed_clips'):\n"
        "    source = open_tfds_clips(TfdsClips(name=name, **options), 4)\n"
        "    assert sum(len(split) for split in source.splits.values()) > 5\n"
        "assert 'tensorflow' not in sys.modules\n"
        "import tensorflow_datasets.core.features.video_feature as theirs\n"
        "assert not hasattr(theirs.tf, '__dict__') or 'dtypes' not in vars(theirs.tf)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
