"""Scheduled and reverse scheduled sampling, as functions of the step."""

import math

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from genjax.video.sampling_schedule import (
    NoSampling,
    ReverseScheduledSampling,
    ScheduledSampling,
    draw_feed,
    truth_probabilities,
)

pytestmark = pytest.mark.fast

KNOWN = (True,) * 10 + (False,) * 10


def test_nothing_is_drawn_without_sampling():
    assert truth_probabilities(NoSampling(), KNOWN, 0) is None
    assert draw_feed(None, jax.random.key(0), 4) is None


@pytest.mark.parametrize(
    ("step", "share"), [(0, 1.0), (1, 1 - 2e-5), (25_000, 0.5), (50_000, 0.0), (80_000, 0.0)]
)
def test_scheduled_sampling_falls_along_a_line(step, share):
    # The published setting: from 1 by 2e-5 a step until 50,000; inputs 10 to 18 of 20 frames.
    chances = truth_probabilities(ScheduledSampling(), KNOWN, step)
    np.testing.assert_allclose(chances, np.full(9, share), atol=1e-6)


@pytest.mark.parametrize("step", [0, 24_999, 25_000, 27_500, 40_000, 49_999, 50_000, 90_000])
def test_reverse_sampling_brings_the_truth_in_among_known_frames(step):
    if step < 25_000:
        known, unknown = 0.5, 0.5
    elif step < 50_000:
        known = 1 - 0.5 * math.exp(-(step - 25_000) / 2500)
        unknown = 0.5 - 0.5 / 25_000 * (step - 25_000)
    else:
        known, unknown = 1.0, 0.0
    chances = truth_probabilities(ReverseScheduledSampling(), KNOWN, step)
    np.testing.assert_allclose(chances, [known] * 9 + [unknown] * 9, atol=1e-6)


def test_draws_are_of_each_clip_and_step_and_have_their_probability():
    chances = truth_probabilities(ReverseScheduledSampling(), KNOWN, 27_500)
    feed = np.asarray(draw_feed(chances, jax.random.key(0), 4000))
    assert feed.shape == (4000, 18) and feed.dtype == np.bool_
    spread = np.sqrt(np.asarray(chances) * (1 - np.asarray(chances)) / 4000)
    assert (np.abs(feed.mean(0) - chances) < 5 * spread + 1e-6).all()
    correlations = np.corrcoef(feed.T) - np.eye(18)
    assert np.abs(correlations).max() < 0.1
    np.testing.assert_array_equal(feed, draw_feed(chances, jax.random.key(0), 4000))


def test_short_clips_leave_nothing_to_draw():
    assert truth_probabilities(ScheduledSampling(), (True, False), 0) is None
    assert truth_probabilities(ReverseScheduledSampling(), (True, False), 0) is None
    chances = truth_probabilities(ReverseScheduledSampling(), (True, True, False), 0)
    np.testing.assert_allclose(chances, [0.5])


def test_a_rise_that_begins_after_its_end():
    with pytest.raises(ValidationError, match="begin: 25000 is not before steps, 100"):
        ReverseScheduledSampling(steps=100)
