"""Measuring a generator of clips: as many generated clips as real ones.

Clips are compared in a feature space, and each is measured over time as it comes from the device,
so that a batch of clips is all that the host ever holds.

Letters: B batch, N clips, T time, H height, W width, C channels.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from genjax.data.clip_batches import EvaluationClips
from genjax.data.clip_source import LABELS, ClipSource
from genjax.image.adversarial_step import to_float
from genjax.image.generator_view import latents_by_number
from genjax.image.metrics.features import Extractor, Features
from genjax.nn.layout import gathered, split_clips
from genjax.parallel.partition import split_like_batch
from genjax.task import Batch, Evaluation, Shard, Tree
from genjax.video.clip_generation import ClipView, conditions_of
from genjax.video.features import I3DExtractor
from genjax.video.video_adversarial_config import VideoAdversarialConfig
from genjax.video.video_figures import ClipFigures, Measured
from genjax.video.video_judges import make_conditions, stored

JUDGE = "feature_extractor"
"""The extractor's parameters among what an evaluation hands to its step."""

_CLIPS = "generated_clips"
_ALONE = Shard()


class ClipEvaluation:
    """The evaluation of a run, and its baselines."""

    def __init__(
        self,
        config: VideoAdversarialConfig,
        source: ClipSource,
        view: ClipView,
        extractor: Extractor,
        figures: ClipFigures,
    ) -> None:
        """Set up the evaluation of a generator on a source of clips."""
        self.config = config
        self.source = source
        self.view = view
        self.extractor = extractor
        self._figures = figures
        # Whole everywhere, so that each of several processes can fetch all clips.
        self._render = jax.jit(lambda batch: gathered(source.render(batch)))
        self._apply = jax.jit(
            lambda params, clips: gathered(extractor.apply(params, split_like_batch(clips)))
        )
        self._known: dict[str, tuple[Features, Measured]] = {}
        # Fixed: every evaluation of every run draws the same latents.
        self._key = jax.random.key(20_260)

    # ---- the batches --------------------------------------------------------------------------

    def _batches(self, split: str, shard: Shard = _ALONE) -> EvaluationClips:
        return EvaluationClips(
            self.source.splits[split],
            self.config.evaluation.batch_size or self.config.data.batch_size,
            count=self.config.evaluation.count,
            process_index=shard.index,
            process_count=shard.count,
        )

    def evaluation(self, shard: Shard) -> Evaluation:
        """Batches of real clips, whose labels and first frames the generated ones are given."""
        config = self.config.evaluation
        batches = self._batches(config.split, shard)
        average = self.config.average.half_life_images
        averaged = f", parameters averaged (half-life {average:g} clips)" if average else ""
        conditions = [
            *["labels"] * bool(self.source.num_classes),
            *["first frames"] * self.config.image_conditional,
        ]
        given = f" with the {' and '.join(conditions)} of as many real" if conditions else ""
        protocol = (
            f"{batches.count:,} generated clips of {self.config.data.frames} frames{given}, "
            f"beside real of {self.source.name} ({config.split}); "
            f"{self._features(batches.count)}{averaged}"
        )
        constants = {JUDGE: self.extractor.params}
        return Evaluation("validation", protocol, batches, constants=constants)

    def _features(self, count: int) -> str:
        if not isinstance(self.extractor, I3DExtractor):
            return self.extractor.describe()
        key = self.extractor.protocol(
            count,
            self.config.data.frames,
            self.config.evaluation.split,
            getattr(self.config.data.source, "stride", 1),
        )
        return f"{self.extractor.describe()} ({key})"

    # ---- one batch, on the devices ------------------------------------------------------------

    def step(self, variables: Tree, judge: Tree, batch: Batch) -> dict[str, Any]:
        """Generated clips, uint8, and their features.

        Args:
            variables: the generator's.
            judge: the extractor's parameters.
            batch: of `evaluation`.
        """
        latents = latents_by_number(self._key, batch["index"], self.view.latent_size)
        # Drawn for their first frames alone: nothing else of them is computed.
        real = split_clips(to_float(self.source.render(batch)))
        conditions = make_conditions(real, batch, self.config.image_conditional)
        clips = stored(self.view.clips(variables, latents, conditions))
        result: dict[str, Any] = {
            "weights": batch["weights"],
            "generated": self.extractor.apply(judge, clips),
            _CLIPS: clips,
        }
        if LABELS in batch:
            result[LABELS] = batch[LABELS]
        return gathered(result)

    # ---- all of them, on the host -------------------------------------------------------------

    def combine(self, totals: Any, sums: Any) -> Any:
        """Measure the clips of a batch and let go of them; the rest is joined at the end."""
        rest = {name: value for name, value in sums.items() if name != _CLIPS}
        totals = [] if totals is None else totals
        totals.append(rest | {"measured": self._figures.measure(np.asarray(sums[_CLIPS]))})
        return totals

    def figures(self, totals: Any) -> dict[str, float]:
        """The figures of a whole evaluation, and the number of clips."""
        joined = _joined(totals)
        rows = joined["weights"] > 0
        kept: dict[str, Any] = jax.tree.map(lambda leaf: leaf[rows], joined)
        found = self._figures(
            self._real(self.config.evaluation.split),
            (Features(*kept["generated"]), kept["measured"]),
            kept.get(LABELS),
        )
        return found | {"clips": float(rows.sum())}

    # ---- what the figures stand beside --------------------------------------------------------

    def baselines(self, untrained: Tree) -> list[dict[str, Any]]:
        """Figures of real clips of the other split (the floor), and of trivial generators."""
        split = self.config.evaluation.split
        other = "validation" if split == "train" else "train"
        real, floor = self._real(split), self._real(other)
        count = len(real[0].features)
        asked, held = self._labels(split), self._labels(other)
        table: list[dict[str, Any]] = []

        def add(name: str, found: tuple[Features, Measured], labels: Any = asked) -> None:
            table.append({"name": name, **self._figures(real, found, labels)})

        held_out = len(floor[0].features)
        add(f"real clips ({other}, {held_out:,}), the floor", floor, held)
        add("untrained generator", self._measure(self._drawn(untrained, split), count))
        clips = (self._clips(batch) for batch in self._batches(split))
        still = (np.repeat(one[:, :1], one.shape[1], 1) for one in clips)
        add("real clips, the first frame repeated", self._measure(still, count))
        random = np.random.default_rng(0)
        clips = (self._clips(batch) for batch in self._batches(split))
        mixed = (_shuffled(one, random) for one in clips)
        add("real clips, their frames shuffled", self._measure(mixed, count))
        return table

    def _clips(self, batch: Batch) -> UInt8[np.ndarray, "B T H W C"]:
        return np.asarray(self._render(dict(batch)))

    def _drawn(self, variables: Tree, split: str) -> Iterator[np.ndarray]:
        for batch in self._batches(split):
            latents = latents_by_number(
                self._key, jnp.asarray(batch["index"]), self.view.latent_size
            )
            first = self._clips(batch)[:, 0] if self.config.image_conditional else None
            yield self.view.draw(variables, latents, conditions_of(batch.get(LABELS), first))

    def _labels(self, split: str) -> np.ndarray | None:
        if not self.source.num_classes:
            return None
        batches = self._batches(split)
        return np.concatenate([batch[LABELS] for batch in batches])[: batches.count]

    def _real(self, split: str) -> tuple[Features, Measured]:
        """Features and measures of real clips, made once a run."""
        if split not in self._known:
            batches = self._batches(split)
            clips = (self._clips(batch) for batch in batches)
            self._known[split] = self._measure(clips, batches.count)
        return self._known[split]

    def _measure(self, batches: Iterable[np.ndarray], count: int) -> tuple[Features, Measured]:
        """Features and measures of the first `count` clips of batches of one shape."""
        found = []
        for clips in batches:
            features = jax.device_get(self._apply(self.extractor.params, clips))
            found.append((features, self._figures.measure(clips)))
        features, measured = jax.tree.map(lambda leaf: leaf[:count], _joined(found))
        return Features(*features), measured


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _shuffled(clips: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Clips with the frames of each in an order of its own."""
    order = random.random(clips.shape[:2]).argsort(1)
    return np.take_along_axis(clips, order[..., None, None, None], 1)
