import numpy as np
import pytest

from genjax.data.clip_decode import read_clip
from genjax.data.scene_cuts import find_cuts, frame_changes, thumbnail

pytestmark = pytest.mark.fast
THRESHOLD = 0.12


def cuts_of(frames, threshold=THRESHOLD):
    return find_cuts(frame_changes(np.stack([thumbnail(frame) for frame in frames])), threshold)


def scene(seed, frames=20, speed=0.0, side=48):
    """A smooth random picture that moves sideways, `speed` pixels a frame, under little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(1, 3, (6, 2)) * rng.choice([-1, 1], (6, 2))
    phases, colours = rng.uniform(0, 2 * np.pi, 6), rng.uniform(-1, 1, (6, 3))
    result = []
    for t in range(frames):
        moved = x + speed * t / side
        sines = np.sin(
            2 * np.pi * (waves[:, :1, None] * y + waves[:, 1:, None] * moved).T + phases
        ).T
        picture = 128 + 90 * np.einsum("khw,kc->hwc", sines, colours) / 1.5
        picture += rng.normal(0, 3, picture.shape)
        result.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(result)


def test_thumbnail_averages():
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    expected = frame.astype(np.float64).reshape(16, 2, 16, 3, 3).mean((1, 3))
    assert np.abs(thumbnail(frame) - expected).max() <= 1.0
    assert thumbnail(frame[..., :1]).shape == (16, 16, 1)


def test_changes_against_their_definition():
    small = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), np.uint8)

    def distance(one, other):
        if one < 0 or other > 6:
            return np.inf
        return np.abs(small[one].astype(np.float64) - small[other]).mean() / 255

    expected = [
        min(distance(t - 1, t), distance(t - 2, t), distance(t - 1, t + 1)) for t in range(1, 7)
    ]
    np.testing.assert_allclose(frame_changes(small), [0.0, *expected], rtol=1e-6)
    assert frame_changes(small[:1]).tolist() == [0.0]
    black_to_white = np.zeros((2, 16, 16, 1), np.uint8)
    black_to_white[1] = 255
    assert frame_changes(black_to_white).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("speed", [0.0, 0.5, 1.0])
def test_hard_cuts_are_found_among_moving_scenes(speed):
    lengths = [20, 13, 5, 30]
    frames = np.concatenate([scene(seed, n, speed) for seed, n in enumerate(lengths)])
    assert cuts_of(frames).tolist() == [20, 33, 38]
    # The same in one of the colours.
    assert cuts_of(frames[..., 1:2]).tolist() == [20, 33, 38]


def test_motion_is_no_cut():
    # 16 of 48 pixels a frame: each frame is far from the one before.
    frames = scene(3, 30, speed=16.0)
    changes = frame_changes(np.stack([thumbnail(frame) for frame in frames]))
    assert np.median(changes) > THRESHOLD
    assert len(find_cuts(changes, THRESHOLD)) == 0
    # A camera that is swung: a few frames change far more than all others.
    y, x = np.mgrid[:16, :16]
    swung = np.concatenate([np.zeros(12), np.array([2.0, 6.0, 7.0, 3.0]), np.zeros(12)]).cumsum()
    swing = np.stack([128 + 120 * np.sin(2 * np.pi * (x + shift) / 32) for shift in swung])
    swing = swing[..., None].astype(np.uint8)
    assert frame_changes(np.stack([thumbnail(frame) for frame in swing])).max() > THRESHOLD
    assert len(cuts_of(swing)) == 0
    # A ball that crosses a dark room.
    y, x = np.mgrid[:32, :32]
    ball = np.stack([255 * (np.hypot(y - 16, x - 2 * t) < 5) for t in range(16)])
    assert len(cuts_of(ball[..., None].astype(np.uint8))) == 0


def test_flash_and_fade_are_no_cuts():
    frames = scene(4, 30)
    frames[12] = 255
    frames[20] = 0
    assert len(cuts_of(frames)) == 0
    fade = np.linspace(1, 0, 30)[:, None, None, None] * scene(5, 30)
    assert len(cuts_of(fade.astype(np.uint8))) == 0


def test_repeated_frames_are_no_cuts_and_hide_none():
    frames = np.concatenate([scene(6, 10, 1.0), scene(7, 10, 1.0)])
    assert cuts_of(np.repeat(frames, 3, axis=0)).tolist() == [30]


def test_several_cuts_in_a_clip_that_stands_still():
    frames = np.concatenate([scene(seed, 1).repeat(6, axis=0) for seed in range(4)])
    assert cuts_of(frames).tolist() == [6, 12, 18]


def test_threshold_decides():
    frames = np.concatenate([np.full((9, 16, 16, 1), 100, np.uint8), np.full((9, 16, 16, 1), 120)])
    assert cuts_of(frames.astype(np.uint8), 0.05).tolist() == [9]
    assert cuts_of(frames.astype(np.uint8), 0.10).tolist() == []
    assert find_cuts(np.array([0.9], np.float32), 0.1).tolist() == []
    assert find_cuts(np.array([0.0, 0.9], np.float32), 0.1).tolist() == [1]


def test_real_clips(test_data):
    folder = test_data / "clips"
    frames = {
        name: read_clip(folder / name, size=32).frames
        for name in ("bikes.mp4", "carphone_pristine.mp4", "realshort.mp4", "newtonscradle.gif")
    }
    # Found by eye.
    bikes = [30, 76, 137, 187, 242]
    cuts = {name: cuts_of(clip).tolist() for name, clip in frames.items()}
    assert cuts == {name: [] for name in frames} | {"bikes.mp4": bikes}
    for one, before in frames.items():
        for other, after in frames.items():
            if one != other:
                assert cuts_of(np.concatenate([before[:20], after[:20]])).tolist() == [20]
