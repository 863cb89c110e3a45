"""What of a clip a predictor knows, over time and space, and what it is asked for.

Predicting the future, filling in between frames and filling holes are one task: some pixels of a
clip are known, and the others are to be predicted from them. A model sees which frames hold
anything known (static, so that it computes nothing for the others) and, where known and unknown
pixels share a frame, a mask.

Letters: B batch, T time, H height, W width.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import Field, model_validator

from genjax.config import Config

Count = Annotated[int, Field(ge=1)]

Known = tuple[bool, ...]
"""For each frame of a clip, whether any of its pixels is known."""


class _WholeFrames(Config):
    """Frames that are known or unknown as a whole."""

    @property
    def known(self) -> Known:
        """Which frames are."""
        raise NotImplementedError

    @property
    def partial(self) -> bool:
        """Whether frames are known in part."""
        return False

    def mask(
        self, key: Key[Array, ""], numbers: Int[Array, "B"], size: tuple[int, int]
    ) -> Float[Array, "B T H W 1"]:
        """1 for known pixels; see `Inpaint.mask`."""
        del key
        mask = jnp.asarray(self.known, jnp.float32)[None, :, None, None, None]
        return jnp.broadcast_to(mask, (len(numbers), len(self.known), *size, 1))


class Predict(_WholeFrames):
    """The future from the past."""

    kind: Literal["predict"] = "predict"
    """Continue a clip."""
    past: Count = 10
    """Frames that are known."""
    future: Count = 10
    """Frames that follow, to be predicted. More can be asked for after training."""

    @property
    def known(self) -> Known:
        """The past."""
        return (True,) * self.past + (False,) * self.future


class Interpolate(_WholeFrames):
    """Frames in between others."""

    kind: Literal["interpolate"] = "interpolate"
    """Fill a gap (in-betweening)."""
    before: Count = 1
    """Known frames before the gap."""
    between: Count = 3
    """Frames of the gap."""
    after: Count = 1
    """Known frames after the gap."""

    @property
    def known(self) -> Known:
        """Both sides of the gap."""
        return (True,) * self.before + (False,) * self.between + (True,) * self.after


class Inpaint(Config):
    """Holes that stay in their place over a whole clip."""

    kind: Literal["inpaint"] = "inpaint"
    """Fill a rectangular hole, at a random place in each clip."""
    frames: Count = 10
    """Frames of a clip."""
    smallest: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Height and width of a hole are at least this share of the frame's."""
    largest: float = Field(default=0.5, gt=0.0, lt=1.0)
    """And at most this share."""

    @model_validator(mode="after")
    def _a_range(self) -> "Inpaint":
        if self.smallest > self.largest:
            raise ValueError(
                f"smallest: {self.smallest:g} is more than largest, {self.largest:g}; swap them"
            )
        return self

    @property
    def known(self) -> Known:
        """Something of each frame."""
        return (True,) * self.frames

    @property
    def partial(self) -> bool:
        """Frames are known in part."""
        return True

    def mask(
        self, key: Key[Array, ""], numbers: Int[Array, "B"], size: tuple[int, int]
    ) -> Float[Array, "B T H W 1"]:
        """Which pixels of a batch are known.

        Args:
            key: decides, together with a clip's number, what is random about it.
            numbers: of the clips.
            size: height and width.

        Returns:
            1 for known pixels and 0 for others.
        """
        height, width = size
        draws = jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n), (4,)))(numbers)
        hole = jnp.ones((len(numbers), height, width), bool)
        for axis, extent in enumerate(size):
            share = self.smallest + (self.largest - self.smallest) * draws[:, axis]
            length = jnp.clip(jnp.round(share * extent), 1, extent - 1)
            start = jnp.floor(draws[:, 2 + axis] * (extent - length + 1))
            place = jnp.arange(extent)
            inside = (place >= start[:, None]) & (place < (start + length)[:, None])
            hole &= inside[:, :, None] if axis == 0 else inside[:, None, :]
        known = 1.0 - hole.astype(jnp.float32)
        return jnp.broadcast_to(
            known[:, None, :, :, None], (len(known), self.frames, height, width, 1)
        )


Conditioning = Predict | Interpolate | Inpaint

ConditioningConfig = Annotated[Conditioning, Field(discriminator="kind")]
