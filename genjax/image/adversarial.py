"""Adversarial training of image generators: the task.

Letters: B batch, H height, W width, C channels, Z latent size, N images.
"""

import functools
import math
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from genjax.config import Config
from genjax.data.image_batches import training_batches
from genjax.data.image_source import ImageSource, ImageSplit
from genjax.data.image_sources import open_images
from genjax.errors import UserError
from genjax.flops import count_flops
from genjax.image.adversarial_config import AdversarialConfig, ImageGenerationConfig
from genjax.image.adversarial_evaluation import JUDGE, AdversarialEvaluation
from genjax.image.adversarial_judge import Judge
from genjax.image.adversarial_step import (
    DISCRIMINATOR,
    GENERATOR,
    AdversarialStep,
    Material,
    Variant,
    to_float,
)
from genjax.image.augmentation import make_augmentation, mirror
from genjax.image.classifier import save_classifier
from genjax.image.features import CLASSIFIER, make_extractor
from genjax.image.figures import Figures
from genjax.image.generator_view import GeneratorView, latents_by_number, to_uint8
from genjax.image.image_generation import generate_images
from genjax.image.metrics.features import ClassifierExtractor
from genjax.image.scatter import scatter
from genjax.media import ImageSample, image_grid
from genjax.task import Batch, Evaluation, Sample, Shard, Task, TrainState


def make_step(
    config: AdversarialConfig,
    generator: nn.Module,
    discriminator: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> AdversarialStep:
    """The step of two networks that play over images of a shape.

    Args:
        config: the run's config.
        generator: (latents, labels or None, train=..) -> images [B, H, W, C].
        discriminator: (images, labels, train=..) -> logits [B].
        image_shape: (H, W, C).
        num_classes: of the labels; 0 for none.
    """

    def material(batch: Batch, key: Key[Array, ""]) -> Material:
        images = batch["images"]
        if config.data.mirror:
            images = mirror(images, key)
        return Material(to_float(images), batch.get("labels"))

    def whole(images: Array, labels: Any, key: Key[Array, ""]) -> tuple[Array, Any]:
        del key
        return images, labels

    labels = jnp.zeros((1,), jnp.int32) if num_classes else None
    return AdversarialStep(
        config,
        generator,
        {
            DISCRIMINATOR: Judge(
                discriminator, whole, make_augmentation(config.augmentation, config.model.circular)
            )
        },
        material,
        latent_size=config.model.latent_size,
        example=Material(jnp.zeros((1, *image_shape)), labels),
    )


class Adversarial(Task):
    """A generator and a discriminator, trained against each other."""

    def __init__(
        self,
        config: AdversarialConfig,
        assets: Path | None = None,
        source: ImageSource | None = None,
    ) -> None:
        """Make the networks of a config for the images of its source.

        Args:
            config: the run's config.
            assets: what an existing run saved; None for a new run.
            source: the images; those of the config by default.

        Raises:
            UserError: the images are missing or do not fit the networks.
        """
        self.config = config
        self._assets = assets
        self.source: ImageSource = source or open_images(config.data.source)
        shape, classes = self.source.image_shape, self.source.num_classes
        try:
            networks = config.model.make(shape, classes)
        except ValueError as error:
            raise UserError(
                f"model.kind = {config.model.kind!r} does not fit {self.source.name}: {error}; "
                "change the model, or the size of data.source"
            ) from error
        if config.data.mirror and self.source.mixture is not None:
            raise UserError("data.mirror: is for images, and data.source makes points")
        self.step = make_step(config, *networks, shape, classes)
        self.view = GeneratorView(
            networks.generator, config.evaluation.batch_size or config.data.batch_size
        )
        # Known now, before a classifier is trained or a step is made.
        self._figures(config.evaluation.features.kind)

    # ---- training -----------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Fresh networks, optimizers and controllers."""
        return self.step.init(key)

    def variant(self, step: int) -> Hashable:
        """Which regularisers run at a step."""
        return self.step.variant(step)

    def train_step(
        self, state: TrainState, batch: Batch, variant: Hashable = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step of both networks; see `AdversarialStep`."""
        chosen = variant if isinstance(variant, Variant) else self.step.variant(0)
        return self.step(state, batch, chosen)

    def dataset(self, split: str, shard: Shard) -> grain.MapDataset:
        """Endless batches of a split, one batch size for each discriminator step.

        Raises:
            UserError: the batch does not divide among the processes.
        """
        return training_batches(
            self.source.splits[split],
            self.config.data.batch_size * self.config.objective.discriminator_steps,
            self.config.seed,
            process_index=shard.index,
            process_count=shard.count,
        )

    # ---- evaluation ---------------------------------------------------------------------------

    @functools.cached_property
    def evaluator(self) -> AdversarialEvaluation:
        """What measures the generator; made when it is first needed, since it may train a judge."""
        config = self.config.evaluation
        cache = None if config.cache is None else config.cache.expanduser()
        extractor = make_extractor(config.features, self.source, self._assets, cache)
        figures = self._figures(extractor.name)
        return AdversarialEvaluation(self.config, self.source, self.view, extractor, figures, cache)

    def _figures(self, features: str) -> Figures:
        """The figures that the config asks for, from features of a name.

        Raises:
            UserError: one cannot be had, or the best checkpoint's is not among them.
        """
        metrics = self.config.evaluation.metrics
        figures = Figures(metrics, features, self.source, self.view.has_styles)
        self.config.check_best_metric(figures.names)
        return figures

    def evaluation(self, shard: Shard) -> Evaluation:
        """Real images of `evaluation.split`, and as many generated ones."""
        return self.evaluator.evaluation(shard)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """Features of a batch of real and of generated images."""
        return state.carry, self.evaluator.step(self._variables(state), state.carry[JUDGE], batch)

    def combine(self, totals: Any, sums: Any) -> Any:
        """Figures need the features of all images: they are gathered."""
        return self.evaluator.combine(totals, sums)

    def figures(self, sums: Any) -> dict[str, float]:
        """The figures that `evaluation.metrics` asks for."""
        return self.evaluator.figures(sums)

    def baselines(self) -> list[dict[str, Any]]:
        """Real against real images, the untrained generator, the mean image and noise."""
        state = jax.jit(self.init)(jax.random.key(self.config.seed))
        return self.evaluator.baselines(self._variables(state))

    def _variables(self, state: TrainState) -> dict[str, Any]:
        """The generator's (averaged) parameters and its statistics."""
        return {
            "params": state.evaluation_params()[GENERATOR],
            "statistics": state.carry["statistics"][GENERATOR],
        }

    # ---- generation ---------------------------------------------------------------------------

    def generate(self, state: TrainState, key: Key[Array, ""], request: Config) -> Iterator[Sample]:
        """Images and a grid of them, a mixing grid, or an interpolation."""
        assert isinstance(request, ImageGenerationConfig)
        if request.label is not None and request.label >= self.source.num_classes:
            known = (
                f"the run's classes are 0 to {self.source.num_classes - 1}"
                if self.source.num_classes
                else "the run has no classes"
            )
            raise UserError(f"label: {request.label} is out of range; {known}")
        if self.source.mixture is not None:
            if request.mode != "images":
                raise UserError(f'mode: "{request.mode}" is for images, and this run makes points')
            latents = self._latents(key, request.count or 2500)
            points = self.view.draw(self._variables(state), latents, None, request.truncation)
            return iter([self._scatter(points)])
        return generate_images(
            self.view,
            self._variables(state),
            key,
            request,
            self.config.model.latent_size,
            self.source.num_classes,
        )

    def samples(self, state: TrainState, key: Key[Array, ""]) -> Iterable[Sample]:
        """A grid of generated images, always of the same latents, and one of real images."""
        config, train = self.config.samples, self.source.splits["train"]
        points = self.source.mixture is not None
        count = 2500 if points else config.count
        columns = math.ceil(math.sqrt(count))
        labels = None
        if self.source.num_classes:
            labels = (np.arange(count) // columns % self.source.num_classes).astype(np.int32)
        latents = self._latents(key, count)
        drawn = self.view.draw(self._variables(state), latents, labels, config.truncation)
        if points:
            return [self._scatter(drawn)]
        grids = {
            "generated": to_uint8(drawn),
            "real": train.images(_real_rows(train, labels, count)),
        }
        return [
            ImageSample(
                index=index, name=name, image=image_grid(images, columns), caption={"what": name}
            )
            for index, (name, images) in enumerate(grids.items())
        ]

    def _latents(self, key: Key[Array, ""], count: int) -> Array:
        return latents_by_number(key, jnp.arange(count), self.config.model.latent_size)

    def _scatter(self, points: np.ndarray) -> ImageSample:
        assert self.source.mixture is not None
        picture = scatter(points.reshape(len(points), 2), self.source.mixture)
        return ImageSample(index=0, name="generated", image=picture, caption={"what": "generated"})

    def save_assets(self, folder: Path) -> None:
        """Write the classifier that figures come from, if they do."""
        extractor = self.evaluator.extractor
        if isinstance(extractor, ClassifierExtractor):
            save_classifier(folder / CLASSIFIER, extractor.classifier)

    # ---- counts -------------------------------------------------------------------------------

    def units_per_step(self) -> dict[str, int]:
        """Images of a step."""
        return {"images": self.config.data.batch_size}

    def flops_per_step(self) -> float:
        """Of the products in a step, averaged over its lazy regularisers."""
        return self._flops

    @functools.cached_property
    def _flops(self) -> float:
        objective = self.config.objective
        rows = self.config.data.batch_size * objective.discriminator_steps
        points = self.source.mixture is not None
        dtype = jnp.float32 if points else jnp.uint8
        batch = {"images": jax.ShapeDtypeStruct((rows, *self.source.image_shape), dtype)}
        if self.source.num_classes:
            batch["labels"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
        state = jax.eval_shape(self.init, jax.random.key(0))

        def count(variant: Variant) -> float:
            step = functools.partial(self.train_step, variant=variant)
            return count_flops(step, state, batch)

        # A lazy regulariser is a step of its own, so its work adds to the rest.
        lazy = objective.has_penalties and objective.penalty_interval > 1
        plain = Variant(penalties=objective.has_penalties and not lazy)
        total = rest = count(plain)
        if lazy:
            total += (count(plain._replace(penalties=True)) - rest) / objective.penalty_interval
        if objective.path_length_weight:
            total += (
                count(plain._replace(path_length=True)) - rest
            ) / objective.path_length_interval
        return total


def _real_rows(
    split: ImageSplit, labels: Int[np.ndarray, "N"] | None, count: int
) -> Int[np.ndarray, "N"]:
    """Real images to show beside generated ones: spread over the split, and of the same classes."""
    if labels is None or split.labels is None:
        return np.linspace(0, len(split) - 1, count).astype(np.int64)
    rows = np.zeros(count, np.int64)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        having = np.flatnonzero(split.labels == label)
        if len(having):
            rows[wanted] = having[np.arange(len(wanted)) % len(having)]
    return rows
