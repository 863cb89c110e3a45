"""Figures of generated clips against real ones, on the host: from features, and of time alone.

Letters: N clips, T time, H height, W width, C channels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from genjax.data.clip_source import ClipSource
from genjax.errors import UserError
from genjax.image.metrics.conditioning import conditioning_accuracy
from genjax.image.metrics.features import Features
from genjax.image.metrics.frechet import frechet_distance
from genjax.image.metrics.kernel_distance import kernel_distance
from genjax.image.metrics.neighbours import density_coverage, precision_recall
from genjax.video.metrics.content_consistency import content_consistency
from genjax.video.metrics.motion import (
    DIRECTIONS,
    Tracks,
    centroid_tracks,
    direction_accuracy,
    motion,
)
from genjax.video.metrics.repetition import frame_changes, freeze_rate, loop_rate
from genjax.video.video_adversarial_config import ClipMetric

Measured = dict[str, np.ndarray]
"""Numbers of each clip, [N, ...], from which temporal figures follow without the clip."""

_FRAMES = {"content_consistency": 2, "motion": 3, "repetition": 4}
"""The fewest frames of a clip whose temporal figures can be told."""


class ClipFigures:
    """The figures that a config asks for, by the names that they are logged under."""

    def __init__(self, metrics: Sequence[ClipMetric], features: str, source: ClipSource) -> None:
        """Check that the figures can be had.

        Args:
            metrics: the families of figures.
            features: the name of the features that they come from.
            source: the real clips.

        Raises:
            UserError: one needs classes, a classifier or longer clips.
        """
        self.metrics = tuple(dict.fromkeys(metrics))
        self.features = features
        self.source = source
        if features == "classifier" and not source.num_classes:
            raise UserError(
                f"evaluation.features: a classifier needs labelled clips, and {source.name} has "
                'no labels; use evaluation.features.kind = "pixels" or "i3d"'
            )
        if "conditioning_accuracy" in self.metrics and features != "classifier":
            raise UserError(
                "evaluation.metrics: 'conditioning_accuracy' needs a classifier of the run's own "
                'classes; set evaluation.features.kind = "classifier" on labelled clips'
            )
        frames = source.clip_shape[0]
        for metric in self.metrics:
            if frames < _FRAMES.get(metric, 1):
                raise UserError(
                    f"evaluation.metrics: {metric!r} needs clips of {_FRAMES[metric]} frames, and "
                    f"data.frames is {frames}; leave it out, or make clips longer"
                )

    @property
    def names(self) -> list[str]:
        """The names of all figures, as `checkpoint.best_metric` may name them."""
        return [name for metric in self.metrics for name in self._names(metric)]

    @property
    def has_directions(self) -> bool:
        """Whether the classes of the clips are directions of motion."""
        names = self.source.class_names
        return bool(names) and set(names) <= set(DIRECTIONS)

    def _names(self, metric: ClipMetric) -> list[str]:
        end = f"_{self.features}"
        match metric:
            case "frechet" if self.features.startswith("i3d"):
                # The published name belongs to I3D's features alone.
                return [f"fvd{self.features.removeprefix('i3d')}"]
            case "frechet":
                return [f"frechet{end}"]
            case "kernel":
                return [f"kernel{end}"]
            case "precision_recall":
                return [f"precision{end}", f"recall{end}"]
            case "density_coverage":
                return [f"density{end}", f"coverage{end}"]
            case "conditioning_accuracy":
                return ["conditioning_accuracy"]
            case "content_consistency":
                return ["content_distance", "content_track_rate"]
            case "motion":
                direction = ["direction_accuracy"] * self.has_directions
                return ["speed", "acceleration", "motion_consistency", "track_rate", *direction]
            case "repetition":
                return ["freeze_rate", "loop_rate"]

    def measure(self, clips: UInt8[np.ndarray, "N T H W C"]) -> Measured:
        """What the temporal figures need to know of each clip, so that none has to be kept."""
        found: Measured = {}
        if "content_consistency" in self.metrics:
            # Of a single clip it is that clip's own distance, NaN where nothing can be followed.
            each = [content_consistency(clip[None]).average_content_distance for clip in clips]
            found["content"] = np.asarray(each, np.float64)
        if "motion" in self.metrics:
            found |= centroid_tracks(clips)._asdict()
        if "repetition" in self.metrics:
            found["changes"] = frame_changes(clips)
            found["loops"] = np.asarray([loop_rate(clip[None]) for clip in clips], np.float64)
        return found

    def __call__(
        self,
        real: tuple[Features, Measured],
        generated: tuple[Features, Measured],
        labels: Int[np.ndarray, "N"] | None,
    ) -> dict[str, float]:
        """The figures.

        Args:
            real: features and `measure` of real clips.
            generated: the same of generated clips, or of what stands in their place.
            labels: classes that were asked for; None leaves their figures out.
        """
        found: dict[str, float] = {}
        for metric in self.metrics:
            values = self._values(metric, real, generated, labels)
            found |= dict(zip(self._names(metric), values, strict=False))
        return found

    def _values(
        self,
        metric: ClipMetric,
        real: tuple[Features, Measured],
        generated: tuple[Features, Measured],
        labels: Int[np.ndarray, "N"] | None,
    ) -> Sequence[float]:
        a, b, clips = real[0].features, generated[0].features, generated[1]
        match metric:
            case "frechet":
                return [frechet_distance(a, b)]
            case "kernel":
                return [kernel_distance(a, b, subset_size=min(1000, len(a), len(b)))]
            case "precision_recall":
                return list(precision_recall(a, b))
            case "density_coverage":
                return list(density_coverage(a, b))
            case "conditioning_accuracy":
                if labels is None:
                    return []
                return [conditioning_accuracy(generated[0].probabilities, labels)]
            case "content_consistency":
                known = clips["content"][~np.isnan(clips["content"])]
                distance = float(known.mean()) if len(known) else float("nan")
                return [distance, len(known) / len(clips["content"])]
            case "motion":
                tracks = Tracks(clips["centroids"], clips["tracked"])
                values = list(motion(tracks))
                if self.has_directions and labels is not None:
                    names = self.source.class_names
                    values.append(direction_accuracy(tracks, labels, names))
                return values
            case "repetition":
                still = freeze_rate(clips["changes"], real[1]["changes"])
                return [still, float(clips["loops"].mean())]
