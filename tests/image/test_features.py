"""Where images are compared: the extractor of a config, and features that are kept on disk."""

import dataclasses

import numpy as np
import pytest

from genjax.data.image_source import ImageSource, split_of_rows
from genjax.data.image_sources import BuiltinDigits, open_images
from genjax.errors import UserError
from genjax.image import features as features_module
from genjax.image.features import CLASSIFIER, FeatureStore, extract, make_extractor
from genjax.image.figures import Figures
from genjax.image.metrics.features import ClassifierExtractor, Features, PixelExtractor
from genjax.image.metrics.features_config import (
    ClassifierFeatures,
    InceptionFeatures,
    PixelFeatures,
)
from tests.image.small_gans import labelless

SMALL = ClassifierFeatures(width=4, steps=3)


@pytest.fixture(scope="module")
def digits():
    return open_images(BuiltinDigits(size=8))


@pytest.fixture
def fits(monkeypatch):
    """How often a classifier was trained."""
    calls, fit = [], features_module.fit_classifier

    def counted(*arguments, **settings):
        calls.append(settings)
        return fit(*arguments, **settings)

    monkeypatch.setattr(features_module, "fit_classifier", counted)
    return calls


@pytest.mark.fast
def test_pixels_need_nothing(digits):
    assert isinstance(make_extractor(PixelFeatures(), digits, None, None), PixelExtractor)


def test_a_classifier_is_trained_once_and_found_again(digits, tmp_path, fits):
    cache = tmp_path / "cache"
    first = make_extractor(SMALL, digits, None, cache)
    assert isinstance(first, ClassifierExtractor) and not first.stacked
    assert len(fits) == 1 and fits[0]["width"] == 4 and fits[0]["steps"] == 3
    again = make_extractor(SMALL, digits, None, cache)
    assert len(fits) == 1 and again.describe() == first.describe()
    # Other settings and other data have their own.
    make_extractor(ClassifierFeatures(width=4, steps=4), digits, None, cache)
    assert len(fits) == 2
    other = dataclasses.replace(digits, fingerprint="other")
    make_extractor(SMALL, other, None, cache)
    assert len(fits) == 3
    assert len(list(cache.glob("classifier-*.npz"))) == 3


def test_a_run_finds_its_own_classifier_without_a_cache(digits, tmp_path, fits):
    made = make_extractor(SMALL, digits, None, None)
    assert list(tmp_path.iterdir()) == []
    features_module.save_classifier(tmp_path / CLASSIFIER, made.classifier)
    found = make_extractor(SMALL, digits, tmp_path, None)
    assert len(fits) == 1 and found.classifier.accuracy == made.classifier.accuracy
    # Asked for another one, the run's own does not pass for it.
    make_extractor(ClassifierFeatures(width=4, steps=4), digits, tmp_path, None)
    assert len(fits) == 2


@pytest.mark.fast
def test_a_classifier_needs_labels(digits):
    with pytest.raises(UserError, match=r"evaluation.features: .* has no labels; use .*pixels"):
        Figures(["frechet"], SMALL.kind, labelless(digits), has_styles=False)


@pytest.mark.fast
def test_missing_weights_are_named(digits, tmp_path):
    config = InceptionFeatures(weights=tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"none\.npz"):
        make_extractor(config, digits, None, None)


# ---- the store -----------------------------------------------------------------------------------


def source(fingerprint="a"):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), np.uint8)
    splits = {"train": split_of_rows(images), "validation": split_of_rows(images)}
    return ImageSource("ten", (4, 4, 1), 0, (), fingerprint, splits)


FEATURES = Features(np.arange(12, dtype=np.float32).reshape(4, 3), np.full((4, 2), 0.5, np.float32))


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


@pytest.mark.fast
@pytest.mark.parametrize("expected", [FEATURES, Features(FEATURES.features, None)])
def test_features_are_found_by_content(tmp_path, expected):
    store = FeatureStore(PixelExtractor(), source(), tmp_path / "deep" / "cache")
    assert store.get("train 4") is None
    store.put("train 4", expected)
    assert_equal(store.get("train 4"), expected)
    again = FeatureStore(PixelExtractor(), source(), tmp_path / "deep" / "cache")
    assert_equal(again.get("train 4"), expected)
    assert again.get("train 5") is None and again.get("validation 4") is None
    other = FeatureStore(PixelExtractor(), source("b"), tmp_path / "deep" / "cache")
    assert other.get("train 4") is None
    # Nothing of the writing is left over.
    assert [path.suffix for path in (tmp_path / "deep" / "cache").iterdir()] == [".npz"]


@pytest.mark.fast
def test_other_parameters_of_an_extractor_have_other_features(tmp_path):
    class Weighted(PixelExtractor):
        @property
        def params(self):
            return {"weights": self.weights}

        def __init__(self, weights):
            object.__setattr__(self, "weights", np.asarray(weights))

    FeatureStore(Weighted([1.0, 2.0]), source(), tmp_path).put("train", FEATURES)
    assert FeatureStore(Weighted([1.0, 2.0]), source(), tmp_path).get("train") is not None
    assert FeatureStore(Weighted([1.0, 3.0]), source(), tmp_path).get("train") is None


@pytest.mark.fast
@pytest.mark.parametrize("damage", ["half", "nothing", "text", "bytes"])
def test_damaged_files_are_made_anew(tmp_path, damage):
    FeatureStore(PixelExtractor(), source(), tmp_path).put("train", FEATURES)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    middle = content.index(np.float32(7.0).tobytes())
    flipped = content[:middle] + b"\x01" + content[middle + 1 :]
    broken = {"half": content[:200], "nothing": b"", "text": b"no array", "bytes": flipped}
    path.write_bytes(broken[damage])
    store = FeatureStore(PixelExtractor(), source(), tmp_path)
    assert store.get("train") is None
    store.put("train", FEATURES)
    assert_equal(FeatureStore(PixelExtractor(), source(), tmp_path).get("train"), FEATURES)


@pytest.mark.fast
def test_without_room_features_stay_in_memory(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for cache in (None, tmp_path / "file" / "cache"):
        store = FeatureStore(PixelExtractor(), source(), cache)
        store.put("train", FEATURES)
        assert store.get("train") is FEATURES
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.fast
def test_extract_cuts_what_fills_the_last_batch():
    images = source().splits["train"].images(np.arange(10))
    batches = (images[np.arange(at, at + 4) % 10] for at in (0, 4, 8))
    found = extract(PixelExtractor(), batches, 10)
    assert found.probabilities is None
    np.testing.assert_allclose(found.features, images.reshape(10, -1) / 127.5 - 1, atol=1e-6)
