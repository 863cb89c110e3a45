import numpy as np
import pytest

from genjax.video.metrics.foreground import foreground
from tests.video.metrics.squares import line, squares

pytestmark = pytest.mark.fast


def test_contrast_of_a_square():
    clips = squares(line((3, 2), (0, 1), 5))
    seen = foreground(clips)
    assert seen.found.all() and seen.tracked.tolist() == [True]
    for frame, contrast in enumerate(seen.contrast[0]):
        expected = np.zeros((16, 16), np.uint8)
        # 220 stands out most against 20.
        expected[3:7, 2 + frame : 6 + frame] = 200
        np.testing.assert_array_equal(contrast, expected)


def test_darker_objects_stand_out_and_faint_ones_do_not():
    dark = 255 - squares(line((3, 2), (0, 1), 5))
    assert foreground(dark).contrast.max() == 200
    faint = squares(line((3, 2), (0, 1), 5), colour=(52, 30, 40))
    assert not foreground(faint).found.any()
    assert foreground(faint, tolerance=31).found.all()


def test_a_square_at_the_border_is_not_taken_for_the_background():
    seen = foreground(squares(line((0, 0), (0, 1), 6)))
    assert (np.count_nonzero(seen.contrast, axis=(2, 3)) == 16).all()


def test_an_object_that_vanishes_is_not_tracked():
    clips = np.repeat(squares(line((3, 2), (0, 1), 5)), 2, axis=0)
    clips[1, 3] = clips[1, 3, -1, -1]
    seen = foreground(clips)
    assert seen.found.tolist() == [[True] * 5, [True] * 3 + [False, True]]
    assert seen.tracked.tolist() == [True, False]
    # A single pixel of a large frame is a speck.
    specks = np.zeros((1, 2, 32, 32, 1), np.uint8)
    specks[:, 0, 5, 5:7], specks[:, 1, 5, 5:8] = 255, 255
    assert foreground(specks).found.tolist() == [[False, True]]
