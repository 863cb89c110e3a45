"""Images and clips as files: what is read back is what was written."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from genjax.errors import UserError
from genjax.media import AnimationSample, ImageSample, film_strip, image_grid

pytestmark = pytest.mark.fast


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(frames, height, width, channels):
    """Frames in which a wave moves: what a lossy encoder keeps."""
    time, row, column, channel = np.ogrid[:frames, :height, :width, :channels]
    wave = np.sin(0.3 * time + 0.1 * row + 0.05 * column + channel)
    return np.round(127.5 + 120 * wave).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_is_a_png_with_the_same_pixels(tmp_path, channels):
    image = pixels(5, 7, channels)
    sample = ImageSample(index=3, name="00003", image=image, caption={"seed": 9})
    fields = sample.save(tmp_path, "samples/00000020")
    assert fields == {"image": "samples/00000020/00003.png", "seed": 9}
    read = np.asarray(Image.open(tmp_path / fields["image"]))
    np.testing.assert_array_equal(read.reshape(image.shape), image)
    assert [path.name for path in (tmp_path / "samples/00000020").iterdir()] == ["00003.png"]
    words = {1: "grey", 3: "RGB", 4: "RGBA"}[channels]
    assert sample.preview() == f"00003 (9): 7 x 5 pixels, {words}"


def test_a_file_of_the_same_name_is_overwritten_whole(tmp_path, monkeypatch):
    old, new = (ImageSample(index=0, name="grid", image=pixels(4, 4, 3, seed=i)) for i in (0, 1))
    old.save(tmp_path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "replace", full)
        new.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), old.image)
    assert new.save(tmp_path) == {"image": "grid.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), new.image)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("format", ["webp", "gif"])
def test_an_animation_loops(tmp_path, format, channels):
    frames = smooth(4, 9, 10, channels)
    if channels == 4:
        frames[..., 3] = 255
    clip = AnimationSample(
        index=0, name="walk", animation=frames, frames_per_second=12.5, format=format
    )
    (path,) = clip.save(tmp_path).values()
    with Image.open(tmp_path / path) as picture:
        assert picture.info["loop"] == 0
        read = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    expected = np.broadcast_to(frames[..., :3], (4, 9, 10, 3))
    # WebP is lossless at this size; a GIF has 256 colours.
    np.testing.assert_allclose(np.stack(read), expected, atol=0 if format == "webp" else 40)
    assert clip.preview().startswith("walk: 4 frames of 10 x 9 pixels, ")
    assert clip.preview().endswith(", 0.3 s")


@pytest.mark.parametrize("format", ["webp", "gif"])
@pytest.mark.parametrize(("rate", "kept"), [(30000 / 1001, 30), (50, 30), (60, 15), (180, 8)])
def test_an_animation_lasts_as_long_as_it_should(format, rate, kept):
    frames = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2) * 8
    clip = AnimationSample(
        index=0, name="walk", animation=frames, frames_per_second=rate, format=format
    )
    with Image.open(io.BytesIO(clip.encoded())) as picture:
        durations, first = [], []
        for frame in ImageSequence.Iterator(picture):
            frame.load()
            durations.append(frame.info["duration"])
            first.append(np.asarray(frame.convert("L"))[0, 0])
    assert len(durations) == kept and min(durations) >= 20
    assert sum(durations) == pytest.approx(30 / rate * 1000, abs=15)
    np.testing.assert_allclose(first, frames[:: -(-30 // kept), 0, 0, 0], atol=2)


@pytest.mark.parametrize("encoder", ["h264", "mpeg4"])
def test_a_film_has_even_sides_and_its_speed(tmp_path, monkeypatch, encoder):
    av = pytest.importorskip("av")
    if encoder == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frames = smooth(6, 33, 31, 3)
    clip = AnimationSample(
        index=0, name="walk", animation=frames, frames_per_second=12.5, format="mp4"
    )
    assert clip.save(tmp_path) == {"video": "walk.mp4"}
    with av.open(str(tmp_path / "walk.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == encoder and stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (32, 34)
        assert float(stream.average_rate) == 12.5
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    assert len(read) == 6
    error = np.abs(read[:, :33, :31].astype(float) - frames).mean()
    assert error < 6, error


def test_a_film_lays_what_is_transparent_over_white():
    av = pytest.importorskip("av")
    frames = np.zeros((2, 16, 16, 4), np.uint8)
    frames[:, 8:, :, 3] = 255
    clip = AnimationSample(index=0, name="walk", animation=frames, format="mp4")
    with av.open(io.BytesIO(clip.encoded())) as film:
        read = next(film.decode(video=0)).to_ndarray(format="rgb24")
    assert read[2, 8].min() > 245 and read[13, 8].max() < 10


def test_a_film_without_pyav_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    clip = AnimationSample(index=0, name="walk", animation=pixels(2, 4, 4, 3), format="mp4")
    with pytest.raises(UserError, match=r"pip install 'genjax\[video\]'"):
        clip.encoded()


def test_what_is_no_picture_is_refused():
    def image(pixels, name="grid", **caption):
        return ImageSample(index=0, name=name, image=pixels, caption=caption)

    for bad in (pixels(4, 4, 2), pixels(0, 4, 3)):
        with pytest.raises(ValueError, match="pixels"):
            image(bad)
    for name in ("", "../grid", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="plain file name"):
            image(pixels(4, 4, 3), name)
    with pytest.raises(ValueError, match="caption cannot hold step"):
        image(pixels(4, 4, 3), step=3)
    with pytest.raises(ValueError, match="frames_per_second"):
        AnimationSample(index=0, name="a", animation=pixels(2, 4, 4, 3), frames_per_second=0.0)


@pytest.mark.parametrize(
    ("count", "height", "width", "rows", "columns"),
    [(1, 4, 4, 1, 1), (64, 4, 4, 8, 8), (10, 4, 4, 3, 4), (2, 4, 4, 1, 2), (8, 2, 8, 4, 2)],
)
def test_a_grid_is_about_square(count, height, width, rows, columns):
    grid = image_grid(pixels(count, height, width, 3))
    assert grid.shape == (rows * height, columns * width, 3)


@pytest.mark.parametrize(("channels", "blank"), [(1, 255), (3, 255), (4, 0)])
def test_a_grid_holds_each_image_in_its_place(channels, blank):
    images = pixels(5, 3, 2, channels)
    grid = image_grid(images, columns=3, gap=1)
    assert grid.shape == (7, 8, channels)
    left = np.ones(grid.shape[:2], bool)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        place = np.s_[row * 4 : row * 4 + 3, column * 3 : column * 3 + 2]
        np.testing.assert_array_equal(grid[place], image)
        left[place] = False
    assert (grid[left] == blank).all() and left.sum() == 7 * 8 - 5 * 6


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no pixels"):
        image_grid(pixels(0, 4, 4, 3))
    for settings in ({"columns": 0}, {"gap": -1}):
        with pytest.raises(ValueError, match=r"columns is -?\d and gap"):
            image_grid(pixels(2, 4, 4, 3), **settings)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_film_strip_has_a_row_a_clip_and_enlarges_small_frames(channels):
    clips = pixels(2, 3, 5, 32, channels)
    shown = np.array([[True, True, True], [True, False, True]])
    strip = film_strip(clips, shown)
    factor = 13  # the first that makes 64 of 5
    assert strip.shape == (2 * 5 * factor + 2, 3 * 32 * factor + 2 * 2, channels)
    height, width = 5 * factor, 32 * factor
    for row, column in np.argwhere(shown):
        top, left = row * (height + 2), column * (width + 2)
        cell = strip[top : top + height, left : left + width]
        np.testing.assert_array_equal(cell[::factor, ::factor], clips[row, column])
        np.testing.assert_array_equal(cell[factor - 1 :: factor, ::factor], clips[row, column])
    blank = strip[height + 2 :, width + 2 : 2 * width + 2]
    assert (blank == (0 if channels == 4 else 255)).all()
    assert film_strip(pixels(1, 2, 80, 64, 3)).shape == (80, 130, 3)
