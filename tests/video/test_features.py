"""Where clips are compared: extractors, their names, and the one that a config asks for."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from genjax.errors import UserError
from genjax.image.features import extract
from genjax.image.metrics.features import Extractor
from genjax.image.metrics.frechet import frechet_distance
from genjax.image.weight_files import Weights
from genjax.video import features as features_module
from genjax.video.clip_classifier import load_clip_classifier
from genjax.video.features import (
    CLIP_CLASSIFIER,
    ClipClassifierExtractor,
    ClipPixelExtractor,
    I3DExtractor,
    features_name,
    make_clip_extractor,
    save_clip_assets,
)
from genjax.video.features_config import (
    ClipClassifierFeatures,
    ClipFeaturesConfig,
    ClipPixelFeatures,
    I3DFeatures,
)
from genjax.video.video_figures import ClipFigures
from tests.video.test_clip_classifier import SHAPE, motion_source, movers

SMALL = ClipClassifierFeatures(width=4, steps=3)
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def trained():
    """An extractor whose classifier was trained for it."""
    return make_clip_extractor(SMALL, motion_source(), None, None)


@pytest.fixture
def fits(monkeypatch, trained):
    """What classifiers were trained with; each has the same parameters."""
    calls = []

    def counted(source, fingerprint, **settings):
        calls.append(settings)
        return dataclasses.replace(trained.classifier, fingerprint=fingerprint)

    monkeypatch.setattr(features_module, "train_clip_classifier", counted)
    return calls


@pytest.fixture
def seen(monkeypatch):
    """I3D's place is taken by what writes down its input, from a compiled program as well."""
    inputs = []

    class Recorder:
        def apply(self, variables, clips):
            jax.debug.callback(lambda array: inputs.append(np.asarray(array)), clips)
            return clips.mean((1, 2, 3)) + variables["params"]["offset"]

    monkeypatch.setattr(features_module, "I3D", Recorder)
    return inputs


# ---- pixels -----------------------------------------------------------------------------------


@pytest.mark.fast
def test_pixels_are_averaged():
    clips = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 2, 3), np.uint8)
    # Six frames in four stretches of one and a half.
    halves = np.repeat(clips / 127.5 - 1, 2, axis=1)
    expected = halves.reshape(3, 4, 3, 4, 2, 2, 3).mean((2, 4)).reshape(3, -1)
    found = jax.jit(ClipPixelExtractor().apply)({}, clips)
    assert found.probabilities is None and found.features.shape == (3, 4 * 4 * 2 * 3)
    np.testing.assert_allclose(found.features, expected, atol=1e-6)


@pytest.mark.fast
def test_generated_clips_are_rounded_and_cut_like_stored_ones():
    apply = jax.jit(ClipPixelExtractor().apply, static_argnames="quantize")
    levels = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 4, 1), np.uint8)
    near = np.float32(np.where(levels == 255, 1.4, levels / 127.5 - 1 + 0.003))
    expected = apply({}, levels).features
    np.testing.assert_allclose(apply({}, near).features, expected, atol=1e-6)
    raw = apply({}, near, quantize=False).features
    np.testing.assert_allclose(raw, near.reshape(2, -1), atol=1e-6)


@pytest.mark.fast
def test_batches_of_clips_make_a_frechet_distance():
    clips, _ = movers(10, 0)
    batches = (clips[np.arange(at, at + 4) % 10] for at in (0, 4, 8))
    found = extract(ClipPixelExtractor(), batches, 10).features
    assert found.shape == (10, 64)
    # The same clips, darker by 25 levels everywhere: only means differ.
    darker = np.float32(found - 25 / 127.5)
    assert frechet_distance(found, darker) == pytest.approx(64 * (25 / 127.5) ** 2, rel=1e-4)


# ---- classifier -------------------------------------------------------------------------------


def test_a_classifier_is_trained_once_and_found_again(tmp_path, fits):
    source, cache, run = motion_source(), tmp_path / "cache", tmp_path / "run"
    first = make_clip_extractor(SMALL, source, None, cache)
    assert isinstance(first, ClipClassifierExtractor) and isinstance(first, Extractor)
    assert first.classifier.accuracy > 0 and "movers" in first.describe()
    assert fits == [{"width": 4, "steps": 3}]
    again = make_clip_extractor(SMALL, source, None, cache)
    save_clip_assets(run, again)
    kept = make_clip_extractor(SMALL, source, run, None)
    assert len(fits) == 1
    for other in (again, kept):
        jax.tree.map(np.testing.assert_array_equal, first.params, other.params)
        assert other.describe() == first.describe()
    assert load_clip_classifier(run / CLIP_CLASSIFIER).fingerprint
    # Other clips or another config are not what was kept.
    other = dataclasses.replace(source, fingerprint="other")
    make_clip_extractor(SMALL, other, run, cache)
    make_clip_extractor(ClipClassifierFeatures(width=4, steps=2), source, run, cache)
    assert len(fits) == 3 and len(list(cache.iterdir())) == 3


def test_a_classifier_judges_clips(trained, tmp_path):
    extractor = trained
    clips = movers(5, 0)[0]
    program = jax.jit(extractor.apply)
    apply = lambda *arguments: jax.device_get(program(*arguments))  # noqa: E731
    stored = apply(extractor.params, clips)
    assert stored.features.shape == (5, 64)
    np.testing.assert_allclose(stored.probabilities.sum(1), 1, rtol=1e-5)
    generated = apply(extractor.params, np.float32(clips / 127.5 - 1))
    np.testing.assert_allclose(generated.features, stored.features, atol=1e-5)
    with pytest.raises(UserError, match="clips are 5x8x8x1, and clip classifier:movers"):
        jax.eval_shape(extractor.apply, extractor.params, clips[:, :5])
    save_clip_assets(tmp_path, ClipPixelExtractor())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fast
def test_a_classifier_needs_labels():
    with pytest.raises(UserError, match="somewhere/movers has no labels"):
        make_clip_extractor(SMALL, motion_source(num_classes=0), None, None)


# ---- I3D --------------------------------------------------------------------------------------


@pytest.mark.fast
def test_i3d_sees_8_bit_frames_at_224(seen):
    extractor = I3DExtractor(Weights({"offset": jnp.float32(2.0)}, DIGEST))
    clips = np.random.default_rng(0).integers(0, 256, (1, 9, 4, 6, 1), np.uint8)

    def apply(extractor, clips):
        found = jax.device_get(jax.jit(extractor.apply)(extractor.params, clips))
        jax.effects_barrier()
        return found

    stored = apply(extractor, clips)
    assert stored.probabilities is None and seen[0].shape == (1, 9, 224, 224, 3)
    # A pixel of the frame stands at every 56th row, and every 112th column of three.
    expected = clips[:, :, :, ::3] / 127.5 - 1
    for channel in range(3):
        found = seen[0][:, :, ::56, ::112, channel]
        np.testing.assert_allclose(found, expected[..., 0], atol=1e-5)
    np.testing.assert_allclose(stored.features, seen[0].mean((1, 2, 3)) + 2, rtol=1e-5)
    # Generated ones are rounded to levels first.
    apply(extractor, np.float32(clips / 127.5 - 1 + 0.003))
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)
    # Centred pixels are elsewhere.
    other = dataclasses.replace(extractor, resize="half_pixel")
    apply(other, clips)
    assert np.abs(seen[2] - seen[0]).max() > 0.1


@pytest.mark.fast
def test_i3d_refuses_what_makes_no_fvd(seen):
    extractor = I3DExtractor(Weights({"offset": jnp.float32(0.0)}, DIGEST))
    with pytest.raises(UserError, match="9 frames or more"):
        extractor.apply(extractor.params, jnp.zeros((1, 8, 4, 4, 3)))
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        extractor.apply(extractor.params, jnp.zeros((1, 9, 4, 4, 2)))
    assert seen == []


@pytest.mark.fast
def test_fvd_needs_weights_and_frames(tmp_path):
    source = dataclasses.replace(motion_source(), clip_shape=(16, 8, 8, 1))
    with pytest.raises(UserError, match=r"FVD needs I3D's weights.*tools\.convert_i3d"):
        make_clip_extractor(I3DFeatures(), source, None, None)
    config = I3DFeatures(weights=tmp_path / "missing.npz")
    with pytest.raises(UserError, match="no I3D weights there"):
        make_clip_extractor(config, source, None, None)
    with pytest.raises(UserError, match="somewhere/movers have 6"):
        make_clip_extractor(config, motion_source(), None, None)


@pytest.mark.fast
def test_weights_come_with_their_digest(monkeypatch):
    monkeypatch.setattr(features_module, "load_i3d", lambda path: Weights(f"{path}", DIGEST))
    source = dataclasses.replace(motion_source(), clip_shape=(16, 8, 8, 1))
    config = I3DFeatures(weights=Path("~/i3d.npz"), resize="half_pixel")
    extractor = make_clip_extractor(config, source, None, None)
    assert isinstance(extractor, I3DExtractor) and extractor.resize == "half_pixel"
    assert extractor.params == f"{Path.home()}/i3d.npz"
    assert extractor.weights.sha256 == DIGEST and DIGEST in extractor.describe()


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.fast
def test_only_i3d_makes_an_fvd():
    weights = Weights({}, DIGEST)
    source = dataclasses.replace(motion_source(), clip_shape=(16, 8, 8, 1))
    asked = {
        "frechet_pixels": (ClipPixelFeatures(), ClipPixelExtractor()),
        "fvd": (I3DFeatures(), I3DExtractor(weights)),
        "fvd_half_pixel": (
            I3DFeatures(resize="half_pixel"),
            I3DExtractor(weights, "half_pixel"),
        ),
    }
    for name, (config, extractor) in asked.items():
        # Known from the config, so that `checkpoint.best_metric` can be checked before training.
        assert features_name(config) == extractor.name
        assert ClipFigures(["frechet"], extractor.name, source).names == [name]
    assert I3DExtractor(weights).describe() != I3DExtractor(weights, "half_pixel").describe()
    key = I3DExtractor(weights).protocol(2048, 16, "train", 2)
    assert key == "fvd_i3d_n2048_f16_s2_real-train_resize-tensorflow1_weights-0123456789ab"


@pytest.mark.fast
def test_configs_are_told_apart_by_kind():
    read = TypeAdapter(ClipFeaturesConfig).validate_python
    assert isinstance(read({"kind": "pixels"}), ClipPixelFeatures)
    assert read({"kind": "classifier", "steps": 5}) == ClipClassifierFeatures(steps=5)
    assert read({"kind": "i3d", "weights": "i3d.npz"}).resize == "tensorflow1"
    with pytest.raises(ValidationError, match="resize"):
        read({"kind": "i3d", "resize": "bicubic"})


@pytest.mark.fast
def test_pixels_need_nothing():
    found = make_clip_extractor(ClipPixelFeatures(), motion_source(0), None, None)
    assert isinstance(found, ClipPixelExtractor)
    shape = jax.eval_shape(found.apply, {}, jax.ShapeDtypeStruct((2, *SHAPE), jnp.uint8))
    assert shape.features.shape == (2, 64)
