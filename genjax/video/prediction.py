"""Prediction of frames: the task.

Letters: B batch, T time, U frames that are predicted, H height, W width, C channels.
"""

import functools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from genjax import optim
from genjax.config import Config
from genjax.data.clip_batches import EvaluationClips, training_batches
from genjax.data.clip_source import CLIPS, ClipSource
from genjax.data.clip_sources import open_clips
from genjax.errors import UserError
from genjax.flops import count_flops
from genjax.image.lpips import Lpips, load_lpips
from genjax.nn.layout import gathered, split_clips
from genjax.parallel.partition import split_like_batch
from genjax.task import Batch, Evaluation, Sample, Shard, Task, TrainState, Tree
from genjax.video.conditioning import Known, Predict
from genjax.video.metrics.prediction_figures import figures, frame_sums, metrics_that_fit
from genjax.video.metrics.structural_similarity import ssim
from genjax.video.prediction_baselines import baselines_for
from genjax.video.prediction_config import PredictionConfig, PredictionGenerationConfig
from genjax.video.prediction_samples import generate_predictions, prediction_strips
from genjax.video.prediction_view import PredictionView
from genjax.video.sampling_schedule import draw_feed, truth_probabilities
from genjax.video.split_rows import check_row_split

LPIPS = "lpips"
"""The figure, and its network's parameters among what an evaluation hands to its step."""

NETWORK = "predictor"
"""The name of the one network in the train state's dicts."""

_MEAN_IMAGE_CLIPS = 512
"""Training clips whose frames make the mean image that predictions are compared with."""


class FramePrediction(Task):
    """Predicts what is unknown of a clip from what is known; recurrent networks and others."""

    # A recurrent network cannot split time: frames are split by rows.
    sequence_dimensions: Mapping[str, int] | None = {CLIPS: 2}

    def __init__(self, config: PredictionConfig, source: ClipSource | None = None) -> None:
        """Open the clips of a config and make its network.

        Args:
            config: the run's config.
            source: clips of training's length; those of the config by default.

        Raises:
            UserError: the clips are missing or do not fit the network.
        """
        self.config = config
        self.conditioning = config.conditioning
        self.known = self._evaluation_known()
        frames = len(self.conditioning.known)
        self.source = source or open_clips(config.data.source, frames)
        # Apart, so that what is measured does not change what is trained on.
        self.evaluation_source = self.source
        if len(self.known) != frames and source is None:
            self.evaluation_source = open_clips(config.data.source, len(self.known))
        split = config.evaluation.split
        if split not in self.source.splits:
            raise UserError(
                f'evaluation.split: {self.source.name} has no split "{split}"; '
                f"one of {', '.join(self.source.splits)}"
            )
        _, height, width, channels = self.source.clip_shape
        self.metrics = metrics_that_fit(height, width)
        self._lpips = (
            None if config.evaluation.lpips is None else load_lpips(config.evaluation.lpips)
        )
        config.check_best_metric([*self.metrics, *([] if self._lpips is None else [LPIPS])])
        if config.objective.ssim and "ssim" not in self.metrics:
            raise UserError(
                f"objective.ssim: frames of {height} x {width} pixels are smaller than its window "
                "of 11 x 11; set it to 0, or use larger frames"
            )
        self.view = PredictionView(config.model, self.conditioning, channels)
        self.network = self.view.network(self.conditioning.known)
        self.optimizer = optim.make_optimizer(config.optimizer, config.steps)
        self.schedule = optim.make_schedule(config.optimizer, config.steps)
        # Now, before anything is trained: the network says what does not fit it.
        jax.eval_shape(self.init, jax.random.key(0))
        if config.mesh.sequence > 1:
            check_row_split(config.mesh.sequence, height, config.model.row_unit)

    def _evaluation_known(self) -> Known:
        """Which frames of an evaluation's clips are known."""
        shape, future = self.config.conditioning, self.config.evaluation.future
        if isinstance(shape, Predict) and future is not None:
            return (True,) * shape.past + (False,) * future
        return shape.known

    # ---- training -----------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Fresh parameters."""
        init_key, run_key = jax.random.split(key)
        _, *size = self.source.clip_shape
        clips = jnp.zeros((1, len(self.conditioning.known), *size))
        mask = self.view.mask(init_key, jnp.zeros((1,), jnp.int32), (size[0], size[1]))
        variables = self.network.init(init_key, *((clips,) if mask is None else (clips, mask)))
        params = variables["params"]
        average = {NETWORK: params} if self.config.optimizer.ema_decay else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params={NETWORK: params},
            opt_state={NETWORK: self.optimizer.init(params)},
            ema=jax.tree.map(jnp.copy, average),
            carry={"statistics": variables.get("statistics", {})},
            key=run_key,
        )

    def train_step(
        self, state: TrainState, batch: Batch, variant: Hashable = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step on a batch of clips, as their source describes them."""
        del variant
        params, statistics = state.params[NETWORK], state.carry["statistics"]

        def gradients(part: Batch, carry: Any, key: Array) -> tuple[Any, Any]:
            count = len(jax.tree.leaves(part)[0])

            def total(params: Tree) -> tuple[Array, Tree]:
                loss, moved = self._loss(params, statistics, part, state.step, key)
                # Sums, not means: parts of a batch add up.
                return count * loss, jax.tree.map(lambda leaf: count * leaf, moved)

            (loss, moved), grads = jax.value_and_grad(total, has_aux=True)(params)
            return (loss, jnp.float32(count), grads, moved), carry

        parts = self.config.optimizer.accumulate
        sums, _ = optim.accumulate(gradients, parts, batch, {}, state.step_key())
        _, count, _, _ = sums
        loss, _, grads, statistics = jax.tree.map(lambda leaf: leaf / count, sums)
        updates, opt_state = self.optimizer.update(grads, state.opt_state[NETWORK], params)
        params = optax.apply_updates(params, updates)
        average = {
            name: optim.update_average(old, params, self.config.optimizer.ema_decay)
            for name, old in state.ema.items()
        }
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self.schedule(state.step),
        }
        chances = self._truth_probabilities(state.step)
        if chances is not None:
            metrics["truth_probability"] = jnp.mean(chances)
        next_state = TrainState(
            step=state.step + 1,
            params={NETWORK: params},
            opt_state={NETWORK: opt_state},
            ema=average,
            carry={"statistics": statistics},
            key=state.key,
        )
        return next_state, metrics

    def _truth_probabilities(self, step: Array) -> Float[Array, "F"] | None:
        return truth_probabilities(self.config.sampling, self.conditioning.known, step)

    def _loss(
        self, params: Tree, statistics: Tree, batch: Batch, step: Array, key: Array
    ) -> tuple[Array, Tree]:
        """The objective of a batch, and the network's moved statistics."""
        feed_key, mask_key, dropout_key = jax.random.split(key, 3)
        clips = split_clips(_unit(self.source.render(batch)))
        size = (clips.shape[2], clips.shape[3])
        mask = self.view.mask(mask_key, jnp.arange(len(clips)), size)
        mask = None if mask is None else split_clips(mask)
        feed = draw_feed(self._truth_probabilities(step), feed_key, len(clips))
        fed = {} if feed is None else {"feed": split_like_batch(feed)}
        apply = functools.partial(self.network.apply, mutable=["statistics"], **fed)
        predicted, updates = apply(
            {"params": gathered(params), "statistics": statistics},
            *((clips,) if mask is None else (clips, mask)),
            train=True,
            rngs={"dropout": dropout_key},
        )
        frames = np.array(self._trained_frames())
        loss = self._error(predicted[:, frames], clips[:, frames], mask)
        return loss, updates.get("statistics", {})

    def _trained_frames(self) -> list[int]:
        """The frames whose predictions count in training."""
        known = self.conditioning.known
        if self.conditioning.partial:
            return list(range(len(known)))
        first = 1 if self.config.model.recurrent and self.config.objective.known_frames else None
        unknown = [frame for frame, given in enumerate(known) if not given]
        return unknown if first is None else list(range(first, max(unknown) + 1))

    def _error(
        self,
        predicted: Float[Array, "B U H W C"],
        truth: Float[Array, "B U H W C"],
        mask: Float[Array, "B U H W 1"] | None,
    ) -> Float[Array, ""]:
        """The weighted errors; where pixels of a frame are known, over the others alone."""
        objective = self.config.objective
        if mask is None:
            weights: Any = 1.0
        else:
            weights = (1.0 - mask) / jnp.maximum(jnp.mean(1.0 - mask), 1e-6)
            predicted = jnp.where(mask > 0, truth, predicted)
        difference = predicted - truth
        loss = objective.l2 * jnp.mean(weights * difference**2)
        loss += objective.l1 * jnp.mean(weights * jnp.abs(difference))
        if objective.ssim:
            loss += objective.ssim * (1.0 - jnp.mean(ssim(predicted, truth)))
        return loss

    def dataset(self, split: str, shard: Shard) -> grain.MapDataset:
        """Endless batches of a split.

        Raises:
            UserError: the batch does not divide among the processes.
        """
        return training_batches(
            self.source.splits[split],
            self.config.data.batch_size,
            self.config.seed,
            process_index=shard.index,
            process_count=shard.count,
        )

    # ---- evaluation ---------------------------------------------------------------------------

    def _evaluation_clips(self, shard: Shard) -> EvaluationClips:
        config = self.config.evaluation
        return EvaluationClips(
            self.evaluation_source.splits[config.split],
            config.batch_size or self.config.data.batch_size,
            count=config.count,
            process_index=shard.index,
            process_count=shard.count,
        )

    def evaluation(self, shard: Shard) -> Evaluation:
        """The first clips of `evaluation.split` in a fixed order."""
        config, clips = self.config.evaluation, self._evaluation_clips(shard)
        average = self.config.optimizer.ema_decay
        averaged = f"; parameters averaged by {average:g}" if average else ""
        which = f"{clips.count:,} clips of {self.source.name} ({config.split})"
        protocol = f"{which}; {self._told()}{averaged}"
        constants = {}
        if self._lpips is not None:
            constants = {LPIPS: self._lpips.params}
            protocol += f"; LPIPS (AlexNet) by weights {self._lpips.sha256[:12]}"
        name = "training_clips" if config.split == "train" else config.split
        return Evaluation(name, protocol, clips, constants=constants)

    def _told(self) -> str:
        if self.conditioning.partial:
            return f"holes in {len(self.known)} frames"
        unknown = len(self.known) - sum(self.known)
        return f"{unknown} frames from {sum(self.known)} ({self.conditioning.kind})"

    def _targets(self) -> Int[np.ndarray, "U"]:
        """The frames that are measured."""
        if self.conditioning.partial:
            return np.arange(len(self.known))
        return np.flatnonzero(~np.array(self.known))

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Array]]:
        """Sums of the metrics of each predicted frame."""
        clips = split_clips(_unit(self.evaluation_source.render(batch)))
        predicted = self._predictions(self._variables(state), clips, batch["index"])
        targets = self._targets()
        judge = state.carry.get(LPIPS)
        sums = self._sums(predicted[:, targets], clips[:, targets], batch, judge)
        return state.carry, gathered(sums)

    def _sums(
        self,
        predicted: Float[Array, "B U H W C"],
        truth: Float[Array, "B U H W C"],
        batch: Batch,
        judge: Tree,
    ) -> dict[str, Array]:
        """Sums of the metrics of each predicted frame; LPIPS too if its weights are given."""
        weights = batch["weights"]
        sums = frame_sums(predicted, truth, weights, self.metrics)
        if judge is not None:
            images, others = (
                2.0 * jnp.clip(clips, 0.0, 1.0).reshape(-1, *clips.shape[2:]) - 1.0
                for clips in (predicted, truth)
            )
            distances: Any = Lpips().apply({"params": judge}, images, others)
            sums[LPIPS] = jnp.einsum("b,bu->u", weights, distances.reshape(truth.shape[:2]))
        return sums

    def _predictions(
        self, variables: Tree, clips: Float[Array, "B T H W C"], numbers: Int[Array, "B"]
    ) -> Float[Array, "B T H W C"]:
        """The clips of an evaluation with what is unknown of them predicted."""
        if self.known != self.conditioning.known:
            past = clips[:, : sum(self.known)]
            future = self.view.predict(variables, past, future=len(self.known) - past.shape[1])
            return jnp.concatenate([past, future], 1)
        return self.view.complete(variables, clips, self._evaluation_mask(clips, numbers))

    def _evaluation_mask(self, clips: Array, numbers: Array) -> Any:
        # The same holes in the same clips at every evaluation of every run.
        key = jax.random.key(20_261)
        return self.view.mask(key, numbers, (clips.shape[2], clips.shape[3]))

    def figures(self, sums: dict[str, Any]) -> dict[str, float]:
        """Means over clips and predicted frames, and some for each frame ahead."""
        found = figures(sums)
        return found | {"clips": float(np.asarray(sums["count"])[0])}

    def baselines(self) -> list[dict[str, Any]]:
        """Figures of trivial predictions of the same clips."""
        mean = jnp.asarray(self._mean_image(), jnp.float32)
        batches = self._evaluation_clips(Shard())
        targets, totals = self._targets(), {}
        judge = None if self._lpips is None else self._lpips.params

        @jax.jit
        def sums(batch: Batch, judge: Tree) -> dict[str, Any]:
            clips = _unit(self.evaluation_source.render(batch))
            trivial = self._trivial(clips, batch["index"], mean).items()
            return gathered(
                {
                    name: self._sums(predicted, clips[:, targets], batch, judge)
                    for name, predicted in trivial
                }
            )

        for number in range(len(batches)):
            for name, new in jax.tree.map(np.asarray, sums(batches[number], judge)).items():
                totals[name] = self.combine(totals.get(name), new)
        return [{"name": name, **self.figures(total)} for name, total in totals.items()]

    def _trivial(
        self, clips: Array, numbers: Array, mean: Array
    ) -> dict[str, Float[Array, "B U H W C"]]:
        """Trivial predictions by name."""
        if not self.conditioning.partial:
            return {
                name.replace("_", " "): baseline(clips, mean)
                for name, baseline in baselines_for(self.known).items()
            }
        mask = self._evaluation_mask(clips, numbers)
        shares = jnp.sum(mask, (1, 2, 3), keepdims=True)
        around = jnp.sum(jnp.where(mask > 0, clips, 0.0), (1, 2, 3), keepdims=True) / shares
        fillings = {"black": jnp.zeros_like(mean), "mean image": mean, "mean of known": around}
        return {name: jnp.where(mask > 0, clips, filling) for name, filling in fillings.items()}

    def _mean_image(self) -> Float[np.ndarray, "H W C"]:
        """The mean frame of training clips, in [0, 1]."""
        batches = EvaluationClips(
            self.source.splits["train"], self.config.data.batch_size, count=_MEAN_IMAGE_CLIPS
        )
        total = jax.jit(
            lambda batch: jnp.einsum(
                "b,bthwc->hwc", batch["weights"], _unit(self.source.render(batch))
            )
        )
        sums = [np.asarray(total(batches[number]), np.float64) for number in range(len(batches))]
        return sum(sums[1:], sums[0]) / (batches.count * self.source.clip_shape[0])

    def _variables(self, state: TrainState) -> Tree:
        """The network's (averaged) parameters and its statistics."""
        return {
            "params": state.evaluation_params()[NETWORK],
            "statistics": state.carry["statistics"],
        }

    # ---- generation ---------------------------------------------------------------------------

    def generate(self, state: TrainState, key: Key[Array, ""], request: Config) -> Iterator[Sample]:
        """Clips of the run's data or of the user, continued or filled."""
        assert isinstance(request, PredictionGenerationConfig)
        return generate_predictions(self, self._variables(state), key, request)

    def samples(self, state: TrainState, key: Key[Array, ""]) -> Iterable[Sample]:
        """Strips of known, true and predicted frames, always of the same clips."""
        del key
        clips = self.shown_clips(self.config.evaluation.split, self.config.samples.count)
        numbers = np.arange(len(clips), dtype=np.int32)
        predicted, mask = self.shown(self._variables(state), clips, numbers)
        return prediction_strips(clips, predicted, self.known, mask)

    def shown(
        self, variables: Tree, clips: UInt8[np.ndarray, "B T H W C"], numbers: Int[np.ndarray, "B"]
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B T H W 1"] | None]:
        """The clips with what is unknown of them predicted, and their masks if they have any."""
        return self._show(variables, clips, numbers)

    @functools.cached_property
    def _show(self) -> Any:
        def show(variables: Tree, clips: Array, numbers: Array) -> tuple[Array, Array | None]:
            scaled = _unit(clips)
            mask = self._evaluation_mask(scaled, numbers)
            # Whole everywhere, so that each of several processes can fetch all clips.
            return gathered((self._predictions(variables, scaled, numbers), mask))

        return jax.jit(show)

    def with_future(self, future: int) -> "FramePrediction":
        """The same task, with that many frames to predict in evaluations and samples."""
        evaluation = self.config.evaluation.model_copy(update={"future": future})
        return FramePrediction(self.config.model_copy(update={"evaluation": evaluation}))

    def shown_clips(self, split: str, count: int) -> UInt8[np.ndarray, "B T H W C"]:
        """The first clips of a split, in the order of evaluations, for people to look at."""
        source = self.evaluation_source
        return source.clips(split, EvaluationClips(source.splits[split], 1, count=count).order)

    # ---- counts -------------------------------------------------------------------------------

    def units_per_step(self) -> dict[str, int]:
        """Clips and all their frames, known ones included."""
        clips = self.config.data.batch_size
        return {"clips": clips, "frames": clips * len(self.conditioning.known)}

    def flops_per_step(self) -> float:
        """Three times the products of a forward pass."""
        return self._flops

    @functools.cached_property
    def _flops(self) -> float:
        _, *size = self.source.clip_shape
        batch = self.config.data.batch_size
        clips = jax.ShapeDtypeStruct((batch, len(self.conditioning.known), *size), jnp.float32)
        state = jax.eval_shape(self.init, jax.random.key(0))

        def forward(variables: Tree, clips: Array) -> Any:
            return self.view.complete(
                variables, clips, self._evaluation_mask(clips, jnp.arange(batch))
            )

        return 3.0 * count_flops(forward, self._variables(state), clips)


def _unit(clips: UInt8[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Stored clips in [0, 1]."""
    return clips.astype(jnp.float32) / 255.0
