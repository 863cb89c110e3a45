"""What a video GAN's step is made of: clips from batches, and what its discriminators see of them.

Letters: B batch, T time, H height, W width, C channels, F frames judged of each clip.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from genjax.data.clip_source import LABELS, ClipSource
from genjax.image.adversarial_judge import Judge, View
from genjax.image.adversarial_step import DISCRIMINATOR, GeneratorPenalty, Material, to_float
from genjax.image.augmentation import Augmentation, make_augmentation
from genjax.image.augmentation_pixels import Probability
from genjax.nn.layout import split_clips
from genjax.parallel.partition import split_like_batch
from genjax.task import Batch
from genjax.video.conditions import Conditions
from genjax.video.model_config import VideoNetworks
from genjax.video.video_adversarial_config import VideoAdversarialConfig

FRAME = f"frame_{DISCRIMINATOR}"
CLIP = f"clip_{DISCRIMINATOR}"


def make_judges(config: VideoAdversarialConfig, networks: VideoNetworks) -> dict[str, Judge]:
    """The discriminators that a config names, each with what it is shown.

    Single frames are augmented each in its own way, and all frames of a clip in the same.

    Raises:
        ValueError: the model has no such discriminator.
    """
    augment = make_augmentation(config.augmentation)
    compared = getattr(networks.frame_discriminator, "group_size", 1)
    frames = random_frames(config.frames_judged, 1 if config.image_conditional else 0, compared)
    known = {
        "frame": (FRAME, networks.frame_discriminator, frames, augment),
        "clip": (CLIP, networks.clip_discriminator, whole_clips, over_time(augment)),
    }
    judges = {}
    for which in config.discriminators:
        name, network, view, change = known[which]
        if network is None:
            there = [one for one, (_, found, _, _) in known.items() if found is not None]
            raise ValueError(f"it has no {which} discriminator; set discriminators = {there}")
        judges[name] = Judge(network, view, change)
    return judges


def whole_clips(
    clips: Float[Array, "B T H W C"], conditions: Conditions, key: Key[Array, ""]
) -> tuple[Float[Array, "B T H W C"], Any]:
    """Clips as they are, and their labels."""
    del key
    return clips, conditions.labels


def random_frames(count: int, start: int = 0, compared: int = 1) -> View:
    """The view of `count` different frames of each clip, drawn anew each time.

    They come as one batch of images, those of a few clips one after another, so that a device
    keeps the clips that it has.

    Args:
        count: F.
        start: the first frame that may be drawn: 1 where frame 0 is given to the generator.
        compared: how many neighbours a discriminator compares with each other: so many clips (or
            the largest smaller number that divides the batch) take turns, since frames of one clip
            would tell motion, and not how much clips differ.
    """

    def view(
        clips: Float[Array, "B T H W C"], conditions: Conditions, key: Key[Array, ""]
    ) -> tuple[Float[Array, "N H W C"], Any]:
        size, time = clips.shape[:2]
        places = split_like_batch(jax.random.uniform(key, (size, time - start)))
        order = jnp.argsort(places, 1)[:, :count] + start
        frames = jnp.take_along_axis(clips, order[..., None, None, None], 1)
        several = next(n for n in range(min(compared, size), 0, -1) if size % n == 0)

        def in_turn(of_clips: Array) -> Array:
            grouped = of_clips.reshape(-1, several, *of_clips.shape[1:])
            return jnp.swapaxes(grouped, 1, 2).reshape(-1, *of_clips.shape[2:])

        labels = conditions.labels
        if labels is not None:
            labels = in_turn(jnp.broadcast_to(labels[:, None], order.shape))
        return in_turn(frames), labels

    return view


def over_time(augment: Augmentation) -> Augmentation:
    """An augmentation of images for clips: all frames of a clip share its draws."""

    def augment_clips(
        clips: Float[Array, "B T H W C"], key: Key[Array, ""], probability: Probability
    ) -> Float[Array, "B T H W C"]:
        return jax.vmap(lambda frames: augment(frames, key, probability), 1, 1)(clips)

    return augment_clips


def mirror_clips(
    clips: UInt8[Array, "B T H W C"], key: Key[Array, ""]
) -> UInt8[Array, "B T H W C"]:
    """Mirror each clip left and right with probability 1/2, all its frames alike."""
    flip = jax.random.bernoulli(key, 0.5, clips.shape[:1])
    return jnp.where(flip[:, None, None, None, None], clips[:, :, :, ::-1], clips)


def stored(clips: Float[Array, "B T H W C"]) -> UInt8[Array, "B T H W C"]:
    """Clips in about [-1, 1] as stored ones; what lies outside is clipped."""
    return jnp.clip(jnp.round((clips + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def make_conditions(
    clips: Float[Array, "B T H W C"], batch: Mapping[str, Any], image_conditional: bool
) -> Conditions:
    """What generated clips are conditioned on to stand beside real ones."""
    return Conditions(batch.get(LABELS), clips[:, 0] if image_conditional else None)


def make_material(
    config: VideoAdversarialConfig, source: ClipSource
) -> Callable[[Batch, Key[Array, ""]], Material]:
    """From a batch's descriptions to clips, drawn on the device, and their conditions."""

    def material(batch: Batch, key: Key[Array, ""]) -> Material:
        clips = source.render(batch)
        if config.data.mirror:
            clips = mirror_clips(clips, key)
        examples = split_clips(to_float(clips))
        return Material(examples, make_conditions(examples, batch, config.image_conditional))

    return material


def example_material(config: VideoAdversarialConfig, source: ClipSource) -> Material:
    """One black clip with its conditions, for shapes."""
    clips = jnp.full((1, *source.clip_shape), -1.0)
    batch = {LABELS: jnp.zeros((1,), jnp.int32)} if source.num_classes else {}
    return Material(clips, make_conditions(clips, batch, config.image_conditional))


def mask_penalty(config: VideoAdversarialConfig) -> GeneratorPenalty | None:
    """VGAN's price of foreground: the mean of the mask, or None where it costs nothing."""
    if not config.mask_weight:
        return None
    return GeneratorPenalty("mask", config.mask_weight, "clip_and_mask", jnp.mean)
