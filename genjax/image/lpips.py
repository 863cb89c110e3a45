"""LPIPS: the distance between two images in the features of AlexNet, weighted by what people see.

There are no weights here: `python -m tools.convert_lpips` makes a file of them from AlexNet's and
the linear heads' usual PyTorch files.

Letters: B batch, H height, W width, C channels, F features.

Paper: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric";
the features are those of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural
networks".
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.image.weight_files import Weights, read_weights, shapes_of

SMALLEST = 31
"""Height and width below which AlexNet's last pooling has no place left."""

LAYERS = (
    ("conv1", 64, 11, 4, 2),
    ("conv2", 192, 5, 1, 2),
    ("conv3", 384, 3, 1, 1),
    ("conv4", 256, 3, 1, 1),
    ("conv5", 256, 3, 1, 1),
)
"""Name, features, kernel size, stride and padding of AlexNet's convolutions."""

_POOLED = ("conv2", "conv3")
"""What reads the maximum over 3x3 windows in steps of 2."""

# Of ImageNet's pixels in [-1, 1], as the published weights expect them.
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)

_EPSILON = 1e-10
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Lpips(nn.Module):
    """The distance of two images, 0 for equal ones.

    Each of AlexNet's five layers of features is scaled to length 1 at every place. The distance
    is the sum over layers of the mean over places of the weighted squares of differences. It is
    differentiable, also where images are equal.

    Parameters: "conv1" to "conv5" with "kernel" and "bias", and "head1" to "head5" with a
    "weight" [F] each, 0 or more.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], others: Float[Array, "B H W C"]
    ) -> Float[Array, "B"]:
        """Distances of pairs.

        Args:
            images: in [-1, 1], with 1 (grey) or 3 channels, of 31x31 pixels or more. (Some
                programs pass images in [0, 1], and report other numbers by the same name.)
            others: likewise.

        Raises:
            UserError: the images are smaller, or have another number of channels.
        """
        height, width, channels = images.shape[1:]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"LPIPS needs images of {SMALLEST}x{SMALLEST} pixels or more, not {height}x{width}"
            )
        if channels not in (1, 3):
            raise UserError(f"LPIPS takes images with 1 or 3 channels, not {channels}")
        x = jnp.concatenate([images, others]).astype(jnp.float32)
        x = (jnp.broadcast_to(x, (*x.shape[:3], 3)) - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        total = jnp.zeros(len(images))
        for number, (name, features, size, stride, padding) in enumerate(LAYERS, 1):
            if name in _POOLED:
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(_Convolution(features, size, stride, padding, name=name)(x))
            unit = _scaled_to_length_1(x)
            difference = jnp.square(unit[: len(images)] - unit[len(images) :])
            total += _Head(name=f"head{number}")(difference).mean((1, 2))
        return total


class _Convolution(nn.Module):
    features: int
    size: int
    stride: int
    padding: int

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        sides = [(self.padding, self.padding)] * 2
        # In full float32, also where hardware would round: figures must not depend on it.
        outputs = lax.conv_general_dilated(
            images,
            kernel,
            (self.stride, self.stride),
            sides,
            dimension_numbers=_LAYOUT,
            precision=lax.Precision.HIGHEST,
        )
        return outputs + bias


class _Head(nn.Module):
    @nn.compact
    def __call__(self, squares: Float[Array, "B H W F"]) -> Float[Array, "B H W"]:
        weight = self.param("weight", nn.initializers.ones, (squares.shape[-1],))
        return jnp.matmul(squares, weight, precision=lax.Precision.HIGHEST)


def _scaled_to_length_1(features: Array) -> Array:
    squares = jnp.square(features).sum(-1, keepdims=True)
    # Where all features are 0 the root has no derivative.
    empty = squares == 0
    length = jnp.where(empty, 0.0, jnp.sqrt(jnp.where(empty, 1.0, squares)))
    return features / (length + _EPSILON)


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by their "/"-joined path, such as "conv1/kernel"."""
    image = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return shapes_of(jax.eval_shape(Lpips().init, jax.random.key(0), image, image)["params"])


ADVICE = "make it with `python -m tools.convert_lpips`"


def load_lpips(path: Path) -> Weights:
    """Parameters of `Lpips` from a file of `tools.convert_lpips`.

    Raises:
        UserError: the file is missing, is not such a file, or its arrays do not fit.
    """
    return read_weights(path, parameter_shapes(), "LPIPS", ADVICE)
