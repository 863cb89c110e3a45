"""What of a clip is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from genjax.video.conditioning import Inpaint, Interpolate, Predict

pytestmark = pytest.mark.fast


def test_predict_and_interpolate_know_whole_frames():
    predict, between = Predict(past=2, future=3), Interpolate(before=2, between=1, after=1)
    assert predict.known == (True, True, False, False, False)
    assert between.known == (True, True, False, True)
    for conditioning in (predict, between):
        assert not conditioning.partial
        mask = conditioning.mask(jax.random.key(0), jnp.arange(2), (3, 4))
        assert mask.shape == (2, len(conditioning.known), 3, 4, 1)
        expected = np.array(conditioning.known, np.float32)
        np.testing.assert_array_equal(mask.mean((0, 2, 3, 4)), expected)


def test_holes_are_rectangles_that_stay_in_place():
    config = Inpaint(frames=3, smallest=0.25, largest=0.5)
    mask = np.asarray(config.mask(jax.random.key(1), jnp.arange(2000), (16, 24)))
    assert mask.shape == (2000, 3, 16, 24, 1) and set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    hole = mask[:, 0, :, :, 0] == 0
    heights, widths = hole.any(2).sum(1), hole.any(1).sum(1)
    np.testing.assert_array_equal(hole.sum((1, 2)), heights * widths)
    assert set(heights) == set(range(4, 9)) and set(widths) == set(range(6, 13))
    # Every place of the frame is hidden in some clip, the corners too.
    assert hole.any(0).all()


def test_a_hole_depends_on_the_clip_alone():
    config, key = Inpaint(frames=2), jax.random.key(2)
    together = config.mask(key, jnp.array([3, 8, 5]), (16, 16))
    alone = config.mask(key, jnp.array([8]), (16, 16))
    np.testing.assert_array_equal(together[1:2], alone)
    assert not np.array_equal(together[0], together[1])


def test_a_range_the_wrong_way_round():
    with pytest.raises(ValidationError, match=r"smallest: 0\.6 is more than largest, 0\.5; swap"):
        Inpaint(smallest=0.6)
