"""The clip classifier: its arithmetic, what it learns, and its files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data.clip_source import ClipSource, ClipSplit
from genjax.errors import UserError
from genjax.video.clip_classifier import (
    ClipClassifier,
    TrainedClipClassifier,
    clip_accuracy,
    fit_clip_classifier,
    load_clip_classifier,
    save_clip_classifier,
    train_clip_classifier,
)

SHAPE = (6, 8, 8, 1)


def movers(count, seed):
    """Bars that move right (0) or left (1), round and round: any one frame fits both classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    places = rng.integers(0, 8, count)[:, None] + np.where(labels == 0, 1, -1)[:, None] * range(6)
    bars = (np.arange(8) - places[..., None]) % 8 < 2
    clips = np.where(bars[:, :, None, :, None], 220, 30) + rng.integers(0, 30, (count, *SHAPE))
    return clips.astype(np.uint8), labels


def motion_source(num_classes=2):
    """Labelled clips whose classes are motions; render turns stored clips the right way up."""
    splits = {}
    for name, count, seed in (("train", 400, 0), ("validation", 130, 1)):
        clips, labels = movers(count, seed)
        if num_classes == 0:
            labels = None
        splits[name] = ClipSplit(count, reader(clips, labels))
    return ClipSource(
        name="somewhere/movers",
        clip_shape=SHAPE,
        frames_per_second=8.0,
        num_classes=num_classes,
        class_names=("right", "left")[:num_classes],
        fingerprint="ab12",
        splits=splits,
        render=lambda description: 255 - description["negatives"],
    )


def reader(clips, labels):
    def read(numbers):
        found = {"negatives": 255 - clips[numbers]}
        return found if labels is None else found | {"labels": labels[numbers]}

    return read


@pytest.fixture(scope="module")
def source():
    return motion_source()


@pytest.fixture(scope="module")
def params(source):
    return fit_clip_classifier(source, width=4, steps=120)


def trained(params, **changes):
    about = {"num_classes": 2, "width": 4, "clip_shape": SHAPE, "data": "movers"}
    about |= {"fingerprint": "cd34", "accuracy": 0.9876}
    return TrainedClipClassifier(params=params, **(about | changes))


# ---- the network ------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "convolutions", "last"),
    [((16, 32, 32, 3), 3, 4 * 4 * 4), ((5, 8, 12, 1), 2, 3 * 2 * 3), ((2, 4, 4, 1), 1, 2 * 4 * 4)],
)
def test_shapes(shape, convolutions, last):
    module = ClipClassifier(7, width=4)
    clips = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    (features, logits), variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), clips
    )
    assert features.shape == (2, 64) and logits.shape == (2, 7)
    params = variables["params"]
    assert sum(name.startswith("Conv") for name in params) == convolutions
    channels = min(4 * 2 ** (convolutions - 1), 16)
    assert params[f"Dense_{convolutions}"]["kernel"].shape == (last * channels, 64)


@pytest.mark.fast
def test_matches_float64_numpy():
    rng = np.random.default_rng(0)
    clips = rng.uniform(-1, 1, (2, 5, 8, 8, 1)).astype(np.float32)
    module = ClipClassifier(3, width=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), clips)["params"]
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.4, x.shape)), shapes)
    wide = jax.tree.map(np.float64, params)
    # In space, from 8x8 to 4x4.
    padded = np.pad(clips.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    space = np.zeros((2, 5, 4, 4, 4)) + wide["Conv_0"]["bias"]
    for i, j in np.ndindex(3, 3):
        space += padded[:, :, i : i + 8 : 2, j : j + 8 : 2] @ wide["Conv_0"]["kernel"][i, j]
    space = np.maximum(space, 0)
    # In time, from 5 frames to 3: each sees the one before and the one after.
    kernel = wide["Dense_0"]["kernel"].reshape(3, 4, 4)
    time = np.zeros((2, 3, 4, 4, 4)) + wide["Dense_0"]["bias"]
    for to, at in enumerate((0, 2, 4)):
        for tap in range(3):
            if 0 <= at + tap - 1 < 5:
                time[:, to] += space[:, at + tap - 1] @ kernel[tap]
    x = np.maximum(time, 0).reshape(2, -1)
    expected = np.maximum(x @ wide["Dense_1"]["kernel"] + wide["Dense_1"]["bias"], 0)
    features, logits = jax.jit(module.apply)({"params": params}, clips)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    expected = expected @ wide["Dense_2"]["kernel"] + wide["Dense_2"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# ---- training ---------------------------------------------------------------------------------


def test_learns_motion_and_is_measured(source, params):
    module = ClipClassifier(2, width=4)
    assert clip_accuracy(module, params, source) > 0.95
    # Counted by hand over all 130, which the batches of 100 do not divide.
    clips, labels = movers(130, 1)
    labels[:50] = 1 - labels[:50]
    other = {"validation": ClipSplit(130, reader(clips, labels))}
    apply = jax.jit(module.apply)
    logits = apply({"params": params}, np.float32(clips / 127.5 - 1))[1]
    expected = float(np.mean(np.asarray(logits).argmax(1) == labels))
    found = clip_accuracy(module, params, dataclasses.replace(source, splits=other))
    assert found == pytest.approx(expected, abs=1e-9) and expected < 0.7
    # Backwards, motions are each other's.
    turned = apply({"params": params}, np.float32(clips[:, ::-1] / 127.5 - 1))[1]
    assert np.mean(np.asarray(turned).argmax(1) == 1 - movers(130, 1)[1]) > 0.9


def test_training_is_a_function_of_its_arguments(source):
    one, again, other = (
        fit_clip_classifier(given, seed=seed, width=4, steps=2)
        for given, seed in ((source, 0), (motion_source(), 0), (source, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, again, one)
    assert not np.array_equal(other["Dense_0"]["kernel"], one["Dense_0"]["kernel"])


def test_a_trained_classifier_says_what_it_is(source):
    found = train_clip_classifier(source, "ef56", width=4, steps=2)
    assert (found.num_classes, found.width, found.clip_shape) == (2, 4, SHAPE)
    assert (found.data, found.fingerprint) == ("movers", "ef56")
    assert found.accuracy == clip_accuracy(found.module, found.params, source)


# ---- files ------------------------------------------------------------------------------------


def test_stored_and_read_again(params, tmp_path):
    file = tmp_path / "new" / "clip_classifier.npz"
    save_clip_classifier(file, trained(params))
    found = load_clip_classifier(file)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert dataclasses.replace(found, params=None).__dict__ == trained(None).__dict__
    assert found.label == "clip classifier:movers 98.8%"
    assert [one.name for one in file.parent.iterdir()] == ["clip_classifier.npz"]


def test_files_that_are_no_classifier_are_refused(params, tmp_path):
    file = tmp_path / "clip_classifier.npz"
    with pytest.raises(UserError, match="cannot be read"):
        load_clip_classifier(file)
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a clip classifier of this version"):
        load_clip_classifier(file)
    np.savez(file, other=np.zeros(2))
    with pytest.raises(UserError, match="is not a clip classifier of this version"):
        load_clip_classifier(file)
    save_clip_classifier(file, trained(params, clip_shape=(6, 16, 8, 1)))
    with pytest.raises(UserError, match="its arrays have other shapes"):
        load_clip_classifier(file)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_clip_classifier(tmp_path / "file" / "clip_classifier.npz", trained(params))
