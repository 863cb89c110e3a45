"""Figures of frame prediction, from sums over clips that any split of the data adds up to.

Letters: B batch, T predicted frames, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.video.metrics import frame_errors
from genjax.video.metrics.frame_errors import Frames, FrameValues
from genjax.video.metrics.structural_similarity import (
    GAUSSIAN,
    UNIFORM,
    openstl_ssim,
    ssim,
)

FRAME_METRICS: Mapping[str, Callable[[Frames, Frames], FrameValues]] = {
    "mae": frame_errors.mae,
    "mse": frame_errors.mse,
    "openstl_mae": frame_errors.openstl_mae,
    "openstl_mse": frame_errors.openstl_mse,
    "openstl_psnr": frame_errors.openstl_psnr,
    "openstl_ssim": openstl_ssim,
    "psnr": frame_errors.psnr,
    "ssim": ssim,
}
"""Metrics of single frames by the names of their figures; those of OpenSTL's definition say so."""

BY_FRAME = ("openstl_mse", "ssim")
"""Metrics that are told frame by frame too, to see how they fare further into the future."""

_COUNT = "count"
_SMALLEST = {"ssim": len(GAUSSIAN), "openstl_ssim": len(UNIFORM)}


def metrics_that_fit(height: int, width: int) -> tuple[str, ...]:
    """The metrics that frames of this many pixels are large enough for; all from 11 x 11 on."""
    side = min(height, width)
    return tuple(name for name in FRAME_METRICS if side >= _SMALLEST.get(name, 1))


def frame_sums(
    predictions: Frames,
    truth: Frames,
    weights: Float[Array, "B"],
    metrics: Sequence[str] = tuple(FRAME_METRICS),
) -> dict[str, Float[Array, "T"]]:
    """Weighted sums over clips of every metric, for each predicted frame, in pure JAX.

    Args:
        predictions: [B, T, H, W, C]; the truth ranges over [0, 1].
        truth: the same shape.
        weights: of each clip; 0 leaves a clip out, whatever is in it.
        metrics: names from `FRAME_METRICS`.

    Returns:
        The sums [T] by metric, and "count", the sum of the weights, for each frame.

    Raises:
        UserError: the frames are smaller than a metric's window.
    """
    counts = weights[:, None]
    sums = {
        name: jnp.where(counts > 0, counts * FRAME_METRICS[name](predictions, truth), 0).sum(0)
        for name in metrics
    }
    return sums | {_COUNT: jnp.broadcast_to(weights.sum(), (predictions.shape[1],))}


def figures(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over all frames, and of `BY_FRAME` over each frame, from added up `frame_sums`.

    Args:
        sums: arrays [T], on the host.

    Returns:
        The mean of each metric by its name, and beside it `openstl_mse_frame_01` and so on: the
        first predicted frame is 01.
    """
    wide = {name: np.asarray(values, np.float64) for name, values in sums.items()}
    count = wide.pop(_COUNT)
    assert (count > 0).all(), "no clips were evaluated"
    found = {name: float(values.sum() / count.sum()) for name, values in wide.items()}
    digits = max(2, len(str(len(count))))
    for name in BY_FRAME:
        if name in wide:
            for number, value in enumerate(wide[name] / count, start=1):
                found[f"{name}_frame_{number:0{digits}}"] = float(value)
    return found
