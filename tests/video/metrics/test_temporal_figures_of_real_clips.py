"""What the figures of generated clips say of real ones, which generated ones are printed beside."""

import numpy as np
import pytest

from genjax.data.shape_motion import ShapeMotion, open_shape_motion, shape_centroids
from genjax.video.metrics.content_consistency import content_consistency
from genjax.video.metrics.motion import centroid_tracks, direction_accuracy, motion
from genjax.video.metrics.repetition import frame_changes, freeze_rate, loop_rate


@pytest.mark.fast
def test_shapes_in_motion_are_perfect():
    source = open_shape_motion(ShapeMotion(size=32), frames=12)
    numbers = np.arange(60)
    clips = source.clips("validation", numbers)
    described = source.splits["validation"].read(numbers)
    assert content_consistency(clips) == (0.0, 1.0)
    tracks = centroid_tracks(clips)
    np.testing.assert_allclose(tracks.centroids, shape_centroids(described), atol=0.25)
    assert direction_accuracy(tracks, described["labels"], source.class_names) == 1.0
    found = motion(tracks)
    assert (found.consistency, found.track_rate) == (1.0, 1.0)
    assert found.acceleration < 0.1 * found.speed
    changes = frame_changes(clips)
    assert (freeze_rate(changes, changes), loop_rate(clips)) == (0.0, 0.0)
