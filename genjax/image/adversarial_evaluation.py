"""Measuring a generator: as many generated images as real ones, compared in a feature space.

Letters: B batch, H height, W width, C channels, N images.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from genjax.data.image_batches import EvaluationImages
from genjax.data.image_source import ImageSource
from genjax.image.adversarial_config import AdversarialConfig
from genjax.image.features import FeatureStore, extract
from genjax.image.figures import Figures
from genjax.image.generator_view import GeneratorView, latents_by_number, to_uint8
from genjax.image.metrics.features import Extractor, Features
from genjax.image.metrics.modes import mode_coverage_floor
from genjax.image.metrics.path_length import lerp, path_distances, slerp
from genjax.nn.layout import gathered
from genjax.task import Batch, Evaluation, Shard, Tree

JUDGE = "feature_extractor"
"""The extractor's parameters among what an evaluation hands to its step."""

_EPSILON = 1e-4
"""Step along a path between latents, of perceptual path length."""


_ALONE = Shard()


class AdversarialEvaluation:
    """The evaluation of a run, and its baselines."""

    def __init__(
        self,
        config: AdversarialConfig,
        source: ImageSource,
        view: GeneratorView,
        extractor: Extractor,
        figures: Figures,
        cache: Path | None,
    ) -> None:
        """Set up the evaluation of a generator on a source of images."""
        self.config = config
        self.source = source
        self.view = view
        self.extractor = extractor
        self._figures = figures
        self._store = FeatureStore(self.extractor, source, cache)
        # Fixed: every evaluation of every run draws the same latents.
        self._key = jax.random.key(20_260)

    # ---- the batches --------------------------------------------------------------------------

    def _images(self, split: str, shard: Shard = _ALONE) -> EvaluationImages:
        return EvaluationImages(
            self.source.splits[split],
            self.config.evaluation.batch_size or self.config.data.batch_size,
            count=self.config.evaluation.count,
            process_index=shard.index,
            process_count=shard.count,
        )

    def _set_name(self, split: str) -> str:
        return f"{split} {self.config.evaluation.count}"

    def evaluation(self, shard: Shard) -> Evaluation:
        """Batches of real images (until their features are known), labels and numbers."""
        config = self.config.evaluation
        images = self._images(config.split, shard)
        truncated = f", truncation {config.truncation:g}" if config.truncation != 1.0 else ""
        average = self.config.average.half_life_images
        averaged = f", parameters averaged (half-life {average:g} images)" if average else ""
        protocol = (
            f"{images.count:,} generated{truncated}, as many real of {self.source.name} "
            f"({config.split}); {self.extractor.describe()}{averaged}"
        )
        batches = _Remembering(images, self._store, self._set_name(config.split))
        constants = {JUDGE: self.extractor.params}
        return Evaluation("validation", protocol, batches, constants=constants)

    # ---- one batch, on the devices ------------------------------------------------------------

    def step(self, variables: Tree, judge: Tree, batch: Batch) -> dict[str, Any]:
        """Features of real images (where the batch has them) and of generated ones.

        Args:
            variables: the generator's.
            judge: the extractor's parameters.
            batch: of `evaluation`.
        """
        config, labels = self.config, batch.get("labels")
        size, truncation = config.model.latent_size, config.evaluation.truncation

        def draw(latents: Array) -> Array:
            return self.view.images(
                variables, latents, labels, truncation, truncate=truncation != 1.0
            )

        latents = latents_by_number(self._key, batch["index"], size)
        generated = self.extractor.apply(judge, draw(latents))
        result: dict[str, Any] = {"weights": batch["weights"], "generated": generated}
        if labels is not None:
            result["labels"] = labels
        if "images" in batch:
            result["real"] = self.extractor.apply(judge, batch["images"])
        if self._figures.needs_paths:
            other = latents_by_number(jax.random.fold_in(self._key, 1), batch["index"], size)
            result["distances"] = self._path_distances(variables, judge, latents, other, batch)
        # Whole everywhere, so that each of several processes can fetch all rows.
        return gathered(result)

    def _path_distances(
        self, variables: Tree, judge: Tree, start: Array, end: Array, batch: Batch
    ) -> Array:
        """Perceptual distances of a small step between two latents, in W or in Z."""
        labels = batch.get("labels")
        place_key = jax.random.fold_in(self._key, 2)
        place = latents_by_number(place_key, batch["index"], 1)[:, 0]
        place = jax.scipy.stats.norm.cdf(place)  # uniform in [0, 1]
        truncation = self.config.evaluation.truncation

        def features(position: Array) -> Array:
            if self.view.has_styles:
                styles = [
                    self.view.styles(variables, latents, labels, truncation)
                    for latents in (start, end)
                ]
                first, last = (style.reshape(len(style), -1) for style in styles)
                between = lerp(first, last, position).reshape(styles[0].shape)
                images = self.view.synthesis(variables, between)
            else:
                images = self.view.images(variables, slerp(start, end, position), labels)
            return self.extractor.apply(judge, images, quantize=False).features

        return path_distances(features(place), features(place + _EPSILON), _EPSILON)

    # ---- all of them, on the host -------------------------------------------------------------

    def combine(self, totals: Any, sums: Any) -> Any:
        """Gather the arrays of each batch; they are joined at the end."""
        totals = [] if totals is None else totals
        totals.append(sums)
        return totals

    def figures(self, totals: Any) -> dict[str, float]:
        """The figures of a whole evaluation, and the number of images."""
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *totals)
        rows = joined["weights"] > 0
        kept: dict[str, Any] = jax.tree.map(lambda leaf: leaf[rows], joined)
        name = self._set_name(self.config.evaluation.split)
        if "real" in kept:
            self._store.put(name, Features(*kept["real"]))
        real = self._store.get(name)
        assert real is not None
        found = self._figures(
            real, Features(*kept["generated"]), kept.get("labels"), kept.get("distances")
        )
        return found | {"images": float(rows.sum())}

    # ---- what the figures stand beside --------------------------------------------------------

    def baselines(self, untrained: Tree) -> list[dict[str, Any]]:
        """Figures of real images of the other split (the floor) and of trivial generators."""
        config = self.config.evaluation
        split, other = config.split, "validation" if config.split == "train" else "train"
        real, floor = self._real(split), self._real(other)
        images = self._images(split)
        count = images.count
        labels = self.source.splits[split].labels
        asked = None if labels is None else labels[images.order]
        size = len(images[0]["images"])
        table: list[dict[str, Any]] = []

        def add(name: str, generated: Features, labels: Any) -> None:
            table.append({"name": name, **self._figures(real, generated, labels)})

        other_labels = self.source.splits[other].labels
        held = self._images(other)
        add(
            f"real images ({other}, {held.count:,}), the floor",
            floor,
            None if other_labels is None else other_labels[held.order],
        )
        if self.source.base is not None and "modes" in self._figures.metrics:
            table.append(self._modes_floor(count))
        # Batch by batch, so that large images need not all be held.
        chunks = [rows % count for rows in np.arange(len(images) * size).reshape(-1, size)]
        latents = latents_by_number(self._key, jnp.arange(count), self.config.model.latent_size)
        points = self.source.mixture is not None

        def drawn(rows: np.ndarray) -> np.ndarray:
            some = None if asked is None else asked[rows]
            new = self.view.draw(untrained, latents[rows], some)
            return new if points else to_uint8(new)

        first = extract(self.extractor, (drawn(rows) for rows in chunks), count)
        add("untrained generator", first, asked)
        random, shape = np.random.default_rng(0), (size, *self.source.image_shape)
        if points:
            spread = (random.uniform(-1.1, 1.1, shape).astype(np.float32) for _ in chunks)
            add("uniform points", extract(self.extractor, spread, count), None)
            return table
        total = np.zeros(self.source.image_shape, np.float64)
        for number in range(len(images)):
            batch = images[number]
            total += np.tensordot(batch["weights"], batch["images"].astype(np.float64), 1)
        mean = np.round(total / count).astype(np.uint8)
        one = extract(self.extractor, iter([np.broadcast_to(mean, shape)]), 1)
        add("mean image", jax.tree.map(lambda leaf: np.repeat(leaf, count, 0), one), asked)
        noise = (random.integers(0, 256, shape, np.uint8) for _ in chunks)
        add("noise", extract(self.extractor, noise, count), asked)
        return table

    def _real(self, split: str) -> Features:
        """Features of real images, from the store or made now."""
        name = self._set_name(split)
        known = self._store.get(name)
        if known is None:
            images = self._images(split)
            batches = (images[number]["images"] for number in range(len(images)))
            known = extract(self.extractor, batches, images.count)
            self._store.put(name, known)
        return known

    def _modes_floor(self, count: int) -> dict[str, Any]:
        """What independent digits with the real shares would get, by simulation."""
        base = self.source.base
        assert base is not None
        labels = base.splits["train"].labels
        assert labels is not None
        shares = np.bincount(labels, minlength=base.num_classes) / len(labels)
        stacked = np.einsum("i,j,k->ijk", shares, shares, shares).ravel()
        floor = mode_coverage_floor(stacked, count)
        return {"name": "digits drawn with their real shares", "modes": floor.modes, "kl": floor.kl}


class _Remembering:
    """Batches that leave the real images out once their features are known."""

    def __init__(self, images: EvaluationImages, store: FeatureStore, name: str) -> None:
        self._images = images
        self._store = store
        self._name = name
        self._without_images = False

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Batch:
        batch = self._images[index]
        if index == 0:
            # Decided once a pass: another run may finish the same features in the middle of it.
            self._without_images = self._store.get(self._name) is not None
        if not self._without_images:
            return batch
        return {name: array for name, array in batch.items() if name != "images"}
