import hashlib
import tomllib

import numpy as np
import pytest
from pydantic import ValidationError

from genjax.config import check, dump
from genjax.data.clip_rendering import SHAPES
from genjax.data.clip_source import ENDLESS
from genjax.data.shape_motion import ShapeMotion, open_shape_motion, shape_centroids

FRAMES = 8
COUNT = 200


@pytest.fixture(scope="module", params=["constant", "smooth"])
def drawn(request):
    """A source, what it says of clips, and these."""
    source = open_shape_motion(ShapeMotion(speed=request.param), FRAMES)
    numbers = np.arange(COUNT)
    described = source.splits["validation"].read(numbers)
    return source, described, source.clips("validation", numbers)


def coverage(described, clips):
    """How much of each pixel the shape covers, [n, T, S, S], from the brightest channel."""
    colour, background = (
        described[name][:, None, None, None].astype(float) for name in ("colour", "background")
    )
    channel = np.abs(colour - background).argmax(axis=-1, keepdims=True)
    pick = [np.take_along_axis(array, channel, -1)[..., 0] for array in (colour, background)]
    pixels = np.take_along_axis(clips, np.broadcast_to(channel, (*clips.shape[:4], 1)), -1)
    return (pixels[..., 0] - pick[1]) / (pick[0] - pick[1])


def test_clips(drawn):
    source, described, clips = drawn
    assert source.clip_shape == (FRAMES, 32, 32, 3)
    assert source.class_names == ("left", "right", "up", "down") and source.num_classes == 4
    assert len(source.splits["train"]) == ENDLESS
    assert clips.dtype == np.uint8 and clips.shape == (COUNT, FRAMES, 32, 32, 3)
    assert {name: (array.shape, array.dtype.name) for name, array in described.items()} == {
        "shape": ((COUNT,), "int32"),
        "radius": ((COUNT,), "int32"),
        "centres": ((COUNT, FRAMES, 2), "int32"),
        "colour": ((COUNT, 3), "uint8"),
        "background": ((COUNT, 3), "uint8"),
        "labels": ((COUNT,), "int32"),
    }
    # 50 of each are expected; five standard deviations are 31.
    for name in ("shape", "labels"):
        assert np.abs(np.bincount(described[name]) - COUNT / 4).max() < 31
        assert len(np.bincount(described[name])) == 4


def inside_by_hand(shape, down, across, radius):
    """Whether points belong to a shape: circle, or polygon by its lines; lengths in pixels."""
    if shape == "circle":
        return down**2 + across**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(down), abs(across)) <= radius * 55 / 64
    if shape == "diamond":
        return abs(down) + abs(across) <= radius * 55 / 64 * np.sqrt(2)
    assert shape == "triangle"
    height = np.sqrt(3) / 2 * abs(across) - down / 2
    return (down <= radius * 40 / 64) & (height <= radius * 40 / 64)


def test_shapes_cover_what_they_should(drawn):
    _, described, clips = drawn
    covered = coverage(described, clips)
    grid = (np.arange(32 * 16) + 0.5) / 16
    for shape, name in enumerate(SHAPES):
        for clip in np.flatnonzero(described["shape"] == shape)[:3]:
            row, column = described["centres"][clip, 2] / 64
            radius = described["radius"][clip] / 64
            inside = inside_by_hand(name, grid[:, None] - row, grid - column, radius)
            share = inside.reshape(32, 16, 32, 16).mean(axis=(1, 3))
            # Soft edges are not quite areas, least so at corners.
            assert np.abs(covered[clip, 2] - share).max() < 0.4
            assert np.abs(covered[clip, 2] - share).mean() < 0.004
            assert covered[clip, 2].sum() == pytest.approx(share.sum(), rel=0.06)


def test_colours_are_constant_and_told_apart(drawn):
    _, described, clips = drawn
    covered = coverage(described, clips)
    assert covered.min() >= 0 and covered.max() == 1
    for clip in range(COUNT):
        solid = clips[clip][covered[clip] == 1]
        assert (solid == described["colour"][clip]).all() and len(solid) >= 15 * FRAMES
        # The border is never touched.
        border = np.ones((32, 32), bool)
        border[1:-1, 1:-1] = False
        assert (clips[clip][:, border] == described["background"][clip]).all()
    contrast = described["colour"].astype(int) - described["background"]
    assert contrast.max(axis=1).min() > 90


def test_clips_show_the_true_centres(drawn):
    _, described, clips = drawn
    covered = coverage(described, clips)
    mass = covered.sum(axis=(2, 3))
    rows = (covered.sum(axis=3) @ np.arange(32)) / mass
    columns = (covered.sum(axis=2) @ np.arange(32)) / mass
    centres = np.stack([rows, columns], axis=-1)
    assert np.abs(centres - shape_centroids(described)).max() < 0.1


@pytest.mark.fast
def test_the_class_is_the_direction(drawn):
    source, described, _ = drawn
    steps = np.diff(shape_centroids(described), axis=1)
    signs = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    directions = np.array([signs[source.class_names[label]] for label in described["labels"]])
    forward = (steps * directions[:, None]).sum(axis=-1)
    assert forward.min() > 0
    assert not (steps * (directions == 0)[:, None]).any()
    # At least half of the way is crossed; the least room is 32 - 2 * (1.25 * 0.18 * 32 + 1.5).
    assert forward.sum(axis=1).min() > 0.5 * 14.6 - 0.1


@pytest.mark.fast
def test_speed():
    numbers = np.arange(COUNT)
    changes = {}
    for speed in ("constant", "smooth"):
        source = open_shape_motion(ShapeMotion(speed=speed), FRAMES)
        centres = shape_centroids(source.splits["train"].read(numbers))
        changes[speed] = np.abs(np.diff(centres, n=2, axis=1)).max(axis=(1, 2))
    # Places are whole 64ths of a pixel.
    assert changes["constant"].max() <= 2 / 64
    assert np.median(changes["smooth"]) > 0.2


@pytest.mark.fast
@pytest.mark.parametrize("frames", [1, 2, 40])
@pytest.mark.parametrize("size", [16, 256])
def test_other_sizes_stay_in_view(frames, size):
    source = open_shape_motion(ShapeMotion(size=size), frames)
    described = source.splits["train"].read(np.arange(COUNT))
    centres = shape_centroids(described)
    assert centres.shape == (COUNT, frames, 2)
    reach = 1.25 * described["radius"][:, None, None] / 64 + 0.5
    assert (centres - reach).min() >= -1 / 32 and (centres + reach).max() <= size - 1 + 1 / 32


def test_large_clips_do_not_overflow():
    source = open_shape_motion(ShapeMotion(size=256), 1)
    numbers = np.arange(8)
    described = source.splits["train"].read(numbers)
    covered = coverage(described, source.clips("train", numbers))
    middle = np.round(shape_centroids(described)[:, 0]).astype(int)
    assert (covered[numbers, 0, middle[:, 0], middle[:, 1]] == 1).all()
    radius = described["radius"] / 64
    assert (covered.sum(axis=(1, 2, 3)) < 3.3 * radius**2).all()


@pytest.mark.fast
def test_reading_in_any_order(drawn):
    source, described, _ = drawn
    order = np.random.default_rng(0).permutation(COUNT)
    again = source.splits["validation"].read(order)
    for name, array in again.items():
        np.testing.assert_array_equal(array, described[name][order])
    train = source.splits["train"].read(np.arange(COUNT))
    assert not (train["colour"] == described["colour"]).all(axis=1).any()


@pytest.mark.parametrize(
    ("speed", "digest"), [("constant", "97e131c1efc159d7"), ("smooth", "43dc448b760bfb0e")]
)
def test_pixels_do_not_change_with_versions(speed, digest):
    source = open_shape_motion(ShapeMotion(speed=speed), FRAMES)
    clips = source.clips("validation", np.arange(COUNT))
    assert hashlib.sha256(clips.tobytes()).hexdigest().startswith(digest)


@pytest.mark.fast
def test_fingerprint_changes_with_the_settings():
    opened = [
        open_shape_motion(ShapeMotion(**change), frames).fingerprint
        for change, frames in (
            ({}, 8),
            ({}, 9),
            ({"size": 40}, 8),
            ({"speed": "smooth"}, 8),
        )
    ]
    assert len(set(opened)) == 4
    assert open_shape_motion(ShapeMotion(), 8).fingerprint == opened[0]


@pytest.mark.fast
def test_settings():
    for change in ({"size": 15}, {"size": 257}, {"speed": "slow"}):
        with pytest.raises(ValidationError):
            ShapeMotion(**change)
    config = ShapeMotion(size=48, speed="smooth")
    assert check(tomllib.loads(dump(config)), ShapeMotion) == config
