import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.metrics.repetition import frame_changes, freeze_rate, loop_rate
from tests.video.metrics.squares import line, squares

pytestmark = pytest.mark.fast

MOVING = np.concatenate(
    [squares(line((2, 1), step, 10)) for step in ((0, 1), (1, 0), (0.3, 0.8), (0.9, 0.5))]
)


def noisy(clips, levels=3):
    noise = np.random.default_rng(0).integers(-levels, levels, clips.shape, endpoint=True)
    return np.clip(clips.astype(int) + noise, 0, 255).astype(np.uint8)


def circle(period, frames, size=16):
    angles = 2 * np.pi * np.arange(frames) / period
    return squares(np.stack([6 + 4 * np.sin(angles), 6 + 4 * np.cos(angles)], 1), size=size)


def test_change_in_closed_form():
    # A square of side 4 leaves a column and takes another.
    contrast = np.square(np.array([220, 100, 60]) - [20, 30, 40]).sum()
    expected = np.sqrt(8 * contrast / (3 * 16 * 16))
    np.testing.assert_allclose(frame_changes(MOVING[:2]), expected, rtol=1e-12)
    # Whichever frame is the brighter, and not modulo 256.
    blinking = np.zeros((1, 3, 4, 4, 1), np.uint8)
    blinking[:, 1] = 200
    assert frame_changes(blinking).tolist() == [200]


def test_moving_clips_neither_freeze_nor_loop():
    for clips in (MOVING, noisy(MOVING)):
        changes = frame_changes(clips)
        assert freeze_rate(changes, changes) == 0
        assert loop_rate(clips) == 0


def test_frozen_clips():
    frozen = np.repeat(MOVING[:, :1], 10, axis=1)
    # One that stands still for eight of nine steps: a third of the moving clip's change.
    frozen[1, -1] = MOVING[1, 1]
    reference = frame_changes(MOVING)
    assert freeze_rate(frame_changes(frozen), reference) == 0.75
    assert freeze_rate(frame_changes(frozen), reference, threshold=0.4) == 1
    assert freeze_rate(frame_changes(noisy(frozen[[0, 2, 3]], 1)), reference) == 1
    mixed = np.concatenate([MOVING, frozen])
    assert freeze_rate(frame_changes(mixed), reference, threshold=0.4) == 0.5
    # What never changes does not come back, and neither does noise.
    assert loop_rate(frozen[[0, 2, 3]]) == 0
    assert loop_rate(noisy(frozen, 40)) == 0


def test_still_real_clips_freeze_nothing():
    assert freeze_rate(np.zeros(3), np.zeros(5)) == 0


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_looping_clips(period):
    loops = MOVING[:, np.arange(10) % period]
    assert loop_rate(loops) == 1
    assert loop_rate(noisy(loops)) == 1
    assert loop_rate(np.concatenate([loops, MOVING])) == 0.5


def test_motion_in_a_circle_loops_if_it_comes_round_twice():
    assert loop_rate(circle(6, 12)) == 1
    assert loop_rate(circle(6, 10)) == 0
    # Forth and back is a loop as well.
    there_and_back = MOVING[:1, [0, 2, 4, 6, 4, 2, 0, 2, 4, 6, 4, 2]]
    assert loop_rate(there_and_back) == 1


def test_clips_that_are_too_short():
    with pytest.raises(UserError, match="only one"):
        frame_changes(MOVING[:, :1])
    with pytest.raises(UserError, match="at least 4 frames"):
        loop_rate(MOVING[:, :3])
