"""The layers of SimVP: spatial convolutions, and the two translators' blocks.

Letters: B batch, H height, W width, C input channels, F features, K kernel size.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.nn.batch_norm import BatchNorm
from genjax.nn.convolution import Conv
from genjax.nn.dense import Dense
from genjax.nn.depthwise_convolution import DepthwiseConv
from genjax.nn.dropout import dropout_mask
from genjax.nn.grouped_convolution import grouped_conv2d

Images = Float[Array, "B H W C"]

Resampling = Literal["down", "up"]
"""Half or twice the height and the width."""

INCEPTION_GROUPS = 8
"""Groups of the inception block's convolutions and of their normalisation."""

_LEAK = 0.2


# ---- space: what the encoder and the decoder are made of ---------------------------------------


def pixel_shuffle(inputs: Float[Array, "B H W F4"]) -> Float[Array, "B H2 W2 F"]:
    """Double the size: a quarter of the channels goes to each of four pixels.

    Pixel (2 h + i, 2 w + j) takes the (2 i + j)-th quarter of the channels of (h, w).

    Paper: Shi et al. 2016, "Real-time single image and video super-resolution using an efficient
    sub-pixel convolutional neural network".

    Args:
        inputs: [B, H, W, 4 F].

    Returns:
        [B, 2 H, 2 W, F].
    """
    batch, height, width, _ = inputs.shape
    blocks = inputs.reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, 2 * height, 2 * width, -1)


def group_norm(groups: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Wu and He 2018, "Group normalization", with a variance that does not cancel."""
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


class SpatialConv(nn.Module):
    """Convolution, group normalisation in two groups, SiLU; halves or doubles the size.

    Attributes:
        features: output channels F.
        kernel_size: K, odd.
        resample: "down" convolves with stride 2, "up" shuffles four times as many channels.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    resample: Resampling | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B H2 W2 F"]:
        """Convolve, [B, H, W, C] to [B, H, W, F], to half or to twice the size."""
        up = self.resample == "up"
        hidden = Conv(
            4 * self.features if up else self.features,
            kernel_size=self.kernel_size,
            stride=2 if self.resample == "down" else 1,
            dtype=self.dtype,
            name="conv",
        )(images)
        hidden = pixel_shuffle(hidden) if up else hidden
        return nn.silu(group_norm(2, self.dtype, "norm")(hidden))


# ---- time: what the translators are made of ----------------------------------------------------


class StochasticDepth(nn.Module):
    """Drops a residual branch of whole examples while training.

    Paper: Huang et al. 2016, "Deep networks with stochastic depth".

    Attributes:
        rate: probability of a drop; what is kept is divided by `1 - rate`. Random numbers come
            from the stream "dropout".
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, branch: Images, train: bool) -> Images:
        """Zeros in place of some examples if `train`, otherwise the branch as it is."""
        if not train or not self.rate:
            return branch
        shape = (branch.shape[0], 1, 1, 1)
        return branch * dropout_mask(self.make_rng("dropout"), shape, self.rate).astype(
            branch.dtype
        )


class GatedAttentionBlock(nn.Module):
    """Gated spatiotemporal attention, then a convolutional perceptron, both residual.

    With N batch normalisation, D depthwise convolutions and P linear maps over channels:
    `u = N(x)`, `f, g = split(P(D7(D5(gelu(P(u))))))` (D7 has dilation 3, so that both together
    span 21 pixels and more), `x + s (P(sigmoid(g) f) + u)`; then
    `x + s P(gelu(D3(P(N(x)))))`. The scales s are learned for each channel and begin at 0.01.

    Paper: Tan et al. 2022, "SimVP: Towards simple yet powerful spatiotemporal predictive
    learning".

    Attributes:
        mlp_ratio: width of the perceptron's hidden layer over C.
        drop_path: probability that stochastic depth drops a branch.
        dtype: dtype of computation. Parameters and statistics are float32.
    """

    mlp_ratio: int = 8
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Images:
        """Attend and mix, [B, H, W, C] to [B, H, W, C]."""
        channels = inputs.shape[-1]

        def dense(features: int, name: str) -> Dense:
            return Dense(features, dtype=self.dtype, name=name)

        def added(inputs: Array, branch: Array, name: str) -> Array:
            scale = self.param(f"{name}_scale", nn.initializers.constant(0.01), (channels,))
            scaled = branch * scale.astype(branch.dtype)
            return inputs + StochasticDepth(self.drop_path, name=f"{name}_drop")(scaled, train)

        normalized = BatchNorm(dtype=self.dtype, name="attention_norm")(inputs, train)
        hidden = nn.gelu(dense(channels, "attention_in")(normalized), approximate=False)
        hidden = DepthwiseConv(5, dtype=self.dtype, name="attention_near")(hidden)
        hidden = DepthwiseConv(7, dilation=3, dtype=self.dtype, name="attention_far")(hidden)
        values, gates = jnp.split(dense(2 * channels, "attention_gate")(hidden), 2, axis=-1)
        hidden = dense(channels, "attention_out")(nn.sigmoid(gates) * values) + normalized
        outputs = added(inputs, hidden, "attention")

        normalized = BatchNorm(dtype=self.dtype, name="mlp_norm")(outputs, train)
        hidden = dense(self.mlp_ratio * channels, "mlp_in")(normalized)
        hidden = nn.gelu(DepthwiseConv(3, dtype=self.dtype, name="mlp_conv")(hidden), False)
        return added(outputs, dense(channels, "mlp_out")(hidden), "mlp")


class InceptionBlock(nn.Module):
    """A linear map over channels, then the sum of grouped convolutions of several sizes.

    Each convolution, in eight groups, is followed by group normalisation in eight groups and a
    leaky ReLU of slope 0.2.

    Paper: Gao et al. 2022, "SimVP: Simpler yet better video prediction".

    Attributes:
        features: output channels F.
        hidden_features: channels after the linear map.
        kernel_sizes: of the convolutions, odd.
        dtype: dtype of computation. Parameters are float32.
    """

    features: int
    hidden_features: int
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 11)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Images) -> Float[Array, "B H W F"]:
        """Convolve, [B, H, W, C] to [B, H, W, F]."""
        hidden = Dense(self.hidden_features, dtype=self.dtype, name="reduce")(inputs)
        inner = self.hidden_features // INCEPTION_GROUPS
        outputs = jnp.zeros((), self.dtype)
        for size in self.kernel_sizes:
            shape = (size, size, inner, self.features)
            kernel = self.param(f"kernel_{size}", nn.initializers.he_normal(), shape)
            bias = self.param(f"bias_{size}", nn.initializers.zeros, (self.features,))
            branch = grouped_conv2d(hidden, kernel.astype(hidden.dtype), INCEPTION_GROUPS)
            branch = group_norm(INCEPTION_GROUPS, self.dtype, f"norm_{size}")(
                branch + bias.astype(hidden.dtype)
            )
            outputs += nn.leaky_relu(branch, _LEAK)
        return outputs
