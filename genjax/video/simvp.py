"""SimVP: video prediction without recurrence.

An encoder sees each known frame by itself, a translator turns the features of all of them at once
into those of the frames that are wanted, a decoder draws each of these by itself. Gao et al. 2022,
"SimVP: Simpler yet better video prediction" (a translator of inception blocks), and Tan et al.
2022, "SimVP: Towards simple yet powerful spatiotemporal predictive learning" (one of gated
attention, gSTA).

Which frames are known is free, so that predicting, filling in between, and restoring parts of
frames are one model.

Letters: B batch, T time, H height, W width, C channels, F features; S known and P predicted frames.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.nn.dense import Dense
from genjax.nn.layout import split_images
from genjax.video.simvp_layers import (
    INCEPTION_GROUPS,
    GatedAttentionBlock,
    InceptionBlock,
    Resampling,
    SpatialConv,
)

Translator = Literal["gsta", "inception"]
"""What the translator is made of: blocks of gated attention, or a U-net of inception blocks."""


class GatedTranslator(nn.Module):
    """Blocks of gated attention; the first and the last end in a linear map to other widths.

    Attributes:
        features: channels of the result.
        hidden_features: channels between the blocks.
        layers: number of blocks.
        mlp_ratio: as in `GatedAttentionBlock`.
        drop_path: rate of stochastic depth of the last block; it grows in equal steps from 0.
        dtype: dtype of computation.
    """

    features: int
    hidden_features: int
    layers: int
    mlp_ratio: int
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B H W SF"], train: bool) -> Float[Array, "B H W PF"]:
        """Translate, [B, H, W, S F] to [B, H, W, P F]."""
        for layer in range(self.layers):
            hidden = GatedAttentionBlock(
                self.mlp_ratio,
                self.drop_path * layer / (self.layers - 1),
                self.dtype,
                name=f"block_{layer}",
            )(hidden, train)
            width = self.features if layer == self.layers - 1 else self.hidden_features
            if hidden.shape[-1] != width:
                hidden = Dense(width, dtype=self.dtype, name=f"width_{layer}")(hidden)
        return hidden


class InceptionTranslator(nn.Module):
    """A U-net of inception blocks, all at one resolution.

    Of N blocks down and N blocks up, each up but the first also reads what the block opposite to
    it made.

    Attributes:
        features: channels of the result.
        hidden_features: channels between the blocks; half of them inside.
        layers: N.
        kernel_sizes: as in `InceptionBlock`.
        dtype: dtype of computation.
    """

    features: int
    hidden_features: int
    layers: int
    kernel_sizes: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B H W SF"], train: bool) -> Float[Array, "B H W PF"]:
        """Translate, [B, H, W, S F] to [B, H, W, P F]."""
        del train

        def block(features: int, name: str) -> InceptionBlock:
            inner = self.hidden_features // 2
            return InceptionBlock(features, inner, self.kernel_sizes, self.dtype, name=name)

        skips = []
        for layer in range(self.layers):
            hidden = block(self.hidden_features, f"down_{layer}")(hidden)
            skips.append(hidden)
        # The last block down is what the first block up reads anyway.
        skips.pop()
        for layer in range(self.layers):
            if layer:
                hidden = jnp.concatenate([hidden, skips.pop()], -1)
            last = layer == self.layers - 1
            width = self.features if last else self.hidden_features
            hidden = block(width, f"up_{layer}")(hidden)
        return hidden


class SimVP(nn.Module):
    """Predicts what is unknown of a clip from what is known, in one pass.

    Of T frames the S known ones are the input. The output are the P frames that are not wholly
    known: all T if masks vary within frames. The decoder of output frame p (0 to P - 1) also reads
    the encoder's first layer of input frame floor(p S / P), which for S = P is the paper's pairing.

    Attributes:
        known: for each of the T frames whether any pixel of it may be known.
        channels: C.
        partial: whether known frames have unknown pixels. Then the mask is one more input channel,
            and all frames are predicted.
        translator: "gsta" or "inception".
        spatial_features: channels F of encoder and decoder, even.
        spatial_layers: convolutions of the encoder, and of the decoder; every second one of the
            encoder halves the resolution.
        temporal_features: channels of the translator.
        temporal_layers: blocks of the translator, at least 2; "inception" has as many down and up.
        encoder_kernel_size: kernel size of the encoder, odd.
        decoder_kernel_size: kernel size of the decoder, odd.
        inception_kernel_sizes: kernel sizes of the inception blocks, odd.
        mlp_ratio: width of the hidden layers of gated attention blocks over their channels.
        drop_path: rate of stochastic depth in the last gated attention block, in [0, 1); those
            before have less. Needs the random stream "dropout" in training.
        dtype: dtype of computation. Parameters, statistics and clips are float32.
    """

    known: tuple[bool, ...]
    channels: int = 1
    partial: bool = False
    translator: Translator = "gsta"
    spatial_features: int = 64
    spatial_layers: int = 4
    temporal_features: int = 512
    temporal_layers: int = 8
    encoder_kernel_size: int = 3
    decoder_kernel_size: int = 3
    inception_kernel_sizes: tuple[int, ...] = (3, 5, 7, 11)
    mlp_ratio: int = 8
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        clips: Float[Array, "B T H W C"],
        mask: Float[Array, "B T H W 1"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B T H W C"]:
        """Predict a clip.

        Args:
            clips: in [0, 1]. What is unknown is not read.
            mask: 1 for known pixels, 0 for others; given exactly if `partial`. What it says of
                frames that `known` excludes is not read.
            train: whether batch normalisation uses the batch's statistics and moves their
                averages, and whether stochastic depth is on.

        Returns:
            All frames, float32, in about [0, 1] but not clipped. Wholly known frames (those of
            `known`, if not `partial`) are the input's. If `partial`, known pixels are predicted
            as well.

        Raises:
            UserError: the clips, the mask and the fields do not fit.
        """
        inputs, outputs = self._frames(clips, mask)
        source = clips if mask is None else jnp.where(mask > 0, clips, 0)
        if mask is not None:
            source = jnp.concatenate([source, (mask > 0).astype(source.dtype)], -1)
        batch = clips.shape[0]
        frames = taken_frames([(source, frame) for frame in inputs])
        frames = split_images(frames.reshape(-1, *frames.shape[2:]).astype(self.dtype))

        first, encoded = self._encode(frames)
        height, width, features = encoded.shape[1:]
        by_time = encoded.reshape(batch, -1, height, width, features)
        # Not a transposition: of that the compiler for TPUs would gather rows that are split.
        hidden = jnp.concatenate([by_time[:, place] for place in range(len(inputs))], -1)
        hidden = self._translator(len(outputs))(split_images(hidden), train)
        by_time = jnp.stack(jnp.split(hidden, len(outputs), -1), 1)
        hidden = split_images(by_time.reshape(-1, height, width, features))

        first = first.reshape(batch, -1, *first.shape[1:])
        sources = [place * len(inputs) // len(outputs) for place in range(len(outputs))]
        skip = taken_frames([(first, place) for place in sources])
        predicted = self._decode(hidden, split_images(skip.reshape(-1, *skip.shape[2:])))

        wide = jnp.promote_types(self.dtype, jnp.float32)
        predicted = predicted.astype(wide).reshape(batch, -1, *clips.shape[2:])
        given = clips.astype(wide)
        places = {frame: place for place, frame in enumerate(outputs)}
        return taken_frames(
            [
                (predicted, places[frame]) if frame in places else (given, frame)
                for frame in range(len(self.known))
            ]
        )

    def _resampled(self) -> list[bool]:
        """Which layers of the encoder halve the resolution."""
        return [layer % 2 == 1 for layer in range(self.spatial_layers)]

    def _conv(self, layer: int, resample: Resampling, name: str) -> SpatialConv:
        size = self.encoder_kernel_size if resample == "down" else self.decoder_kernel_size
        return SpatialConv(
            self.spatial_features,
            size,
            resample if self._resampled()[layer] else None,
            self.dtype,
            name=f"{name}_{layer}",
        )

    def _encode(self, frames: Array) -> tuple[Array, Array]:
        """The first layer's features, and the last's."""
        first = hidden = split_images(self._conv(0, "down", "encoder")(frames))
        for layer in range(1, self.spatial_layers):
            hidden = split_images(self._conv(layer, "down", "encoder")(hidden))
        return first, hidden

    def _decode(self, hidden: Array, skip: Array) -> Array:
        """Back through the encoder's layers; the last one adds what its first one made."""
        for layer in reversed(range(1, self.spatial_layers)):
            hidden = split_images(self._conv(layer, "up", "decoder")(hidden))
        hidden = self._conv(0, "up", "decoder")(hidden + skip)
        return Dense(self.channels, dtype=self.dtype, name="readout")(hidden)

    def _translator(self, predicted: int) -> GatedTranslator | InceptionTranslator:
        features = predicted * self.spatial_features
        width, layers = self.temporal_features, self.temporal_layers
        if self.translator == "gsta":
            return GatedTranslator(
                features,
                width,
                layers,
                self.mlp_ratio,
                self.drop_path,
                self.dtype,
                name="translator",
            )
        return InceptionTranslator(
            features, width, layers, self.inception_kernel_sizes, self.dtype, name="translator"
        )

    def _frames(self, clips: Array, mask: Array | None) -> tuple[list[int], list[int]]:
        """The numbers of the frames that go in and that come out; checks everything."""
        inputs = [frame for frame, known in enumerate(self.known) if known]
        outputs = [frame for frame, known in enumerate(self.known) if self.partial or not known]
        if not inputs or not outputs:
            raise UserError(
                f"known = {self.known}: mark some frames as known, and others as not or set partial"
            )
        if clips.shape[1] != len(self.known) or clips.shape[-1] != self.channels:
            raise UserError(
                f"clips of {clips.shape[1]} frames of {clips.shape[-1]} channels do not fit known, "
                f"of {len(self.known)} frames, and channels = {self.channels}"
            )
        if self.partial != (mask is not None):
            raise UserError(
                "partial = true needs a mask of the known pixels"
                if self.partial
                else "partial = false takes no mask; set partial, or leave the mask out"
            )
        if self.spatial_layers < 2 or self.temporal_layers < 2:
            raise UserError(
                f"spatial_layers = {self.spatial_layers} and temporal_layers = "
                f"{self.temporal_layers} must be at least 2"
            )
        factor = 2 ** sum(self._resampled())
        if clips.shape[2] % factor or clips.shape[3] % factor:
            raise UserError(
                f"frames of {clips.shape[2]} x {clips.shape[3]} pixels must have sides that are "
                f"multiples of {factor}, for spatial_layers = {self.spatial_layers}"
            )
        if self.spatial_features % 2:
            raise UserError(f"spatial_features = {self.spatial_features} must be even")
        if self.translator == "inception":
            self._check_inception(len(outputs))
        return inputs, outputs

    def _check_inception(self, predicted: int) -> None:
        if self.temporal_features % (2 * INCEPTION_GROUPS):
            raise UserError(
                f"temporal_features = {self.temporal_features} of the inception translator must be "
                f"a multiple of {2 * INCEPTION_GROUPS}"
            )
        if predicted * self.spatial_features % INCEPTION_GROUPS:
            raise UserError(
                f"spatial_features = {self.spatial_features} times {predicted} predicted frames "
                f"must be a multiple of {INCEPTION_GROUPS} for the inception translator"
            )


def taken_frames(chosen: list[tuple[Array, int]]) -> Float[Array, "B T H W _"]:
    """Frames of clips, by clips and number, in a row; those that follow one another together."""
    runs: list[list[Any]] = []
    for clips, number in chosen:
        if runs and runs[-1][0] is clips and runs[-1][2] == number:
            runs[-1][2] += 1
        else:
            runs.append([clips, number, number + 1])
    parts = [clips[:, start:stop] for clips, start, stop in runs]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)
