"""Recurrent motion codes, and the latents that hold a clip's content and its motion's noise.

Latents are [content | noise of frame 0 | noise of frame 1 | ...], so that the number of frames
follows from their size, and a longer clip of the same content and noise begins as the shorter one.

Letters: B batch, T time, Z latent size, M noise of a frame, F features of the code.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.recurrent import gru


def split_latents(
    latents: Float[Array, "B Z"], content_size: int, motion_size: int
) -> tuple[Float[Array, "B _"], Float[Array, "T B M"]]:
    """Content [B, content_size], and time-major noise [T, B, motion_size].

    Raises:
        ValueError: what follows the content is not the noise of a number of frames.
    """
    size = latents.shape[-1] - content_size
    if size < motion_size or size % motion_size:
        raise ValueError(
            f"latents should have {content_size} numbers of content and {motion_size} for each "
            f"frame, and have {latents.shape[-1]}"
        )
    content, noise = jnp.split(latents, [content_size], -1)
    return content, noise.reshape(len(latents), -1, motion_size).swapaxes(0, 1)


def _uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Uniform below one over the root of a gate's size, which is a third of the last axis."""
    bound = 1.0 / math.sqrt(shape[-1] // 3)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class MotionCodes(nn.Module):
    """A gated recurrent unit over the noise of each frame.

    Attributes:
        features: F.
    """

    features: int

    @nn.compact
    def __call__(
        self, noise: Float[Array, "T B M"], start: Float[Array, "B F"] | None = None
    ) -> Float[Array, "T B F"]:
        """The code of every frame, each number in [-1, 1] where the start's are.

        Args:
            noise: [T, B, M].
            start: state before the first frame; zeros by default.
        """
        size = self.features
        zeros = nn.initializers.zeros
        if start is None:
            start = jnp.zeros((noise.shape[1], size), noise.dtype)
        codes, _ = gru(
            noise,
            start,
            self.param("input_kernel", _uniform, (noise.shape[-1], 3 * size)),
            self.param("recurrent_kernel", _uniform, (size, 3 * size)),
            self.param("bias", zeros, (3 * size,)),
            self.param("recurrent_bias", zeros, (size,)),
        )
        return codes
