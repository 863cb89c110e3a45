import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.metrics.prediction_figures import (
    FRAME_METRICS,
    figures,
    frame_sums,
    metrics_that_fit,
)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (5, 3, 12, 12, 1)).astype(np.float32)
    return (truth + rng.normal(0, 0.2, truth.shape)).astype(np.float32), truth


def test_any_split_of_the_clips_adds_up_to_the_same_figures(clips):
    predictions, truth = clips
    sums = jax.jit(frame_sums)
    whole = sums(predictions, truth, np.ones(5, np.float32))
    # Three and two clips, both padded with something that is no number.
    parts = []
    for part in (slice(0, 3), slice(3, 5)):
        count = part.stop - part.start
        padded = [np.concatenate([x[part], x[count:] * np.nan]) for x in clips]
        parts.append(sums(*padded, np.float32(np.arange(5) < count)))
    added = {name: np.sum([part[name] for part in parts], axis=0) for name in whole}
    found = figures(added)
    assert found == pytest.approx(figures(jax.device_get(whole)), rel=1e-6)
    measure = jax.jit(lambda *pair: {name: metric(*pair) for name, metric in FRAME_METRICS.items()})
    for name, values in measure(predictions, truth).items():
        values = np.asarray(values, np.float64)
        assert found[name] == pytest.approx(values.mean(), rel=1e-6)
        if name in ("openstl_mse", "ssim"):
            told = [found[f"{name}_frame_{number:02}"] for number in (1, 2, 3)]
            np.testing.assert_allclose(told, values.mean(0), rtol=1e-6)
    assert len(found) == len(FRAME_METRICS) + 2 * 3


@pytest.mark.fast
def test_names_sort_by_frame_and_weights_count():
    sums = {"ssim": np.arange(120.0), "mae": np.full(120, 6.0), "count": np.full(120, 4.0)}
    found = figures(sums)
    assert (found["mae"], found["ssim"]) == (1.5, 119 / 8)
    names = [name for name in found if name.startswith("ssim_frame_")]
    assert names == sorted(names) and names[0] == "ssim_frame_001"
    assert found["ssim_frame_120"] == 119 / 4


@pytest.mark.fast
def test_small_frames():
    clips = jnp.zeros((1, 2, 8, 9, 1))
    weights = jnp.ones(1)
    with pytest.raises(UserError, match="8 x 9 pixels are smaller than the window of SSIM"):
        jax.eval_shape(frame_sums, clips, clips, weights)
    fitting = metrics_that_fit(8, 9)
    assert set(FRAME_METRICS) - set(fitting) == {"ssim"}
    sums = jax.eval_shape(functools.partial(frame_sums, metrics=fitting), clips, clips, weights)
    assert set(sums) == {*fitting, "count"}
    assert metrics_that_fit(11, 11) == tuple(FRAME_METRICS)
    assert "openstl_ssim" not in metrics_that_fit(6, 40)
