"""Predictions that no model is needed for: what a trained one has to beat.

On Moving MNIST a black frame has less error than a copy of the last frame, and the mean image of
the training set less than both, so that each of them alone is a straw man.

Which frames are given is a static tuple `known` of T truth values: (True,) * 10 + (False,) * 10
predicts ten frames from ten, (True, False, True) fills in between two. Letters: B batch, T frames,
U of them unknown, H height, W width, C channels.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from genjax.errors import UserError

Clips = Float[Array, "B T H W C"] | UInt8[Array, "B T H W C"]
Image = Float[Array, "H W C"]
Predictions = Float[Array, "B U H W C"]
Known = tuple[bool, ...]

Baseline = Callable[[Clips, Image], Predictions]
"""From whole clips and the mean image of the training set to the unknown frames, in their order.

All are in the units of the clips, and black is 0. Unknown frames of the clips are not looked at.
"""


def baselines_for(known: Known) -> dict[str, Baseline]:
    """The baselines that there are for a mask over frames, by name.

    "black_frame", "mean_image" and "mean_of_known" always; "copy_last" where the frames to predict
    follow the known ones, or else "copy_nearest"; "cross_fade" where every unknown frame lies
    between known ones.

    Raises:
        UserError: no frame is known, or none is unknown.
    """
    if not any(known) or all(known):
        raise UserError(
            f"{sum(known)} of {len(known)} frames are known; a prediction needs at least one frame "
            "that is known and one that is not"
        )
    first, last = known.index(True), len(known) - 1 - known[::-1].index(True)
    unknown = [frame for frame, given in enumerate(known) if not given]
    copy = "copy_last" if min(unknown) > last else "copy_nearest"
    baselines: dict[str, Baseline] = {
        "black_frame": functools.partial(black_frame, known=known),
        "mean_image": functools.partial(mean_image_of_training, known=known),
        "mean_of_known": functools.partial(mean_of_known, known=known),
        copy: functools.partial(copy_nearest, known=known),
    }
    if first < min(unknown) and max(unknown) < last:
        baselines["cross_fade"] = functools.partial(cross_fade, known=known)
    return baselines


def black_frame(clips: Clips, mean_image: Image, *, known: Known) -> Predictions:
    """Every frame is 0."""
    return _repeated(jnp.zeros_like(mean_image), clips, known)


def mean_image_of_training(clips: Clips, mean_image: Image, *, known: Known) -> Predictions:
    """Every frame is the mean of all frames of the training set: the best constant by MSE."""
    return _repeated(mean_image, clips, known)


def mean_of_known(clips: Clips, mean_image: Image, *, known: Known) -> Predictions:
    """Every frame is the mean of the clip's known frames."""
    del mean_image
    given = clips[:, np.flatnonzero(known)].astype(jnp.float32)
    return _repeated(given.mean(1, keepdims=True), clips, known)


def copy_nearest(clips: Clips, mean_image: Image, *, known: Known) -> Predictions:
    """Every frame is the nearest known one, of two equally near the earlier.

    Where the known frames come first, that is the last of them.
    """
    del mean_image
    given = np.flatnonzero(known)
    # The first of equal distances is the earlier frame's.
    nearest = given[np.abs(_unknown(known)[:, None] - given).argmin(1)]
    return clips[:, nearest].astype(jnp.float32)


def cross_fade(clips: Clips, mean_image: Image, *, known: Known) -> Predictions:
    """Every frame is mixed linearly from the known frames before and after it."""
    del mean_image
    given, unknown = np.flatnonzero(known), _unknown(known)
    place = np.searchsorted(given, unknown)
    assert place.min() > 0 and place.max() < len(given), "a frame has no known one on one side"
    before, after = given[place - 1], given[place]
    share = jnp.asarray((unknown - before) / (after - before), jnp.float32)[:, None, None, None]
    start, end = (clips[:, frames].astype(jnp.float32) for frames in (before, after))
    return (1 - share) * start + share * end


def _unknown(known: Known) -> np.ndarray:
    return np.flatnonzero(~np.asarray(known))


def _repeated(frames: Array, clips: Clips, known: Known) -> Predictions:
    """The same for every unknown frame, from [H, W, C] or [B, 1, H, W, C]."""
    shape = (len(clips), len(_unknown(known)), *clips.shape[2:])
    return jnp.broadcast_to(frames.astype(jnp.float32), shape)
