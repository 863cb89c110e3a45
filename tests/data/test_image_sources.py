import gzip
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from genjax.config import Config, check, dump
from genjax.data.builtin_digits import BuiltinDigits
from genjax.data.gaussian_mixture import GaussianMixture
from genjax.data.idx_images import IdxImages
from genjax.data.image_source import cut_shuffled
from genjax.data.image_sources import ImageSourceConfig, open_images
from genjax.data.random_numbers import permutation, random_integers, standard_normal
from genjax.errors import UserError


class Data(Config):
    source: ImageSourceConfig


def everything(split):
    return split.images(np.arange(len(split)))


# Config -----------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    "source",
    [
        {"kind": "digits"},
        {"kind": "files", "path": "a", "size": 64},
        {"kind": "files", "path": "a", "size": [64, 48], "labels": "none", "background": [0, 0, 0]},
        {"kind": "tfds", "name": "cifar10", "label_feature": "none"},
        {"kind": "idx", "path": "a", "stack": 3},
        {"kind": "gaussian_mixture", "layout": "ring"},
    ],
)
def test_configs_survive_being_written(source):
    config = check({"source": source}, Data)
    assert check(tomllib.loads(dump(config)), Data) == config
    assert config.source.kind == source["kind"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("source", "part"),
    [
        ({"kind": "files", "path": "a"}, "source.size: missing"),
        ({"kind": "files", "path": "a", "size": 0}, "source.size"),
        ({"kind": "files", "path": "a", "size": 4, "channels": 2}, "source.channels"),
        ({"kind": "files", "path": "a", "size": 4, "resize": "nearest"}, "'lanczos', 'bicubic'"),
        ({"kind": "files", "path": "a", "size": 4, "background": [0, 0, 256]}, "background[2]"),
        ({"kind": "idx", "path": "a", "stack": 3, "channels": 1}, "does not go with stack = 3"),
        ({"kind": "digits", "size": 7}, "source.size"),
    ],
)
def test_configs_that_do_not_fit(source, part):
    with pytest.raises(UserError) as caught:
        check({"source": source}, Data)
    assert part in str(caught.value)


# Random numbers ---------------------------------------------------------------------------------


@pytest.mark.fast
def test_random_numbers():
    assert sorted(permutation(100, 1, 2)) == list(range(100))
    assert permutation(100, 1, 2).tolist() != permutation(100, 1, 3).tolist()
    counts = np.bincount(random_integers(10, 10_000, 5))
    # 1000 each are expected; six standard deviations are 180.
    assert len(counts) == 10 and abs(counts - 1000).max() < 180
    normal = standard_normal(40_000, 0)
    assert np.isfinite(normal).all()
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    # 0.27% lie beyond three standard deviations: 108 are expected.
    assert 60 < (abs(normal) > 3).sum() < 170


@pytest.mark.fast
def test_random_numbers_do_not_change_with_the_version_of_numpy():
    assert permutation(8, 3).tolist() == [0, 1, 2, 7, 5, 6, 4, 3]
    assert random_integers(100, 5, 3).tolist() == [50, 66, 62, 7, 74]
    expected = [2.4161122675926965, 1.9666602232264907, -0.27227764581856206]
    np.testing.assert_allclose(standard_normal(3, 3), expected, rtol=1e-12)


@pytest.mark.fast
def test_cut_shuffled():
    for count, fraction in ((2, 0.001), (2, 0.999), (50, 0.1)):
        train, validation = cut_shuffled(count, fraction)
        assert len(train) and len(validation)
        assert sorted([*train, *validation]) == list(range(count))
    assert len(validation) == 5


# Built-in digits --------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    shades, labels = load_digits(return_X_y=True)
    source = open_images(BuiltinDigits(size=8))
    assert source.image_shape == (8, 8, 1) and source.num_classes == 10
    assert source.class_names == tuple("0123456789")
    train, validation = source.splits["train"], source.splits["validation"]
    assert (len(train), len(validation)) == (1617, 180)
    pixels = np.concatenate([everything(train), everything(validation)]).reshape(-1, 64)
    found = np.concatenate([train.labels, validation.labels])
    expected = np.column_stack([np.round(shades * 255 / 16), labels])
    np.testing.assert_array_equal(
        np.unique(np.column_stack([pixels, found]), axis=0), np.unique(expected, axis=0)
    )
    assert len(pixels) == len(shades)
    assert validation.labels.dtype == np.int32
    # Not sorted, not one digit missing from the few that validate.
    assert np.bincount(validation.labels, minlength=10).min() >= 8


@pytest.mark.fast
def test_enlarged_digits():
    small, large = open_images(BuiltinDigits(size=8)), open_images(BuiltinDigits())
    assert large.image_shape == (32, 32, 1)
    assert small.fingerprint != large.fingerprint
    left, right = everything(small.splits["train"]), everything(large.splits["train"])
    assert right.shape == (1617, 32, 32, 1) and right.dtype == np.uint8
    means = right.reshape(1617, 8, 4, 8, 4).mean((2, 4))
    correlation = np.corrcoef(means.ravel(), left.astype(float).ravel())[0, 1]
    assert correlation > 0.97


def test_digits_do_not_import_scikit_learn():
    program = (
        "import sys\n"
        "from genjax.data.image_sources import BuiltinDigits, open_images\n"
        "print(open_images(BuiltinDigits()).fingerprint)\n"
        "assert 'sklearn' not in sys.modules and 'tensorflow_datasets' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == open_images(BuiltinDigits()).fingerprint


# Mixtures of Gaussians --------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("layout", "options", "modes", "deviation", "spread"),
    [
        ("grid", {}, 25, 0.0125, 0.5),
        ("ring", {}, 8, 0.01, None),
        ("grid", {"scale": 1.0, "standard_deviation": 0.1}, 25, 0.1, 2.0),
    ],
)
def test_mixture(layout, options, modes, deviation, spread):
    source = open_images(GaussianMixture(layout=layout, samples=20_000, seed=1, **options))
    assert source.image_shape == (1, 1, 2) and source.num_classes == 0
    mixture = source.mixture
    assert mixture.modes.shape == (modes, 2)
    assert mixture.standard_deviation == pytest.approx(deviation)
    distances = np.linalg.norm(mixture.modes[:, None] - mixture.modes, axis=-1)
    nearest = distances[distances > 1e-9].min()
    assert nearest == pytest.approx(spread or 2 * np.sin(np.pi / 8))
    if layout == "ring":
        np.testing.assert_allclose(np.linalg.norm(mixture.modes, axis=1), 1)
    train, validation = source.splits["train"], source.splits["validation"]
    assert (len(train), len(validation)) == (20_000, 2_000) and train.labels is None
    images = everything(train)
    assert images.shape == (20_000, 1, 1, 2) and images.dtype == np.float32
    points = images[:, 0, 0].astype(float)
    offsets = points[:, None] - mixture.modes
    nearest_mode = np.argmin((offsets**2).sum(-1), axis=1)
    counts = np.bincount(nearest_mode, minlength=modes)
    expected = 20_000 / modes
    assert abs(counts - expected).max() < 6 * np.sqrt(expected)
    residual = offsets[np.arange(20_000), nearest_mode]
    assert abs(residual.std(0) / deviation - 1).max() < 0.04
    assert abs(residual.mean(0) / deviation).max() < 0.05
    assert not np.isin(everything(validation).ravel(), images.ravel()).all()


@pytest.mark.fast
def test_mixture_is_decided_by_its_seed():
    def points(**options):
        return everything(open_images(GaussianMixture(samples=50, **options)).splits["train"])

    np.testing.assert_array_equal(points(), points(seed=0))
    assert (points() != points(seed=1)).any()
    assert (
        open_images(GaussianMixture()).fingerprint
        != open_images(GaussianMixture(seed=1)).fingerprint
    )
    assert abs(everything(open_images(GaussianMixture()).splits["train"])).max() < 1.1


# IDX files --------------------------------------------------------------------------------------


def idx(array):
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)
FILES = {
    "train-images-idx3-ubyte": idx(IMAGES[:20]),
    "train-labels-idx1-ubyte": idx(LABELS[:20]),
    "t10k-images-idx3-ubyte": idx(IMAGES[20:]),
    "t10k-labels-idx1-ubyte": idx(LABELS[20:]),
}


def write(folder, files, zipped=()):
    for name, data in files.items():
        if name in zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.fast
@pytest.mark.parametrize(("size", "channels"), [(32, None), (28, 1), (33, 3)])
def test_idx(tmp_path, size, channels):
    write(tmp_path, FILES, zipped=list(FILES)[1:3])
    source = open_images(IdxImages(path=tmp_path, size=size, channels=channels))
    assert source.image_shape == (size, size, channels or 1) and source.num_classes == 10
    assert source.base is None
    margin = (size - 28) // 2
    for split, part in (("train", slice(20)), ("validation", slice(20, None))):
        images = everything(source.splits[split])
        assert images.dtype == np.uint8 and images.shape[-1] == (channels or 1)
        inside = images[:, margin : margin + 28, margin : margin + 28]
        np.testing.assert_array_equal(inside, np.repeat(IMAGES[part, ..., None], channels or 1, -1))
        assert images.sum() == inside.sum()
        assert source.splits[split].labels.tolist() == LABELS[part].tolist()


@pytest.mark.fast
def test_stacks(tmp_path):
    write(tmp_path, FILES)
    config = IdxImages(path=tmp_path, stack=3, stacks=500, size=28)
    source = open_images(config)
    assert source.image_shape == (28, 28, 3) and source.num_classes == 1000
    assert source.class_names[7] == "007" and len(source.class_names) == 1000
    base = source.base
    assert base is not None and base.image_shape == (28, 28, 1) and base.num_classes == 10
    train = source.splits["train"]
    assert len(train) == len(source.splits["validation"]) == 500
    assert train.labels.dtype == np.int32
    for name, part in (("train", slice(20)), ("validation", slice(20, None))):
        split = source.splits[name]
        pairs = zip(IMAGES[part], LABELS[part], strict=True)
        digits = {image.tobytes(): int(label) for image, label in pairs}
        for image, label in zip(everything(split)[:60], split.labels[:60], strict=True):
            red, green, blue = (digits[image[..., i].tobytes()] for i in range(3))
            assert label == 100 * red + 10 * green + blue
    assert len(np.unique(train.labels)) > 300
    # Each channel draws each of the 20 images, about 25 times.
    first = {image.tobytes() for image in everything(train)[..., 0]}
    assert len(first) == 20
    again = open_images(config)
    np.testing.assert_array_equal(again.splits["train"].labels, train.labels)
    other = open_images(config.model_copy(update={"stack_seed": 1}))
    assert (other.splits["train"].labels != train.labels).any()
    assert again.fingerprint == source.fingerprint != other.fingerprint


@pytest.mark.fast
def test_stacks_for_validation_are_26000_at_most(tmp_path):
    write(tmp_path, FILES)
    source = open_images(IdxImages(path=tmp_path, stack=3))
    assert [len(split) for split in source.splits.values()] == [128_000, 26_000]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "options", "parts"),
    [
        ({"t10k-labels-idx1-ubyte": None}, {}, ["no file t10k-labels-idx1-ubyte, plain or .gz"]),
        ({"train-images-idx3-ubyte": FILES["train-images-idx3-ubyte"][:-1]}, {}, ["truncated"]),
        ({"train-images-idx3-ubyte": b"\0\0\x08\x03\0\0"}, {}, ["truncated", "has 6 bytes"]),
        ({"train-images-idx3-ubyte": b""}, {}, ["no IDX file", "begins with nothing"]),
        (
            {"train-images-idx3-ubyte": FILES["train-labels-idx1-ubyte"]},
            {},
            ["00000801, not 00000803"],
        ),
        ({"train-labels-idx1-ubyte": idx(LABELS[:7])}, {}, ["20 images, but 7 labels"]),
        ({}, {"size": 27}, ["size = 27 is too small", "28 x 28", "Set it to 28 or more"]),
        ({"train-labels-idx1-ubyte": idx(LABELS[:20] + 5)}, {"stack": 3}, ["has 15 classes"]),
    ],
)
def test_idx_errors(tmp_path, changes, options, parts):
    files = {name: data for name, data in (FILES | changes).items() if data is not None}
    write(tmp_path, files)
    with pytest.raises(UserError) as caught:
        open_images(IdxImages(path=tmp_path, **options))
    message = str(caught.value)
    assert str(tmp_path) in message and len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


@pytest.mark.fast
def test_idx_gz_errors_and_missing_folder(tmp_path):
    write(tmp_path, FILES, zipped=FILES)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for broken in (whole[:-50], b"not gzip", whole[:40] + b"\xff" * 9 + whole[49:]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz cannot be read \("):
            open_images(IdxImages(path=tmp_path))
    with pytest.raises(UserError, match=r"data.source.path = .* is no folder"):
        open_images(IdxImages(path=tmp_path / "nowhere"))


def test_real_mnist(test_data):
    source = open_images(IdxImages(path=test_data / "mnist", stack=3))
    base = source.base
    assert base is not None
    assert [len(split) for split in base.splits.values()] == [60_000, 10_000]
    assert base.splits["train"].labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert len(np.unique(source.splits["train"].labels)) == 1000
    few = source.splits["train"].images(np.arange(100))
    assert few.shape == (100, 32, 32, 3) and few[:, :2].max() == 0
    # 33.3 without the padding.
    assert 23 < few.mean() < 28


def test_real_fashion_mnist(test_data):
    source = open_images(IdxImages(path=test_data / "fashion_mnist", size=28))
    assert np.bincount(source.splits["train"].labels).tolist() == [6000] * 10
    assert source.splits["validation"].images(np.array([9999])).shape == (1, 28, 28, 1)
