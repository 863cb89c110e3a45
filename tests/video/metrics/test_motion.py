import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.metrics.motion import (
    DIRECTIONS,
    centroid_tracks,
    direction_accuracy,
    directions,
    motion,
)
from tests.video.metrics.squares import line, squares

pytestmark = pytest.mark.fast

STEPS = {"left": (0.2, -1), "right": (0, 1), "up": (-1, 0.2), "down": (0.5, 0)}


def clips_of(*places, **settings):
    return np.concatenate([squares(place, **settings) for place in places])


def test_centroids_of_soft_squares():
    places = line((3, 2), (0.3, 0.85), 9)
    tracks = centroid_tracks(squares(places))
    # Edges under the tolerance are lost: up to 16% of a pixel's cover in four of the square.
    np.testing.assert_allclose(tracks.centroids[0], places + 1.5, atol=0.1)
    whole = line((3, 2), (1, 1), 9)
    np.testing.assert_allclose(centroid_tracks(squares(whole)).centroids[0], whole + 1.5)


def test_constant_motion():
    found = motion(centroid_tracks(clips_of(line((6, 1), (0, 1), 9), line((1, 2), (1, 0), 9))))
    assert found == pytest.approx((1.0, 0.0, 1.0, 1.0))
    # Along the diagonal of 3 and 4.
    found = motion(centroid_tracks(squares(line((0, 0), (3, 4), 6), size=32)))
    assert found == pytest.approx((5.0, 0.0, 1.0, 1.0))


def test_motion_back_and_forth():
    columns = [2, 4, 3, 5, 4, 6]
    found = motion(centroid_tracks(squares([(5, column) for column in columns])))
    # Steps 2, -1, 2, -1, 2; changes of 3 each; three of five steps go right.
    assert found == pytest.approx((8 / 5, 3.0, 3 / 5, 1.0))


def test_a_still_clip_and_a_lost_one():
    still = squares(line((5, 5), (0, 0), 4))
    assert motion(centroid_tracks(still)) == (0.0, 0.0, 0.0, 1.0)
    lost = np.zeros_like(still)
    tracks = centroid_tracks(np.concatenate([still, lost]))
    assert motion(tracks) == (0.0, 0.0, 0.0, 0.5)
    assert np.isnan(tracks.centroids[1]).all()
    assert directions(tracks) == ["none", "none"]
    found = motion(centroid_tracks(lost))
    assert np.isnan(found[:3]).all() and found.track_rate == 0


def test_directions_and_their_accuracy():
    clips = clips_of(*[line((6, 6), step, 6) for step in STEPS.values()])
    tracks = centroid_tracks(clips)
    assert directions(tracks) == list(STEPS)
    names = ("down", "left", "up", "right")
    labels = np.array([names.index(name) for name in STEPS], np.int32)
    assert direction_accuracy(tracks, labels, names) == 1.0
    # One wrong, and one that stands still, which no class is right for.
    labels[1] = names.index("left")
    clips[2] = clips[2, :1]
    assert direction_accuracy(centroid_tracks(clips), labels, names) == 0.5
    assert directions(tracks, least=4)[3] == "none"


def test_classes_that_are_no_directions():
    tracks = centroid_tracks(squares(line((6, 6), (1, 0), 4)))
    with pytest.raises(UserError, match="'circle'"):
        direction_accuracy(tracks, np.array([0]), (*DIRECTIONS, "circle"))


def test_clips_that_are_too_short():
    with pytest.raises(UserError, match=r"3 frames.*have 2"):
        motion(centroid_tracks(squares(line((6, 6), (1, 0), 2))))
