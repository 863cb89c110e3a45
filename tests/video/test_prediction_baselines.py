import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.prediction_baselines import baselines_for

pytestmark = pytest.mark.fast

FUTURE = (True, True, True, False, False)
BETWEEN = (True, False, False, False, True, False, True)
MEAN = jnp.asarray(np.linspace(0, 3, 12, dtype=np.float32).reshape(2, 3, 2))


def clips_like(known, dtype=np.float32):
    """Every frame is of another value: that of its number squared, plus one a clip."""
    frames = np.arange(len(known)) ** 2 + np.arange(2)[:, None]
    frames = frames[..., None, None, None].astype(dtype)
    return jnp.asarray(np.broadcast_to(frames, (2, len(known), 2, 3, 2)))


def predicted(known, name, dtype=np.float32):
    """The value of every frame of the two predictions."""
    function = jax.jit(baselines_for(known)[name])
    found = np.asarray(function(clips_like(known, dtype), MEAN))
    assert found.dtype == np.float32 and found.shape == (2, known.count(False), 2, 3, 2)
    assert (found == found[:, :, :1, :1, :1]).all()
    return found[:, :, 0, 0, 0]


def test_which_baselines_there_are():
    constants = ["black_frame", "mean_image", "mean_of_known"]
    assert list(baselines_for(FUTURE)) == [*constants, "copy_last"]
    assert list(baselines_for(BETWEEN)) == [*constants, "copy_nearest", "cross_fade"]
    # Frames to predict on one side only: the past, or both past and between.
    assert list(baselines_for((False, True))) == [*constants, "copy_nearest"]
    assert list(baselines_for((True, False, True, False))) == [*constants, "copy_nearest"]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_prediction_in_closed_form(dtype):
    # Known are 0, 1, 4 (and one more in the second clip).
    assert predicted(FUTURE, "black_frame", dtype).tolist() == [[0, 0], [0, 0]]
    assert predicted(FUTURE, "copy_last", dtype).tolist() == [[4, 4], [5, 5]]
    np.testing.assert_allclose(predicted(FUTURE, "mean_of_known", dtype).T, [[5 / 3, 8 / 3]] * 2)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_in_between_in_closed_form(dtype):
    # Frames 0, 4 and 6 are known: 0, 16, 36. Frame 2 is as near to 0 as to 4, 5 as to 4 and 6.
    nearest = np.array([0, 0, 16, 16])
    assert predicted(BETWEEN, "copy_nearest", dtype).tolist() == [[*nearest], [*nearest + 1]]
    faded = np.array([4, 8, 12, 26])
    assert predicted(BETWEEN, "cross_fade", dtype).tolist() == [[*faded], [*faded + 1]]
    mean = 52 / 3
    np.testing.assert_allclose(
        predicted(BETWEEN, "mean_of_known", dtype), [[mean] * 4, [mean + 1] * 4], rtol=1e-6
    )


def test_the_past_is_the_nearest_frame():
    assert predicted((False, False, True, True), "copy_nearest").tolist() == [[4, 4], [5, 5]]


def test_mean_image_is_repeated():
    found = baselines_for(FUTURE)["mean_image"](clips_like(FUTURE), MEAN)
    assert found.shape == (2, 2, 2, 3, 2)
    assert (found == MEAN).all()


@pytest.mark.parametrize("known", [FUTURE, BETWEEN])
def test_unknown_frames_are_not_looked_at(known):
    clips = np.asarray(clips_like(known))
    hidden = np.where(np.array(known)[:, None, None, None], clips, np.float32(np.nan))

    @jax.jit
    def all_of_them(clips):
        return [function(clips, MEAN) for function in baselines_for(known).values()]

    for found, expected in zip(all_of_them(hidden), all_of_them(clips), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("known", [(True, True), (False, False, False)])
def test_a_mask_without_a_task(known):
    with pytest.raises(UserError, match=rf"{sum(known)} of {len(known)} frames are known"):
        baselines_for(known)
