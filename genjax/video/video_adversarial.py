"""Adversarial training of generators of clips: the task.

Letters: B batch, T time, H height, W width, C channels, Z latent size.
"""

import functools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Array, Key

from genjax.config import Config
from genjax.data.clip_batches import training_batches
from genjax.data.clip_source import CLIPS, ClipSource
from genjax.data.clip_sources import open_clips
from genjax.errors import UserError
from genjax.flops import count_flops
from genjax.image.adversarial_step import GENERATOR, AdversarialStep, Variant
from genjax.task import Batch, Evaluation, Sample, Shard, Task, TrainState
from genjax.video.clip_generation import ClipView, generate_clips, sample_clips
from genjax.video.features import features_name, make_clip_extractor, save_clip_assets
from genjax.video.split_rows import check_row_split
from genjax.video.video_adversarial_config import ClipGenerationConfig, VideoAdversarialConfig
from genjax.video.video_evaluation import JUDGE, ClipEvaluation
from genjax.video.video_figures import ClipFigures
from genjax.video.video_judges import example_material, make_judges, make_material, mask_penalty


class VideoAdversarial(Task):
    """A generator of clips against discriminators of frames, of clips, or of both."""

    # Motion is recurrent, and discriminators compare frames: rows are split, not time.
    sequence_dimensions: Mapping[str, int] | None = {CLIPS: 2}

    def __init__(
        self,
        config: VideoAdversarialConfig,
        assets: Path | None = None,
        source: ClipSource | None = None,
    ) -> None:
        """Make the networks of a config for the clips of its source.

        Args:
            config: the run's config.
            assets: what an existing run saved; None for a new run.
            source: the clips; those of the config by default.

        Raises:
            UserError: the clips are missing or do not fit the networks.
        """
        self.config = config
        self._assets = assets
        self.source: ClipSource = source or open_clips(config.data.source, config.data.frames)
        if config.data.mirror and {"left", "right"} & set(self.source.class_names):
            raise UserError(
                f"data.mirror: the classes of {self.source.name} are directions, and a mirrored "
                "clip would have another one; leave it out"
            )
        shape, classes = self.source.clip_shape, self.source.num_classes
        check_row_split(config.mesh.sequence, shape[1])
        try:
            networks = config.model.make(shape, classes, config.image_conditional)
            judges = make_judges(config, networks)
        except ValueError as error:
            raise UserError(
                f"model.kind = {config.model.kind!r} does not fit {self.source.name} in clips of "
                f"{config.data.frames} frames: {error}; change the model, data.frames, or the "
                "size of data.source"
            ) from error
        self.step = AdversarialStep(
            config,
            networks.generator,
            judges,
            make_material(config, self.source),
            latent_size=config.model.latent_size(config.data.frames),
            example=example_material(config, self.source),
            generator_penalty=mask_penalty(config),
        )
        self.view = ClipView(
            networks.generator,
            config.model.latent_size,
            config.data.frames,
            config.evaluation.batch_size or config.data.batch_size,
        )
        # Known now, before a classifier is trained or a step is made.
        self._figures(features_name(config.evaluation.features))

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
        """One step of all networks; see `AdversarialStep`."""
        chosen = variant if isinstance(variant, Variant) else self.step.variant(0)
        return self.step(state, batch, chosen)

    def dataset(self, split: str, shard: Shard) -> grain.MapDataset:
        """Endless batches of a split, one batch size for each discriminator step.

        Raises:
            UserError: the batch does not divide among the processes.
        """
        return training_batches(
            self.source.splits[split],
            self._rows,
            self.config.seed,
            process_index=shard.index,
            process_count=shard.count,
        )

    @property
    def _rows(self) -> int:
        return self.config.data.batch_size * self.config.objective.discriminator_steps

    # ---- evaluation ---------------------------------------------------------------------------

    @functools.cached_property
    def evaluator(self) -> ClipEvaluation:
        """What measures the generator; made when it is first needed, since it may train a judge."""
        config = self.config.evaluation
        cache = None if config.cache is None else config.cache.expanduser()
        extractor = make_clip_extractor(config.features, self.source, self._assets, cache)
        figures = self._figures(extractor.name)
        return ClipEvaluation(self.config, self.source, self.view, extractor, figures)

    def _figures(self, features: str) -> ClipFigures:
        """The figures that the config asks for, from features of a name.

        Raises:
            UserError: one cannot be had, or the best checkpoint's is not among them.
        """
        figures = ClipFigures(self.config.evaluation.metrics, features, self.source)
        self.config.check_best_metric(figures.names)
        return figures

    def evaluation(self, shard: Shard) -> Evaluation:
        """Real clips of `evaluation.split`, and as many generated ones."""
        return self.evaluator.evaluation(shard)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """Features of a batch of real and of generated clips, and the latter themselves."""
        return state.carry, self.evaluator.step(self._variables(state), state.carry[JUDGE], batch)

    def combine(self, totals: Any, sums: Any) -> Any:
        """Figures need the features of all clips: they are gathered."""
        return self.evaluator.combine(totals, sums)

    def figures(self, sums: Any) -> dict[str, float]:
        """The figures that `evaluation.metrics` asks for."""
        return self.evaluator.figures(sums)

    def baselines(self) -> list[dict[str, Any]]:
        """Real against real clips, the untrained generator, real clips frozen and shuffled."""
        state = jax.jit(self.init)(jax.random.key(self.config.seed))
        return self.evaluator.baselines(self._variables(state))

    def _variables(self, state: TrainState) -> dict[str, Any]:
        """The generator's (averaged) parameters and its statistics."""
        return {
            "params": state.evaluation_params()[GENERATOR],
            "statistics": state.carry["statistics"][GENERATOR],
        }

    def save_assets(self, folder: Path) -> None:
        """Write the classifier that figures come from, if they do."""
        save_clip_assets(folder, self.evaluator.extractor)

    # ---- generation ---------------------------------------------------------------------------

    def generate(self, state: TrainState, key: Key[Array, ""], request: Config) -> Iterator[Sample]:
        """A file for each clip, all clips side by side, and a film strip."""
        assert isinstance(request, ClipGenerationConfig)
        return generate_clips(
            self.view,
            self._variables(state),
            key,
            request,
            self.source,
            image_conditional=self.config.image_conditional,
        )

    def samples(self, state: TrainState, key: Key[Array, ""]) -> Iterable[Sample]:
        """Generated clips, always of the same latents, and the real ones that they go with."""
        return sample_clips(
            self.view,
            self._variables(state),
            key,
            self.config.samples.count,
            self.source,
            image_conditional=self.config.image_conditional,
        )

    # ---- counts -------------------------------------------------------------------------------

    def units_per_step(self) -> dict[str, int]:
        """Clips of a step, and their frames."""
        clips = self.config.data.batch_size
        return {"clips": clips, "frames": clips * self.config.data.frames}

    def flops_per_step(self) -> float:
        """Of the products in a step, averaged over its lazy regularisers."""
        return self._flops

    @functools.cached_property
    def _flops(self) -> float:
        objective = self.config.objective
        one = self.source.splits["train"].read(np.zeros(1, np.int64))
        batch = {
            name: jax.ShapeDtypeStruct((self._rows, *array.shape[1:]), array.dtype)
            for name, array in one.items()
        }
        state = jax.eval_shape(self.init, jax.random.key(0))

        def count(variant: Variant) -> float:
            step = functools.partial(self.train_step, variant=variant)
            return count_flops(step, state, batch)

        # A lazy regulariser is a step of its own, so its work adds to the rest.
        lazy = objective.has_penalties and objective.penalty_interval > 1
        total = rest = count(Variant(penalties=objective.has_penalties and not lazy))
        if lazy:
            total += (count(Variant(penalties=True)) - rest) / objective.penalty_interval
        return total
