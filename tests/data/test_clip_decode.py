import sys

import numpy as np
import pytest
from PIL import Image

from genjax.data.clip_decode import TimedFrame, UnreadableClip, read_clip, retimed
from genjax.errors import UserError
from tests.data.clip_writing import (
    animation,
    gray_frames,
    known_values,
    turn_clockwise,
    write_frames,
    write_video,
)

pytestmark = pytest.mark.fast
VALUES = [10, 60, 110, 160, 210]
FRAMES = gray_frames(VALUES)


# Formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mkv", "avi", "mov"])
def test_lossless_video_is_read_bit_by_bit(tmp_path, ending):
    frames = np.random.default_rng(0).integers(0, 256, (5, 18, 24, 3), np.uint8)
    codec, pixels = ("png", "rgb24") if ending == "mov" else ("ffv1", "bgr0")
    path = write_video(tmp_path / f"clip.{ending}", frames, codec=codec, pixels=pixels, rate=10)
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.frames_per_second == pytest.approx(10, rel=1e-3)
    gray = read_clip(path, channels=1).frames
    # ITU-R 601, as Pillow makes images gray.
    expected = frames @ np.array([0.299, 0.587, 0.114])
    assert gray.shape == (5, 18, 24, 1) and np.abs(gray[..., 0] - expected).max() <= 1.0


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9")],
)
def test_lossy_video(tmp_path, ending, codec):
    path = write_video(tmp_path / f"clip.{ending}", FRAMES, codec=codec, pixels="yuv420p", rate=25)
    clip = read_clip(path)
    assert clip.frames.shape == FRAMES.shape and clip.frames.dtype == np.uint8
    np.testing.assert_allclose(known_values(clip.frames), VALUES, atol=6)
    assert clip.frames_per_second == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_animated_pictures_need_no_pyav(tmp_path, monkeypatch, form):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / f"clip.{form.lower()}"
    path.write_bytes(animation(FRAMES, form, [100, 100, 200, 50, 50]))
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.frames, FRAMES)
    assert clip.frames_per_second == pytest.approx(10)
    assert known_values(read_clip(path, frames_per_second=20).frames) == [
        *(10, 10, 60, 60, 110, 110, 110, 110, 160, 210)
    ]


def test_folder_of_frames_in_the_order_of_their_numbers(tmp_path):
    folder = write_frames(tmp_path / "clip", gray_frames(np.arange(12)), "frame{}.png")
    (folder / "cover.jpg").write_bytes(b"?")
    clip = read_clip(folder)
    assert known_values(clip.frames) == list(range(12)) and clip.frames_per_second == 25
    # Given a rate, they have it.
    clip = read_clip(folder, frames_per_second=8)
    assert known_values(clip.frames) == list(range(12)) and clip.frames_per_second == 8
    assert known_values(read_clip(folder / ".." / "clip").frames) == list(range(12))


def test_gray_video_is_read(tmp_path):
    frames = np.random.default_rng(1).integers(0, 256, (3, 18, 24, 1), np.uint8)
    path = write_video(tmp_path / "clip.mkv", frames, pixels="gray")
    np.testing.assert_array_equal(read_clip(path, channels=1).frames, frames)
    np.testing.assert_array_equal(read_clip(path).frames, np.repeat(frames, 3, -1))


def test_transparency_lies_over_white(tmp_path):
    frames = np.zeros((3, 16, 16, 4), np.uint8)
    frames[..., 0] = 200
    frames[0, ..., 3], frames[1, ..., 3] = 255, 128
    # 128 of 255 over white.
    expected = [[200, 0, 0], [227, 127, 127], [255, 255, 255]]
    path = write_video(tmp_path / "clip.mov", frames, codec="png", pixels="rgba")
    np.testing.assert_allclose(read_clip(path).frames[:, 8, 8], expected, atol=1)
    write_frames(tmp_path / "clip", frames)
    np.testing.assert_allclose(read_clip(tmp_path / "clip").frames[:, 8, 8], expected, atol=1)
    path = tmp_path / "clip.webp"
    path.write_bytes(animation(frames, "WEBP"))
    np.testing.assert_allclose(read_clip(path).frames[:, 8, 8], expected, atol=1)


def test_transparent_gif_lies_over_white(tmp_path):
    pictures = []
    for box in ((4, 0, 16, 16), (0, 0, 12, 16)):
        picture = Image.new("P", (16, 16), 0)
        picture.putpalette([0, 0, 0, 200, 0, 0])
        picture.paste(1, box)
        pictures.append(picture)
    options = {"transparency": 0, "disposal": 2, "duration": 40, "save_all": True}
    pictures[0].save(tmp_path / "clip.gif", append_images=pictures[1:], **options)
    clip = read_clip(tmp_path / "clip.gif").frames
    red, white = [200, 0, 0], [255, 255, 255]
    assert clip[:, 8, [1, 8, 14]].tolist() == [[white, red, red], [red, red, white]]


# Geometry ----------------------------------------------------------------------------------------


def test_size_and_crop(tmp_path):
    frames = np.zeros((2, 16, 32, 3), np.uint8)
    frames[:, :, 8:24] = 255
    path = write_video(tmp_path / "clip.mkv", frames)
    # The filter's ripples reach over the edge of what is cut out.
    assert read_clip(path, size=8).frames.min() >= 235
    stretched = read_clip(path, size=8, crop="none").frames
    assert stretched.shape == (2, 8, 8, 3)
    assert stretched[0, 4, :, 0].tolist()[::7] == [0, 0] and stretched[0, 4, 4, 0] == 255
    assert read_clip(path, size=(4, 12)).frames.shape == (2, 4, 12, 3)


def test_turned_video_is_upright(tmp_path):
    frames = np.zeros((3, 16, 32, 3), np.uint8)
    frames[:, :8, :16] = 255
    path = write_video(tmp_path / "clip.mp4", frames, codec="libx264", pixels="yuv444p")
    turn_clockwise(path)
    turned = read_clip(path).frames
    assert turned.shape == (3, 32, 16, 3)
    # The corner at the top left went to the top right.
    quarters = turned[0, 4::16, 4::8, 0] > 127
    assert quarters.tolist() == [[False, True], [False, False]]


def test_pixels_that_are_not_square(test_data):
    path = test_data / "clips" / "carphone_pristine.mp4"
    own = read_clip(path)
    assert own.frames.shape == (120, 144, 176, 3)
    # 176 x 144 pixels, each 128/117 wide, are 4 to 3: nothing is cut off.
    square = read_clip(path, size=(72, 96)).frames[0].astype(float)
    whole = Image.fromarray(own.frames[0]).resize((96, 72), Image.Resampling.LANCZOS)
    cut = Image.fromarray(own.frames[0, 6:-6]).resize((96, 72), Image.Resampling.LANCZOS)
    errors = [np.abs(square - np.asarray(picture)).mean() for picture in (whole, cut)]
    assert errors[0] < 4 and errors[1] > 3 * errors[0]


# Time --------------------------------------------------------------------------------------------


def frames_at(starts, last=0.04):
    durations = [*np.diff(starts), last]
    blank = np.zeros((1, 1, 1), np.uint8)
    return [TimedFrame(float(s), float(d), blank) for s, d in zip(starts, durations, strict=True)]


def numbers(starts, rate, last=0.04):
    return [shown.number for shown in retimed(frames_at(starts, last), rate)]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (30, list(range(12))),
        (15, [0, 2, 4, 6, 8, 10]),
        (10, [0, 3, 6, 9]),
        (60, [number // 2 for number in range(1, 24)] + [11]),
    ],
)
def test_rate_ratios_that_are_whole_stay_regular(rate, expected):
    exact = np.arange(12) / 30
    # As containers store it: milliseconds.
    for starts in (exact, np.round(exact, 3), np.floor(exact * 1000) / 1000):
        found = numbers(starts, rate, 1 / 30)
        if rate <= 30:
            assert found == expected
        else:
            assert len(found) == 24 and np.abs(np.array(found) - np.arange(24) / 2).max() <= 0.5


def test_rates_that_do_not_divide_stay_near():
    starts = np.arange(100) / 30
    for rate in (7, 20, 24, 25, 29.97):
        shown = np.array(numbers(starts, rate, 1 / 30))
        assert len(shown) == round(100 / 30 * rate)
        assert np.abs(starts[shown] - np.arange(len(shown)) / rate).max() <= 0.5 / 30 + 1e-6
        assert (np.diff(shown) >= 1).all()


def test_timestamps_decide_not_frame_counts():
    # A picture that stands for a second, then three quick ones.
    assert numbers([0.0, 1.0, 1.1, 1.2], 10, 0.1) == [0] * 10 + [1, 2, 3]
    assert numbers([0.0, 1.0, 1.1, 1.2], 5, 0.2) == [0] * 5 + [1, 3]
    assert numbers([0.0], 10, 0.5) == [0] * 5 and numbers([0.0], 10, 0.01) == [0]
    assert numbers([0.0, 1.0, 1.1], None) == [0, 1, 2]


def test_what_breaks_off_keeps_its_last_ticks():
    def broken():
        yield from frames_at([0.0, 0.1], 0.1)
        raise UnreadableClip("is truncated")

    found = []
    with pytest.raises(UnreadableClip):
        found.extend(shown.number for shown in retimed(broken(), 20))
    stream, found = retimed(broken(), 20), []
    with pytest.raises(UnreadableClip):
        while True:
            found.append(next(stream).number)
    assert found == [0, 0, 1, 1]


def test_video_of_variable_rate(tmp_path):
    path = write_video(
        *(tmp_path / "clip.mkv", FRAMES),
        **{"times": [0, 100, 500, 600, 700], "rate": 10},
    )
    clip = read_clip(path, frames_per_second=10)
    assert known_values(clip.frames)[:8] == [10, 60, 60, 60, 60, 110, 160, 210]
    assert known_values(read_clip(path).frames) == VALUES


def test_real_clips(test_data):
    shapes = {}
    # The others are large, and decoding them takes seconds.
    for name in ("bikes.mp4", "carphone_pristine.mp4", "newtonscradle.gif", "realshort.mp4"):
        clip = read_clip(test_data / "clips" / name, size=(24, 32))
        shapes[name] = (len(clip.frames), round(clip.frames_per_second, 1))
    assert shapes == {
        "bikes.mp4": (250, 25.0),
        "carphone_pristine.mp4": (120, 30.0),
        "newtonscradle.gif": (36, 43.9),
        "realshort.mp4": (36, 30.0),
    }
    ten = read_clip(test_data / "clips" / "carphone_pristine.mp4", frames_per_second=10)
    own = read_clip(test_data / "clips" / "carphone_pristine.mp4")
    np.testing.assert_array_equal(ten.frames, own.frames[::3])


# Damage ------------------------------------------------------------------------------------------


def error_of(path, **options):
    with pytest.raises(UserError) as caught:
        read_clip(path, **options)
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")]
)
def test_truncated_video_keeps_its_beginning(tmp_path, ending, codec):
    noise = np.random.default_rng(2).integers(0, 256, (20, 32, 32, 3), np.uint8)
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    path = tmp_path / f"clip.{ending}"
    write_video(path, noise, codec=codec, pixels="yuv420p", options=options)
    whole = read_clip(path).frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    part = read_clip(path).frames
    assert 3 <= len(part) < 16
    np.testing.assert_array_equal(part, whole[: len(part)])


def test_truncated_gif_drops_its_half_frame(tmp_path):
    noise = np.random.default_rng(3).integers(0, 256, (6, 16, 16, 1), np.uint8)
    data = animation(noise)
    (tmp_path / "clip.gif").write_bytes(data[: len(data) // 2])
    part = read_clip(tmp_path / "clip.gif", channels=1).frames
    assert 1 <= len(part) < 4
    np.testing.assert_array_equal(part, noise[: len(part)])


def test_frame_that_is_broken_ends_its_clip(tmp_path):
    folder = write_frames(tmp_path / "clip", FRAMES)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:30])
    assert known_values(read_clip(folder).frames) == VALUES[:3]
    (folder / "000.png").write_bytes(b"")
    assert "breaks off: 000.png is empty" in error_of(folder)


def test_frames_of_another_size_end_their_clip(tmp_path):
    folder = write_frames(tmp_path / "clip", FRAMES)
    Image.new("RGB", (20, 16)).save(folder / "002.png")
    assert len(read_clip(folder).frames) == 2
    assert len(read_clip(folder, size=8).frames) == 5


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.mp4", b"", "a.mp4 is empty"),
        ("a.gif", b"", "a.gif is empty"),
        ("a.mp4", b"no video " * 99, "cannot be decoded (Invalid data found"),
        ("a.webp", b"RIFF....WEBP", "cannot be decoded ("),
        # FFmpeg would follow it to other files.
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", "cannot be decoded ("),
        ("a.txt", b"text", "is no clip; its files: 1 with .txt"),
    ],
)
def test_no_clip(tmp_path, name, data, part):
    (tmp_path / name).write_bytes(data)
    assert part in error_of(tmp_path / name)


def test_codec_that_is_not_there(tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES, codec="libx264", pixels="yuv420p")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    message = error_of(path)
    assert "needs a codec that PyAV does not have" in message and "convert it" in message


def test_video_without_pyav(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mkv", FRAMES)
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'genjax[video]'" in error_of(path)


def test_path_that_is_wrong(tmp_path):
    assert "does not exist" in error_of(tmp_path / "clip.mp4")
    assert "no clip in it" in error_of(tmp_path)
    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", FRAMES)
    assert "holds 2 clips.\nGive one: " in error_of(tmp_path)
