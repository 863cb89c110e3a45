import gzip
import hashlib
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from genjax.config import check, dump
from genjax.data.clip_rendering import place_pictures
from genjax.data.clip_source import ENDLESS
from genjax.data.idx_images import IdxImages, open_idx
from genjax.data.motion import bouncing_corners, srivastava_sequences
from genjax.data.moving_mnist import MovingMnist, open_moving_mnist
from genjax.errors import UserError


def write_idx(folder, part, images):
    def write(what, array):
        header = bytes([0, 0, 8, array.ndim])
        header += b"".join(length.to_bytes(4, "big") for length in array.shape)
        (folder / f"{part}-{what}-ubyte").write_bytes(header + array.tobytes())

    write("images-idx3", images)
    write("labels-idx1", np.zeros(len(images), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 and 5 pictures; two of the 24 are for validation."""
    folder = tmp_path_factory.mktemp("mnist")
    generator = np.random.default_rng(0)
    for part, count in (("train", 24), ("t10k", 5)):
        write_idx(folder, part, generator.integers(0, 256, (count, 28, 28)).astype(np.uint8))
    return folder


def pictures_of(folder, split):
    images = open_idx(IdxImages(path=folder, size=28)).splits[split]
    return images.images(np.arange(len(images)))[..., 0]


@pytest.fixture(scope="module")
def published(test_data):
    """Moving MNIST as published."""
    return open_moving_mnist(MovingMnist(path=test_data / "mnist"), 20)


@pytest.fixture(scope="module")
def training_digits(test_data):
    return pictures_of(test_data / "mnist", "train")


# The protocol -----------------------------------------------------------------------------------

TRAIN_SUM = 102_751_052
TRAIN_HASH = "5a44bf9894003b36369fb46c2110af692e2555b31b9aaf2bcbaf9a72712703d4"
TRAIN_HASH_OF_100 = "f6ee96a4face7558"
TEST_SUM = 106_350_253
TEST_HASH = "d4e7afce3191fb5caf1e4e1739c84f930abbe9e1e2fd5d3829b6d6727b61e17c"


def test_first_hundred_sequences_of_the_training_digits(training_digits):
    digits = training_digits
    assert len(digits) == 60_000
    chosen, starts, directions = srivastava_sequences(100, len(digits))
    corners = bouncing_corners(starts, directions, 20, 64 - 28)
    clips = np.asarray(jax.jit(place_pictures, static_argnums=2)(digits[chosen], corners, 64))
    assert int(clips.sum(dtype=np.int64)) == TRAIN_SUM
    assert hashlib.sha256(clips.tobytes()).hexdigest().startswith(TRAIN_HASH_OF_100)


def test_first_hundred_sequences_of_the_test_split(published):
    clips = published.clips("test", np.arange(100))
    assert int(clips.sum(dtype=np.int64)) == TEST_SUM


@pytest.mark.slow
def test_all_sequences_of_the_test_split(published):
    test = published.splits["test"]
    render = jax.jit(published.render)
    digest = hashlib.sha256()
    for first in range(0, len(test), 250):
        digest.update(np.asarray(render(dict(test.read(np.arange(first, first + 250))))))
    assert digest.hexdigest() == TEST_HASH


@pytest.mark.slow
def test_all_sequences_of_the_training_digits(training_digits):
    digits = training_digits
    chosen, starts, directions = srivastava_sequences(10_000, len(digits))
    corners = bouncing_corners(starts, directions, 20, 64 - 28)
    place = jax.jit(place_pictures, static_argnums=2)
    digest = hashlib.sha256()
    for first in range(0, 10_000, 250):
        part = slice(first, first + 250)
        digest.update(np.asarray(place(digits[chosen[part]], corners[part], 64)))
    assert digest.hexdigest() == TRAIN_HASH


def black_frame_error(source, split, count):
    """Mean squared error of a black frame, summed over a frame's pixels, for the last ten."""
    render = jax.jit(source.render)
    errors = []
    for first in range(0, count, 500):
        clips = np.asarray(render(dict(source.splits[split].read(np.arange(first, first + 500)))))
        pixels = clips[:, 10:].reshape(500, -1)
        # Squares of 32-bit floats are exact here.
        squares = np.einsum("np,np->n", pixels.astype(np.float32), pixels.astype(np.float32))
        errors.append(squares / (10 * 255.0**2))
    return np.concatenate(errors).astype(float)


def test_drawn_clips_are_like_the_published_ones(published, test_data):
    errors = black_frame_error(published, "train", 1_000)
    assert errors.mean() == pytest.approx(171.45, abs=4 * errors.std() / 1_000**0.5)
    # The published baseline on a canvas of 32 pixels is of other clips of the test digits.
    small = open_moving_mnist(MovingMnist(path=test_data / "mnist", size=32), 20)
    errors = black_frame_error(small, "test", 1_000)
    assert errors.mean() == pytest.approx(37.87, abs=4 * errors.std() / 1_000**0.5)


# The source -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_clips(folder, size):
    source = open_moving_mnist(MovingMnist(path=folder, size=size, digits=3), 4)
    assert source.clip_shape == (4, size, size, 1) and source.num_classes == 0
    counts = {name: len(split) for name, split in source.splits.items()}
    assert counts == {"train": ENDLESS, "validation": 10_000, "test": 10_000}
    for name in source.splits:
        numbers = np.array([9_999, 3])
        described = source.splits[name].read(numbers)
        assert {key: (array.shape, array.dtype.name) for key, array in described.items()} == {
            "pictures": ((2, 3, 28 * size // 64, 28 * size // 64), "uint8"),
            "corners": ((2, 4, 3, 2), "int32"),
        }
        clips = source.clips(name, numbers)
        assert clips.dtype == np.uint8
        for clip, frame in np.ndindex(2, 4):
            canvas = np.zeros((size, size, 1), np.uint8)
            for digit in range(3):
                picture = described["pictures"][clip, digit]
                top, left = described["corners"][clip, frame, digit]
                window = canvas[top : top + len(picture), left : left + len(picture), 0]
                window[:] = np.maximum(window, picture)
            np.testing.assert_array_equal(clips[clip, frame], canvas)


@pytest.mark.fast
def test_reading_in_any_order(folder):
    source = open_moving_mnist(MovingMnist(path=folder), 5)
    for split in source.splits.values():
        one_by_one = [split.read(np.array([number])) for number in range(8)]
        order = np.random.default_rng(0).permutation(8)
        for name, array in split.read(order).items():
            expected = np.concatenate([described[name] for described in one_by_one])
            np.testing.assert_array_equal(array, expected[order])


@pytest.mark.fast
@pytest.mark.parametrize("size", [32, 64])
def test_each_split_has_its_own_pictures(folder, size):
    train, test = pictures_of(folder, "train"), pictures_of(folder, "validation")
    expected = {"train": train[:22], "validation": train[22:], "test": test}
    source = open_moving_mnist(MovingMnist(path=folder, size=size), 1)
    for name, split in source.splits.items():
        shown = split.read(np.arange(300))["pictures"]
        side = shown.shape[-1]
        pictures = expected[name]
        if size == 32:
            # Half up: no number of quarters is as near to two whole ones.
            means = pictures.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
            pictures = np.floor(means + 0.5).astype(np.uint8)
        assert {picture.tobytes() for picture in shown.reshape(-1, side, side)} == {
            picture.tobytes() for picture in pictures
        }


@pytest.mark.fast
def test_splits_of_mnist(published, training_digits):
    places = {picture.tobytes(): place for place, picture in enumerate(training_digits)}
    for name, low, high in (("train", 0, 55_000), ("validation", 55_000, 60_000)):
        shown = published.splits[name].read(np.arange(5_000))["pictures"].reshape(-1, 28, 28)
        found = [places[picture.tobytes()] for picture in shown]
        assert low <= min(found) < low + 20 and high - 20 <= max(found) < high


@pytest.mark.fast
def test_published_test_file(folder, tmp_path):
    clips = np.random.default_rng(2).integers(0, 256, (6, 9, 64, 64)).astype(np.uint8)
    np.save(tmp_path / "test.npy", clips)
    config = MovingMnist(path=folder, test_file=tmp_path / "test.npy")
    source = open_moving_mnist(config, 4)
    assert len(source.splits["test"]) == 9
    numbers = np.array([8, 0, 8])
    read = source.clips("test", numbers)
    np.testing.assert_array_equal(read[..., 0], clips.transpose(1, 0, 2, 3)[numbers, :4])
    assert source.clips("validation", numbers).shape == read.shape
    assert open_moving_mnist(config, 6).clip_shape[0] == 6
    with pytest.raises(UserError, match="has clips of 6 frames, but 7 are wanted"):
        open_moving_mnist(config, 7)


@pytest.mark.fast
def test_test_files_that_do_not_fit(folder, tmp_path):
    file = tmp_path / "test.npy"

    def fails(message):
        with pytest.raises(UserError, match=message) as caught:
            open_moving_mnist(MovingMnist(path=folder, test_file=file), 2)
        assert str(file) in str(caught.value)

    fails("cannot be read")
    for array in (
        np.zeros((3, 2, 64, 64), np.float32),
        np.zeros((3, 2, 32, 32), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((3, 0, 64, 64), np.uint8),
    ):
        np.save(file, array)
        fails("should have uint8")
    np.save(file, np.array([{}]))
    fails("cannot be read")
    np.save(file, np.zeros((3, 2, 64, 64), np.uint8))
    file.write_bytes(file.read_bytes()[:1000])
    fails("cannot be read")
    file.write_bytes(b"")
    fails("cannot be read")


@pytest.mark.fast
def test_fingerprint_changes_with_settings_and_content(folder, tmp_path):
    def fingerprint(frames=3, **change):
        config = MovingMnist(**({"path": folder} | change))
        return open_moving_mnist(config, frames).fingerprint

    for part in ("train", "t10k"):
        for what in ("images-idx3", "labels-idx1"):
            name = f"{part}-{what}-ubyte"
            packed = gzip.compress((folder / name).read_bytes())
            (tmp_path / f"{name}.gz").write_bytes(packed)
    assert fingerprint(path=tmp_path) == fingerprint()
    write_idx(tmp_path, "t10k", np.zeros((5, 28, 28), np.uint8))
    file = tmp_path / "test.npy"
    np.save(file, np.zeros((3, 2, 64, 64), np.uint8))
    others = [fingerprint(test_file=file)]
    np.save(file, np.ones((3, 2, 64, 64), np.uint8))
    others += [fingerprint(test_file=file), fingerprint(path=tmp_path)]
    others += [fingerprint(), fingerprint(4), fingerprint(size=32), fingerprint(digits=1)]
    assert len(set(others)) == len(others)


@pytest.mark.fast
def test_settings_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="has no file train-images-idx3-ubyte"):
        open_moving_mnist(MovingMnist(path=tmp_path), 4)
    with pytest.raises(UserError, match="is no folder"):
        open_moving_mnist(MovingMnist(path=tmp_path / "none"), 4)
    write_idx(tmp_path, "train", np.zeros((1, 28, 28), np.uint8))
    write_idx(tmp_path, "t10k", np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(UserError, match="has 1 training picture"):
        open_moving_mnist(MovingMnist(path=tmp_path), 4)
    with pytest.raises(UserError, match="size = 32 does not go with test_file"):
        check({"path": "a", "size": 32, "test_file": "b.npy"}, MovingMnist)
    with pytest.raises(ValidationError):
        MovingMnist(path=folder, size=48)
    for config in (MovingMnist(path=Path("a")), MovingMnist(path="a", test_file="b")):
        assert check(tomllib.loads(dump(config)), MovingMnist) == config
