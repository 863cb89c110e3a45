import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.metrics.content_consistency import content_consistency
from tests.video.metrics.squares import line, squares

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("step", [(0, 1), (0.3, 0.7)])
def test_an_object_of_one_colour_is_consistent(step):
    """With soft edges too."""
    assert content_consistency(squares(line((3, 2), step, 8))) == (0.0, 1.0)


def test_pairs_of_colours_by_hand():
    """Contents a, b and a + b: distances |a - b|, |b| and |a| relative to a common colour."""
    clips = squares(line((3, 2), (0, 2), 3)).astype(int)
    inside = clips[0, ..., 0] == 220
    for frame, change in enumerate([(3, 0, 4), (0, 12, 0), (3, 12, 4)]):
        clips[0, frame][inside[frame]] += change
    found = content_consistency(clips.astype(np.uint8))
    assert found.average_content_distance == pytest.approx((13 + 12 + 5) / 3)


def test_the_mean_is_over_clips_that_are_tracked():
    still = squares(line((3, 2), (0, 1), 2))
    changed = still.copy()
    changed[0, 1][changed[0, 1, :, :, 0] == 220] += np.array([0, 0, 8], np.uint8)
    lost = np.full_like(still, 20)
    found = content_consistency(np.concatenate([still, changed, lost]))
    assert found == (pytest.approx(4.0), pytest.approx(2 / 3))
    nothing = content_consistency(lost)
    assert np.isnan(nothing.average_content_distance) and nothing.track_rate == 0


def test_thin_strokes_are_all_edge():
    clips = np.zeros((1, 2, 16, 16, 1), np.uint8)
    clips[0, 0, 4:12, 7], clips[0, 1, 4:12, 8] = 255, 245
    assert content_consistency(clips).average_content_distance == 10


def test_one_frame_is_not_enough():
    with pytest.raises(UserError, match="only one"):
        content_consistency(squares([(3, 2)]))
