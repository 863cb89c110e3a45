import json
import logging
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from genjax.data import image_cache
from genjax.data.image_cache import Encoded, EncodedImages, decode_all
from genjax.data.image_decode import Decoding, UnreadableImage
from genjax.data.image_files import ImageFiles, open_files
from genjax.errors import UserError
from tests.data.picture_files import encode, noise, plain, write_folder

DECODING = Decoding(size=(4, 4), channels=1)


def numbered(count=40, broken=(), labels=None, stamp="a", side=4):
    """Images whose gray value is their number."""

    def read(number):
        if number in broken:
            raise UnreadableImage("cannot be read (as arranged)")
        label = -1 if labels is None else labels[number]
        return Encoded(plain(number, side if number else 4), label)

    return EncodedImages("images of a test", [f"n{i}" for i in range(count)], stamp, read)


def forbid_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_cache, "decode_image", refuse)


@pytest.mark.fast
def test_images_keep_their_order_over_threads(tmp_path):
    decoded = decode_all(numbered(200), DECODING, tmp_path)
    assert decoded.pixels.shape == (200, 4, 4, 1) and decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels[:, 0, 0, 0], np.arange(200))
    np.testing.assert_array_equal(decoded.kept, np.arange(200))
    assert isinstance(decoded.pixels, np.memmap)


@pytest.mark.fast
def test_second_time_reads_and_reports_again(tmp_path, monkeypatch, caplog):
    images = numbered(20, broken=(3, 11), labels=list(range(20)))
    with caplog.at_level(logging.WARNING):
        first = decode_all(images, DECODING, tmp_path / "deep" / "cache")
        forbid_decoding(monkeypatch)
        second = decode_all(images, DECODING, tmp_path / "deep" / "cache")
    message = (
        "skipped 2 of 20 images of a test: n3 cannot be read (as arranged); "
        "n11 cannot be read (as arranged)"
    )
    assert [record.getMessage() for record in caplog.records] == [message] * 2
    kept = [number for number in range(20) if number not in (3, 11)]
    for decoded in (first, second):
        assert decoded.kept.tolist() == decoded.labels.tolist() == kept
        assert decoded.pixels[:, 0, 0, 0].tolist() == kept
        assert decoded.digest == first.digest
        assert decoded.skipped == first.skipped and list(decoded.skipped) == [3, 11]


@pytest.mark.fast
def test_other_content_or_options_are_other_files(tmp_path):
    def files():
        return len(list(tmp_path.glob("*.npy")))

    one = decode_all(numbered(5), DECODING, tmp_path)
    assert files() == 1
    two = decode_all(numbered(5, stamp="b"), DECODING, tmp_path)
    assert files() == 2 and one.digest == two.digest
    decode_all(numbered(5), Decoding(size=(4, 4), channels=1, resize="box"), tmp_path)
    decode_all(numbered(5), Decoding(size=(4, 2), channels=1), tmp_path)
    assert files() == 4
    assert decode_all(numbered(5, broken=[1], stamp="c"), DECODING, tmp_path).digest != one.digest


@pytest.mark.fast
@pytest.mark.parametrize("damage", ["truncated", "no header", "no json", "garbage json", "{}"])
def test_half_a_cache_is_made_anew(tmp_path, damage):
    decode_all(numbered(9), DECODING, tmp_path)
    (pixels,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    match damage:
        case "truncated":
            pixels.write_bytes(pixels.read_bytes()[:-1])
        case "no header":
            pixels.write_bytes(b"\0" * 300)
        case "no json":
            record.unlink()
        case "garbage json":
            record.write_text('{"shape": [9,')
        case _:
            record.write_text("{}")
    again = decode_all(numbered(9), DECODING, tmp_path)
    np.testing.assert_array_equal(again.pixels[:, 0, 0, 0], np.arange(9))
    assert json.loads(record.read_text())["shape"] == [9, 4, 4, 1]


def test_killed_while_decoding(tmp_path):
    folder = write_folder(tmp_path / "images", {f"{i}.png": plain(i) for i in range(30)})
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from genjax.data import image_cache\n"
        "from genjax.data.image_files import ImageFiles, open_files\n"
        "decode, written = image_cache.decode_image, []\n"
        "def dying(encoded, decoding):\n"
        "    written.append(1)\n"
        "    if len(written) == 20:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(encoded, decoding)\n"
        "image_cache.decode_image = dying\n"
        f"config = ImageFiles(path=Path({str(folder)!r}), size=4, channels=1,\n"
        f"                    cache=Path({str(tmp_path / 'cache')!r}))\n"
        "open_files(config)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (partial,) = (tmp_path / "cache").iterdir()
    assert partial.suffix == ".partial"
    config = ImageFiles(path=folder, size=4, channels=1, cache=tmp_path / "cache")
    source = open_files(config)
    values = [
        int(value)
        for split in source.splits.values()
        for value in split.images(np.arange(len(split)))[:, 0, 0, 0]
    ]
    assert sorted(values) == list(range(30))
    # It might still be written to; an hour later it is known to be abandoned.
    assert partial.exists()
    os.utime(partial, (0, 0))
    open_files(config.model_copy(update={"size": 5}))
    assert [file.suffix for file in (tmp_path / "cache").iterdir()].count(".partial") == 0


@pytest.mark.fast
def test_failure_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_cache, "_npy_header", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_all(numbered(5), DECODING, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fast
def test_cache_that_cannot_be_made_is_held_in_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        decoded = decode_all(numbered(7, broken=[0]), DECODING, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(decoded.pixels[:, 3, 3, 0], np.arange(1, 7))
    assert "cannot be written (Not a directory)" in caplog.text
    assert "held in memory" in caplog.text and "skipped 1 of 7" in caplog.text


def test_disk_that_fills_up(tmp_path, monkeypatch, caplog):
    images = numbered(100, side=64)
    decoding = Decoding(size=(64, 64), channels=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            decoded = decode_all(images, decoding, tmp_path)
        monkeypatch.setattr(image_cache, "_MOST_IN_MEMORY", 300_000)
        with pytest.raises(UserError) as caught:
            decode_all(images, decoding, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "held in memory" in caplog.text
    np.testing.assert_array_equal(decoded.pixels[:, 9, 9, 0], np.arange(100))
    assert f"data.source.cache = {tmp_path} cannot hold" in str(caught.value)
    assert "Set data.source.cache to a folder with room" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fast
def test_too_little_room_is_seen_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_MOST_IN_MEMORY", 100)
    usage = image_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match=r"0\.0 GiB: No space left on device"):
        decode_all(numbered(7), DECODING, tmp_path)


@pytest.mark.fast
def test_native_size(tmp_path):
    decoded = decode_all(numbered(6), Decoding(size=None, channels=3), tmp_path)
    assert decoded.pixels.shape == (6, 4, 4, 3)
    with pytest.raises(UserError) as caught:
        decode_all(numbered(6, side=5, stamp="b"), Decoding(size=None), tmp_path)
    assert "n0 is 4 x 4 (height x width), n1 is 5 x 5" in str(caught.value)
    assert "Set data.source.size" in str(caught.value)


@pytest.mark.fast
def test_nothing_readable(tmp_path):
    with pytest.raises(
        UserError, match="None of the 3 images of a test can be read; the first: n0"
    ):
        decode_all(numbered(3, broken=range(3)), DECODING, tmp_path)


@pytest.mark.fast
def test_header_is_numpys(tmp_path):
    for shape in ((1, 1, 1, 1), (10**9, 1024, 1024, 4)):
        header = image_cache._npy_header(shape)
        assert len(header) % 64 == 0
        path = tmp_path / "header.npy"
        path.write_bytes(header)
        with path.open("rb") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            found = np.lib.format.read_array_header_1_0(file)
        assert found == (shape, False, np.dtype(np.uint8))


@pytest.mark.fast
def test_pillow_warns_of_nothing_inside_the_threads(tmp_path):
    broken_exif = encode(noise(4, 4), exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    images = EncodedImages("images", ["a", "b"], 0, lambda _: Encoded(broken_exif))
    assert len(decode_all(images, Decoding(size=None), tmp_path).kept) == 2
