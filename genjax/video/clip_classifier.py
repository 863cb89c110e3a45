"""A small classifier of clips: a feature space of our own, and a judge of conditional models.

Its penultimate features stand in for I3D's where clips are not of human actions or no weights are
at hand. Figures in them carry its name and its accuracy on real clips: at 16 frames of 32x32 (seed
0, the 1,000 clips for validation) it tells the built-in shapes' four directions apart in 100% after
400 steps, and which of ten digits is moving in 84% after 800, less than a minute on two CPU cores.

Convolutions are factored into space and time, "(2+1)D" (Tran et al. 2018, "A closer look at
spatiotemporal convolutions for action recognition"), which a CPU computes as 2-D convolutions and
matrix products.

Letters: B batch, T time, H height, W width, C channels, K classes, F features.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num, UInt8

from genjax.data.clip_batches import EvaluationClips, training_batches
from genjax.data.clip_source import LABELS, ClipSource
from genjax.image.weight_files import load_trained, save_trained, shapes_of
from genjax.nn.convolution import Conv
from genjax.nn.dense import Dense

Tree = Any
"""A pytree of arrays."""

FEATURES = 64
"""Length of the features."""

_SMALLEST = 4
"""Height, width and number of frames at which halving stops."""

_BATCH_SIZE = 32
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-2
_HELD_OUT = 2000
"""Clips at most on which the accuracy is measured."""


class ClipClassifier(nn.Module):
    """Frames convolved by 3x3 in steps of 2 down to 4x4, each time followed by 3 in time.

    Convolutions in time take steps of 2 until 4 frames are left; one dense layer follows.

    Attributes:
        num_classes: number of classes K.
        width: channels of the first convolution; they double twice.
    """

    num_classes: int
    width: int = 12

    @nn.compact
    def __call__(
        self, clips: Float[Array, "B T H W C"]
    ) -> tuple[Float[Array, "B 64"], Float[Array, "B K"]]:
        """Features, 0 or more, and logits of clips in [-1, 1]."""
        x, channels = clips, self.width
        while max(x.shape[1:4]) > _SMALLEST or x is clips:
            batch, time = x.shape[:2]
            frames = x.reshape(batch * time, *x.shape[2:])
            stride = 2 if max(frames.shape[1:3]) > _SMALLEST else 1
            frames = nn.relu(Conv(channels, stride=stride)(frames))
            x = frames.reshape(batch, time, *frames.shape[1:])
            # Channels of the frame before, the frame and the frame after, side by side.
            step = 2 if time > _SMALLEST else 1
            padded = jnp.pad(x, ((0, 0), (1, 1), *[(0, 0)] * 3))
            near = [padded[:, i : i + time : step] for i in range(3)]
            dense = Dense(channels, kernel_init=nn.initializers.he_normal())
            x = nn.relu(dense(jnp.concatenate(near, -1)))
            channels = min(2 * channels, 4 * self.width)
        x = x.reshape(len(x), -1)
        features = nn.relu(Dense(FEATURES, kernel_init=nn.initializers.he_normal())(x))
        return features, Dense(self.num_classes)(features)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedClipClassifier:
    """A classifier with what to say beside its figures.

    Attributes:
        params: parameters of `module`.
        num_classes: number of classes K.
        width: as in `ClipClassifier`.
        clip_shape: (T, H, W, C) of the clips it knows.
        data: name of the data it was trained on.
        fingerprint: of that data, so that a stored classifier is found again.
        accuracy: on real clips that it was not trained on, between 0 and 1.
    """

    params: Tree
    num_classes: int
    width: int
    clip_shape: tuple[int, int, int, int]
    data: str
    fingerprint: str
    accuracy: float

    @property
    def module(self) -> ClipClassifier:
        """The network."""
        return ClipClassifier(self.num_classes, self.width)

    @property
    def label(self) -> str:
        """What figures are called by, such as "clip classifier:shape_motion 99.2%"."""
        return f"clip classifier:{self.data} {100 * self.accuracy:.1f}%"


def fit_clip_classifier(
    source: ClipSource, *, seed: int = 0, width: int = 12, steps: int = 800
) -> Tree:
    """Train a `ClipClassifier(source.num_classes, width)`; equal arguments give equal parameters.

    Adam with decoupled weight decay and a cosine schedule, batches of 32 clips of the split
    "train", each moved as a whole by up to a pixel in both directions.

    Args:
        source: labelled clips.
        seed: of initialisation, order and moves.
        width: as in `ClipClassifier`.
        steps: number of steps.
    """
    assert source.num_classes > 0
    module = ClipClassifier(source.num_classes, width)
    schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, steps // 20, steps)
    optimizer = optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Tree, opt_state: Tree, batch: Mapping[str, Array], key: Array) -> Any:
        moved = _move(key, source.render(batch))

        def loss(params: Tree) -> Array:
            logits: Any = module.apply({"params": params}, _scaled(moved))[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[LABELS]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    key_init, key_moves = jax.random.split(jax.random.key(seed))
    params = jax.jit(module.init)(key_init, jnp.zeros((1, *source.clip_shape)))["params"]
    opt_state = optimizer.init(params)
    batches = training_batches(source.splits["train"], _BATCH_SIZE, seed)
    for number in range(steps):
        batch = batches[number]
        assert batch is not None
        key = jax.random.fold_in(key_moves, number)
        params, opt_state = step(params, opt_state, batch, key)
    return params


def clip_accuracy(
    module: ClipClassifier, params: Tree, source: ClipSource, split: str = "validation"
) -> float:
    """Share of a split's clips whose likeliest class is their label, between 0 and 1.

    Of a large split 2000 clips are taken.
    """
    whole = source.splits[split]
    count = min(len(whole), _HELD_OUT)
    held_out = EvaluationClips(whole, min(count, 100), count=count)

    @jax.jit
    def count_right(params: Tree, batch: Mapping[str, Array]) -> Array:
        logits: Any = module.apply({"params": params}, _scaled(source.render(batch)))[1]
        return ((logits.argmax(1) == batch[LABELS]) * batch["weights"]).sum()

    right = sum(float(count_right(params, dict(batch))) for batch in held_out)
    return right / held_out.count


def train_clip_classifier(
    source: ClipSource, fingerprint: str, *, width: int = 12, steps: int = 800
) -> TrainedClipClassifier:
    """Train a classifier of a source's classes, and measure it on the split "validation".

    Args:
        source: labelled clips.
        fingerprint: to find it again by.
        width: as in `ClipClassifier`.
        steps: number of steps.
    """
    params = fit_clip_classifier(source, width=width, steps=steps)
    module = ClipClassifier(source.num_classes, width)
    return TrainedClipClassifier(
        params=params,
        num_classes=source.num_classes,
        width=width,
        clip_shape=source.clip_shape,
        data=Path(source.name).name,
        fingerprint=fingerprint,
        accuracy=clip_accuracy(module, params, source),
    )


def save_clip_classifier(path: Path, classifier: TrainedClipClassifier) -> None:
    """Write a classifier to an .npz file, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    about = {
        field.name: getattr(classifier, field.name)
        for field in dataclasses.fields(classifier)
        if field.name != "params"
    }
    save_trained(path, classifier.params, about, "clip classifier")


def load_clip_classifier(path: Path) -> TrainedClipClassifier:
    """Read a classifier that `save_clip_classifier` wrote.

    Raises:
        UserError: the file is missing or is not such a file.
    """

    def make(params: Tree, about: dict[str, Any]) -> TrainedClipClassifier:
        about["clip_shape"] = tuple(about["clip_shape"])
        classifier = TrainedClipClassifier(params=params, **about)
        clip = jax.ShapeDtypeStruct((1, *classifier.clip_shape), jnp.float32)
        expected = jax.eval_shape(classifier.module.init, jax.random.key(0), clip)["params"]
        if shapes_of(params) != shapes_of(expected):
            raise ValueError("its arrays have other shapes")
        return classifier

    return load_trained(path, make, "clip classifier")


def _scaled(clips: Num[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    return clips.astype(jnp.float32) / 127.5 - 1


def _move(key: Array, clips: UInt8[Array, "B T H W C"]) -> UInt8[Array, "B T H W C"]:
    """Each clip moved by -1, 0 or 1 pixel down and right; its border is repeated."""
    padded = jnp.pad(clips, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(clips), 2), 0, 3)

    def cut(clip: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(clip, (0, corner[0], corner[1], 0), clips.shape[1:])

    return jax.vmap(cut)(padded, corners)
