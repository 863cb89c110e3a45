"""Video games that compile in seconds: configs, tasks, and networks of a few products.

Letters: B batch, T time, H height, W width, C channels, Z latent size, P patches.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.config import check
from genjax.task import Shard
from genjax.video.conditions import Conditions
from genjax.video.model_config import MoCoGANConfig, VGANConfig, VideoNetworks
from genjax.video.video_adversarial_config import VideoAdversarialConfig

CONTENT, MOTION = 3, 2
SHAPES = {"kind": "shape_motion", "size": 16}
_NORMAL = nn.initializers.normal(0.3)


class TinyGenerator(nn.Module):
    """tanh of a product of content, running sum of the motion's noise, class and first frame."""

    image_shape: tuple[int, int, int]
    num_classes: int = 0
    image_conditional: bool = False

    @nn.compact
    def __call__(self, latents, conditions: Conditions, *, train=False):
        assert (conditions.labels is None) == (self.num_classes == 0)
        assert (conditions.first is None) == (not self.image_conditional)
        content = latents[:, :CONTENT]
        mean = self.variable("statistics", "content_mean", jnp.zeros, (CONTENT,))
        if train and not self.is_initializing():
            mean.value += 0.1 * (content.mean(0) - mean.value)
        motion = jnp.cumsum(latents[:, CONTENT:].reshape(len(latents), -1, MOTION), 1)
        codes = [content[:, None], motion]
        if conditions.labels is not None:
            codes.append(jax.nn.one_hot(conditions.labels, self.num_classes)[:, None])
        if conditions.first is not None:
            codes.append(conditions.first.mean((1, 2, 3))[:, None, None])
        frames = motion.shape[:2]
        codes = jnp.concatenate(
            [jnp.broadcast_to(code, (*frames, code.shape[-1])) for code in codes], -1
        )
        size = int(np.prod(self.image_shape))
        kernel = self.param("kernel", _NORMAL, (codes.shape[-1], size))
        clips = jnp.tanh(codes @ kernel).reshape(*frames, *self.image_shape)
        if conditions.first is not None:
            clips = jnp.concatenate([conditions.first[:, None], clips[:, 1:]], 1)
        return clips


class MaskedGenerator(TinyGenerator):
    """Clips, and a mask for each frame that is a parameter's sigmoid."""

    def setup(self):
        pass

    @nn.compact
    def clip_and_mask(self, latents, conditions, *, train=False):
        clips = TinyGenerator(self.image_shape, self.num_classes, name="clips")(
            latents, conditions, train=train
        )
        mask = nn.sigmoid(self.param("mask", nn.initializers.zeros, ()))
        return mask * clips, jnp.broadcast_to(mask, clips[..., :1].shape)

    def __call__(self, latents, conditions, *, train=False):
        return self.clip_and_mask(latents, conditions, train=train)[0]


class TinyJudge(nn.Module):
    """P patches, each a product with the tanh of a product; a class adds to all of them."""

    num_classes: int = 0
    patches: int = 0

    @nn.compact
    def __call__(self, inputs, labels=None, *, train=False):
        assert (labels is None) == (self.num_classes == 0)
        flat = inputs.reshape(len(inputs), -1)
        hidden = jnp.tanh(flat @ self.param("hidden", _NORMAL, (flat.shape[1], 4)) / 8)
        logits = hidden @ self.param("output", _NORMAL, (4, self.patches or 1))
        if labels is not None:
            logits += self.param("classes", _NORMAL, (self.num_classes,))[labels][:, None]
        return logits if self.patches else logits[:, 0]


class TinyConfig(MoCoGANConfig):
    """Makes the networks above."""

    def latent_size(self, frames):
        return CONTENT + MOTION * frames

    def make(self, clip_shape, num_classes, image_conditional):
        return VideoNetworks(
            TinyGenerator(clip_shape[1:], num_classes, image_conditional),
            TinyJudge(num_classes, patches=2),
            TinyJudge(num_classes),
        )


class MaskedConfig(VGANConfig):
    """Makes the masked generator, and a discriminator of clips."""

    def latent_size(self, frames):
        return CONTENT + MOTION * 4

    def make(self, clip_shape, num_classes, image_conditional):
        generator = MaskedGenerator(clip_shape[1:], num_classes)
        return VideoNetworks(generator, None, TinyJudge(num_classes))


def configured(*, batch_size=8, frames=4, model: Any = None, **tables):
    """A checked config of the tiny networks, or of a model's table."""
    tables["evaluation"] = {"cache": None, "count": 16, **tables.get("evaluation", {})}
    data = {"source": SHAPES, "batch_size": batch_size, "frames": frames}
    tables["data"] = {**data, **tables.get("data", {})}
    masked = tables.pop("masked", False)
    chosen = model or {"kind": "vgan" if masked else "mocogan"}
    tree = {"kind": "video_adversarial", "model": chosen, **tables}
    config = check(tree, VideoAdversarialConfig)
    if model is not None:
        return config
    return config.model_copy(update={"model": MaskedConfig() if masked else TinyConfig()})


def unlabelled(monkeypatch):
    """Take the classes from every source that a task opens."""
    import dataclasses

    from genjax.video import video_adversarial

    opened = video_adversarial.open_clips

    def without(config, frames):
        source = opened(config, frames)

        def read(split):
            return lambda numbers: {
                name: array for name, array in split.read(numbers).items() if name != "labels"
            }

        splits = {
            name: dataclasses.replace(split, read=read(split))
            for name, split in source.splits.items()
        }
        return dataclasses.replace(source, splits=splits, num_classes=0, class_names=())

    monkeypatch.setattr(video_adversarial, "open_clips", without)


def trained(task, steps, seed=0):
    """The state after some steps, the one before, and the metrics of each step."""
    step = jax.jit(task.train_step, static_argnames="variant")
    first = state = jax.jit(task.init)(jax.random.key(seed))
    batches, metrics = task.dataset("train", Shard()), []
    for number in range(steps):
        state, new = step(state, batches[number], variant=task.variant(number))
        metrics.append({name: float(value) for name, value in new.items()})
    return state, first, metrics
