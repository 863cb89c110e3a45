"""Names and values of figures from features, and which cannot be had."""

import dataclasses
import re
from typing import get_args

import numpy as np
import pytest

from genjax.data.gaussian_mixture import GaussianMixture, open_mixture
from genjax.data.image_source import ImageSource, split_of_rows
from genjax.errors import UserError
from genjax.image.adversarial_config import MetricName
from genjax.image.figures import Figures
from genjax.image.metrics.features import Features
from genjax.image.metrics.frechet import frechet_distance

pytestmark = pytest.mark.fast

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (10, 4, 4, 1), np.uint8)
SPLITS = {"train": split_of_rows(IMAGES), "validation": split_of_rows(IMAGES)}
DIGITS = ImageSource("digits", (4, 4, 1), 10, tuple("0123456789"), "a", SPLITS)
STACKS = dataclasses.replace(DIGITS, image_shape=(4, 4, 3), num_classes=1000, base=DIGITS)
RING = open_mixture(GaussianMixture(layout="ring", samples=100))
MIXTURE_ONLY = "modes"


def figures(metrics, extractor="classifier", source=DIGITS, styles=False):
    return Figures(metrics, extractor, source, styles)


def drawn(count, mean=0.0, classes=10):
    logits = RANDOM.normal(size=(count, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = mean + RANDOM.normal(size=(count, 4))
    return Features(values.astype(np.float32), probabilities.astype(np.float32))


EVERY = tuple(metric for metric in get_args(MetricName) if metric != MIXTURE_ONLY)


def test_names_say_which_features():
    assert figures(EVERY, "classifier", styles=True).names == [
        "frechet_classifier",
        "kernel_classifier",
        "precision_classifier",
        "recall_classifier",
        "density_classifier",
        "coverage_classifier",
        "inception_score_classifier",
        "conditioning_accuracy",
        "path_length_in_w_classifier",
    ]
    plain = ["frechet", "kernel", "inception_score", "path_length"]
    names = ["fid", "kid", "inception_score", "path_length_in_z"]
    assert figures(plain, "inception").names == names
    # Other weights than those that define the FID do not make one.
    other = [f"{name}_inception_other_weights" for name in plain[:3]]
    other += ["path_length_in_z_inception_other_weights"]
    assert figures(plain, "inception_other_weights").names == other
    assert figures(["modes"], "pixels", RING).names == ["modes", "high_quality_share", "kl"]
    assert figures(["modes"], "classifier", STACKS).names == ["modes", "kl"]


def test_a_metric_asked_for_twice_is_made_once():
    assert figures(["frechet", "kernel", "frechet"]).metrics == ("frechet", "kernel")


def test_all_figures_are_there_under_their_names():
    found = figures(EVERY)
    labels = RANDOM.integers(0, 10, 40)
    values = found(drawn(50), drawn(40), labels, RANDOM.uniform(size=40))
    assert list(values) == found.names
    assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())
    without = found(drawn(50), drawn(40), None)
    assert set(found.names) - set(without) == {
        "conditioning_accuracy",
        "path_length_in_z_classifier",
    }


def test_the_values_belong_to_their_names():
    real, near, far = drawn(200), drawn(200), drawn(200, mean=9.0)
    found = figures(["frechet", "kernel", "precision_recall", "density_coverage"])
    good, bad = found(real, near, None), found(real, far, None)
    expected = frechet_distance(real.features, far.features)
    assert bad["frechet_classifier"] == expected and expected > 4 * 80
    assert abs(good["kernel_classifier"]) < 1 < bad["kernel_classifier"]
    for name in ("precision", "recall", "density", "coverage"):
        assert bad[f"{name}_classifier"] == 0 < good[f"{name}_classifier"]
    # Generated images that are all one real image: precise, and no variety.
    one = Features(np.repeat(real.features[:1], 200, 0), None)
    values = found(real, one, None)
    assert values["precision_classifier"] == 1 and values["recall_classifier"] < 0.1
    assert values["density_classifier"] > 0 and values["coverage_classifier"] < 0.1


def test_conditioning_accuracy_and_inception_score():
    labels = np.arange(20) % 10
    sure = Features(np.zeros((20, 4), np.float32), np.eye(10, dtype=np.float32)[labels])
    asked = np.where(np.arange(20) < 5, (labels + 1) % 10, labels)
    values = figures(["conditioning_accuracy", "inception_score"])(drawn(20), sure, asked)
    assert values["conditioning_accuracy"] == 0.75
    np.testing.assert_allclose(values["inception_score_classifier"], 10, rtol=1e-5)


def test_modes_of_a_mixture():
    assert RING.mixture is not None
    modes = RING.mixture.modes
    points = np.concatenate([np.repeat(modes[:4], 5, 0), np.zeros((20, 2))]).astype(np.float32)
    values = figures(["modes"], "pixels", RING)(drawn(8), Features(points, None), None)
    assert values["modes"] == 4 and values["high_quality_share"] == 0.5
    np.testing.assert_allclose(values["kl"], np.log(2), rtol=1e-6)


def test_modes_of_stacks():
    digits = np.eye(10, dtype=np.float32)
    spelled = np.stack([digits[[1, 2, 3]], digits[[1, 2, 3]], digits[[0, 0, 7]]])
    values = figures(["modes"], "classifier", STACKS)(
        drawn(3), Features(np.zeros((3, 4), np.float32), spelled), None
    )
    assert values["modes"] == 2
    expected = np.log(1000) + (2 / 3) * np.log(2 / 3) + (1 / 3) * np.log(1 / 3)
    np.testing.assert_allclose(values["kl"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("metric", "extractor", "source", "words"),
    [
        ("inception_score", "pixels", DIGITS, "needs class probabilities; set evaluation.features"),
        ("conditioning_accuracy", "pixels", DIGITS, "needs class probabilities"),
        ("conditioning_accuracy", "inception", DIGITS, "a classifier of the run's own classes"),
        ("conditioning_accuracy", "classifier", STACKS, "a classifier of the run's own classes"),
        ("inception_score", "classifier", STACKS, 'stacked digits get one a channel; use "modes"'),
        ("modes", "classifier", DIGITS, "needs data whose modes are known"),
        ("modes", "pixels", STACKS, "needs data whose modes are known"),
        ("modes", "inception", STACKS, "needs data whose modes are known"),
    ],
)
def test_figures_that_cannot_be_had(metric, extractor, source, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        figures(["frechet", metric], extractor, source)
    assert f"evaluation.metrics: {metric!r}" in str(caught.value)
