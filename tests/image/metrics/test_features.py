import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.classifier import Classifier, TrainedClassifier
from genjax.image.inception_v3 import InceptionV3, resize_tensorflow1
from genjax.image.metrics.features import (
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
    PixelExtractor,
    levels,
)


def stored(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def classifier(image_shape=(8, 8, 1)):
    params = Classifier(10, width=2).init(jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
    return TrainedClassifier(params, 10, 2, image_shape, "digits", "ab12", 0.981)


@pytest.mark.fast
def test_stored_and_generated_images_have_the_same_levels():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(levels(jnp.asarray(every)), every)
    np.testing.assert_array_equal(levels(jnp.asarray(every.astype(np.float32) / 127.5 - 1)), every)
    odd = jnp.array([-1.5, -0.999, 0.001, 1.2]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(levels(odd).ravel(), [0, 0, 128, 255])
    np.testing.assert_allclose(
        levels(odd, quantize=False).ravel(), [-63.75, 0.1275, 127.6275, 280.5], rtol=1e-4
    )


@pytest.mark.fast
def test_pixels_are_averaged_by_area():
    images = stored((3, 32, 16, 2))
    found = PixelExtractor().apply({}, jnp.asarray(images))
    blocks = images.reshape(3, 8, 4, 8, 2, 2).astype(np.float64).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(found.features, blocks.reshape(3, -1), rtol=1e-5, atol=1e-6)
    assert found.probabilities is None
    # 12 to 8: one and a half pixels each.
    line = jnp.arange(12.0).reshape(1, 1, 12, 1) / 12
    found = PixelExtractor().apply({}, line, quantize=False).features
    pixels = np.arange(12) / 12
    expected = [(pixels[0] + pixels[1] / 2) / 1.5, (pixels[1] / 2 + pixels[2]) / 1.5]
    np.testing.assert_allclose(found[0, :2], expected, atol=1e-6)


@pytest.mark.fast
def test_points_are_their_own_features():
    points = jnp.array([[-4.03, 2.0], [0.123, 4.4]]).reshape(2, 1, 1, 2)
    np.testing.assert_array_equal(PixelExtractor().apply({}, points).features, points.reshape(2, 2))


def test_classifier_features_are_those_of_the_network():
    extractor = ClassifierExtractor(classifier())
    images = stored((5, 8, 8, 1))
    found = jax.jit(extractor.apply)(extractor.params, images)
    scaled = jnp.asarray(images / 127.5 - 1, jnp.float32)
    expected, logits = Classifier(10, 2).apply({"params": extractor.params}, scaled)
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits), rtol=1e-5, atol=1e-6)
    assert extractor.describe() == "features of classifier:digits 98.1% on real images"
    with pytest.raises(UserError, match=r"are 8x8x3, and classifier:digits 98\.1% knows 8x8x1"):
        extractor.apply(extractor.params, jnp.zeros((2, 8, 8, 3)))


def test_stacked_digits_are_judged_channel_by_channel():
    single, stack = (ClassifierExtractor(classifier(), stacked) for stacked in (False, True))
    images = stored((4, 8, 8, 3))
    found = jax.jit(stack.apply)(stack.params, images)
    assert found.features.shape == (4, 3 * 128)
    assert found.probabilities.shape == (4, 3, 10)
    for channel in range(3):
        expected = single.apply(single.params, jnp.asarray(images[..., channel : channel + 1]))
        part = found.features[:, 128 * channel : 128 * (channel + 1)]
        np.testing.assert_allclose(part, expected.features, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            found.probabilities[:, channel], expected.probabilities, rtol=1e-5, atol=1e-6
        )


@pytest.mark.fast
def test_inception_sees_resized_and_scaled_levels(monkeypatch):
    """With the network replaced by one that shows what it was given."""
    seen = {}

    def apply(self, variables, images):
        seen["images"] = images
        return images.mean((1, 2)), jnp.zeros((len(images), self.num_classes))

    monkeypatch.setattr(InceptionV3, "apply", apply)
    extractor = InceptionExtractor({"fc": {"kernel": jnp.zeros((2048, 1008))}})
    grey = stored((2, 10, 12, 1))
    found = extractor.apply(extractor.params, jnp.asarray(grey))
    expected = (resize_tensorflow1(jnp.asarray(grey, jnp.float32)) - 128) / 128
    assert seen["images"].shape == (2, 299, 299, 3)
    for channel in range(3):
        np.testing.assert_array_equal(seen["images"][..., channel], expected[..., 0])
    assert found.probabilities.shape == (2, 1008)
    again = extractor.apply(extractor.params, jnp.asarray(grey / 127.5 - 1, jnp.float32))
    np.testing.assert_array_equal(again.features, found.features)
    assert (extractor.name, "2015-12-05" in extractor.describe()) == ("inception", True)
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        extractor.apply(extractor.params, jnp.zeros((1, 8, 8, 4)))


@pytest.mark.fast
def test_only_the_weights_of_fid_are_called_inception():
    extractor = InceptionExtractor({"fc": {"kernel": jnp.zeros((2048, 1000))}})
    assert extractor.name != "inception"
    assert "other weights than FID's (1000 classes)" in extractor.describe()


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["pixels", "classifier", "inception"])
def test_all_are_extractors(kind):
    fc = {"fc": {"kernel": jnp.zeros((2048, 1008))}}
    some = [PixelExtractor(), ClassifierExtractor(classifier()), InceptionExtractor(fc)]
    (extractor,) = [one for one in some if one.name == kind]
    assert isinstance(extractor, Extractor)
    assert "\n" not in extractor.describe()
