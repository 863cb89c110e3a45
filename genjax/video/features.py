"""Where a run's clips are compared: feature spaces, and the one that a config asks for.

The extractors follow the protocol of those of images, `genjax.image.metrics.features.Extractor`,
with clips [B, T, H, W, C] for its `images`: pure, jittable, in full float32.

Letters: B batch, T time, H height, W width, C channels, D features, K classes.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from genjax.data.clip_source import ClipSource
from genjax.errors import UserError
from genjax.image.metrics.features import Extractor, Features, levels
from genjax.image.weight_files import Weights
from genjax.video.clip_classifier import (
    TrainedClipClassifier,
    load_clip_classifier,
    save_clip_classifier,
    train_clip_classifier,
)
from genjax.video.features_config import (
    ClipClassifierFeatures,
    ClipFeaturesConfig,
    ClipPixelFeatures,
    I3DFeatures,
)
from genjax.video.i3d import CLASSES, FEWEST_FRAMES, I3D, SIZE, Resize, fvd_input, load_i3d

Tree = Any
"""A pytree of arrays."""

Clips = Float[Array, "B T H W C"] | UInt8[Array, "B T H W C"]
"""Generated clips in about [-1, 1], or stored ones in 0..255."""

CLIP_CLASSIFIER = "clip_classifier.npz"
"""The classifier among a run's assets."""

_PIXELS = 4
"""Frames, rows and columns at most of averaged clips."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClipPixelExtractor:
    """Clips themselves, averaged to at most 4 frames of 4x4 pixels: without any training."""

    @property
    def name(self) -> str:
        """The name "pixels"."""
        return "pixels"

    @property
    def params(self) -> Tree:
        """None are needed."""
        return {}

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        return f"pixels in [-1, 1], averaged to at most {_PIXELS} frames of {_PIXELS}x{_PIXELS}"

    def apply(self, params: Tree, images: Clips, *, quantize: bool = True) -> Features:
        """Features [B, t h w C] with t, h and w at most 4; no probabilities."""
        del params
        scaled = _levels(images, quantize) / 127.5 - 1
        weights = (_stretches(size) for size in images.shape[1:4])
        averaged = jnp.einsum(
            "bthwc,st,ph,qw->bspqc", scaled, *weights, precision=jax.lax.Precision.HIGHEST
        )
        return Features(averaged.reshape(len(images), -1).astype(jnp.float32), None)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipClassifierExtractor:
    """The features of a small classifier that was trained on the data at hand.

    Attributes:
        classifier: the classifier.
    """

    classifier: TrainedClipClassifier

    @property
    def name(self) -> str:
        """The name "classifier"."""
        return "classifier"

    @property
    def params(self) -> Tree:
        """The classifier's parameters."""
        return self.classifier.params

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        return f"features of {self.classifier.label} on real clips"

    def apply(self, params: Tree, images: Clips, *, quantize: bool = True) -> Features:
        """Features [B, 64] and probabilities [B, K].

        Raises:
            UserError: clips are not of the classifier's shape.
        """
        if images.shape[1:] != self.classifier.clip_shape:
            raise UserError(
                f"the clips are {_by(images.shape[1:])}, and {self.classifier.label} knows "
                f"{_by(self.classifier.clip_shape)}; train one on clips of this shape"
            )
        x = _levels(images, quantize) / 127.5 - 1
        with jax.default_matmul_precision("highest"):
            outputs: Any = self.classifier.module.apply({"params": params}, x)
        features, logits = outputs
        return Features(features, jax.nn.softmax(logits))


@dataclasses.dataclass(frozen=True, eq=False)
class I3DExtractor:
    """The 400 logits of I3D, in which FVD is defined.

    Attributes:
        weights: from `genjax.video.i3d.load_i3d`.
        resize: how frames become 224x224; only "tensorflow1" is FVD by its definition.
    """

    weights: Weights
    resize: Resize = "tensorflow1"

    @property
    def name(self) -> str:
        """The name "i3d", or "i3d_half_pixel" for the other resizing."""
        return _i3d_name(self.resize)

    @property
    def params(self) -> Tree:
        """I3D's parameters."""
        return self.weights.params

    def describe(self) -> str:
        """One line for the protocol beside the figures."""
        how = {
            "tensorflow1": "as TensorFlow 1 does",
            "half_pixel": "with centred pixels, not as FVD is defined",
        }[self.resize]
        return (
            f"I3D of Kinetics-400 (RGB, weights from sha256 {self.weights.sha256}), {CLASSES} "
            f"logits averaged over time, 8-bit frames resized to {SIZE}x{SIZE} {how} "
            "(bilinear, not antialiased)"
        )

    def protocol(self, count: int, frames: int, split: str, frame_stride: int = 1) -> str:
        """The key beside an FVD: "fvd_i3d_n2048_f16_s1_real-train_resize-tensorflow1_weights-...".

        Figures are comparable where their keys are equal.

        Args:
            count: number of clips on either side.
            frames: T.
            split: where the real clips come from.
            frame_stride: every how manieth frame of the data a clip shows.
        """
        return (
            f"fvd_i3d_n{count}_f{frames}_s{frame_stride}_real-{split}_resize-{self.resize}"
            f"_weights-{self.weights.sha256[:12]}"
        )

    def apply(self, params: Tree, images: Clips, *, quantize: bool = True) -> Features:
        """Features [B, 400] of clips with 1 (grey) or 3 channels; no probabilities.

        Raises:
            UserError: clips have another number of channels, or fewer than 9 frames.
        """
        time, channels = images.shape[1], images.shape[4]
        if channels not in (1, 3):
            raise UserError(
                f"I3D takes clips with 1 or 3 channels, not {channels}; choose other features"
            )
        if time < FEWEST_FRAMES:
            raise UserError(
                f"FVD needs clips of {FEWEST_FRAMES} frames or more (16 are usual), not {time}; "
                "make them longer, or choose other features"
            )
        logits: Any = I3D().apply(
            {"params": params}, fvd_input(_levels(images, quantize), self.resize)
        )
        return Features(logits, None)


def features_name(config: ClipFeaturesConfig) -> str:
    """The name of the extractor that `make_clip_extractor` makes of a config."""
    return _i3d_name(config.resize) if isinstance(config, I3DFeatures) else config.kind


def _i3d_name(resize: Resize) -> str:
    return "i3d" if resize == "tensorflow1" else f"i3d_{resize}"


def make_clip_extractor(
    config: ClipFeaturesConfig, source: ClipSource, assets: Path | None, cache: Path | None
) -> Extractor:
    """The extractor of a config; a classifier is read from the assets or the cache, or trained.

    Args:
        config: which one.
        source: the clips that a classifier knows.
        assets: what the run kept, or None.
        cache: folder of what any run kept, or None for none.

    Raises:
        UserError: the clips have no classes or are too short, or there are no weights.
    """
    match config:
        case ClipPixelFeatures():
            return ClipPixelExtractor()
        case ClipClassifierFeatures():
            return ClipClassifierExtractor(_classifier(config, source, assets, cache))
        case I3DFeatures(weights=weights, resize=resize):
            if weights is None:
                raise UserError(
                    "evaluation.features: FVD needs I3D's weights of Kinetics-400 (RGB), which "
                    "are not shipped; convert a copy with `python -m tools.convert_i3d IN OUT.npz` "
                    'and set weights = "OUT.npz", or use kind = "pixels" or "classifier", whose '
                    "figures have names of their own"
                )
            if source.clip_shape[0] < FEWEST_FRAMES:
                raise UserError(
                    f"evaluation.features: FVD needs clips of {FEWEST_FRAMES} frames or more (16 "
                    f"are usual), and those of {source.name} have {source.clip_shape[0]}; make "
                    'them longer, or use kind = "pixels" or "classifier"'
                )
            return I3DExtractor(load_i3d(weights.expanduser()), resize)


def save_clip_assets(folder: Path, extractor: Extractor) -> None:
    """Keep with a run what its extractor was trained to, for `make_clip_extractor` to find.

    Raises:
        UserError: the file cannot be written.
    """
    if isinstance(extractor, ClipClassifierExtractor):
        save_clip_classifier(folder / CLIP_CLASSIFIER, extractor.classifier)


def _classifier(
    config: ClipClassifierFeatures, source: ClipSource, assets: Path | None, cache: Path | None
) -> TrainedClipClassifier:
    if not source.num_classes:
        raise UserError(
            f"evaluation.features: a classifier needs labelled clips, and {source.name} has no "
            'labels; use kind = "pixels" or "i3d"'
        )
    content = f"{source.fingerprint} {source.clip_shape} {config.model_dump_json()}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    places = [assets / CLIP_CLASSIFIER] if assets is not None else []
    if cache is not None:
        places.append(cache / f"clip-classifier-{fingerprint[:32]}.npz")
    for path in places:
        if path.exists():
            found = load_clip_classifier(path)
            if found.fingerprint == fingerprint:
                return found
    classifier = train_clip_classifier(source, fingerprint, width=config.width, steps=config.steps)
    if cache is not None:
        save_clip_classifier(places[-1], classifier)
    return classifier


def _levels(clips: Clips, quantize: bool) -> Float[Array, "B T H W C"]:
    """Clips in 0..255, as `levels` has images."""
    frames = clips.reshape(-1, *clips.shape[2:])
    return levels(frames, quantize).reshape(clips.shape)


def _stretches(size: int) -> np.ndarray:
    """What each of at most 4 equal stretches of a line takes of each of `size` places."""
    count = min(size, _PIXELS)
    edges = np.arange(count + 1) * (size / count)
    places = np.arange(size)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (np.maximum(overlap, 0) * (count / size)).astype(np.float32)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
