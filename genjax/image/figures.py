"""Figures of generated images against real ones, from their features, on the host."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from genjax.data.image_source import ImageSource
from genjax.errors import UserError
from genjax.image.adversarial_config import MetricName
from genjax.image.metrics.conditioning import conditioning_accuracy
from genjax.image.metrics.features import Features
from genjax.image.metrics.frechet import frechet_distance
from genjax.image.metrics.inception_score import inception_score
from genjax.image.metrics.kernel_distance import kernel_distance
from genjax.image.metrics.modes import mixture_coverage, mode_coverage, stacked_labels
from genjax.image.metrics.neighbours import density_coverage, precision_recall
from genjax.image.metrics.path_length import perceptual_path_length

_JUDGED: tuple[MetricName, ...] = ("inception_score", "conditioning_accuracy")


class Figures:
    """The figures that a config asks for, by the names that they are logged under."""

    def __init__(
        self,
        metrics: Sequence[MetricName],
        features: str,
        source: ImageSource,
        has_styles: bool,
    ) -> None:
        """Check that the figures can be had.

        Args:
            metrics: the families of figures.
            features: the name of the features that they come from.
            source: the real images.
            has_styles: whether paths go through styles.

        Raises:
            UserError: one needs classes, a classifier or modes that there are not.
        """
        if features == "classifier" and not (source.base or source).num_classes:
            raise UserError(
                f"evaluation.features: a classifier needs labelled images, and {source.name} has "
                'no labels; use evaluation.features.kind = "pixels" or "inception"'
            )
        self.metrics = tuple(dict.fromkeys(metrics))
        self.features = features
        self.source = source
        self._space = "w" if has_styles else "z"
        judge = features != "pixels"
        for metric in self.metrics:
            where = f"evaluation.metrics: {metric!r}"
            if metric in _JUDGED and not judge:
                raise UserError(
                    f"{where} needs class probabilities; set evaluation.features.kind to "
                    '"classifier" or "inception"'
                )
            if metric == "inception_score" and judge and source.base is not None:
                raise UserError(
                    f"{where} needs one judgement an image, and stacked digits get one a channel; "
                    'use "modes"'
                )
            if metric == "conditioning_accuracy" and (
                features != "classifier" or source.base is not None
            ):
                raise UserError(
                    f"{where} needs a classifier of the run's own classes; set "
                    'evaluation.features.kind = "classifier" on labelled images'
                )
            spelled = source.base is not None and features == "classifier"
            if metric == "modes" and source.mixture is None and not spelled:
                raise UserError(
                    f"{where} needs data whose modes are known: a mixture of Gaussians, or stacked "
                    'digits with evaluation.features.kind = "classifier"'
                )

    @property
    def names(self) -> list[str]:
        """The names of all figures, as `checkpoint.best_metric` may name them."""
        return [name for metric in self.metrics for name in self._names(metric)]

    def _names(self, metric: MetricName) -> list[str]:
        # Published names belong to Inception's features alone.
        published = self.features == "inception"
        end = "" if published else f"_{self.features}"
        match metric:
            case "frechet":
                return ["fid" if published else f"frechet{end}"]
            case "kernel":
                return ["kid" if published else f"kernel{end}"]
            case "precision_recall":
                return [f"precision{end}", f"recall{end}"]
            case "density_coverage":
                return [f"density{end}", f"coverage{end}"]
            case "inception_score":
                return [f"inception_score{end}"]
            case "conditioning_accuracy":
                return ["conditioning_accuracy"]
            case "path_length":
                return [f"path_length_in_{self._space}{end}"]
            case "modes":
                quality = [] if self.source.mixture is None else ["high_quality_share"]
                return ["modes", *quality, "kl"]

    @property
    def needs_paths(self) -> bool:
        """Whether distances along paths between latents are wanted."""
        return "path_length" in self.metrics

    def __call__(
        self,
        real: Features,
        generated: Features,
        labels: Int[np.ndarray, "N"] | None,
        distances: Float[np.ndarray, "N"] | None = None,
    ) -> dict[str, float]:
        """The figures.

        Args:
            real: features of real images.
            generated: features of generated images, or of what stands in their place.
            labels: classes that were asked for; None leaves their figures out.
            distances: along paths; None leaves their figure out.
        """
        found: dict[str, float] = {}
        for metric in self.metrics:
            values = self._values(metric, real, generated, labels, distances)
            found |= dict(zip(self._names(metric), values, strict=False))
        return found

    def _values(
        self,
        metric: MetricName,
        real: Features,
        generated: Features,
        labels: Int[np.ndarray, "N"] | None,
        distances: Float[np.ndarray, "N"] | None,
    ) -> Sequence[float]:
        a, b = real.features, generated.features
        match metric:
            case "frechet":
                return [frechet_distance(a, b)]
            case "kernel":
                return [kernel_distance(a, b, subset_size=min(1000, len(a), len(b)))]
            case "precision_recall":
                return list(precision_recall(a, b))
            case "density_coverage":
                return list(density_coverage(a, b))
            case "inception_score":
                splits = 10 if len(b) >= 1000 else 1
                return [inception_score(generated.probabilities, splits).mean]
            case "conditioning_accuracy":
                if labels is None:
                    return []
                return [conditioning_accuracy(generated.probabilities, labels)]
            case "path_length":
                return [] if distances is None else [perceptual_path_length(distances)]
            case "modes" if self.source.mixture is not None:
                mixture = self.source.mixture
                covered = mixture_coverage(b, mixture.modes, mixture.standard_deviation)
                return [float(covered.modes), covered.high_quality, covered.kl]
            case "modes":
                spelled = stacked_labels(generated.probabilities)
                coverage = mode_coverage(spelled, self.source.num_classes)
                return [float(coverage.modes), coverage.kl]
