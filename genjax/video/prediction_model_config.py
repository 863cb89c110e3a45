"""Which predictor of frames a run has, from its config."""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from pydantic import Field, field_validator, model_validator

from genjax.config import Config
from genjax.video.conditioning import Known
from genjax.video.recurrent_prediction import ConvLSTMPredictor, PredRNNPredictor
from genjax.video.simvp import SimVP

Width = Annotated[int, Field(ge=1)]
ComputeType = Literal["float32", "bfloat16"]


class _Recurrent(Config):
    kernel_size: int = Field(default=5, ge=1)
    """Side of the kernels, odd."""
    patch_size: int = Field(default=4, ge=1)
    """Frames are cut into patches of this side, whose pixels become channels."""
    remat: bool = False
    """Compute steps again in the backward pass instead of keeping them: a quarter of the memory
    for a third more time."""
    dtype: ComputeType = "float32"
    """Type of the convolutions' inputs; parameters and states are float32."""

    @field_validator("kernel_size")
    @classmethod
    def _is_odd(cls, kernel_size: int) -> int:
        if kernel_size % 2 == 0:
            raise ValueError(f"{kernel_size} is even, and only odd kernels keep a frame's size")
        return kernel_size

    recurrent: ClassVar[bool] = True
    """Whether the network rolls out frame by frame, to any length."""

    @property
    def row_unit(self) -> int:
        """Rows of a frame that become one row of the network's features."""
        return self.patch_size


class ConvLSTMConfig(_Recurrent):
    """Stacked convolutional LSTM layers (Shi et al. 2015)."""

    kind: Literal["convlstm"] = "convlstm"
    """A recurrent network that feeds its predictions back."""
    features: tuple[Width, ...] = Field(default=(128, 128, 128, 128), min_length=1)
    """Channels of each layer."""
    forget_bias: float = 0.0
    """Added to forget gates."""

    def make(self, known: Known, partial: bool, channels: int) -> nn.Module:
        """The network for clips of which `known` frames are known, in part if `partial`."""
        del channels
        return ConvLSTMPredictor(
            known=known,
            partial=partial,
            features=self.features,
            kernel_size=self.kernel_size,
            patch_size=self.patch_size,
            forget_bias=self.forget_bias,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
        )


class PredRNNConfig(_Recurrent):
    """PredRNN (Wang et al. 2017): ConvLSTM layers that also share one memory."""

    kind: Literal["predrnn"] = "predrnn"
    """A recurrent network with a memory through all its layers."""
    features: Width = 128
    """Channels of each layer and of the memory."""
    num_layers: int = Field(default=4, ge=1)
    """Number of layers."""
    forget_bias: float = 1.0
    """Added to forget gates."""

    def make(self, known: Known, partial: bool, channels: int) -> nn.Module:
        """The network for clips of which `known` frames are known, in part if `partial`."""
        del channels
        return PredRNNPredictor(
            known=known,
            partial=partial,
            features=self.features,
            num_layers=self.num_layers,
            kernel_size=self.kernel_size,
            patch_size=self.patch_size,
            forget_bias=self.forget_bias,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
        )


class SimVPConfig(Config):
    """SimVP (Gao et al. 2022; Tan et al. 2022): no recurrence, all frames in one pass."""

    kind: Literal["simvp"] = "simvp"
    """An encoder and a decoder of single frames, and a translator between all of them."""
    translator: Literal["gsta", "inception"] = "gsta"
    """Blocks of gated attention (2022, second paper), or a U-net of inception blocks (first)."""
    spatial_features: Width = 64
    """Channels of encoder and decoder, even."""
    spatial_layers: int = Field(default=4, ge=2)
    """Layers of the encoder; every second one halves the resolution."""
    temporal_features: Width = 512
    """Channels of the translator."""
    temporal_layers: int = Field(default=8, ge=2)
    """Blocks of the translator."""
    mlp_ratio: Width = 8
    """Width of the hidden layers of gated attention blocks over their channels."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Rate of stochastic depth in the last gated attention block; those before have less."""
    dtype: ComputeType = "float32"
    """Type of computation; parameters are float32."""

    @model_validator(mode="after")
    def _has_gated_attention(self) -> "SimVPConfig":
        if self.translator != "gsta":
            for name in ("mlp_ratio", "drop_path"):
                if getattr(self, name) != SimVPConfig.model_fields[name].default:
                    raise ValueError(
                        f'{name} is for translator = "gsta", and does nothing in '
                        f'"{self.translator}"'
                    )
        return self

    recurrent: ClassVar[bool] = False
    """Whether the network rolls out frame by frame, to any length."""

    @property
    def row_unit(self) -> int:
        """Rows of a frame that become one row of the smallest features."""
        return 2 ** (self.spatial_layers // 2)

    def make(self, known: Known, partial: bool, channels: int) -> nn.Module:
        """The network for clips of which `known` frames are known, in part if `partial`."""
        return SimVP(
            known=known,
            channels=channels,
            partial=partial,
            translator=self.translator,
            spatial_features=self.spatial_features,
            spatial_layers=self.spatial_layers,
            temporal_features=self.temporal_features,
            temporal_layers=self.temporal_layers,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
            dtype=jnp.dtype(self.dtype),
        )


PredictorConfig = Annotated[
    ConvLSTMConfig | PredRNNConfig | SimVPConfig, Field(discriminator="kind")
]
