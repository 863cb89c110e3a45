import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest

from genjax.data import clip_shards, clip_stream
from genjax.data.clip_decode import read_clip
from genjax.data.clip_files import ClipFiles, open_clip_files
from genjax.errors import UserError
from tests.data.clip_writing import animation, gray_frames, known_values, write_frames, write_video

pytestmark = pytest.mark.fast


@pytest.fixture
def load(tmp_path):
    def load(frames=4, path=tmp_path / "clips", **options):
        defaults = {"channels": 1, "cache": tmp_path / "cache"}
        return open_clip_files(ClipFiles(path=path, **defaults | options), frames)

    return load


@pytest.fixture
def write(tmp_path):
    """A function that writes clips below `clips`: frame t of one has the gray value first + t."""

    def write(clips, side=16):
        for name, (first, count) in clips.items():
            path = tmp_path / "clips" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = gray_frames(np.arange(first, first + count), side, 1)
            if path.suffix == ".gif":
                path.write_bytes(animation(frames))
            elif path.suffix:
                write_video(path, frames, pixels="gray")
            else:
                write_frames(path, frames)
        return tmp_path / "clips"

    return write


def read(source, split):
    """The gray values of every window of a split, and the labels."""
    windows = source.splits[split]
    description = windows.read(np.arange(len(windows)))
    labels = description.get("labels")
    return known_values(description["clips"]), None if labels is None else labels.tolist()


def everything(source):
    return read(source, "train")[0] + read(source, "validation")[0]


CLIPS = {"a.gif": (0, 6), "b.gif": (10, 7), "c/d.mkv": (20, 8), "e": (30, 9), "f.avi": (40, 3)}


def runs(first, count, frames, step=1):
    return [list(range(n, n + frames)) for n in range(first, first + count - frames + 1, step)]


def test_windows_of_all_kinds_of_clips(load, write):
    write(CLIPS)
    source = load()
    assert source.clip_shape == (4, 16, 16, 1) and source.num_classes == 0
    assert source.frames_per_second == 25 and len(source.fingerprint) == 64
    train, _ = read(source, "train")
    validation, _ = read(source, "validation")
    # f.avi is too short for a window.
    expected = {name: clip for name, clip in CLIPS.items() if name != "f.avi"}
    held_out = [
        first
        for first, count in expected.values()
        if any(first <= w[0] < first + count for w in validation)
    ]
    assert len(held_out) == 1
    for first, count in expected.values():
        if first in held_out:
            assert validation == runs(first, count, 4, 4)
            assert not any(first <= value < first + count for window in train for value in window)
        else:
            assert [w for w in train if first <= w[0] < first + count] == runs(first, count, 4)
    # Random access: any numbers in any order, and the same again.
    chosen = np.array([5, 0, 5])
    again = known_values(source.splits["train"].read(chosen)["clips"])
    assert again == [train[5], train[0], train[5]]


def test_stride_and_rate(load, write):
    write({"a.gif": (0, 30), "b.gif": (100, 30)})
    source = load(3, stride=5)
    assert source.frames_per_second == 5
    for split, step in (("train", 1), ("validation", 11)):
        first = 0 if read(source, split)[0][0][0] < 50 else 100
        starts = range(first, first + 20, step)
        assert read(source, split)[0] == [[n, n + 5, n + 10] for n in starts]
    source = load(3, frames_per_second=12.5)
    assert source.frames_per_second == 12.5
    shown = [value for window in everything(source) for value in window]
    assert {value % 2 for value in shown} == {0}


def test_no_window_crosses_a_cut(load, write, tmp_path):
    values = [10] * 6 + [120] * 5 + [240] * 3 + [60] * 9
    write({"b.gif": (0, 9)})
    # A GIF would hold repeated frames as one that is shown longer.
    write_video(tmp_path / "clips" / "a.mkv", gray_frames(values, 16, 1), pixels="gray")
    windows = everything(load(4))
    inside = [w for w in windows if w[0] in (10, 60, 120, 240)]
    assert inside and all(len(set(window)) == 1 for window in inside)
    assert not any(240 in window for window in windows)
    crossing = everything(load(4, cut_threshold=None))
    assert any({10, 120} <= set(window) for window in crossing)
    # A cut among frames that resampling leaves out still divides.
    slow = everything(load(2, frames_per_second=5))
    inside = [w for w in slow if w[0] in (10, 60, 120, 240)]
    assert inside and all(len(set(window)) == 1 for window in inside)
    assert [10, 120] in everything(load(2, frames_per_second=5, cut_threshold=None))


@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_single_clip_is_divided_by_time(load, write, fraction):
    write({"a.gif": (0, 40)})
    source = load(4, validation_fraction=fraction)
    train, validation = read(source, "train")[0], read(source, "validation")[0]
    begin = 40 - round(40 * fraction)
    assert train == runs(0, begin, 4) and validation == runs(begin, 40 - begin, 4, 4)


def test_single_clip_with_cuts_is_divided_by_shots(load, tmp_path):
    values = [10] * 9 + [120] * 8 + [240] * 7 + [60] * 6
    write_video(tmp_path / "clips" / "a.mkv", gray_frames(values, 16, 1), pixels="gray")
    for fraction, held_out in ((0.01, {60}), (0.45, {240, 60}), (0.9, {120, 240, 60})):
        source = load(4, validation_fraction=fraction)
        shown = [{v for w in read(source, split)[0] for v in w} for split in source.splits]
        assert shown == [{10, 120, 240, 60} - held_out, held_out]


def test_clips_stay_in_their_split_when_others_come(load, write):
    def held_out(source):
        return {window[0] // 10 for window in read(source, "validation")[0]}

    write({f"clip{n}.gif": (10 * n, 5) for n in range(20)})
    before = held_out(load(validation_fraction=0.3))
    assert 2 <= len(before) <= 10
    write({f"clip{n}.gif": (10 * n, 5) for n in range(20, 24)})
    after = held_out(load(validation_fraction=0.3))
    assert {n for n in after if n < 20} == before


def test_folders_are_classes(load, write):
    write({"dogs/a.gif": (0, 5), "dogs/b": (10, 5), "cats/c.gif": (20, 5), "cats/x/d": (30, 5)})
    for labels in ("auto", "folders"):
        source = load(5, labels=labels)
        assert source.class_names == ("cats", "dogs") and source.num_classes == 2
        pairs = [
            (window[0], label)
            for split in source.splits
            for window, label in zip(*read(source, split), strict=True)
        ]
        assert sorted(pairs) == [(0, 1), (10, 1), (20, 0), (30, 0)]
        labelled = source.splits["train"].read(np.array([0]))["labels"]
        assert labelled.dtype == np.int32
    assert load(labels="none").num_classes == 0
    assert load(labels="none").fingerprint != source.fingerprint


def test_several_sequences_in_one_folder(load, tmp_path):
    for name, first in (("left", 0), ("right", 50)):
        frames = gray_frames(np.arange(first, first + 12), 16, 1)
        write_frames(tmp_path / "clips" / "shots", frames, f"{name}_{{}}.png")
    assert sorted(everything(load(12))) == [list(range(12)), list(range(50, 62))]


def test_a_file_or_a_frame_folder_as_the_path(load, write):
    folder = write({"a.gif": (0, 12), "b": (50, 12)})
    assert sorted(everything(load(6, folder / "a.gif"))) == runs(0, 12, 6, 6)
    assert sorted(everything(load(6, folder / "b"))) == runs(50, 12, 6, 6)


def test_link_to_a_folder_above_ends(load, write):
    folder = write(CLIPS)
    (folder / "c" / "loop").symlink_to(folder)
    assert len(everything(load())) > 0


# Cache -------------------------------------------------------------------------------------------


def test_clips_are_decoded_once(load, write, tmp_path, monkeypatch):
    write(CLIPS)
    one = load()
    monkeypatch.setattr(clip_stream, "_decode_one", None)
    # Neither another window, nor stride, nor threshold needs the clips again.
    assert everything(load()) == everything(one) and load().fingerprint == one.fingerprint
    other = load(3, stride=2, cut_threshold=None)
    assert other.fingerprint != one.fingerprint
    assert isinstance(one.splits["train"].read(np.arange(2))["clips"], np.ndarray)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load(channels=3)
    os.utime(tmp_path / "clips" / "a.gif")
    assert load().fingerprint == one.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 3
    write({"a.gif": (1, 6)})
    assert load().fingerprint != one.fingerprint


def test_the_place_of_the_clips_does_not_enter_the_fingerprint(load, write, tmp_path):
    write(CLIPS)
    shutil.copytree(tmp_path / "clips", tmp_path / "moved")
    assert load().fingerprint == load(path=tmp_path / "moved").fingerprint


def test_shards_are_bounded(load, write, tmp_path, monkeypatch):
    write(CLIPS)
    whole = everything(load())
    monkeypatch.setattr(clip_shards, "_SHARD_BYTES", 5 * 256)
    monkeypatch.setattr(clip_stream, "_BLOCK_BYTES", 3 * 256)
    monkeypatch.setattr(clip_stream, "_BLOCKS_AHEAD", 1)
    source = load(cache=tmp_path / "small")
    assert everything(source) == whole
    (folder,) = (tmp_path / "small").iterdir()
    shards = sorted(folder.glob("0*.npy"))
    assert [len(np.load(shard)) for shard in shards] == [5] * 6 + [3]
    assert max(shard.stat().st_size for shard in shards) <= 5 * 256 + 256


@pytest.mark.parametrize("broken", ["record.json", "00000.npy", "origins.npy", "changes.npy"])
def test_broken_cache_is_made_again(load, write, tmp_path, broken):
    write(CLIPS)
    before = everything(load())
    (file,) = (tmp_path / "cache").glob(f"*/{broken}")
    file.write_bytes(file.read_bytes()[:-30])
    assert everything(load()) == before
    (file,) = (tmp_path / "cache").glob(f"*/{broken}")
    file.unlink()
    assert everything(load()) == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.parent.name]


def test_what_stops_in_the_middle_leaves_nothing(load, write, tmp_path, monkeypatch):
    write(CLIPS)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(clip_shards._Shards, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert list((tmp_path / "cache").iterdir()) == []
    # What a killed run left goes when it is old, not before.
    old, new = tmp_path / "cache" / "x.1.partial", tmp_path / "cache" / "x.2.partial"
    for folder in (old, new):
        folder.mkdir()
        (folder / "00000.npy").write_bytes(b"...")
    for path in (old, old / "00000.npy"):
        os.utime(path, (1, 1))
    load()
    assert not old.exists() and new.exists()


def test_another_process_that_was_faster(load, write, tmp_path, monkeypatch):
    write(CLIPS)
    before = everything(load())
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "theirs")
    decode = clip_shards._decode

    def slowly(*arguments):
        result = decode(*arguments)
        (tmp_path / "theirs").rename(folder)
        return result

    monkeypatch.setattr(clip_shards, "_decode", slowly)
    assert everything(load()) == before
    assert list((tmp_path / "cache").iterdir()) == [folder]


# What is wrong -----------------------------------------------------------------------------------


def test_unreadable_clips_are_counted_and_named(load, write, tmp_path, caplog):
    folder = write(CLIPS | {"g": (60, 8)})
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.webm").write_bytes(b"no video " * 50)
    data = (folder / "b.gif").read_bytes()
    (folder / "b.gif").write_bytes(data[: len(data) * 2 // 3])
    (folder / "g" / "006.png").write_bytes(b"?")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = load()
        skipped, shortened = [record.getMessage() for record in caplog.records]
        assert skipped.startswith(
            f"skipped 2 of 8 clips of {folder}: empty.mp4 is empty; text.webm "
        )
        assert shortened.startswith(f"kept only the beginning of 2 of 8 clips of {folder}: b.gif (")
        assert "is truncated; g (6 frames): breaks off: 006.png is no image" in shortened
    assert [60, 61, 62, 63] in everything(source) and not any(66 in w for w in everything(source))


def message_of(load, *arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


def test_nothing_readable(load, tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.gif"):
        (tmp_path / "clips" / name).write_bytes(b"?")
    message = message_of(load)
    assert "None of the 2 clips of" in message and "the first: a.mp4 cannot be decoded" in message
    assert "H.264 mp4" in message


def test_video_without_pyav(load, write, monkeypatch):
    write({"a.mkv": (0, 9), "b.gif": (10, 9)})
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'genjax[video]'" in message_of(load)


def test_no_clips(load, tmp_path):
    assert "does not exist (looked from" in message_of(load)
    (tmp_path / "clips").mkdir()
    assert "no clip in it or below it; its files: none" in message_of(load)
    for name in ("a.txt", "b.txt", "photo.jpg", "c.zip"):
        (tmp_path / "clips" / name).write_bytes(b"?")
    message = message_of(load)
    assert "its files: 2 with .txt" in message and "convert or unpack others" in message


def test_clips_that_are_too_short(load, write):
    write({"a.gif": (0, 6), "b.gif": (10, 9)})
    message = message_of(load, 16)
    assert "a window has 16 frames and the longest shot 9, in b.gif.\n" in message
    assert "Ask for fewer frames (" in message and "or add longer clips" in message
    message = message_of(load, 4, stride=4, frames_per_second=25)
    assert "4 frames at stride 4, which cover 13, and the longest shot 9" in message
    assert "a smaller data.source.stride or higher data.source.frames_per_second" in message


def test_shots_that_are_too_short(load, tmp_path):
    frames = gray_frames([10] * 6 + [120] * 6 + [240] * 6, 16, 1)
    write_video(tmp_path / "clips" / "a.mkv", frames, pixels="gray")
    message = message_of(load, 8)
    assert (
        "the longest shot 6, in a.mkv (a clip has 18 frames, but scene cuts divide it)" in message
    )
    assert "a higher data.source.cut_threshold" in message
    assert "one shot that is long enough, of 18 frames" in message_of(load, 10, cut_threshold=None)


def test_single_clip_that_is_too_short_to_divide(load, write):
    write({"a.gif": (0, 11), "b.gif": (20, 3)})
    assert len(everything(load(5))) > 1
    message = message_of(load, 6)
    assert (
        "one shot that is long enough, of 11 frames, but training and validation need 6" in message
    )


def test_mixed_sizes(load, write):
    write({"a.gif": (0, 9)})
    write({"b.mkv": (10, 9)}, side=20)
    message = message_of(load)
    assert "different sizes: a.gif is 16 x 16" in message and "b.mkv is 20 x 20" in message
    assert "Set data.source.size, such as 64." in message
    assert load(size=(8, 12)).clip_shape == (4, 8, 12, 1)


@pytest.mark.parametrize(
    ("clips", "labels", "part"),
    [
        (["a/1.gif", "b/2.gif", "3.gif"], "auto", "1 clips, such as 3.gif, lie in no class folder"),
        (["train/1.gif", "test/2.gif"], "auto", "the folders test, train look like splits"),
        (["a/1.gif", "a/2.gif"], "folders", "has no class folders: clips in two or more"),
        (["a/1.gif", "b/short.gif"], "auto", "class 'b' has no clip that can be read and is long"),
    ],
)
def test_labels_that_are_wrong(load, write, clips, labels, part):
    write({name: (0, 2 if "short" in name else 9) for name in clips})
    assert part in message_of(load, labels=labels)
    assert load(labels="none").num_classes == 0


def test_cache_that_cannot_be_written(load, write, tmp_path):
    write(CLIPS)
    (tmp_path / "cache").write_bytes(b"a file")
    message = message_of(load)
    assert "data.source.cache" in message and "to a folder with room" in message


# Real clips --------------------------------------------------------------------------------------


def test_real_clips(load, test_data, tmp_path):
    for name in ("bikes.mp4", "carphone_pristine.mp4", "newtonscradle.gif", "realshort.mp4"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / name).symlink_to(test_data / "clips" / name)
    source = load(16, size=(24, 32), channels=3)
    (record,) = (tmp_path / "cache").glob("*/record.json")
    assert json.loads(record.read_bytes())["starts"] == [0, 250, 370, 406, 442]
    # The shots of bikes.mp4, then the whole clips.
    shots = {
        "bikes.mp4": [30, 46, 61, 50, 55, 8],
        "carphone_pristine.mp4": [120],
        "newtonscradle.gif": [36],
        "realshort.mp4": [36],
    }
    train = {name: sum(max(0, n - 15) for n in lengths) for name, lengths in shots.items()}
    validation = {name: sum(n // 16 for n in lengths) for name, lengths in shots.items()}
    counts = {split: len(source.splits[split]) for split in source.splits}
    assert counts in [
        {"train": sum(train.values()) - train[name], "validation": validation[name]}
        for name in shots
    ]
    frames = read_clip(test_data / "clips" / "carphone_pristine.mp4", size=(24, 32)).frames
    clips = np.concatenate(
        [split.read(np.arange(len(split)))["clips"] for split in source.splits.values()]
    )
    starts = np.flatnonzero((clips[:, 0] == frames[10]).all((1, 2, 3)))
    for start in starts:
        np.testing.assert_array_equal(clips[start], frames[10:26])
    assert len(starts) == 1
