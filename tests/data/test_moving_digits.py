import hashlib
import itertools
import math
import tomllib

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from genjax.config import check, dump
from genjax.data.builtin_digits import BuiltinDigits, open_digits
from genjax.data.clip_rendering import place_pictures
from genjax.data.clip_source import ENDLESS
from genjax.data.motion import bouncing_corners, bouncing_pictures, crossing, uniform_by_number
from genjax.data.moving_digits import MovingDigits, open_moving_digits
from genjax.errors import UserError

SMALL = MovingDigits(size=14, digit_size=8)


def placed_by_hand(pictures, corners, size):
    count, frames, digits, _ = corners.shape
    height, width = pictures.shape[2:]
    clips = np.zeros((count, frames, size, size, 1), np.uint8)
    for clip in range(count):
        for frame in range(frames):
            for digit in range(digits):
                top, left = corners[clip, frame, digit]
                window = clips[clip, frame, top : top + height, left : left + width, 0]
                window[:] = np.maximum(window, pictures[clip, digit])
    return clips


# Random numbers ---------------------------------------------------------------------------------


@pytest.mark.fast
def test_numbers_of_a_clip_do_not_depend_on_its_neighbours():
    numbers = np.array([5, 2**61, 0, 5])
    drawn = uniform_by_number(numbers, 7, 3)
    for row, number in zip(drawn, numbers, strict=True):
        np.testing.assert_array_equal(uniform_by_number(np.array([number]), 7, 3)[0], row)
    np.testing.assert_array_equal(uniform_by_number(numbers, 4, 3), drawn[:, :4])
    assert (drawn[0] != drawn[1]).all() and (drawn[0] != drawn[2]).all()
    assert (uniform_by_number(numbers, 7, 4) != drawn).all()


@pytest.mark.fast
def test_numbers_of_clips_are_uniform_and_independent():
    drawn = uniform_by_number(np.arange(20_000), 4, 0)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    # Of 2,000 a tenth, the standard deviation is 42; of correlations it is 0.007.
    counts = [np.histogram(column, bins=10, range=(0, 1))[0] for column in drawn.T]
    assert np.abs(np.array(counts) - 2_000).max() < 6 * 42
    neighbours = np.concatenate([drawn[:-1], drawn[1:]], axis=1)
    correlation = np.corrcoef(neighbours.T) - np.eye(8)
    assert np.abs(correlation).max() < 6 * 0.007


@pytest.mark.fast
def test_numbers_of_clips_do_not_change_with_the_version_of_numpy():
    expected = [0.0936781512800563, 0.4330025876881889, 0.5506862330111796]
    assert uniform_by_number(np.array([12_345]), 3, 1, 2)[0].tolist() == expected


# Motion -----------------------------------------------------------------------------------------


def bounced_by_hand(start, direction, frames, room, speed):
    """One coordinate: a step, then the border stops it and turns it back."""
    corners, place = [], start
    for _ in range(frames):
        place += direction * speed
        if place <= 0.0:
            place, direction = 0.0, -direction
        elif place >= 1.0:
            place, direction = 1.0, -direction
        corners.append(math.floor(room * place))
    return corners


@pytest.mark.fast
@pytest.mark.parametrize("speed", [0.1, 0.7, 0.0])
def test_bouncing(speed):
    generator = np.random.default_rng(0)
    starts = generator.random((5, 3, 2))
    angles = generator.uniform(0, 2 * np.pi, (5, 3))
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    corners = bouncing_corners(starts, directions, 40, 36, speed)
    assert corners.shape == (5, 40, 3, 2) and corners.dtype == np.int32
    for place in np.ndindex(5, 3, 2):
        clip, digit, axis = place
        expected = bounced_by_hand(starts[place], directions[place], 40, 36, speed)
        assert corners[clip, :, digit, axis].tolist() == expected
    if speed:
        assert corners.min() == 0 and corners.max() == 36


@pytest.mark.fast
def test_longer_clips_begin_like_shorter_ones():
    settings = {"pictures": 9, "digits": 2, "room": 20, "speed": 0.1, "seed": 4}
    chosen, corners = bouncing_pictures(np.arange(50), frames=5, **settings)
    same, longer = bouncing_pictures(np.arange(50), frames=30, **settings)
    np.testing.assert_array_equal(chosen, same)
    np.testing.assert_array_equal(corners, longer[:, :5])
    assert set(chosen.ravel()) == set(range(9))


@pytest.mark.fast
def test_crossing_follows_a_bezier_curve():
    starts, ends = np.array([0.1, 0.9]), np.array([0.8, 0.2])
    slopes = np.array([[0.0, 0.5], [0.2, 0.9]])
    even = crossing(starts, ends, 8)
    np.testing.assert_allclose(even[0], np.linspace(0.1, 0.8, 8), rtol=1e-12)
    smooth = crossing(starts, ends, 8, slopes)
    for clip in range(2):
        # De Casteljau's construction.
        for frame, time in enumerate(np.linspace(0, 1, 8)):
            points = [0.0, *slopes[clip], 1.0]
            while len(points) > 1:
                points = [a + (b - a) * time for a, b in itertools.pairwise(points)]
            expected = starts[clip] + (ends[clip] - starts[clip]) * points[0]
            assert smooth[clip, frame] == pytest.approx(expected, rel=1e-12)
    assert crossing(starts, ends, 1).tolist() == [[0.1], [0.9]]


# Pictures on a canvas ---------------------------------------------------------------------------


def test_placing_pictures_equals_a_plain_loop():
    generator = np.random.default_rng(1)
    pictures = generator.integers(0, 256, (3, 2, 4, 6)).astype(np.uint8)
    # The borders are among the corners.
    rows, columns = generator.integers(0, 7, (3, 9, 2)), generator.integers(0, 5, (3, 9, 2))
    rows[0, :3], columns[0, :3] = [[0, 6]] * 3, [[4, 0]] * 3
    corners = np.stack([rows, columns], axis=-1).astype(np.int32)
    placed = jax.jit(place_pictures, static_argnums=2)(pictures, corners, 10)
    np.testing.assert_array_equal(placed, placed_by_hand(pictures, corners, 10))


# The source -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    return open_moving_digits(SMALL, 6)


def test_clips(source):
    assert source.clip_shape == (6, 14, 14, 1)
    assert source.num_classes == 0 and source.class_names == ()
    assert len(source.splits["train"]) == ENDLESS and len(source.splits["validation"]) == 1000
    numbers = np.array([7, ENDLESS - 1, 7])
    described = source.splits["train"].read(numbers)
    assert {name: (array.shape, array.dtype.name) for name, array in described.items()} == {
        "pictures": ((3, 2, 8, 8), "uint8"),
        "corners": ((3, 6, 2, 2), "int32"),
    }
    clips = source.clips("train", numbers)
    expected = placed_by_hand(described["pictures"], described["corners"], 14)
    np.testing.assert_array_equal(clips, expected)
    np.testing.assert_array_equal(clips[0], clips[2])
    assert (clips[0] != clips[1]).any()


def test_pixels_do_not_change_with_versions(source):
    clips = source.clips("validation", np.arange(50))
    assert hashlib.sha256(clips.tobytes()).hexdigest().startswith("b4253a9c39067002")


@pytest.mark.fast
def test_reading_in_any_order(source):
    for split in source.splits.values():
        one_by_one = [split.read(np.array([number])) for number in range(12)]
        order = np.random.default_rng(0).permutation(12)
        together = split.read(order)
        for name, array in together.items():
            expected = np.concatenate([described[name] for described in one_by_one])
            np.testing.assert_array_equal(array, expected[order])


@pytest.mark.fast
def test_no_picture_is_in_two_splits(source):
    digits = open_digits(BuiltinDigits(size=8))
    seen = {}
    for name in ("train", "validation"):
        every = digits.splits[name].images(np.arange(len(digits.splits[name])))
        known = {image.tobytes() for image in every}
        pictures = source.splits[name].read(np.arange(1000))["pictures"].reshape(-1, 64)
        seen[name] = {picture.tobytes() for picture in pictures}
        assert seen[name] <= known
        assert len(seen[name]) > 150
    assert not seen["train"] & seen["validation"]


@pytest.mark.fast
def test_one_digit_has_a_class():
    source = open_moving_digits(MovingDigits(digits=1, size=8, digit_size=8), 2)
    assert source.num_classes == 10 and source.class_names == tuple("0123456789")
    described = source.splits["validation"].read(np.arange(100))
    assert described["labels"].dtype == np.int32
    scans = open_digits(BuiltinDigits(size=8)).splits["validation"]
    labels = {
        image.tobytes(): label
        for image, label in zip(scans.images(np.arange(len(scans))), scans.labels, strict=True)
    }
    assert [labels[picture.tobytes()] for picture in described["pictures"]] == described[
        "labels"
    ].tolist()
    # There is no room to move in.
    assert not described["corners"].any()


@pytest.mark.fast
def test_fingerprint_changes_with_the_settings(source):
    others = [
        open_moving_digits(SMALL.model_copy(update=change), 6).fingerprint
        for change in ({}, {"size": 15}, {"digit_size": 9}, {"digits": 3}, {"speed": 0.2})
    ]
    assert others[0] == source.fingerprint
    assert len({*others, open_moving_digits(SMALL, 7).fingerprint}) == 6


@pytest.mark.fast
def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="digit_size = 16 is larger than size = 12"):
        check({"size": 12}, MovingDigits)
    for change in ({"digits": 0}, {"speed": 1.5}, {"digit_size": 7}, {"size": 0}):
        with pytest.raises(ValidationError):
            MovingDigits(**change)
    assert check(tomllib.loads(dump(SMALL)), MovingDigits) == SMALL
