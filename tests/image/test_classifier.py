import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from genjax.errors import UserError
from genjax.image.classifier import (
    Classifier,
    TrainedClassifier,
    accuracy,
    fit_classifier,
    load_classifier,
    save_classifier,
)


def corners(count, seed, size=8):
    """Noise with a bright corner: four classes that anything can learn."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, size, size, 1), np.uint8)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        image[(label // 2) * 5 :, (label % 2) * 5 :][:3, :3] += 100
    return images, labels


@functools.cache
def corner_params(seed=0):
    return fit_classifier(*corners(300, 0), 4, seed=seed, width=4, steps=60)


def trained(params):
    return TrainedClassifier(
        params=params,
        num_classes=4,
        width=4,
        image_shape=(8, 8, 1),
        data="corners",
        fingerprint="ab12",
        accuracy=0.9876,
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "convolutions"), [((8, 8, 1), 1), ((28, 20, 3), 3), ((128, 128, 3), 5)]
)
def test_shapes_from_8_to_128_pixels(shape, convolutions):
    module = Classifier(7, width=4)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    (features, logits), variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), images
    )
    assert features.shape == (2, 128) and features.dtype == jnp.float32
    assert logits.shape == (2, 7)
    assert sum(name.startswith("Conv") for name in variables["params"]) == convolutions


def test_learns_and_is_measured():
    images, labels = corners(210, 1)
    module = Classifier(4, width=4)
    start = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    assert accuracy(module, start, images, labels, batch_size=100) < 0.6
    assert accuracy(module, corner_params(), images, labels, batch_size=100) > 0.95
    # Counted by hand, over a batch size that does not divide the images.
    scaled = jnp.asarray(images / 127.5 - 1, jnp.float32)
    logits = module.apply({"params": corner_params()}, scaled)[1]
    wrong = np.where(np.arange(210) < 50, (labels + 1) % 4, labels)
    expected = np.mean(np.asarray(logits).argmax(1) == wrong)
    assert accuracy(module, corner_params(), images, wrong, batch_size=100) == expected


def test_training_is_a_function_of_its_arguments():
    images, labels = corners(300, 0)
    # The same images through a function of indices.
    again = fit_classifier(lambda indices: images[indices], labels, 4, width=4, steps=60)
    jax.tree.map(np.testing.assert_array_equal, again, corner_params())
    other = corner_params(seed=1)
    assert not np.array_equal(other["Dense_0"]["kernel"], again["Dense_0"]["kernel"])


def test_stored_and_read_again(tmp_path):
    file = tmp_path / "new" / "classifier.npz"
    classifier = trained(corner_params())
    save_classifier(file, classifier)
    found = load_classifier(file)
    jax.tree.map(np.testing.assert_array_equal, found.params, classifier.params)
    assert found.image_shape == (8, 8, 1)
    assert (found.num_classes, found.width, found.fingerprint) == (4, 4, "ab12")
    assert found.accuracy == 0.9876
    assert found.label == "classifier:corners 98.8%"
    assert [one.name for one in file.parent.iterdir()] == ["classifier.npz"]


def test_files_that_are_no_classifier_are_refused(tmp_path):
    file = tmp_path / "classifier.npz"
    with pytest.raises(UserError, match="cannot be read"):
        load_classifier(file)
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a classifier of this version"):
        load_classifier(file)
    np.savez(file, other=np.zeros(2))
    with pytest.raises(UserError, match="is not a classifier of this version"):
        load_classifier(file)
    params = jax.tree.map(lambda leaf: leaf[..., :1], corner_params())
    save_classifier(file, trained(params))
    with pytest.raises(UserError, match="its arrays have other shapes"):
        load_classifier(file)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_classifier(tmp_path / "file" / "classifier.npz", trained(corner_params()))


def test_built_in_digits():
    images, labels = load_digits(return_X_y=True)
    scans = [Image.fromarray(np.uint8(image * 15)) for image in images.reshape(-1, 8, 8)]
    images = np.stack([np.asarray(scan.resize((32, 32)))[..., None] for scan in scans])
    held_out = np.random.default_rng(0).permutation(len(images)) < 300
    params = fit_classifier(images[~held_out], labels[~held_out], 10, width=16, steps=200)
    assert accuracy(Classifier(10, 16), params, images[held_out], labels[held_out]) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bar"), [("mnist", 0.99), ("fashion_mnist", 0.90)])
def test_real_data(test_data, name, bar):
    def read(part):
        images = gzip.decompress((test_data / name / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((test_data / name / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
        labels = np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), labels

    params = fit_classifier(*read("train"), 10)
    assert accuracy(Classifier(10), params, *read("t10k")) >= bar
