"""Batch normalisation, plain and conditioned on a class.

Letters: B batch, C channels, K classes. Statistics are of all axes but the last. They belong to
the whole batch: in a jitted program whose batch is split over devices, the compiler adds up the
devices' parts.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class BatchNorm(nn.Module):
    """Batch normalisation, `(x - mean) / sqrt(variance + epsilon) * scale + bias`.

    In training, mean and variance are those of the batch (the variance the mean of squared
    deviations, not an unbiased estimate); otherwise they are running averages, which live in the
    collection "statistics" as "mean" and "variance". A call in training with that collection
    mutable moves them: `average = momentum * average + (1 - momentum) * batch`.

    Paper: Ioffe and Szegedy 2015, "Batch normalization".

    Attributes:
        epsilon: added to the variance.
        momentum: what the running averages keep of themselves at each call, in [0, 1).
        use_scale: whether to learn a scale.
        use_bias: whether to learn a bias.
        scale_init: initialiser of the scale.
        dtype: dtype of the result; None keeps the input's. Parameters and statistics are float32.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    use_scale: bool = True
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "*B C"], train: bool) -> Float[Array, "*B C"]:
        """Normalise each channel of `inputs`, [..., C] to [..., C].

        Args:
            inputs: any number of axes before the channels.
            train: whether to use the batch's own statistics, and to move the running averages.
        """
        channels = inputs.shape[-1]
        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        average_mean = self.variable("statistics", "mean", jnp.zeros, (channels,), jnp.float32)
        average_variance = self.variable(
            "statistics", "variance", jnp.ones, (channels,), jnp.float32
        )
        if train:
            axes = tuple(range(inputs.ndim - 1))
            mean = wide.mean(axes)
            centered = wide - mean
            variance = jnp.square(centered).mean(axes)
            if self.is_mutable_collection("statistics") and not self.is_initializing():
                for average, value in ((average_mean, mean), (average_variance, variance)):
                    step = (1 - self.momentum) * (lax.stop_gradient(value) - average.value)
                    average.value += step.astype(average.value.dtype)
        else:
            centered, variance = wide - average_mean.value, average_variance.value
        outputs = centered * lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            outputs *= self.param("scale", self.scale_init, (channels,))
        if self.use_bias:
            outputs += self.param("bias", nn.initializers.zeros, (channels,))
        return outputs.astype(self.dtype or inputs.dtype)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale and a bias for every class.

    Paper: Dumoulin, Shlens and Kudlur 2017, "A learned representation for artistic style".

    Attributes:
        num_classes: number of classes K.
        epsilon: as in `BatchNorm`.
        momentum: as in `BatchNorm`.
        dtype: as in `BatchNorm`.
    """

    num_classes: int
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "B *S C"], labels: Int[Array, "B"], train: bool
    ) -> Float[Array, "B *S C"]:
        """Normalise each channel of `inputs`, then scale and shift each example by its class.

        Args:
            inputs: examples, [B, ..., C].
            labels: the class of each example, in [0, K).
            train: as in `BatchNorm`.
        """
        table = (self.num_classes, inputs.shape[-1])
        scale = self.param("scale", nn.initializers.ones, table)
        bias = self.param("bias", nn.initializers.zeros, table)
        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        norm = BatchNorm(self.epsilon, self.momentum, use_scale=False, use_bias=False, name="norm")
        normalized = norm(wide, train)
        spread = (-1, *(1,) * (inputs.ndim - 2), inputs.shape[-1])
        outputs = normalized * scale[labels].reshape(spread) + bias[labels].reshape(spread)
        return outputs.astype(self.dtype or inputs.dtype)
