"""What a predictor draws when asked: clips of its data and of the user, continued or filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.errors import UserError
from genjax.media import AnimationSample, ImageSample
from genjax.video.prediction_config import PredictionGenerationConfig
from tests.video.small_predictions import task_of


@pytest.fixture(scope="module")
def predict():
    task = task_of()
    return task, jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def between():
    task = task_of("convlstm", "interpolate")
    return task, jax.jit(task.init)(jax.random.key(0))


def asked(run, **request):
    task, state = run
    return list(task.generate(state, jax.random.key(0), PredictionGenerationConfig(**request)))


def write_clip(path, frames):
    """A GIF of grey frames at ten a second; their levels survive."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


def stripes(count, size=16):
    """Frames that differ from each other everywhere."""
    row = np.arange(size)[:, None]
    return [
        np.broadcast_to((row * 8 + 10 * t) % 256, (size, size)).astype(np.uint8)
        for t in range(count)
    ]


def test_clips_of_the_data_stand_beside_their_prediction(predict):
    *clips, strip = asked(predict, count=2)
    assert [type(clip) for clip in clips] == [AnimationSample] * 2
    assert [clip.index for clip in clips] == [0, 1] and strip.index == 2
    task = predict[0]
    true = task.shown_clips("validation", 2)
    for clip, expected in zip(clips, true, strict=True):
        # Three known frames and three predicted ones, with a margin of one pixel around each.
        assert clip.animation.shape == (6, 18, 36, 1)
        np.testing.assert_array_equal(clip.animation[:, 1:17, 1:17], expected)
        np.testing.assert_array_equal(clip.animation[:3, 1:17, 19:35], expected[:3])
        assert (clip.animation[:, 0] == 127).all()
        assert clip.frames_per_second == 10
    assert isinstance(strip, ImageSample)


def test_more_frames_than_in_training(predict):
    short, _ = asked(predict, count=1)
    long, strip = asked(predict, count=1, frames=7)
    assert long.animation.shape[0] == 10
    np.testing.assert_array_equal(long.animation[:6], short.animation)
    assert strip.image.shape[1] == 10 * 66 - 2


def test_a_clip_of_the_user_goes_on(predict, tmp_path):
    file = write_clip(tmp_path / "my clip.gif", stripes(5))
    clip, strip = asked(predict, input=file, frames=4)
    assert clip.name == "my-clip" and clip.frames_per_second == pytest.approx(10)
    assert clip.animation.shape == (9, 16, 16, 1)
    known = np.stack(stripes(5))[..., None]
    np.testing.assert_array_equal(clip.animation[:5], known)
    # The network reads as many frames as in training, the last ones.
    task, state = predict
    past = jnp.asarray(known[None, -3:], jnp.float32) / 255
    expected = task.view.predict(task._variables(state), past, future=4)[0]
    found = clip.animation[5:].astype(np.float64) / 255
    assert np.abs(found - np.clip(expected, 0, 1)).max() <= 0.5 / 255 + 1e-6
    assert strip.image.shape[1] == 7 * 66 - 2


def test_gaps_of_a_clip_are_filled_and_it_lasts_as_long(between, tmp_path):
    file = write_clip(tmp_path / "clip.gif", stripes(4))
    clip, _ = asked(between, input=file)
    # Two frames in each of three gaps.
    assert clip.animation.shape == (10, 16, 16, 1)
    np.testing.assert_array_equal(clip.animation[::3, ..., 0], np.stack(stripes(4)))
    assert clip.frames_per_second == pytest.approx(30)
    task, state = between
    frames = jnp.asarray(np.stack(stripes(4))[..., None], jnp.float32) / 255
    # The gap between the frames 1 and 2: two frames before it, one after.
    window = jnp.concatenate([frames[0:2], jnp.zeros((2, 16, 16, 1)), frames[2:3]])[None]
    expected = task.view.complete(task._variables(state), window, None)[0, 2:4]
    found = clip.animation[4:6].astype(np.float64) / 255
    assert np.abs(found - np.clip(expected, 0, 1)).max() <= 0.5 / 255 + 1e-6


def test_requests_that_do_not_fit(predict, between, tmp_path):
    with pytest.raises(UserError, match="frames: the run fills in"):
        asked(between, frames=3)
    with pytest.raises(UserError, match=r"split: .* has no 'test'; one of train, validation"):
        asked(predict, split="test")
    one = write_clip(tmp_path / "one.gif", stripes(1))
    with pytest.raises(UserError, match="one frame has nothing to fill in between"):
        asked(between, input=one)
    with pytest.raises(UserError, match="input: the run fills holes"):
        holes = task_of("convlstm", "inpaint")
        asked((holes, jax.jit(holes.init)(jax.random.key(0))), input=one)
    simvp = task_of("simvp")
    with pytest.raises(UserError, match=r"1 frames are too few to go on from; .* trained with 3"):
        asked((simvp, jax.jit(simvp.init)(jax.random.key(0))), input=one)
