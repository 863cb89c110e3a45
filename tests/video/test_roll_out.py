"""How a recurrent network reads clips: patches, plans, hints, and what is fed back."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.video.roll_out import (
    hints,
    make_plan,
    patchify,
    roll_out,
    steps_feed,
    unpatchify,
)

pytestmark = pytest.mark.fast


def test_patches_hold_rows_then_columns_then_channels():
    frames = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = np.asarray(patchify(frames, 2))
    assert patches.shape == (2, 2, 3, 12)
    for i in range(2):
        for j in range(2):
            for c in range(3):
                expected = np.asarray(frames)[:, i::2, j::2, c]
                np.testing.assert_array_equal(patches[..., (i * 2 + j) * 3 + c], expected)
    np.testing.assert_array_equal(unpatchify(jnp.asarray(patches), 2), frames)


def test_a_plan_to_predict_reads_all_known_frames_and_sees_nothing_ahead():
    plan = make_plan((True, True, True, False, False), partial=False)
    assert plan.targets == (1, 2, 3, 4) and plan.leading == 3
    assert plan.ahead == (None,) * 4 and not plan.has_hints


def test_a_plan_to_fill_in_sees_the_end_of_each_gap_and_stops_after_the_last():
    plan = make_plan((True, True, False, False, True, False, True, True), partial=False)
    assert plan.targets == (1, 2, 3, 4, 5) and plan.leading == 2
    # Frame 1 is known itself: were it its own hint, there would be nothing to learn.
    assert plan.ahead == (4, 4, 4, 6, 6)


def test_a_plan_for_holes_predicts_the_first_frame_too():
    plan = make_plan((True, True, True), partial=True)
    assert plan.targets == (0, 1, 2) and plan.ahead == (0, 1, 2) and plan.leading == 0


def test_hints_are_the_frame_ahead_and_its_nearness():
    clips = jnp.arange(5, dtype=jnp.float32).reshape(1, 5, 1, 1, 1)
    shown = hints(clips, None, make_plan((True, False, False, False, True), partial=False))
    assert shown.shape == (3, 1, 1, 1, 2)
    np.testing.assert_allclose(shown[:, 0, 0, 0], [[4, 1 / 4], [4, 1 / 3], [4, 1 / 2]])


def test_hints_of_holes_show_only_known_pixels():
    clips = jnp.full((1, 2, 1, 2, 1), jnp.nan).at[:, :, :, 0].set(3.0)
    mask = jnp.zeros((1, 2, 1, 2, 1)).at[:, :, :, 0].set(1.0)
    shown = np.asarray(
        hints(jnp.where(mask > 0, clips, 7.0), mask, make_plan((True, True), partial=True))
    )
    np.testing.assert_array_equal(shown[:, 0, 0, 0], [[3, 1, 1], [3, 1, 1]])
    np.testing.assert_array_equal(shown[:, 0, 0, 1], [[0, 0, 1], [0, 0, 1]])


def test_a_roll_out_reads_the_truth_where_fed_and_its_own_predictions_elsewhere():
    truth = jnp.array([10.0, 20.0, 30.0, 40.0]).reshape(4, 1, 1, 1, 1)
    feed = jnp.array([[True], [False], [True], [False]])

    def step(state, x):
        return state + 1, 2 * x + state

    for remat in (False, True):
        state, predicted = roll_out(
            step, jnp.zeros(()), truth, feed, None, jnp.zeros((1, 1, 1, 1)), remat=remat
        )
        # 2*10+0, 2*20+1, 2*30+2, 2*62+3
        np.testing.assert_array_equal(predicted.ravel(), [20, 41, 62, 127])
        assert state == 4


def test_drawn_steps_replace_the_last_ones():
    known = (True, True, False, False, False)
    plan = make_plan(known, partial=False)
    drawn = jnp.array([[True, False], [False, False]])
    feed = np.asarray(steps_feed(known, plan, None, drawn, 2))
    np.testing.assert_array_equal(feed, [[1, 1], [1, 1], [1, 0], [0, 0]])
    feed = np.asarray(steps_feed(known, plan, None, None, 2))
    np.testing.assert_array_equal(feed, [[1, 1], [1, 1], [0, 0], [0, 0]])
