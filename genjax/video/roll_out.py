"""A roll-out: a recurrent network reads a clip frame by frame and predicts each next one.

What is unknown it reads from its own predictions. Where known frames lie ahead (filling in
between) or parts of the predicted frame are known (holes), each step also gets hints of them.

Letters: B batch, T time, S steps, F the last of them, H height, W width, C channels; h, w height
and width in patches, P channels of a patch, Q channels of its hints.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from genjax.video.conditioning import Known

StepFunction = Callable[[Any, Array], tuple[Any, Array]]
"""From a recurrent state and an input [B, h, w, P + Q] to the next state and a frame's patches."""


def patchify(frames: Float[Array, "*N H W C"], size: int) -> Float[Array, "*N h w P"]:
    """Square patches as channels, the rows of a patch first (space to depth)."""
    *lead, height, width, channels = frames.shape
    split = frames.reshape(*lead, height // size, size, width // size, size, channels)
    split = jnp.swapaxes(split, -4, -3)
    return split.reshape(*lead, height // size, width // size, size * size * channels)


def unpatchify(patches: Float[Array, "*N h w P"], size: int) -> Float[Array, "*N H W C"]:
    """The frames of patches: what undoes `patchify`."""
    *lead, height, width, features = patches.shape
    split = patches.reshape(*lead, height, width, size, size, features // (size * size))
    split = jnp.swapaxes(split, -4, -3)
    return split.reshape(*lead, height * size, width * size, features // (size * size))


class Plan(NamedTuple):
    """Which frames the steps of a roll-out predict, and what they see ahead.

    Attributes:
        targets: the frame that each step predicts; it reads the one before.
        ahead: for each step the known frame that lies ahead, or None.
        leading: how many steps at the start read frames that are wholly known.
    """

    targets: tuple[int, ...]
    ahead: tuple[int | None, ...]
    leading: int

    @property
    def has_hints(self) -> bool:
        """Whether any step sees something ahead."""
        return any(frame is not None for frame in self.ahead)


def make_plan(known: Known, partial: bool) -> Plan:
    """The plan for a clip.

    Args:
        known: which frames are known, or hold anything known.
        partial: whether known frames are known in part only. Then the first frame is predicted
            too, from nothing but its hints.
    """
    frames = range(len(known))
    if partial:
        ahead = tuple(next((n for n in frames if n >= j and known[n]), None) for j in frames)
        return Plan(tuple(frames), ahead, 0)
    unknown = [j for j in frames if not known[j]]
    targets = tuple(range(1, max(unknown) + 1))
    past = min(unknown)
    # For targets of the past too the end of the first gap: the target itself would give it away.
    ahead = tuple(next((n for n in frames if n > max(j, past) and known[n]), None) for j in targets)
    return Plan(targets, ahead, past)


def hints(
    clips: Float[Array, "B T H W C"], mask: Float[Array, "B T H W 1"] | None, plan: Plan
) -> Float[Array, "S B H W Q"] | None:
    """For each step what is known ahead, and how near it is: 1 / (1 + frames in between).

    Args:
        clips: the clips; unknown pixels are not looked at.
        mask: 1 for known pixels, where frames are known in part.
        plan: the roll-out's.

    Returns:
        The known frame, its mask (if there are any) and the nearness; None without hints.
    """
    if not plan.has_hints:
        return None
    parts = []
    plane = jnp.ones((*clips.shape[:1], *clips.shape[2:4], 1), clips.dtype)
    for target, frame in zip(plan.targets, plan.ahead, strict=True):
        here = 0 if frame is None else frame
        seen = jnp.zeros_like(plane) if frame is None else plane
        if mask is not None:
            seen = seen * mask[:, here].astype(clips.dtype)
        near = 0.0 if frame is None else 1.0 / (1.0 + frame - target)
        # Not a product: what is unknown may be anything.
        frame_seen = jnp.where(seen > 0, clips[:, here], 0.0)
        shown = [frame_seen, *([] if mask is None else [seen]), near * plane]
        parts.append(jnp.concatenate(shown, -1))
    return jnp.stack(parts)


def roll_out(
    step: StepFunction,
    state: Any,
    truth: Float[Array, "S B h w P"],
    feed: Float[Array, "S B ..."] | Bool[Array, "S B ..."],
    hints: Float[Array, "S B h w Q"] | None,
    prediction: Float[Array, "B h w P"],
    *,
    remat: bool = False,
) -> tuple[Any, Float[Array, "S B h w P"]]:
    """Run the steps one after the other.

    Args:
        step: the network.
        state: its state before.
        truth: the true frame that each step may read.
        feed: 1 where it reads the truth, 0 where the prediction of the step before.
        hints: what each step also reads.
        prediction: what the step before the first one predicted.
        remat: keep only states and frames, and compute each step again in the backward pass.

    Returns:
        The last state and the predictions.
    """
    feed = feed.astype(truth.dtype)
    feed = feed.reshape(*feed.shape, *(1,) * (truth.ndim - feed.ndim))

    def body(carry: Any, inputs: Any) -> tuple[Any, Array]:
        state, prediction = carry
        frame, share, hint = inputs
        # Not a weighted sum: where the truth is unknown it may be anything.
        x = jnp.where(share > 0, frame, prediction)
        x = x if hint is None else jnp.concatenate([x, hint], -1)
        state, prediction = step(state, x)
        return (state, prediction), prediction

    if remat:
        # Inside a scan nothing could merge the two computations of a step.
        body = jax.checkpoint(body, prevent_cse=False)
    (state, _), predictions = lax.scan(body, (state, prediction), (truth, feed, hints))
    return state, predictions


def steps_feed(
    known: Known,
    plan: Plan,
    mask: Float[Array, "B T H W 1"] | None,
    drawn: Bool[Array, "B F"] | None,
    batch_size: int,
) -> Float[Array, "S B ..."]:
    """Where each step reads the truth: where it is known, or as drawn for the last steps."""
    if mask is not None:
        before = jnp.ones_like(mask[:, :1])
        feed = jnp.moveaxis(jnp.concatenate([before, mask[:, :-1]], 1), 1, 0)
    else:
        read = jnp.array([known[target - 1] for target in plan.targets], jnp.float32)
        feed = jnp.broadcast_to(read[:, None], (len(plan.targets), batch_size))
    if drawn is None:
        return feed
    count = drawn.shape[1]
    assert count <= len(feed), "more steps are drawn than there are"
    late = drawn.T.astype(feed.dtype)
    late = late.reshape(*late.shape, *(1,) * (feed.ndim - 2))
    late = jnp.broadcast_to(late, (count, *feed.shape[1:]))
    if mask is not None:
        # What is known is never hidden.
        late = jnp.maximum(late, feed[-count:])
    return jnp.concatenate([feed[:-count], late])
