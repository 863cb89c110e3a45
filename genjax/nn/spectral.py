"""Spectral normalisation: weights divided by their largest singular value.

Paper: Miyato, Kataoka, Koyama and Yoshida 2018, "Spectral normalization for generative
adversarial networks".

Letters: B batch, D input features, F output features, H height, W width, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.convolution import PaddingMode, conv2d
from genjax.nn.dense import matmul

_TINY = 1e-12


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), _TINY)


class SpectralNorm(nn.Module):
    """Divides a kernel by an estimate of its largest singular value.

    The kernel is taken as a matrix of F columns, one for each output feature. Each call makes one
    step of power iteration from a vector that lives in the collection "statistics" as "left"
    (float32), and takes the estimate from it; the gradient treats the singular vectors as
    constants. A call in training with that collection mutable keeps the better vector for the
    next. So the same variables give the same result whether in training or not.
    """

    @nn.compact
    def __call__(self, kernel: Float[Array, "*D F"], train: bool) -> Float[Array, "*D F"]:
        """The kernel, divided by its largest singular value.

        Args:
            kernel: of any number of input axes.
            train: whether to keep the improved vector.
        """
        left = self.variable("statistics", "left", self._random_unit, kernel.shape[-1])
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(
            jnp.promote_types(kernel.dtype, jnp.float32)
        )
        # A thousandth of error in the norm, which a TPU's fast product would make, adds up over
        # layers; products with a vector cost next to nothing.
        highest = lax.Precision.HIGHEST
        constant = lax.stop_gradient(matrix)
        right = _unit(jnp.dot(constant, left.value, precision=highest))
        better = _unit(jnp.dot(right, constant, precision=highest))
        norm = jnp.dot(jnp.dot(right, matrix, precision=highest), better, precision=highest)
        if train and self.is_mutable_collection("statistics") and not self.is_initializing():
            left.value = better.astype(left.value.dtype)
        return kernel / norm.astype(kernel.dtype)

    def _random_unit(self, size: int) -> Array:
        return _unit(jax.random.normal(self.make_rng("params"), (size,), jnp.float32))


class SpectralDense(nn.Module):
    """Affine map of the last axis whose kernel is divided by its largest singular value.

    Attributes:
        features: number of output features F.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel [D, F]; the bias starts at zero.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "*B D"], train: bool) -> Float[Array, "*B F"]:
        """Apply the map, [..., D] to [..., F]; `train` as in `SpectralNorm`."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        kernel = SpectralNorm(name="spectral")(kernel, train)
        outputs = matmul(inputs.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(self.dtype)
        return outputs


class SpectralConv(nn.Module):
    """Convolution of an image whose kernel is divided by its largest singular value.

    The norm is that of the kernel as a matrix [kernel_size * kernel_size * C, F], as in the paper,
    not that of the convolution as a linear map of images.

    Attributes:
        features: number of output channels F.
        kernel_size: height and width of the kernel.
        use_bias: whether to add a bias.
        kernel_init: initialiser of the kernel; the bias starts at zero.
        padding_mode: what lies beyond the border: "zeros", or the opposite side ("circular").
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    padding_mode: PaddingMode = "zeros"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W F"]:
        """Convolve with stride 1 to an image as large; `train` as in `SpectralNorm`."""
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        kernel = SpectralNorm(name="spectral")(kernel, train)
        outputs = conv2d(inputs.astype(self.dtype), kernel, padding_mode=self.padding_mode)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs += bias.astype(self.dtype)
        return outputs
