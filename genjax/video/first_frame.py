"""The first frame of a clip as a condition: its check, its encoder, and its place in the clip.

Letters: B batch, T time, H height, W width, C channels, F features.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.image.sizes import resolutions
from genjax.nn.batch_norm import BatchNorm
from genjax.nn.convolution import Conv


def check_first(first: Float[Array, "B H W C"] | None, image_conditional: bool) -> None:
    """Check that a first frame is there exactly where a generator wants one.

    Raises:
        UserError: it lacks, or would be ignored.
    """
    if image_conditional and first is None:
        raise UserError("this generator continues a first frame, but none was given")
    if not image_conditional and first is not None:
        raise UserError("a first frame was given to a generator that was trained without one")


def starting_with(
    first: Float[Array, "B H W C"], following: Float[Array, "B _ H W C"]
) -> Float[Array, "B T H W C"]:
    """Clips of a given frame 0 and the frames that follow it."""
    return jnp.concatenate([first[:, None].astype(following.dtype), following], 1)


class FirstFrameEncoder(nn.Module):
    """Strided convolutions with batch normalisation, from an image to its smallest size.

    Attributes:
        image_shape: (H, W, C) of the images.
        base_channels: channels at half the image's size; each smaller size has twice as many.
        max_channels: but at most this.
        kernel_init: initialiser of the kernels.
        dtype: dtype of computation.
    """

    image_shape: tuple[int, int, int]
    base_channels: int = 64
    max_channels: int = 512
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False
    ) -> Float[Array, "B H2 W2 F"]:
        """Features of the smallest of the image's `resolutions`, 4x4 for a square."""
        hidden = images
        for level in range(len(resolutions(self.image_shape)) - 1):
            hidden = Conv(
                min(self.base_channels << level, self.max_channels),
                kernel_size=4,
                stride=2,
                padding=1,
                use_bias=False,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"down_{level}",
            )(hidden)
            hidden = BatchNorm(dtype=self.dtype, name=f"norm_{level}")(hidden, train)
            hidden = nn.leaky_relu(hidden, 0.2)
        return hidden
