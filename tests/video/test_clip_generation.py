"""What a trained generator of clips draws: clips by number, longer ones, continued pictures."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.errors import UserError
from genjax.video.clip_generation import clip_grid
from genjax.video.video_adversarial_config import ClipGenerationConfig
from tests.video.small_video_gans import configured

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def plain():
    """A conditional run, and its first state."""
    task = configured(evaluation={"batch_size": 3}).make_task()
    return task, jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def continuing():
    """A run whose clips continue a first frame, and its first state."""
    task = configured(evaluation={"batch_size": 3}, image_conditional=True).make_task()
    return task, jax.jit(task.init)(jax.random.key(0))


def ask(run, **request):
    task, state = run
    return list(task.generate(state, KEY, ClipGenerationConfig(**request)))


def clips_of(samples):
    found = [sample for sample in samples if sample.name.isdigit()]
    return np.stack([sample.animation for sample in found])


def test_a_clip_is_the_same_whatever_the_count_and_begins_the_same_however_long(plain):
    many, few = clips_of(ask(plain, count=5)), clips_of(ask(plain, count=2))
    assert many.shape == (5, 4, 16, 16, 3) and many.dtype == np.uint8
    np.testing.assert_array_equal(many[:2], few)
    assert len(np.unique(many.reshape(5, -1), axis=0)) == 5
    for frames in (2, 6, 9):
        other = clips_of(ask(plain, count=2, frames=frames))
        same = min(frames, 4)
        assert other.shape[1] == frames
        np.testing.assert_array_equal(other[:, :same], few[:, :same])
    longer = [clips_of(ask(plain, count=2, frames=frames)) for frames in (6, 9)]
    np.testing.assert_array_equal(longer[0], longer[1][:, :6])


def test_classes_go_round_and_a_grid_and_a_film_strip_follow(plain):
    samples = ask(plain, count=6, frames_per_second=5.0)
    labels = [sample.caption["label"] for sample in samples[:6]]
    assert labels == [0, 1, 2, 3, 0, 1] and samples[1].caption["class"] == "right"
    assert [sample.name for sample in samples[5:]] == ["00005", "grid", "film_strip"]
    assert [sample.index for sample in samples] == list(range(8))
    grid, strip, clips = samples[6].animation, samples[7].image, clips_of(samples)
    assert grid.shape == (4, 2 * 18 - 2, 4 * 18 - 2, 3)
    assert strip.shape == (6 * 66 - 2, 4 * 66 - 2, 3)
    np.testing.assert_array_equal(grid[2, 18:34, 18:34], clips[5, 2])
    np.testing.assert_array_equal(strip[132:196:4, 66:130:4], clips[2, 1])
    assert {sample.frames_per_second for sample in samples[:7]} == {5.0}
    only = ask(plain, count=2, label=3, grid=False)
    assert [sample.caption["label"] for sample in only] == [3, 3]
    with Image.open(io.BytesIO(only[0].encoded())) as shown:
        assert shown.n_frames == 4


def test_a_picture_or_a_clip_is_continued(continuing, tmp_path):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    clips = clips_of(ask(continuing, count=3, input=tmp_path / "picture.png", frames=6))
    for clip in clips:
        np.testing.assert_array_equal(clip[0], picture)
        assert (clip[1] != picture).any()
    frames = [Image.fromarray(image) for image in (picture, picture[::-1].copy())]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    again = clips_of(ask(continuing, count=3, input=tmp_path / "clip.webp", frames=6))
    np.testing.assert_array_equal(again, clips)
    # Without one, each continues a real clip.
    own = clips_of(ask(continuing, count=3))
    numbers = np.linspace(0, 999, 3).astype(np.int64)
    real = continuing[0].source.clips("validation", numbers)
    np.testing.assert_array_equal(own[:, 0], real[:, 0])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"input: .*broken.png cannot be read"):
        ask(continuing, input=tmp_path / "broken.png")
    with pytest.raises(UserError, match=r"missing.webp does not exist"):
        ask(continuing, input=tmp_path / "missing.webp")


def test_samples_stand_beside_the_clips_whose_conditions_they_have(continuing):
    task, state = continuing
    samples = list(task.samples(state, KEY))
    names = [sample.name for sample in samples]
    assert names == ["generated", "generated_frames", "real", "real_frames"]
    generated, real = samples[0].animation, samples[2].animation
    assert generated.shape == real.shape == (4, 70, 70, 3)
    np.testing.assert_array_equal(generated[0], real[0])
    assert (generated[1] != real[1]).any()
    for one, other in zip(samples, task.samples(state, KEY), strict=True):
        assert one.encoded() == other.encoded()


def test_what_cannot_be_made_is_refused(plain):
    with pytest.raises(UserError, match="label: 4 is out of range; the run's classes are 0 to 3"):
        ask(plain, label=4)
    with pytest.raises(UserError, match="was trained without first frames"):
        ask(plain, input="picture.png")
    with pytest.raises(ValueError, match="columns: 2 does nothing without the grid"):
        ClipGenerationConfig(columns=2, grid=False)
    task = configured(masked=True, discriminators=["clip"]).make_task()
    state = jax.jit(task.init)(KEY)
    assert clips_of(ask((task, state), count=1, frames=4)).shape == (1, 4, 16, 16, 3)
    with pytest.raises(UserError, match="makes clips of 4 frames and no others, not of 5"):
        ask((task, state), frames=5)


@pytest.mark.fast
def test_a_grid_plays_clips_side_by_side():
    clips = np.arange(3 * 40, dtype=np.uint8).reshape(3, 40, 1, 1, 1)
    grid = clip_grid(clips, 3)
    assert grid.shape == (40, 1, 7, 1)
    np.testing.assert_array_equal(grid[:, 0, 3, 0], clips[1, :, 0, 0, 0])
