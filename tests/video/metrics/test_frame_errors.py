import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.video.metrics import frame_errors
from genjax.video.metrics.frame_errors import PSNR_CAP

pytestmark = pytest.mark.fast

NAMES = ["openstl_mse", "openstl_mae", "openstl_psnr", "mse", "mae", "psnr"]


def by_frame(name, predictions, truth):
    """From the definitions, a frame at a time."""
    p, t = predictions.astype(np.float64), truth.astype(np.float64)
    if name == "openstl_mse":
        return ((p - t) ** 2).sum()
    if name == "openstl_mae":
        return np.abs(p - t).sum()
    p = np.minimum(np.maximum(p, 0), 1)
    if name == "mae":
        return np.abs(p - t).mean()
    error = ((p - t) ** 2).mean()
    return error if name == "mse" else 20 * np.log10(1 / np.sqrt(error))


@pytest.mark.parametrize("name", NAMES)
def test_matches_the_definitions(name):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (3, 4, 9, 8, 3)).astype(np.float32)
    # Many values are outside of the range, and every clip has an error of its own.
    noise = rng.normal(0, 1, truth.shape) * np.array([0.01, 0.2, 1]).reshape(3, 1, 1, 1, 1)
    predictions = (truth + noise).astype(np.float32)
    found = np.asarray(jax.jit(getattr(frame_errors, name))(predictions, truth))
    expected = [
        [by_frame(name, p, t) for p, t in zip(*pair, strict=True)]
        for pair in zip(predictions, truth, strict=True)
    ]
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_frames_have_the_highest_ratio():
    truth = jnp.full((1, 2, 3, 3, 1), 0.5)
    # 99 dB of error in the second frame, which is under the cap.
    predictions = truth.at[0, 1].add(10 ** (-99 / 20))
    found = np.asarray(jax.jit(frame_errors.psnr)(predictions, truth))
    np.testing.assert_allclose(found, [[PSNR_CAP, 99]], atol=0.02)
    np.testing.assert_array_equal(jax.jit(frame_errors.openstl_psnr)(predictions, truth), found)


def test_bfloat16_predictions_are_measured_in_float32():
    truth = jnp.full((1, 1, 40, 40, 1), 0.75, jnp.float32)
    found = frame_errors.openstl_mae(jnp.zeros(truth.shape, jnp.bfloat16), truth)
    assert found.dtype == jnp.float32
    assert found.item() == 1200
