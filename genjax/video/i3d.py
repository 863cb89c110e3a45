"""I3D, the network whose logits define the Frechet Video Distance.

Inception v1 with kernels inflated to three dimensions, for RGB clips of Kinetics-400. Convolutions
and pools pad as TensorFlow's "SAME" does: where borders are uneven, the longer one comes last.
FVD's features are the 400 logits, averaged over time, of clips that `fvd_input` prepared.

There are no weights here: `python -m tools.convert_i3d` makes a file of them. Batch normalisation
(frozen, without scale, epsilon 1e-3) is folded into the convolutions when they are converted.

Letters: B batch, T time, H height, W width, C channels, F output channels, K classes.

Papers: Carreira and Zisserman 2017, "Quo vadis, action recognition? A new model and the Kinetics
dataset"; Unterthiner et al. 2018, "Towards accurate generative models of video" (FVD).
"""

import functools
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.image.inception_v3 import resize_tensorflow1
from genjax.image.weight_files import Weights, read_weights, shapes_of

CLASSES = 400
"""Classes of Kinetics-400."""

SIZE = 224
"""Height and width that FVD resizes frames to."""

FEWEST_FRAMES = 9
"""Frames below which the network's last average over time has nothing to average."""

MIXED = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
"""Output channels of each block's branches: 1x1, 1x1 then 3x3, again, 1x1 behind a pool."""

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")

Resize = Literal["tensorflow1", "half_pixel"]
"""Which bilinear resizing, both without antialiasing. "tensorflow1" is part of FVD's definition:
output pixel i lies at i * H / 224 in a frame. "half_pixel" puts it at (i + 1/2) * H / 224 - 1/2,
as PyTorch programs do, which report other numbers under the same name."""


class I3D(nn.Module):
    """The network from scaled clips to logits averaged over time.

    Parameters: "kernel" [K, K, K, C, F] and "bias" [F] of each convolution: Conv3d_1a_7x7,
    Conv3d_2b_1x1, Conv3d_2c_3x3, and in each block Mixed_3b to Mixed_5c the branches b0, b1a, b1b,
    b2a, b2b, b3b (first digit: the branch; "a" comes before "b"); and "logits".

    Attributes:
        num_classes: number of classes K.
    """

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, clips: Float[Array, "B T H W 3"]) -> Float[Array, "B K"]:
        """Logits, averaged over time.

        Args:
            clips: RGB in [-1, 1], of 9 frames or more. The last average is over all places, which
                for frames of 224x224 are the 7x7 of the definition.

        Raises:
            ValueError: there are fewer frames.
        """
        if clips.shape[1] < FEWEST_FRAMES:
            raise ValueError(f"I3D needs {FEWEST_FRAMES} frames or more, not {clips.shape[1]}")
        x = _Unit(64, 7, stride=2, name="Conv3d_1a_7x7")(clips)
        x = _maximum(x, (1, 3, 3), (1, 2, 2))
        x = _Unit(64, 1, name="Conv3d_2b_1x1")(x)
        x = _Unit(192, 3, name="Conv3d_2c_3x3")(x)
        x = _maximum(x, (1, 3, 3), (1, 2, 2))
        for name, channels in MIXED.items():
            if name == "Mixed_4b":
                x = _maximum(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = _maximum(x, (2, 2, 2), (2, 2, 2))
            x = _Mixed(channels, name=name)(x)
        frames = x.mean((2, 3))
        # Over windows of two steps, not over all: the first and the last step count half.
        windows = (frames[:, 1:] + frames[:, :-1]) / 2
        logits = nn.Dense(self.num_classes, precision=lax.Precision.HIGHEST, name="logits")
        return logits(windows.mean(1))


class _Unit(nn.Module):
    """Convolution, folded normalisation, ReLU."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, clips: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 F"]:
        shape = (self.size,) * 3 + (clips.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # In full float32, also where hardware would round: figures must not depend on it.
        outputs = lax.conv_general_dilated(
            clips,
            kernel,
            (self.stride,) * 3,
            "SAME",
            dimension_numbers=_LAYOUT,
            precision=lax.Precision.HIGHEST,
        )
        return nn.relu(outputs + bias)


class _Mixed(nn.Module):
    """Four branches side by side; see `MIXED`."""

    channels: tuple[int, tuple[int, int], tuple[int, int], int]

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W F"]:
        direct, first, second, pooled = self.channels
        branches = [
            _Unit(direct, 1, name="b0")(x),
            _Unit(first[1], 3, name="b1b")(_Unit(first[0], 1, name="b1a")(x)),
            _Unit(second[1], 3, name="b2b")(_Unit(second[0], 1, name="b2a")(x)),
            _Unit(pooled, 1, name="b3b")(_maximum(x, (3, 3, 3), (1, 1, 1))),
        ]
        return jnp.concatenate(branches, -1)


def _maximum(x: Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Array:
    return nn.max_pool(x, window, stride, padding="SAME")


def fvd_input(
    clips: Float[Array, "B T H W C"], resize: Resize = "tensorflow1"
) -> Float[Array, "B T 224 224 3"]:
    """What `I3D` sees for FVD: frames resized to 224x224 and scaled to [-1, 1].

    Args:
        clips: in 0..255, with 1 (grey) or 3 channels.
        resize: how.
    """
    batch, time, height, width, channels = clips.shape
    frames = clips.reshape(batch * time, height, width, channels)
    if resize == "tensorflow1":
        frames = resize_tensorflow1(frames, SIZE, SIZE)
    else:
        frames = jax.image.resize(
            frames,
            (batch * time, SIZE, SIZE, channels),
            "bilinear",
            antialias=False,
            precision=lax.Precision.HIGHEST,
        )
    resized = frames.reshape(batch, time, SIZE, SIZE, channels)
    return jnp.broadcast_to(resized, (*resized.shape[:4], 3)) * (2 / 255) - 1


@functools.cache
def parameter_shapes(num_classes: int = CLASSES) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by their "/"-joined path, such as "Mixed_3b/b1a/kernel"."""
    clip = jax.ShapeDtypeStruct((1, FEWEST_FRAMES, 32, 32, 3), jnp.float32)
    return shapes_of(jax.eval_shape(I3D(num_classes).init, jax.random.key(0), clip)["params"])


def load_i3d(path: Path) -> Weights:
    """Parameters of `I3D` from a file of `tools.convert_i3d`.

    Raises:
        UserError: the file is missing, is not such a file, or its arrays do not fit.
    """
    advice = "make it with `python -m tools.convert_i3d`"
    return read_weights(path, parameter_shapes(), "I3D", advice)
