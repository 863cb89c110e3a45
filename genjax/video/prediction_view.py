"""A trained predictor as something to use: any number of frames to predict, any gap to fill.

Letters: B batch, T time, H height, W width, C channels, K known frames, N frames asked for.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genjax.errors import UserError
from genjax.nn.layout import gathered
from genjax.task import Tree
from genjax.video.conditioning import Conditioning, Interpolate, Known, Predict
from genjax.video.prediction_model_config import PredictorConfig

Clips = Float[Array, "B T H W C"]


class PredictionView:
    """Predictions of a network with its trained (averaged) parameters."""

    def __init__(self, model: PredictorConfig, conditioning: Conditioning, channels: int) -> None:
        """Prepare to predict.

        Args:
            model: the network's config.
            conditioning: what it was trained to know and to predict.
            channels: C.
        """
        self.model = model
        self.conditioning = conditioning
        self.channels = channels
        # Whole everywhere, so that each of several processes can fetch all clips.
        self._predict = jax.jit(
            lambda variables, past, future: gathered(self.predict(variables, past, future=future)),
            static_argnames="future",
        )
        self._fill = jax.jit(
            lambda variables, clips: gathered(self.complete(variables, clips, None))
        )

    def network(self, known: Known) -> nn.Module:
        """The network for clips of which other frames are known than in training."""
        return self.model.make(known, self.conditioning.partial, self.channels)

    # ---- pure functions -----------------------------------------------------------------------

    def complete(
        self, variables: Tree, clips: Clips, mask: Float[Array, "B T H W 1"] | None
    ) -> Clips:
        """The clips, with what is unknown of them predicted.

        Args:
            variables: the network's.
            clips: of as many frames as in training; what is unknown is not looked at.
            mask: 1 for known pixels; None where frames are known or unknown as a whole.
        """
        known = self.conditioning.known
        network, variables = self.network(known), gathered(variables)
        predicted: Any = network.apply(variables, *((clips,) if mask is None else (clips, mask)))
        if mask is not None:
            return jnp.where(mask > 0, clips, predicted)
        given = jnp.array(known)[None, :, None, None, None]
        return jnp.where(given, clips, predicted)

    def predict(
        self, variables: Tree, past: Float[Array, "B K H W C"], *, future: int
    ) -> Float[Array, "B N H W C"]:
        """The frames that follow.

        A recurrent network reads all of the past and rolls out to any length. Another one sees
        the last frames, as many as in training, and then its own predictions as often as needed.

        Args:
            variables: the network's.
            past: known frames, at least as many as a network without recurrence was trained with.
            future: N, how many frames to predict.
        """
        count = past.shape[1]
        if self.model.recurrent:
            empty = jnp.zeros((len(past), future, *past.shape[2:]), past.dtype)
            network = self.network((True,) * count + (False,) * future)
            clips: Any = network.apply(gathered(variables), jnp.concatenate([past, empty], 1))
            return clips[:, count:]
        assert isinstance(self.conditioning, Predict)
        window, length = self.conditioning.past, self.conditioning.future
        clips = past
        while clips.shape[1] < count + future:
            seen = clips[:, -window:]
            empty = jnp.zeros((len(past), length, *past.shape[2:]), past.dtype)
            whole = self.complete(variables, jnp.concatenate([seen, empty], 1), None)
            clips = jnp.concatenate([clips, whole[:, window:]], 1)
        return clips[:, count : count + future]

    def mask(
        self, key: Key[Array, ""], numbers: Int[Array, "B"], size: tuple[int, int]
    ) -> Float[Array, "B T H W 1"] | None:
        """What is known of clips in part; None where frames are known or unknown as a whole."""
        return self.conditioning.mask(key, numbers, size) if self.conditioning.partial else None

    # ---- from the host ------------------------------------------------------------------------

    def continue_clip(
        self, variables: Tree, past: Float[Array, "B K H W C"], future: int
    ) -> Float[Array, "B N H W C"]:
        """The frames that follow known ones; see `predict`.

        Raises:
            UserError: there are too few known frames.
        """
        assert isinstance(self.conditioning, Predict)
        least = 1 if self.model.recurrent else self.conditioning.past
        if past.shape[1] < least:
            raise UserError(
                f"input: {past.shape[1]} frames are too few to go on from; this network was "
                f"trained with {least}"
            )
        return self._predict(variables, past, future=future)

    def fill_gaps(
        self, variables: Tree, frames: Float[Array, "K H W C"]
    ) -> Float[Array, "N H W C"]:
        """All frames with predicted ones in between: N = K + (K - 1) times the trained gap.

        At both ends, where a network that sees several frames on either side would look beyond
        them, the first and the last frame are repeated.

        Raises:
            UserError: there are fewer than two frames.
        """
        shape = self.conditioning
        assert isinstance(shape, Interpolate)
        if len(frames) < 2:
            raise UserError("input: one frame has nothing to fill in between; give two or more")
        start, end = shape.before, shape.before + shape.between
        parts = []
        for place in range(len(frames) - 1):
            before = jnp.clip(jnp.arange(place - shape.before + 1, place + 1), 0, None)
            after = jnp.arange(place + 1, place + 1 + shape.after).clip(None, len(frames) - 1)
            gap = jnp.zeros((shape.between, *frames.shape[1:]), frames.dtype)
            clip = jnp.concatenate([frames[before], gap, frames[after]])
            parts += [frames[place : place + 1], self._fill(variables, clip[None])[0, start:end]]
        return jnp.concatenate([*parts, frames[-1:]])
